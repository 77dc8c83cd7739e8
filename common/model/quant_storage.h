// Quantised storage in safetensors folders: what config.json's quantization_config says, and values joined
// with their scales. Formats: docs/MODELS.md.
#pragma once
#include <re2/re2.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_store.h"

namespace consilium {

// How matrices are stored.
struct QuantScheme {
  enum class Method : uint8_t {
    kNone,
    kFp8,            // quant_method fp8, modelopt: E4M3 blocks, or whole matrices, with weight_scale_inv
    kPacked,         // compressed-tensors pack-quantized, groups along the input
    kInt8,           // compressed-tensors int-quantized
    kCompressedFp8,  // compressed-tensors float-quantized: E4M3 with weight_scale
    kMxfp4,          // gpt-oss; compressed-tensors mxfp4-pack-quantized
    kGptq,
    kAwq,
  };
  Method method = Method::kNone;
  uint32_t block_rows = 0, block_columns = 0;  // kFp8 and kCompressedFp8; 0: the whole extent
  // Of integers: inputs that share a scale, 0: the whole row; whether zero points are the middle of the codes
  // (compressed-tensors has none then), or stored less one.
  uint32_t bits = 4, group = 0;
  bool symmetric = true, zeros_minus_one = false;
  bool operator==(const QuantScheme&) const = default;
};

// Modules are names; "re:" begins a pattern.
struct QuantConfig : QuantScheme {  // of the modules that no group names
  struct Group {
    std::vector<std::string> modules;
    QuantScheme scheme;
  };
  std::vector<Group> groups;        // names go before patterns, then the first one
  std::vector<std::string> ignore;  // modules kept as they are
};

// Reads the text of a config.json. INVALID_ARGUMENT, UNIMPLEMENTED name the key, expected and got. Pure.
absl::StatusOr<QuantConfig> ParseQuantConfig(std::string_view config_text, const std::string& source);

// How patterns of modules are compiled.
RE2::Options ModulePatternOptions();

// Joins X.weight with X.weight_scale_inv or X.weight_scale, X.weight_packed with its scale, zero points and
// shape, X.qweight with scales and qzeros, X_blocks with X_scales, into one tensor X.weight (X) of the right
// coding each. A part without the other, sizes that do not fit, quantised data of a module that the config
// keeps plain, or none of the config at all: INVALID_ARGUMENT.
absl::Status JoinQuantised(const QuantConfig& config, const std::vector<std::string>& files,
                           std::vector<TensorInfo>* tensors);

}  // namespace consilium
