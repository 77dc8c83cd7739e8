// Manifests kept in the state folder, so that hashing a model happens once. A kept manifest is used only
// while all files have the size and time they had; anything unreadable counts as absent.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "common/model/files.h"
#include "common/model/model_store.h"

namespace consilium {

// The files a manifest depends on, with their stamps, in order.
struct ManifestSources {
  std::string dir;  // absolute, the key
  std::vector<std::pair<std::string, FileStamp>> files;
  bool operator==(const ManifestSources&) const = default;
};

std::string ManifestCachePath(const std::string& state_dir, const std::string& dir);
std::optional<Manifest> LoadCachedManifest(const std::string& state_dir, const ManifestSources& sources);
// Makes the folder when needed. A failure is the caller's to log: the manifest itself is good.
absl::Status StoreCachedManifest(const std::string& state_dir, const ManifestSources& sources,
                                 const Manifest& manifest);

}  // namespace consilium
