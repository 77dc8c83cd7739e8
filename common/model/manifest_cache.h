// Manifests kept in a file, so that hashing a model happens once. A kept manifest is used only while all
// files have the size and time they had; anything unreadable counts as absent. It names files relative to the
// model's folder, so it stays good where the folder is mounted under another path.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/model/files.h"
#include "common/model/model_files.h"
#include "common/model/model_store.h"

namespace consilium {

// The files a manifest depends on, absolute, with their stamps, in order.
struct ManifestSources {
  std::string dir;  // the model's folder, absolute
  std::vector<std::pair<std::string, FileStamp>> files;
};

// In the state folder: a file for each model.
std::string StateManifestPath(const std::string& state_dir, const ModelPlace& place);
// Beside the model: consilium-manifest.json in its folder, of a GGUF file NAME.gguf.consilium-manifest.json.
std::string BesideManifestPath(const ModelPlace& place);

std::optional<Manifest> LoadKeptManifest(const std::string& path, const ManifestSources& sources);
// Makes the folder when needed.
absl::Status KeepManifest(const std::string& path, const ManifestSources& sources, const Manifest& manifest);

}  // namespace consilium
