// Ranged reads of a model's files. No mmap in the contract: a truncated network file must not kill a shard.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/hash.h"
#include "common/base/ids.h"
#include "common/tensor/dtype.h"

namespace consilium {

struct ByteRange {
  uint32_t file = 0;  // index into Manifest::files
  uint64_t offset = 0, length = 0;
};

// One tensor as stored. Shape row-major.
struct TensorInfo {
  std::string name;  // in the file
  std::string role;  // canonical, of dense tensors: "embed", "layers.3.q" (families/family.h)
  DType dtype = DType::kF32;
  std::vector<uint64_t> shape;
  ByteRange range;
};

enum class ExpertPart : uint8_t { kGate, kUp, kDown };

// Where one routed expert lies and who it is. Identity: digest over format and canonical source tensors.
struct ExpertEntry {
  LayerId layer;
  ExpertId expert;
  Digest digest{};
  uint64_t checksum = 0;  // XXH3-64 over the parts' bytes in order gate, up, down; verified at every load
  TensorInfo parts[3];    // by ExpertPart; shapes [I, H], [I, H], [H, I]
  uint64_t bytes() const { return parts[0].range.length + parts[1].range.length + parts[2].range.length; }
};

// Everything a process needs to find its bytes, computed once at import.
struct Manifest {
  std::string id;                    // name at the API: the folder's name unless given
  Digest digest{};                   // over config, experts' digests and all other tensors
  std::vector<std::string> files;    // absolute paths
  std::vector<ExpertEntry> experts;  // by (layer, expert), layers ascending
  std::vector<TensorInfo> dense;     // all other tensors, by role
  const ExpertEntry* FindExpert(LayerId layer, ExpertId expert) const;
  const TensorInfo* FindDense(std::string_view role) const;
};

// Reads the manifest of a model folder from `state_dir` when it is there and fits the files (size, mtime),
// else makes it (reads and hashes everything, in parallel, with progress in the log) and stores it there;
// state_dir "" keeps nothing. Every tensor of the files must be claimed by a role exactly once: a missing,
// doubled, misshapen or unknown tensor is INVALID_ARGUMENT that says which file, tensor, expected, got.
absl::StatusOr<Manifest> OpenManifest(const std::string& dir, const std::string& state_dir);

// Thread-safe.
class ModelStore {
 public:
  virtual ~ModelStore() = default;
  // Fills `out` (range.length bytes). DATA_LOSS names file and offset on a short file.
  virtual absl::Status Read(const ByteRange& range, std::span<std::byte> out) = 0;
};
std::unique_ptr<ModelStore> OpenFolderStore(const Manifest& manifest);

}  // namespace consilium
