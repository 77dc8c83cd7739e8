// Arguments of the gated delta rule, for code with and without AVX flags: plain numbers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace consilium::kernels {

static constexpr uint32_t kDeltaPanel = 16;  // value columns that lie together in a state

// One value head over tokens of one sequence (arXiv 2412.06464). With the state S [k_dim, v_dim], each token:
//   m = (decay * S)^T k;  S = decay * S + k (beta * (v - m))^T;  y = S^T q
// A state lies in panels of kDeltaPanel value columns, [panel][k_dim][kDeltaPanel], the last one's spare
// columns 0. Row t of q, k [k_dim] and v, y [v_dim] lies t strides behind row 0.
struct DeltaRule {
  uint32_t k_dim = 0, v_dim = 0;
  size_t tokens = 0;                // at least 1
  const float* state_in = nullptr;  // before the first token; null: all 0
  float* state_out = nullptr;       // after the last token; may not overlap state_in
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  size_t q_stride = 0, k_stride = 0, v_stride = 0;
  const float *decay = nullptr, *beta = nullptr;
  size_t decay_stride = 0, beta_stride = 0;
  float* y = nullptr;
  size_t y_stride = 0;

  uint32_t panels() const { return (v_dim + kDeltaPanel - 1) / kDeltaPanel; }
  size_t panel_floats() const { return size_t{k_dim} * kDeltaPanel; }
  size_t state_floats() const { return panels() * panel_floats(); }
};

}  // namespace consilium::kernels
