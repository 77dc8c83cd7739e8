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

// Norm of queries and keys: none, over each head before or after rotation, over the whole projection before
// it, or over each head after rotation without a weight and on rotated layers only (Llama-4).
enum class QkNorm : uint8_t { kNone, kHead, kHeadRotated, kProjection, kUnitRotated };

struct GqaSpec {
  uint32_t q_heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;  // multiplies q.k; usually head_dim^-0.5
  bool qkv_bias = false, o_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  float clip = 0;         // q, k, v are clamped to +-clip before rotation; 0: not
  bool sinks = false;     // a logit per head beside the keys'
  float soft_cap = 0;     // scores become cap * tanh(score / cap); 0: not
  bool out_gate = false;  // q is [query | gate] of each head; what a head attended is * sigmoid(gate)
};

struct MlaSpec {
  uint32_t heads = 0;
  uint32_t q_lora = 0;  // 0: q_proj directly
  uint32_t kv_lora = 0, nope = 0, rope = 0, v_dim = 0;
  float scale = 0;         // (nope + rope)^-0.5, times mscale^2 where the family says so
  float norm_eps = 1e-6f;  // of q_a and kv_a norms
  bool bias = false;       // of q_a, kv_a and o
};

struct RopeSpec {
  uint32_t dims = 0;  // rotary lanes of a head
  bool interleaved = false;
  float attention_scaling = 1;  // multiplies cos and sin
  std::vector<float> inv_freq;  // [dims / 2], every scaling applied
  // longrope: requests that may grow beyond `original` positions use these tables from their first token on.
  uint32_t original = 0;  // 0: one table for all
  std::vector<float> long_inv_freq;
  float long_attention_scaling = 1;
};

// Queries are multiplied by 1 + beta * ln(1 + floor((position + offset) / floor)) on layers that say so.
struct QueryTuning {
  float beta = 0;
  uint32_t floor = 1, offset = 0;
};

enum class NormKind : uint8_t { kRms, kLayer };

enum class FfnKind : uint8_t { kDense, kMoe };

// How a layer reads the tokens before: attention (GQA or MLA), a short convolution (LFM2), or a gated delta
// rule (Qwen3-Next).
enum class Mixer : uint8_t { kAttention, kShortConv, kDeltaNet };

// [B | C | X] = in(h); each channel sums B * X of the last `taps` tokens by its own weights; out(C * sum).
struct ShortConvSpec {
  uint32_t taps = 0;
  bool bias = false;  // of in, of the sum and of out
};

// Gated delta net (arXiv 2412.06464). delta_in(h) holds for each key head its query, key, and the values and
// output gates of its value heads; delta_gates(h) for each key head b and a of its value heads. Query, key
// and value lanes pass a convolution over `taps` tokens and silu; query and key are normed to length 1; then
// kernels::DeltaRule of each value head with beta = sigmoid(b), decay = exp(-exp(a_log) softplus(a +
// dt_bias)); out(RmsNorm(y) * silu(output gate)).
struct DeltaNetSpec {
  uint32_t k_heads = 0, v_heads = 0;  // v_heads a multiple of k_heads
  uint32_t k_dim = 0, v_dim = 0;
  uint32_t taps = 0;
  bool split = false;  // instead: delta_qkv, delta_z, delta_b and delta_a, each in the order of its heads
  uint32_t k_width() const { return k_heads * k_dim; }
  uint32_t v_width() const { return v_heads * v_dim; }
  uint32_t channels() const { return 2 * k_width() + v_width(); }  // of the convolution
  size_t head_state_floats() const;
};

struct LayerSpec {
  Mixer mixer = Mixer::kAttention;
  FfnKind ffn = FfnKind::kMoe;
  uint32_t dense_inter = 0;   // kDense
  uint32_t shared_inter = 0;  // kMoe: width of the shared expert, 0: none
  uint32_t window = 0;        // tokens a query sees, itself included; 0: all
  uint32_t chunk = 0;         // a query sees its own chunk of positions only; 0: all
  bool rotates = true;        // false: no rotary embedding
  bool tunes_queries = false;
};

// Shapes in the notation of docs/MODELS.md: H hidden, V vocab, E experts, I expert intermediate.
struct ModelSpec {
  std::string family;  // "deepseek_v3", "mixtral"
  uint32_t hidden = 0, vocab = 0, context = 0;
  NormKind norm = NormKind::kRms;  // of blocks and the final one
  bool norm_bias = false;          // kLayer
  bool post_norms = false;         // sandwich: attention and FFN outputs are normed before they are added
  float norm_eps = 0;
  bool norm_plus_one = false;  // norms of blocks, the final one, queries and keys multiply by 1 + weight
  bool tied_embeddings = false;
  bool mla_attention = false;
  GqaSpec gqa;
  MlaSpec mla;
  ShortConvSpec short_conv;
  DeltaNetSpec delta_net;
  RopeSpec rope;
  QueryTuning tuning;
  float embed_scale = 1;     // multiplies embedding rows
  float residual_scale = 1;  // multiplies what attention and FFN add
  float logit_scale = 1;     // multiplies logits
  bool head_bias = false;
  std::vector<LayerSpec> layers;
  kernels::GateSpec gate;         // of every MoE layer
  bool gate_weight_bias = false;  // router logits have a bias of their own (gpt-oss)
  bool scale_expert_input =
      false;                 // the gate's weight multiplies the expert's input row, not its output; top_k 1
  bool shared_gate = false;  // the shared expert's output is multiplied by sigmoid(shared_gate . x)
  bool expert_bias = false;
  uint32_t expert_inter = 0;
  kernels::Activation activation = kernels::Activation::kSilu;
  float swiglu_alpha = 0, swiglu_limit = 0;  // Activation::kSwigluClamped
  std::vector<TokenId> eos_ids;              // of config.json and generation_config.json

  // Sizes are those of every layer; window and chunk of `layer`.
  kernels::AttentionShape attention_shape(uint32_t layer = 0) const;
  // What a layer keeps of kernels::kKvPageTokens tokens, in floats: keys and values of attention.
  struct KvPageFloats {
    size_t k = 0, v = 0;
    size_t all() const { return k + v; }
  };
  KvPageFloats kv_page_floats(uint32_t layer) const;
  uint64_t kv_page_bytes() const;  // of all layers
  // What a layer keeps of a sequence whatever its length, in floats: the last taps - 1 inputs of its
  // convolution, oldest first, then of a delta net the states of its value heads.
  size_t state_floats(uint32_t layer) const;
  uint64_t state_bytes() const;  // of all layers; 0: no state
  uint32_t moe_layers() const;
  uint32_t experts_total() const { return moe_layers() * gate.experts; }
};

// Reads DIR/config.json or params.json (and generation_config.json for stop ids). INVALID_ARGUMENT says which
// key, expected and got; UNIMPLEMENTED names an unknown family and lists the known ones.
absl::StatusOr<ModelSpec> ReadModelSpec(const std::string& dir);
// The same for the text of a config.json; `source` names it in messages. `unread`: its keys that nothing
// depends on. Pure: a fuzz target can feed it anything.
absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_text, const std::string& source,
                                         std::vector<std::string>* unread = nullptr);
// DIR/config.json, or DIR/params.json (Mistral's own layout) where that is missing.
std::string ModelConfigPath(const std::string& dir);

}  // namespace consilium
