#include "kernels/ref/ref_kernels.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/api/numerics.h"
#include "kernels/ref/ref_delta.h"
#include "kernels/ref/ref_quant.h"

namespace consilium::kernels {
namespace {

using namespace numerics;  // NOLINT: the definitions this file is made of

void RefGemm(const PackedMatrix& w, ConstRows x, Rows y, uint32_t panel_begin, uint32_t panel_end,
             const float* bias) {
  const uint32_t end = std::min(w.out, panel_end * kPanelColumns);
  for (size_t r = 0; r < x.count; ++r) {
    for (uint32_t c = panel_begin * kPanelColumns; c < end; ++c) {
      float acc = 0.0f;
      for (uint32_t k = 0; k < w.in; ++k) acc = Fma(x.row(r)[k], WeightValue(w, c, k), acc);
      y.row(r)[c] = bias == nullptr ? acc : acc + bias[c];
    }
  }
}

void RefRmsNorm(ConstRows x, const float* weight, uint32_t n, float eps, Rows y) {
  for (size_t r = 0; r < x.count; ++r) {
    const float mean = Fold16Squares(x.row(r), n) / static_cast<float>(n);
    const float scale = Rsqrt(mean + eps);
    for (uint32_t i = 0; i < n; ++i) y.row(r)[i] = (x.row(r)[i] * scale) * weight[i];
  }
}

void RefGated(Activation act, const float* gate, const float* up, uint32_t n, float* a) {
  for (uint32_t i = 0; i < n; ++i) {
    const float g = act == Activation::kSilu       ? Silu(gate[i])
                    : act == Activation::kGeluTanh ? GeluTanh(gate[i])
                                                   : GeluErf(gate[i]);
    a[i] = g * up[i];
  }
}

void RefLayerNorm(ConstRows x, const float* weight, const float* bias, uint32_t n, float eps, Rows y) {
  for (size_t r = 0; r < x.count; ++r) {
    const float mean = Fold16(x.row(r), n) / static_cast<float>(n);
    for (uint32_t i = 0; i < n; ++i) y.row(r)[i] = x.row(r)[i] - mean;
    const float scale = Rsqrt(Fold16Squares(y.row(r), n) / static_cast<float>(n) + eps);
    for (uint32_t i = 0; i < n; ++i) {
      const float v = (y.row(r)[i] * scale) * weight[i];
      y.row(r)[i] = bias == nullptr ? v : v + bias[i];
    }
  }
}

void RefSwigluClamped(const float* gate, const float* up, float alpha, float limit, uint32_t n, float* a) {
  for (uint32_t i = 0; i < n; ++i) {
    const float g = MinOf(limit, gate[i]);
    const float u = MaxOf(-limit, MinOf(limit, up[i]));
    a[i] = (u + 1.0f) * (g * Sigmoid(alpha * g));
  }
}

void RefRope(float* x, uint32_t n, bool interleaved, const float* cos, const float* sin) {
  const uint32_t half = n / 2;
  const std::vector<float> in(x, x + n);
  for (uint32_t i = 0; i < half; ++i) {
    const float a = interleaved ? in[2 * i] : in[i];
    const float b = interleaved ? in[2 * i + 1] : in[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}

// One head of one row. k(t, d), v(t, c): elements of the key and value of token t.
template <class K, class V>
void RefAttentionHead(const AttentionShape& shape, uint32_t head, const float* q, uint32_t position, K k, V v,
                      float* out) {
  const uint32_t end = position + 1;
  const uint32_t begin = shape.FirstKey(position);
  // A sink is a key seen before all others, of probability exp(sink - max) and no value.
  float max = shape.sinks == nullptr ? -InfF() : shape.sinks[head];
  float sum = shape.sinks == nullptr ? 0.0f : 1.0f;
  std::vector<float> acc(shape.v_dim, 0.0f);
  for (uint32_t base = begin / kFoldKeys * kFoldKeys; base < end; base += kFoldKeys) {
    const uint32_t first = std::max(base, begin);
    const uint32_t last = std::min(base + kFoldKeys, end);
    float s[kFoldKeys];  // by offset in the block: a key keeps its fold lane whatever is visible
    float p[kFoldKeys] = {};
    std::fill(s, s + kFoldKeys, -InfF());
    for (uint32_t t = first; t < last; ++t) {
      float chain = 0.0f;
      for (uint32_t d = 0; d < shape.k_dim; ++d) chain = Fma(q[d], k(t, d), chain);
      s[t - base] = chain * shape.scale;
      if (shape.soft_cap != 0.0f) s[t - base] = shape.soft_cap * Tanh(s[t - base] / shape.soft_cap);
    }
    const float new_max = MaxOf(FoldMax16(s, kFoldKeys), max);
    const float old = Exp(max - new_max);  // 0 for the first block: exp(-inf)
    for (uint32_t t = first; t < last; ++t) p[t - base] = Exp(s[t - base] - new_max);
    sum = Fma(sum, old, Fold16(p, kFoldKeys));
    for (uint32_t c = 0; c < shape.v_dim; ++c) {
      acc[c] = acc[c] * old;
      for (uint32_t t = first; t < last; ++t) acc[c] = Fma(p[t - base], v(t, c), acc[c]);
    }
    max = new_max;
  }
  for (uint32_t c = 0; c < shape.v_dim; ++c) out[c] = acc[c] / sum;
}

void RefAttention(const AttentionShape& shape, const AttentionRow* rows, size_t count, uint32_t head_begin,
                  uint32_t head_end, float*) {
  const uint32_t group = shape.q_heads / shape.kv_heads;
  for (size_t r = 0; r < count; ++r) {
    const AttentionRow& row = rows[r];
    for (uint32_t h = head_begin; h < head_end; ++h) {
      const size_t kv = h / group;
      const auto k = [&](uint32_t t, uint32_t d) {
        return row.k_pages[t / kKvPageTokens][(kv * shape.k_dim + d) * kKvPageTokens + t % kKvPageTokens];
      };
      const auto v = [&](uint32_t t, uint32_t c) {
        return row.v_pages[t / kKvPageTokens][(kv * kKvPageTokens + t % kKvPageTokens) * shape.v_dim + c];
      };
      RefAttentionHead(shape, h, row.q + size_t{h} * shape.k_dim, row.position, k, v,
                       row.out + size_t{h} * shape.v_dim);
    }
  }
}

void RefKvWrite(const AttentionShape& shape, const float* k, const float* v, uint32_t slot, float* k_page,
                float* v_page) {
  for (size_t h = 0; h < shape.kv_heads; ++h) {
    for (size_t d = 0; d < shape.k_dim; ++d) {
      k_page[(h * shape.k_dim + d) * kKvPageTokens + slot] = k[h * shape.k_dim + d];
    }
    for (size_t c = 0; c < shape.v_dim; ++c) {
      v_page[(h * kKvPageTokens + slot) * shape.v_dim + c] = v[h * shape.v_dim + c];
    }
  }
}

void RefCombine(const float* residual, const float* shared, const float* const* slots, const float* weights,
                uint32_t top_k, uint32_t n, float* out) {
  for (uint32_t i = 0; i < n; ++i) {
    float t = 0.0f;
    for (uint32_t s = 0; s < top_k; ++s) t = Fma(weights[s], slots[s][i], t);
    if (shared != nullptr) t = t + shared[i];
    out[i] = residual[i] + t;
  }
}

void RefAdd(const float* a, const float* b, uint32_t n, float* out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

void RefScores(bool sigmoid, const float* x, float shift, uint32_t n, float* out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = sigmoid ? Sigmoid(x[i]) : Exp(x[i] - shift);
}

void RefWeights(const float* x, double max, double temperature, uint32_t n, double* out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = Exp((static_cast<double>(x[i]) - max) / temperature);
}

}  // namespace

const Ops kRefOps = {"ref",      RefGemm,         RefRmsNorm, RefGated,   RefLayerNorm, RefSwigluClamped,
                     RefRope,    RefAttention,    RefKvWrite, RefCombine, RefAdd,       RefScores,
                     RefWeights, RefQuantizeRows, RefGemmI8,  RefDelta};

}  // namespace consilium::kernels
