// A block into a column of its panel. Private to kernels/api.
#pragma once
#include <cstring>

#include "kernels/api/blocks.h"

namespace consilium::kernels {

template <class T>
void PutAt(std::byte* base, size_t index, T v) {
  std::memcpy(base + index * sizeof v, &v, sizeof v);
}

inline void WriteHeader(const RawLayout& l, const Block& b, const PanelPlaces& p, uint32_t column) {
  std::byte* tail = p.header + kPanelColumns * 2;
  if (HasSuper(l.scale)) {
    PutAt(p.super, column, b.super_scale);
    if (l.tail == RawTail::kMin) PutAt(p.super, kPanelColumns + column, b.super_minimum);
    PutAt(p.header, column, b.factor[0]);
    if (l.scale != RawScale::kKS) PutAt(p.header, kPanelColumns + column, b.factor[1]);
    return;
  }
  switch (l.scale) {
    case RawScale::kF32:
      PutAt(p.header, column, b.scale);
      tail = p.header + kPanelColumns * 4;
      break;
    case RawScale::kE8m0:
      PutAt(p.header, column, static_cast<uint8_t>(b.scale));
      return;
    default:
      PutAt(p.header, column, static_cast<uint16_t>(b.scale));
  }
  if (l.tail == RawTail::kZero) PutAt(tail, column, b.zero);
  if (l.tail == RawTail::kMin) PutAt(tail, column, b.minimum);
}

template <RawCode kCode>
void WriteBlock(const RawLayout& l, const Block& b, const PanelPlaces& p, uint32_t column) {
  WriteHeader(l, b, p, column);
  for (uint32_t t = 0; t < CodeWords(kCode); ++t) PutAt(p.codes, t * kPanelColumns + column, b.word[t]);
  if (HighBytes(kCode) > 0) PutAt(p.high, column, b.high[0]);
  if (HighBytes(kCode) > 64) PutAt(p.high, kPanelColumns + column, b.high[1]);
}

}  // namespace consilium::kernels
