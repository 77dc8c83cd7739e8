// What a model is, independent of its family's spelling: the families' table (families/) maps a config.json
// to this, and tensor names to roles. The decoder (services/attention) and the expert backend read only this.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "kernels/api/kernels.h"

namespace consilium {

struct GqaSpec {
  uint32_t q_heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;      // multiplies q.k; usually head_dim^-0.5
  uint32_t window = 0;  // 0: full
  bool qkv_bias = false, o_bias = false;
};

struct MlaSpec {
  uint32_t heads = 0;
  uint32_t q_lora = 0;  // 0: q_proj directly
  uint32_t kv_lora = 0, nope = 0, rope = 0, v_dim = 0;
  float scale = 0;         // (nope + rope)^-0.5, times mscale^2 where the family says so
  float norm_eps = 1e-6f;  // of q_a and kv_a norms
};

struct RopeSpec {
  uint32_t dims = 0;  // rotary lanes of a head
  bool interleaved = false;
  float attention_scaling = 1;  // multiplies cos and sin
  std::vector<float> inv_freq;  // [dims / 2], every scaling applied
};

enum class FfnKind : uint8_t { kDense, kMoe };

struct LayerSpec {
  FfnKind ffn = FfnKind::kMoe;
  uint32_t dense_inter = 0;   // kDense
  uint32_t shared_inter = 0;  // kMoe: width of the shared expert, 0: none
};

// Shapes in the notation of docs/MODELS.md: H hidden, V vocab, E experts, I expert intermediate.
struct ModelSpec {
  std::string family;  // "deepseek_v3", "mixtral"
  uint32_t hidden = 0, vocab = 0, context = 0;
  float norm_eps = 0;
  bool tied_embeddings = false;
  bool mla_attention = false;
  GqaSpec gqa;
  MlaSpec mla;
  RopeSpec rope;
  std::vector<LayerSpec> layers;
  kernels::GateSpec gate;  // of every MoE layer
  uint32_t expert_inter = 0;
  kernels::Activation activation = kernels::Activation::kSilu;
  std::vector<TokenId> eos_ids;  // of config.json and generation_config.json

  kernels::AttentionShape attention_shape() const;
  uint32_t moe_layers() const;
  uint32_t experts_total() const { return moe_layers() * gate.experts; }
};

// Reads DIR/config.json (and generation_config.json for stop ids). INVALID_ARGUMENT says which key, expected
// and got; UNIMPLEMENTED names an unknown family and lists the known ones.
absl::StatusOr<ModelSpec> ReadModelSpec(const std::string& dir);
// The same for the text of a config.json; `source` names it in messages. Pure: a fuzz target can feed it
// anything.
absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_text, const std::string& source);

}  // namespace consilium
