// The safetensors format: 8 bytes little-endian header length N, N bytes JSON {name: {dtype, shape,
// data_offsets}}, then the tensors' bytes. Strict: tensors must tile the data without gap or overlap.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_store.h"

namespace consilium {

inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;  // the format's own bound

// Parses the first bytes of a file: 8 + N of them, or as many as there are. `file_size` is the whole file's;
// ranges come back as `file` and absolute offsets, in order of offset. Pure, so that a fuzz target can feed
// it anything. INVALID_ARGUMENT names `source`, tensor, expected and got.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> head, uint64_t file_size,
                                                         uint32_t file, const std::string& source);
// Reads and parses the header of a file.
absl::StatusOr<std::vector<TensorInfo>> ReadSafetensors(const std::string& path, uint32_t file);

// "[3, 4]".
std::string ShapeText(std::span<const uint64_t> shape);

}  // namespace consilium
