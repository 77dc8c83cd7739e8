#include "kernels/ref/ref_delta.h"

#include <algorithm>

#include "kernels/api/numerics.h"

namespace consilium::kernels {
namespace {

// Element (i, c) of a state.
size_t At(const DeltaRule& d, uint32_t i, uint32_t c) {
  return c / kDeltaPanel * d.panel_floats() + size_t{i} * kDeltaPanel + c % kDeltaPanel;
}

}  // namespace

void RefDelta(const DeltaRule& d) {
  float* s = d.state_out;
  if (d.state_in != nullptr)
    std::copy_n(d.state_in, d.state_floats(), s);
  else
    std::fill_n(s, d.state_floats(), 0.0f);
  for (size_t t = 0; t < d.tokens; ++t) {
    const float *q = d.q + t * d.q_stride, *k = d.k + t * d.k_stride, *v = d.v + t * d.v_stride;
    const float decay = d.decay[t * d.decay_stride], beta = d.beta[t * d.beta_stride];
    for (uint32_t c = 0; c < d.v_dim; ++c) {
      float m = 0.0f, y = 0.0f;
      for (uint32_t i = 0; i < d.k_dim; ++i) {
        s[At(d, i, c)] = s[At(d, i, c)] * decay;
        m = numerics::Fma(k[i], s[At(d, i, c)], m);
      }
      const float change = beta * (v[c] - m);
      for (uint32_t i = 0; i < d.k_dim; ++i) {
        s[At(d, i, c)] = numerics::Fma(k[i], change, s[At(d, i, c)]);
        y = numerics::Fma(q[i], s[At(d, i, c)], y);
      }
      d.y[t * d.y_stride + c] = y;
    }
  }
}

}  // namespace consilium::kernels
