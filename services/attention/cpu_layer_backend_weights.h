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

struct CpuLayerWeights {
  std::vector<float> input_norm, post_norm;  // [H]
  // Grouped-query attention.
  kernels::PackedMatrix q, k, v;                      // q also for MLA without q_lora
  std::vector<float> q_bias, k_bias, v_bias, o_bias;  // empty: none
  // Multi-head latent attention, absorbed (arXiv 2405.04434, section 2.1): kv_b is split by head into U
  // [nope, kv_lora] and V [v_dim, kv_lora]; U is kept transposed.
  kernels::PackedMatrix q_a, q_b, kv_a;
  std::vector<float> q_a_norm, kv_a_norm;
  std::vector<kernels::PackedMatrix> absorb_k;  // per head: [kv_lora, nope]
  std::vector<kernels::PackedMatrix> expand_v;  // per head: [v_dim, kv_lora]
  kernels::PackedMatrix o;
  kernels::FfnWeights ffn;       // dense FFN, or the shared experts (may be empty)
  kernels::PackedMatrix gate;    // [E, H]
  std::vector<float> gate_bias;  // [E], choice only
};

struct CpuDenseWeights {
  std::vector<CpuLayerWeights> layers;
  kernels::PackedMatrix embed;  // [V, H]; with tied embeddings the head as well
  kernels::PackedMatrix head;   // empty when tied
  std::vector<float> final_norm;
  uint64_t bytes = 0;  // packed bytes of all matrices

  const kernels::PackedMatrix& lm_head() const { return head.out == 0 ? embed : head; }
  // Row `token` of the embedding widened to f32, [H].
  void Embed(TokenId token, float* out) const;
};

// Reads the ranges of these tensors and nothing else; source bytes are freed as soon as they are packed.
absl::StatusOr<CpuDenseWeights> LoadDenseWeights(const ModelSpec& spec, const Manifest& manifest,
                                                 ModelStore* store);

}  // namespace consilium
