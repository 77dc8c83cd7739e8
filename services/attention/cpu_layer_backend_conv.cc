// Convolutions over the tokens of a sequence: of a delta net, and LFM2's short convolution, a mixer of its
// own. What they need of earlier tokens lies in the sequence's state.
#include <algorithm>

#include "services/attention/cpu_layer_backend_attention.h"

namespace consilium {

using kernels::ConstRows;
using kernels::Rows;

void CpuAttention::Convolve(uint32_t layer, const FlightBatch& batch, uint32_t taps, const float* weights,
                            ConstRows in, Rows out) {
  const size_t lanes = in.stride;
  // The input `back` tokens before row `at` of a sequence's rows.
  const auto input = [&](uint32_t sequence, size_t at, size_t back) -> const float* {
    if (back <= at) return in.row(spans_[sequence].first + at - back);
    const std::optional<StateId>& state = batch.sequences[sequence].state_in;
    return state ? State(layer, *state) + (taps - 1 + at - back) * lanes : zeros_.data();
  };
  ForEachRow(pool_, in.count, (taps + 1) * lanes, [&](size_t r, uint32_t) {
    const uint32_t sequence = batch.rows[r].sequence;
    float* sum = out.row(r);
    std::fill_n(sum, lanes, 0.0f);
    for (uint32_t t = 0; t < taps; ++t) {
      const float *x = input(sequence, r - spans_[sequence].first, taps - 1 - t),
                  *weight = weights + t * lanes;
      for (size_t i = 0; i < lanes; ++i) sum[i] = sum[i] + weight[i] * x[i];
    }
  });
  if (taps == 1) return;
  ForEachRow(pool_, batch.sequences.size(), (taps - 1) * lanes, [&](size_t s, uint32_t) {
    const uint32_t sequence = static_cast<uint32_t>(s);
    float* kept = State(layer, *batch.sequences[s].state_out);
    for (uint32_t t = 0; t + 1 < taps; ++t)
      std::copy_n(input(sequence, spans_[s].count - 1, taps - 2 - t), lanes, kept + t * lanes);
  });
}

void CpuAttention::RunShortConv(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch,
                                ConstRows h) {
  const size_t n = h.count, width = spec_.hidden;
  const Rows in{Grown(&projected_, n * 3 * width), 3 * width, n};  // B, C, X
  Gemm(w.conv_in, h, in, w.conv_in_bias);
  const Rows v{Grown(&conv_in_, n * width), width, n}, mixed{Grown(&attended_, n * width), width, n};
  ForEachRow(pool_, n, 3 * width, [&](size_t r, uint32_t) {
    const float *b = in.row(r), *x = b + 2 * width;
    for (size_t i = 0; i < width; ++i) v.row(r)[i] = b[i] * x[i];
  });
  Convolve(layer, batch, spec_.short_conv.taps, w.conv.data(), v, mixed);
  ForEachRow(pool_, n, 2 * width, [&](size_t r, uint32_t) {
    const float* c = in.row(r) + width;
    float* out = mixed.row(r);
    for (size_t i = 0; i < w.conv_bias.size(); ++i) out[i] = out[i] + w.conv_bias[i];
    for (size_t i = 0; i < width; ++i) out[i] = c[i] * out[i];
  });
  context_ = mixed.data;
}

}  // namespace consilium
