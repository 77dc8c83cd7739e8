// A block of a panel: raw_layout.h in words of code.
#include "kernels/api/panel_block.h"

namespace consilium::kernels {
namespace {

template <class T>
T Get(const std::byte* base, size_t index) {
  T v;
  std::memcpy(&v, base + index * sizeof v, sizeof v);
  return v;
}

}  // namespace

PanelPlaces PlacesIn(const RawLayout& l, std::byte* panel, uint32_t b) {
  PanelPlaces p;
  p.super = panel + l.SuperOffset(b);
  p.header = panel + l.BlockOffset(b);
  p.high = p.header + l.header;
  p.codes = p.high + (l.code == RawCode::k5 ? 64 : l.code == RawCode::k6 ? 128 : 0);
  return p;
}

void LoadBlock(const RawLayout& l, const std::byte* panel, uint32_t index, uint32_t c, Block* b) {
  const PanelPlaces p = PlacesIn(l, const_cast<std::byte*>(panel), index);  // read only
  if (l.scale == RawScale::kK || l.scale == RawScale::kK6) {
    b->super_scale = Get<uint16_t>(p.super, c);
    if (l.scale == RawScale::kK) b->super_minimum = Get<uint16_t>(p.super, 16 + c);
    b->factor[0] = Get<uint8_t>(p.header, c);
    b->factor[1] = Get<uint8_t>(p.header, 16 + c);
  } else {
    const uint32_t size = l.scale == RawScale::kF32 ? 4 : l.scale == RawScale::kE8m0 ? 1 : 2;
    b->scale = 0;
    std::memcpy(&b->scale, p.header + size_t{c} * size, size);  // little endian: the low bytes
    const std::byte* tail = p.header + kPanelColumns * size;
    if (l.tail == RawTail::kZero) b->zero = Get<uint8_t>(tail, c);
    if (l.tail == RawTail::kMin) b->minimum = Get<uint16_t>(tail, c);
  }
  for (uint32_t t = 0; t < CodeWords(l.code); ++t) b->word[t] = Get<uint32_t>(p.codes, t * 16 + c);
  if (l.code == RawCode::k5 || l.code == RawCode::k6) b->high[0] = Get<uint32_t>(p.high, c);
  if (l.code == RawCode::k6) b->high[1] = Get<uint32_t>(p.high, 16 + c);
}

}  // namespace consilium::kernels
