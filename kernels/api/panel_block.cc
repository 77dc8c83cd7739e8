// A block of a panel: raw_layout.h in words of code.
#include "kernels/api/panel_block.h"

#include <algorithm>

namespace consilium::kernels {
namespace {

template <class T>
T Get(const std::byte* base, size_t index) {
  T v;
  std::memcpy(&v, base + index * sizeof v, sizeof v);
  return v;
}

template <class T, class Widen>
void WidenPlain(const std::byte* panel, uint32_t column, uint32_t in, Widen widen, float* out) {
  for (uint32_t k = 0; k < in; ++k) out[k] = widen(Get<T>(panel, size_t{k} * kPanelColumns + column));
}

}  // namespace

PanelPlaces PlacesIn(const RawLayout& l, std::byte* panel, uint32_t b) {
  PanelPlaces p;
  p.super = panel + l.SuperOffset(b);
  p.header = panel + l.BlockOffset(b);
  p.high = p.header + l.header;
  p.codes = p.high + HighBytes(l.code);
  return p;
}

void LoadBlock(const RawLayout& l, const std::byte* panel, uint32_t index, uint32_t c, Block* b) {
  const PanelPlaces p = PlacesIn(l, const_cast<std::byte*>(panel), index);  // read only
  if (HasSuper(l.scale)) {
    b->super_scale = Get<uint16_t>(p.super, c);
    if (l.tail == RawTail::kMin) b->super_minimum = Get<uint16_t>(p.super, 16 + c);
    b->factor[0] = Get<uint8_t>(p.header, c);
    if (l.scale != RawScale::kKS) b->factor[1] = Get<uint8_t>(p.header, 16 + c);
  } else {
    const uint32_t size = l.scale == RawScale::kF32 ? 4 : l.scale == RawScale::kE8m0 ? 1 : 2;
    b->scale = 0;
    std::memcpy(&b->scale, p.header + size_t{c} * size, size);  // little endian: the low bytes
    const std::byte* tail = p.header + kPanelColumns * size;
    if (l.tail == RawTail::kZero) b->zero = Get<uint8_t>(tail, c);
    if (l.tail == RawTail::kMin) b->minimum = Get<uint16_t>(tail, c);
  }
  for (uint32_t t = 0; t < CodeWords(l.code); ++t) b->word[t] = Get<uint32_t>(p.codes, t * 16 + c);
  if (HighBytes(l.code) > 0) b->high[0] = Get<uint32_t>(p.high, c);
  if (HighBytes(l.code) > 64) b->high[1] = Get<uint32_t>(p.high, 16 + c);
}

void WidenRow(const PackedMatrix& m, uint32_t column, float* out) {
  const RawLayout l = m.layout();
  const std::byte* panel = m.data.get() + column / kPanelColumns * l.panel_bytes;
  const uint32_t c = column % kPanelColumns;
  if (m.format == WeightFormat::kF32)
    return WidenPlain<float>(panel, c, m.in, [](float v) { return v; }, out);
  if (m.format == WeightFormat::kBf16) return WidenPlain<uint16_t>(panel, c, m.in, numerics::FromBf16, out);
  if (m.format == WeightFormat::kF16) return WidenPlain<uint16_t>(panel, c, m.in, numerics::FromF16, out);
  for (uint32_t k = 0; k < m.in; k += l.block_k) {
    Block block;
    LoadBlock(l, panel, k / l.block_k, c, &block);
    BlockValues(l, block, std::min(l.block_k, m.in - k), out + k);
  }
}

}  // namespace consilium::kernels
