// The GGUF format, version 3 (ggml docs/gguf.md): a header with metadata and tensor places, then aligned
// data. Strict and bounded: counts are believed only as far as the bytes reach.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_store.h"

namespace consilium {

// Integers of all widths become int64 (u64 above that is refused), both floats double.
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<std::string>>;

struct Gguf {
  std::map<std::string, GgufValue> metadata;
  std::vector<TensorInfo> tensors;  // in order of offset; shapes as [..., out, in], slowest first

  // Typed reads; nullopt when absent. INVALID_ARGUMENT names key, expected and got.
  absl::StatusOr<std::optional<int64_t>> Integer(const std::string& key) const;
  absl::StatusOr<std::optional<double>> Number(const std::string& key) const;  // integers too
  absl::StatusOr<std::optional<bool>> Bool(const std::string& key) const;
  absl::StatusOr<std::optional<std::string>> Text(const std::string& key) const;
  const std::vector<std::string>* Texts(const std::string& key) const;  // null: absent or another type
  const std::vector<int64_t>* Integers(const std::string& key) const;
  const std::vector<double>* Numbers(const std::string& key) const;
};

inline constexpr uint64_t kGgufHeaderBytesMax = uint64_t{512} << 20;

// Parses the first bytes of a file of `file_size`. OUT_OF_RANGE: more of the file is needed; INVALID_ARGUMENT
// names `source`, key or tensor, expected and got. Pure, so that a fuzz target can feed it anything.
absl::StatusOr<Gguf> ParseGguf(std::span<const std::byte> head, uint64_t file_size, uint32_t file,
                               const std::string& source);
// Reads as much of the file as its header needs.
absl::StatusOr<Gguf> ReadGguf(const std::string& path, uint32_t file);

}  // namespace consilium
