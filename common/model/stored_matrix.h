// Stored tensors as what the kernels compute with. The one place that knows slices, orders and codings:
// whoever loads weights asks here. Quantised matrices stay quantised.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_store.h"
#include "kernels/api/kernels.h"

namespace consilium {

// A tensor over bytes in memory; views both.
struct TensorBytes {
  std::span<const std::byte> values, scales, zeros;
};
// What kernels::Pack and DequantizeRow take; the bytes are as OwnedTensor holds them. `row_map` holds the
// order of rows where it is not their own; it must live as long as the result. INVALID_ARGUMENT,
// UNIMPLEMENTED name the tensor.
absl::StatusOr<kernels::WeightSource> SourceOf(const TensorInfo& tensor, TensorBytes bytes,
                                               std::vector<uint32_t>* row_map);

// Fills the span with the bytes of a range.
using RangeReader = std::function<absl::Status(const ByteRange&, std::span<std::byte>)>;

RangeReader ReaderOf(ModelStore* store);

// Values, scales and zero points of a tensor in one buffer, which is kept from tensor to tensor. AWQ's words
// lie there in GPTQ's order (word_matrix.h).
class OwnedTensor {
 public:
  absl::Status Read(const TensorInfo& tensor, const RangeReader& read);
  TensorBytes bytes() const;

 private:
  std::unique_ptr<std::byte[]> buffer_;
  size_t values_ = 0, scales_ = 0, zeros_ = 0, capacity_ = 0;
};

// All values as f32, row-major [rows, columns], or the vector.
absl::StatusOr<std::vector<float>> LoadFloats(const TensorInfo& tensor, ModelStore* store);
absl::StatusOr<std::vector<float>> WidenTensor(const TensorInfo& tensor, TensorBytes bytes);

// The matrix packed in the form of its coding, read some rows at a time where the order of rows allows it: at
// most kStagingBytes of the source lie in memory beside it then.
absl::StatusOr<kernels::PackedMatrix> LoadMatrix(const TensorInfo& tensor, ModelStore* store);

// The form that the tensor's matrix has in memory when it is packed as stored.
kernels::WeightFormat FormatOf(const TensorInfo& tensor);

// In what form routed experts lie in memory: kInt8 and kInt4 are quantised at load, with one scale of
// kQuantScale for 32 weights.
enum class WeightsAs : uint8_t { kStored, kInt8, kInt4 };
inline constexpr DType kQuantScale = DType::kF16;
kernels::WeightFormat QuantFormat(WeightsAs as);  // of kInt8, kInt4

// One routed expert: reads ExpertEntry::Ranges(), verifies the checksum (DATA_LOSS), packs or quantises;
// `error` (may be null) gets what quantising lost. Activation and its constants are the caller's.
absl::StatusOr<kernels::FfnWeights> LoadExpert(const ExpertEntry& entry, ModelStore* store,
                                               WeightsAs as = WeightsAs::kStored,
                                               kernels::QuantError* error = nullptr);

// The two halves of latent attention's kv_b, absorbed (arXiv 2405.04434, section 2.1): of head h, absorb_k[h]
// is U^T [kv_lora, nope] and expand_v[h] is V [v_dim, kv_lora]. `kv_b` is [heads * (nope + v_dim), kv_lora].
struct LatentHeads {
  std::vector<kernels::PackedMatrix> absorb_k, expand_v;
  uint64_t bytes() const;
};
absl::StatusOr<LatentHeads> LoadLatentHeads(const TensorInfo& kv_b, uint32_t heads, uint32_t nope,
                                            uint32_t v_dim, ModelStore* store);
// From files that store them apart (GGUF): k_b [heads, kv_lora, nope], v_b [heads, v_dim, kv_lora].
absl::StatusOr<LatentHeads> LoadLatentHeads(const TensorInfo& k_b, const TensorInfo& v_b, ModelStore* store);

}  // namespace consilium
