// The short convolution (LFM2) as a mixer over KV pages: a token keeps one vector per layer where attention
// keeps its key, and the last `taps` of them are summed. So it has no state beside the pages, and whatever
// holds for pages (prefix cache, preemption, replay, export, chunks of prompts) holds for it.
#include <algorithm>

#include "common/base/limits.h"
#include "services/attention/cpu_layer_backend_attention.h"

namespace consilium {

using kernels::ConstRows;
using kernels::Rows;

void CpuAttention::RunShortConv(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch,
                                ConstRows h) {
  const size_t n = h.count, width = spec_.hidden;
  const uint32_t taps = spec_.short_conv.taps;
  const Rows in{Grown(&conv_in_, n * 3 * width), 3 * width, n};  // B, C, X
  Gemm(w.conv_in, h, in, w.conv_in_bias);
  // Rows write different slots, so threads touch different floats.
  ForEachRow(pool_, n, 3 * width, [&](size_t r, uint32_t) {
    const FlightRow& row = batch.rows[r];
    const KvBlockId block = batch.sequences[row.sequence].blocks[row.position / kKvBlockTokens];
    const float *b = in.row(r), *x = b + 2 * width;
    float* kept = KPage(layer, block) + row.position % kKvBlockTokens * width;
    for (size_t i = 0; i < width; ++i) kept[i] = b[i] * x[i];
  });
  float* mixed = Grown(&attended_, n * width);
  ForEachRow(pool_, n, (taps + 2) * width, [&](size_t r, uint32_t) {
    const FlightRow& row = batch.rows[r];
    const float* const* pages = &k_pages_[first_page_[row.sequence]];
    const float* c = in.row(r) + width;
    float* out = mixed + r * width;
    std::fill_n(out, width, 0.0f);
    // Tap t reads position - taps + 1 + t; those before position 0 are left out.
    for (uint32_t t = taps - std::min(taps, row.position + 1); t < taps; ++t) {
      const Position at = row.position + 1 + t - taps;
      const float* kept = pages[at / kKvBlockTokens] + at % kKvBlockTokens * width;
      const float* weight = &w.conv[t * width];
      for (size_t i = 0; i < width; ++i) out[i] = out[i] + weight[i] * kept[i];
    }
    for (size_t i = 0; i < w.conv_bias.size(); ++i) out[i] = out[i] + w.conv_bias[i];
    for (size_t i = 0; i < width; ++i) out[i] = c[i] * out[i];
  });
  context_ = mixed;
}

}  // namespace consilium
