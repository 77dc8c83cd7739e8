// The dense part of a model as the CPU backend computes with it: everything but the routed experts, packed at
// load.
#pragma once
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "kernels/api/kernels.h"

namespace consilium {

struct NormWeights {
  std::vector<float> weight, bias;  // [H]; bias empty: none
};

struct CpuLayerWeights {
  NormWeights input_norm, post_norm;
  NormWeights attention_out_norm, ffn_out_norm;  // ModelSpec::post_norms
  // Grouped-query attention.
  kernels::PackedMatrix q, k, v;                      // q also for MLA without q_lora
  std::vector<float> q_bias, k_bias, v_bias, o_bias;  // empty: none
  std::vector<float> q_norm, k_norm;  // [head_dim] or of the whole projection; ones if weightless
  std::vector<float> sinks;           // [q_heads]; empty: none
  // Multi-head latent attention, absorbed (arXiv 2405.04434, section 2.1): kv_b is split by head into U
  // [nope, kv_lora] and V [v_dim, kv_lora]; U is kept transposed.
  kernels::PackedMatrix q_a, q_b, kv_a;
  std::vector<float> q_a_norm, kv_a_norm;
  std::vector<float> q_a_bias, kv_a_bias;       // empty: none
  std::vector<kernels::PackedMatrix> absorb_k;  // per head: [kv_lora, nope]
  std::vector<kernels::PackedMatrix> expand_v;  // per head: [v_dim, kv_lora]
  // Short convolution.
  kernels::PackedMatrix conv_in;               // [3 H, H]
  std::vector<float> conv;                     // [taps][lanes], the oldest token's first
  std::vector<float> conv_in_bias, conv_bias;  // [3 H], [H]; empty: none
  // Gated delta net; its convolution is `conv`. The first two, or the four of split projections.
  kernels::PackedMatrix delta_in, delta_gates;
  kernels::PackedMatrix delta_qkv, delta_z, delta_b, delta_a;
  std::vector<float> decay_rate;        // [v_heads]: -exp(a_log)
  std::vector<float> dt_bias;           // [v_heads]
  std::vector<float> delta_norm;        // [v_dim]
  kernels::PackedMatrix o;              // of every kind
  kernels::FfnWeights ffn;              // dense FFN, or the shared experts (may be empty)
  kernels::PackedMatrix gate;           // [E, H]
  std::vector<float> gate_bias;         // [E], choice only
  std::vector<float> gate_weight_bias;  // [E], part of the logits; empty: none
  kernels::PackedMatrix shared_gate;    // [1, H]; empty: none
};

struct CpuDenseWeights {
  std::vector<CpuLayerWeights> layers;
  kernels::PackedMatrix embed;   // [V, H]; with tied embeddings the head as well
  kernels::PackedMatrix head;    // empty when tied
  std::vector<float> head_bias;  // [V]; empty: none
  NormWeights final_norm;
  uint64_t bytes = 0;  // packed bytes of all matrices

  const kernels::PackedMatrix& lm_head() const { return head.out == 0 ? embed : head; }
  // Row `token` of the embedding widened to f32, [H].
  void Embed(TokenId token, float* out) const;
};

// Reads the ranges of these tensors and nothing else; source bytes are freed as soon as they are packed.
absl::StatusOr<CpuDenseWeights> LoadDenseWeights(const ModelSpec& spec, const Manifest& manifest,
                                                 ModelStore* store);

}  // namespace consilium
