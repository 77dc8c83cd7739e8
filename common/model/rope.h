// Rotary frequencies of a config: both spellings (rope_theta + rope_scaling, and rope_parameters) and the
// scalings default, linear, dynamic, llama3, yarn and longrope. Formulas: Transformers' modeling_rope_utils;
// docs/MODELS.md.
#pragma once
#include <cstdint>

#include "common/model/config_reader.h"
#include "common/model/model_spec.h"

namespace consilium {

struct RopeRead {
  RopeSpec rope;
  // g(mscale_all_dim)^2, what DeepSeek's attention multiplies its softmax scale by; 1 without such a key.
  double mscale_all_squared = 1;
};

// `dims`: rotary lanes of a head, even. `context`: max_position_embeddings. Errors are recorded in `config`.
RopeRead ReadRope(ConfigReader& config, uint32_t dims, bool interleaved, uint32_t context);
// Of Mistral's params.json: rope_theta and the object "yarn" (may be null), whose tables are never
// multiplied.
RopeSpec ReadNativeYarn(ConfigReader& config, ConfigReader* yarn, uint32_t dims, uint32_t context);

}  // namespace consilium
