// Quantised storage in safetensors folders: what config.json's quantization_config says, and values joined
// with their scales. Formats: docs/MODELS.md.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_store.h"

namespace consilium {

struct QuantConfig {
  enum class Method : uint8_t {
    kNone,
    kFp8,            // quant_method fp8: E4M3 blocks, or whole matrices, with weight_scale_inv
    kPackedInt4,     // compressed-tensors pack-quantized, symmetric, groups along the input
    kCompressedFp8,  // compressed-tensors float-quantized: E4M3 with weight_scale
    kMxfp4,          // gpt-oss
  };
  Method method = Method::kNone;
  uint32_t block_rows = 0, block_columns = 0;  // kFp8 and kCompressedFp8; 0: the whole extent
  uint32_t group = 0;                          // kPackedInt4
  std::vector<std::string> ignore;             // modules kept as they are; "re:" begins a pattern
};

// Reads the text of a config.json. INVALID_ARGUMENT, UNIMPLEMENTED name the key, expected and got. Pure.
absl::StatusOr<QuantConfig> ParseQuantConfig(std::string_view config_text, const std::string& source);

// Joins X.weight with X.weight_scale_inv, X.weight_packed with its scale and shape, X_blocks with X_scales,
// into one tensor X.weight (X) of the right coding each. A part without the other, sizes that do not fit,
// quantised data of a module that the config keeps plain, or none of the config at all: INVALID_ARGUMENT.
absl::Status JoinQuantised(const QuantConfig& config, const std::vector<std::string>& files,
                           std::vector<TensorInfo>* tensors);

}  // namespace consilium
