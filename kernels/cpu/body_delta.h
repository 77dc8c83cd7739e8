// Part of body.h: the gated delta rule, 16 lanes over value columns.
#pragma once
#include "kernels/cpu/body_rows.h"
#include "kernels/cpu/raw.h"

namespace consilium::kernels::CONSILIUM_TARGET {

// `kPanels` panels from `panel` on, so that as many chains over k overlap; all tokens, since the panels stay
// in cache between them.
template <int kPanels>
static void DeltaPanels(const DeltaRule& d, uint32_t panel) {
  const size_t step = d.panel_floats();
  float* out = d.state_out + panel * step;
  const float* in = d.state_in == nullptr ? out : d.state_in + panel * step;
  if (d.state_in == nullptr) {
    for (size_t i = 0; i < kPanels * step; i += 16) Store(out + i, Zero());
  }
  const uint32_t column = panel * kDeltaPanel;
  const size_t tail = d.v_dim - column - 16 * (kPanels - 1);  // columns of the last panel
  for (size_t t = 0; t < d.tokens; ++t, in = out) {
    const float *q = d.q + t * d.q_stride, *k = d.k + t * d.k_stride, *v = d.v + t * d.v_stride + column;
    float* y = d.y + t * d.y_stride + column;
    const V decay = Set1(d.decay[t * d.decay_stride]), beta = Set1(d.beta[t * d.beta_stride]);
    V m[kPanels], change[kPanels], sum[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) m[p] = sum[p] = Zero();
    for (uint32_t i = 0; i < d.k_dim; ++i) {
      const V key = Set1(k[i]);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        m[p] = Fma(key, Mul(Load(in + static_cast<size_t>(p) * step + size_t{16} * i), decay), m[p]);
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const V value = p == kPanels - 1 && tail < 16 ? LoadN(v + 16 * p, tail) : Load(v + 16 * p);
      change[p] = Mul(beta, Sub(value, m[p]));
    }
    for (uint32_t i = 0; i < d.k_dim; ++i) {
      const V key = Set1(k[i]), query = Set1(q[i]);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const size_t at = static_cast<size_t>(p) * step + size_t{16} * i;
        const V s = Fma(key, change[p], Mul(Load(in + at), decay));
        Store(out + at, s);
        sum[p] = Fma(query, s, sum[p]);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      if (p == kPanels - 1 && tail < 16)
        StoreN(y + 16 * p, sum[p], tail);
      else
        Store(y + 16 * p, sum[p]);
    }
  }
}

static void Delta(const DeltaRule& d) {
  constexpr uint32_t kTogether = 4;
  const uint32_t panels = d.panels();
  uint32_t p = 0;
  for (; p + kTogether <= panels; p += kTogether) DeltaPanels<kTogether>(d, p);
  for (; p < panels; ++p) DeltaPanels<1>(d, p);
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
