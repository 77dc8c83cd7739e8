#include "kernels/ref/ref_quant.h"

#include <algorithm>
#include <cstring>

#include "kernels/api/blocks.h"
#include "kernels/api/numerics.h"

namespace consilium::kernels {
namespace {

template <class T>
T Get(const std::byte* base, size_t index) {
  T v;
  std::memcpy(&v, base + index * sizeof v, sizeof v);
  return v;
}
template <class T>
void Put(std::byte* base, size_t index, T v) {
  std::memcpy(base + index * sizeof v, &v, sizeof v);
}

// One output of class i8g32: groups of 32 inputs ascending (Q2_K, Q3_K, Q6_K: of 16).
float Dot(const RawLayout& l, const std::byte* panel, uint32_t column, const std::byte* x, uint32_t in) {
  const uint32_t groups = Groups(in);
  const std::byte* scales = x + size_t{groups} * kGroup;
  const std::byte* sums = scales + size_t{groups} * 4;
  const uint32_t part = HasHalves(l.scale) ? 16 : kGroup;
  float acc = 0.0f;
  for (uint32_t g = 0; g < groups; ++g) {
    Block block;
    LoadBlock(l, panel, g, column, &block);
    const float sx = Get<float>(scales, g);
    Affine a;
    for (uint32_t first = 0; first < kGroup; first += part) {
      int32_t dot = 0;
      for (uint32_t i = first; i < first + part; ++i) {
        a = ElementOf(l, block, i);
        dot += a.q * Get<int8_t>(x, size_t{g} * kGroup + i);
      }
      acc = numerics::Fma(static_cast<float>(dot), sx * a.scale, acc);
      if (l.tail != RawTail::kMin) continue;
      int32_t sum = Get<int16_t>(sums, 2 * g + first / 16);
      if (part == kGroup) sum += Get<int16_t>(sums, 2 * g + 1);
      acc = numerics::Fma(a.minimum, sx * static_cast<float>(sum), acc);
    }
  }
  return acc;
}

}  // namespace

float WeightValue(const PackedMatrix& m, uint32_t column, uint32_t k) {
  const uint32_t c = column % kPanelColumns;
  const size_t index = (size_t{column / kPanelColumns} * m.in + k) * kPanelColumns + c;  // of plain formats
  if (m.format == WeightFormat::kF32) return Get<float>(m.data.get(), index);
  if (m.format == WeightFormat::kBf16) return numerics::FromBf16(Get<uint16_t>(m.data.get(), index));
  if (m.format == WeightFormat::kF16) return numerics::FromF16(Get<uint16_t>(m.data.get(), index));
  const RawLayout l = m.layout();
  const std::byte* panel = m.data.get() + column / kPanelColumns * l.panel_bytes;
  Block block;
  LoadBlock(l, panel, k / l.block_k, c, &block);
  return BlockValue(l, block, k % l.block_k);
}

void RefQuantizeRows(ConstRows x, uint32_t n, std::byte* out) {
  const uint32_t groups = Groups(n);
  for (size_t r = 0; r < x.count; ++r) {
    std::byte* row = out + r * QuantRowBytes(n);
    std::byte* scales = row + size_t{groups} * kGroup;
    std::byte* sums = scales + size_t{groups} * 4;
    for (uint32_t g = 0; g < groups; ++g) {
      const float* v = x.row(r) + size_t{g} * kGroup;
      const uint32_t count = std::min(kGroup, n - g * kGroup);
      int8_t q[kGroup];
      Put(scales, g, numerics::QuantizeGroup(v, count, q));
      std::memcpy(row + size_t{g} * kGroup, q, kGroup);
      for (uint32_t half = 0; half < 2; ++half) {
        int sum = 0;
        for (uint32_t i = 0; i < 16; ++i) sum += q[16 * half + i];
        Put(sums, 2 * g + half, static_cast<int16_t>(sum));
      }
    }
  }
}

void RefGemmI8(const PackedMatrix& w, QuantRows x, Rows y, uint32_t panel_begin, uint32_t panel_end,
               const float* bias) {
  const RawLayout l = w.layout();
  const uint32_t end = std::min(w.out, panel_end * kPanelColumns);
  for (size_t r = 0; r < x.count; ++r) {
    for (uint32_t c = panel_begin * kPanelColumns; c < end; ++c) {
      const std::byte* panel = w.data.get() + c / kPanelColumns * l.panel_bytes;
      const float acc = Dot(l, panel, c % kPanelColumns, x.row(r), w.in);
      y.row(r)[c] = bias == nullptr ? acc : acc + bias[c];
    }
  }
}

}  // namespace consilium::kernels
