// A GGUF file as a model: its metadata as the config.json that Hugging Face's classes would have, its tensors
// by role. So GGUF takes the families' one path (families/family.h); only spellings are translated here.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/gguf.h"

namespace consilium {

// The file, or all of "NAME-00001-of-0000N.gguf": metadata of the first, tensors of all.
struct GgufFiles {
  std::vector<std::string> files;  // absolute
  Gguf gguf;
};
absl::StatusOr<GgufFiles> ReadGgufFiles(const std::string& path);

// UNIMPLEMENTED names an unknown architecture and lists the known ones. Pure.
absl::StatusOr<std::string> GgufConfigJson(const Gguf& gguf, const std::string& source);

// All tensors with `role` set: dense ones as "layers.3.q", stacked experts cut into "layers.3.experts.17.up"
// and, biases, "layers.3.experts.17.up_bias". Tensors of prediction layers past the decoder's are left out;
// others that no role is known for keep an empty one. Pure.
absl::StatusOr<std::vector<TensorInfo>> GgufTensors(const Gguf& gguf, const std::string& source);

}  // namespace consilium
