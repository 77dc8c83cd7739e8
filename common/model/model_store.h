// Ranged reads of a model's files. No mmap in the contract: a truncated network file must not kill a shard.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
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
  bool operator==(const ByteRange&) const = default;
};

// How the values of a tensor are coded. Layouts: docs/MODELS.md; all but kPlain are [out, in] matrices.
enum class Coding : uint8_t {
  kPlain,      // elements of `dtype`, row-major
  kFp8Block,   // F8_E4M3 elements; scales [ceil(out / block_rows), ceil(in / block_columns)] multiply
  kInt4Group,  // compressed-tensors pack-quantized: 4 bits, value + 8, low nibble first; scales [out, in /
               // group], zero points words [out / 8, in / group] of eight rows
  kMxfp4,      // OCP MX: E2M1 pairs, low nibble = even element; scales E8M0 [out, in / 32]
  // GGUF blocks, scales inside the values.
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4K,
  kQ5K,
  kQ6K,
  kMxfp4Ggml,
  kInt8Group,  // compressed-tensors pack-quantized: 8 bits, value + 128; scales [out, in / group]
  kInt8,       // compressed-tensors int-quantized: signed bytes; scales [out, in / group]
  // 32-bit words of eight (four) inputs of one output, [in / 8, out]; scales [in / group, out], zero points
  // words [in / group, out / 8] of eight (four) outputs.
  kGptq4,
  kGptq8,
  kAwq,  // words of eight outputs, [in, out / 8], in the order 0 2 4 6 1 3 5 7; zero points likewise
  // GGUF blocks.
  kIq4Nl,
  kIq4Xs,
  kQ2K,
  kQ3K,
};
std::string_view CodingName(Coding coding);

// One matrix or vector of the model, and where its bytes are. `shape` is what the model computes with, [out,
// in] or [n]; the ranges may hold more rows than that (gate and up interleaved), or columns for rows.
struct TensorInfo {
  std::string
      name;  // in the file; of a part of a stack: the name that a file with one tensor for each would use
  std::string role;  // canonical, of dense tensors: "embed", "layers.3.q" (families/family.h)
  DType dtype = DType::kF32;
  std::vector<uint64_t> shape;
  ByteRange range;  // the values
  Coding coding = Coding::kPlain;
  ByteRange scales, zeros;  // length 0: none
  DType scale_dtype = DType::kF32;
  uint32_t block_rows = 0, block_columns = 0;  // one scale for each such block
  bool zeros_minus_one = false;                // stored are zero points less one (GPTQ's first format)
  bool centred = false;                        // zero points are the middle of the codes, which is checked
  // Row r is stored row (with `transposed`: column) first_row + r * row_step of `range`.
  uint32_t first_row = 0, row_step = 1;
  bool transposed = false;  // `range` is [in, rows stored]
  // Not 0: rows of each head of this many lie in adjacent-pair rotary order (GGUF of llama); half order is
  // meant.
  uint32_t rotary_head = 0;

  uint64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  uint64_t columns() const;  // product of the other dimensions
  uint64_t elements() const { return rows() * columns(); }
  std::array<ByteRange, 3> ranges() const { return {range, scales, zeros}; }      // in the order of sums
  uint64_t bytes() const { return range.length + scales.length + zeros.length; }  // to read
};

// "BF16", "Q4_K": what a message or a table calls it.
std::string_view FormatName(const TensorInfo& tensor);

enum class ExpertPart : uint8_t { kGate, kUp, kDown };

// Where one routed expert lies and who it is. Identity: digest over format and source tensors.
struct ExpertEntry {
  LayerId layer;
  ExpertId expert;
  Digest digest{};
  uint64_t checksum = 0;  // XXH3-64 over the bytes of Ranges(), in order; verified at every load
  TensorInfo parts[3];    // by ExpertPart; shapes [I, H], [I, H], [H, I]
  TensorInfo biases[3];   // by ExpertPart; empty shape: none
  bool has_biases() const { return !biases[0].shape.empty(); }
  // Every range once: values, scales, zero points of gate, up, down, then biases. Gate and up may share
  // theirs.
  std::vector<ByteRange> Ranges() const;
  uint64_t bytes() const;  // of Ranges()
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

// Reads the manifest of a model from `state_dir`, or from beside the model, when it is there and fits the
// files (size, mtime), else makes it (reads and hashes everything, in parallel, with progress in the log) and
// stores it in `state_dir`; "" keeps nothing. Never writes into the model's folder. Every tensor of the files
// must be claimed by a role exactly once: a missing, doubled, misshapen or unknown tensor is INVALID_ARGUMENT
// that says which file, tensor, expected, got.
absl::StatusOr<Manifest> OpenManifest(const std::string& dir, const std::string& state_dir);

struct Import {
  Manifest manifest;
  std::string kept;   // the file
  bool made = false;  // false: a good one was there
};
// Makes the manifest ahead of the first start and keeps it: in `state_dir`, or beside the model when that is
// "", where every process finds it that is given the model, on whatever machine. UNAVAILABLE names a place
// that cannot be written, before anything is hashed.
absl::StatusOr<Import> ImportModel(const std::string& dir, const std::string& state_dir);

// Thread-safe.
class ModelStore {
 public:
  virtual ~ModelStore() = default;
  // Fills `out` (range.length bytes). DATA_LOSS names file and offset on a short file.
  virtual absl::Status Read(const ByteRange& range, std::span<std::byte> out) = 0;
};
std::unique_ptr<ModelStore> OpenFolderStore(const Manifest& manifest);

// Of a model's files that one thread holds at a time.
inline constexpr uint64_t kStagingBytes = uint64_t{4} << 20;
// Calls `take` with the bytes of a range, at most kStagingBytes at a time, in order. `buffer`: workspace.
absl::Status ReadPieces(ModelStore* store, const ByteRange& range, std::vector<std::byte>* buffer,
                        const std::function<void(std::span<const std::byte>)>& take);

}  // namespace consilium
