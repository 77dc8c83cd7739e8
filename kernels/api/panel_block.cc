// A block in its panel: raw_layout.h in words of code, both ways.
#include <cstring>

#include "kernels/api/blocks.h"

namespace consilium::kernels {
namespace {

uint32_t ScaleBytes(const RawLayout& l) {
  return l.scale == RawScale::kF32 ? 4 : l.scale == RawScale::kE8m0 ? 1 : 2;
}

struct Places {
  std::byte* super;  // super header
  std::byte* header;
  std::byte* high;  // fifth or upper bits
  std::byte* codes;
};

Places Find(const RawLayout& l, std::byte* panel, uint32_t b) {
  Places p;
  p.super = panel + l.SuperOffset(b);
  p.header = panel + l.BlockOffset(b);
  p.high = p.header + l.header;
  p.codes = p.high + (l.code == RawCode::k5 ? 64 : l.code == RawCode::k6 ? 128 : 0);
  return p;
}

template <class T>
void Put(std::byte* base, size_t index, T v) {
  std::memcpy(base + index * sizeof v, &v, sizeof v);
}
template <class T>
T Get(const std::byte* base, size_t index) {
  T v;
  std::memcpy(&v, base + index * sizeof v, sizeof v);
  return v;
}

void WriteHeader(const RawLayout& l, const Block& b, const Places& p, uint32_t c) {
  if (l.scale == RawScale::kK || l.scale == RawScale::kK6) {
    Put(p.super, c, b.super_scale);
    if (l.scale == RawScale::kK) Put(p.super, 16 + c, b.super_minimum);
    Put(p.header, c, b.factor[0]);
    Put(p.header, 16 + c, b.factor[1]);
    return;
  }
  const uint32_t size = ScaleBytes(l);
  std::memcpy(p.header + size_t{c} * size, &b.scale, size);  // little endian: the low bytes
  std::byte* tail = p.header + kPanelColumns * size;
  if (l.tail == RawTail::kZero) Put(tail, c, b.zero);
  if (l.tail == RawTail::kMin) Put(tail, c, b.minimum);
}

uint32_t HighWord5(const uint8_t* code) {
  uint32_t word = 0;
  for (uint32_t k = 0; k < 32; ++k) word |= static_cast<uint32_t>(code[k] >> 4 & 1) << (8 * (k % 4) + k / 4);
  return word;
}
uint32_t HighWord6(const uint8_t* code) {  // of 16 codes
  uint32_t word = 0;
  for (uint32_t k = 0; k < 16; ++k)
    word |= static_cast<uint32_t>(code[k] >> 4 & 3) << (8 * (k % 4) + 2 * (k / 4));
  return word;
}

}  // namespace

void WriteBlock(const RawLayout& l, const Block& b, uint32_t index, uint32_t c, std::byte* panel) {
  const Places p = Find(l, panel, index);
  WriteHeader(l, b, p, c);
  if (l.code == RawCode::k8 || l.code == RawCode::kFp8) {
    for (uint32_t k = 0; k < l.block_k; k += 4) std::memcpy(p.codes + k * 16 + c * 4, b.code + k, 4);
    return;
  }
  for (uint32_t k = 0; k < 32; k += 8) {
    uint8_t bytes[4];
    for (uint32_t i = 0; i < 4; ++i) {
      bytes[i] = static_cast<uint8_t>((b.code[k + i] & 15) | (b.code[k + 4 + i] & 15) << 4);
    }
    std::memcpy(p.codes + k * 8 + c * 4, bytes, 4);
  }
  if (l.code == RawCode::k5) Put(p.high, c, HighWord5(b.code));
  if (l.code == RawCode::k6) {
    Put(p.high, c, HighWord6(b.code));
    Put(p.high, 16 + c, HighWord6(b.code + 16));
  }
}

void LoadBlock(const RawLayout& l, const std::byte* panel, uint32_t index, uint32_t c, Block* b) {
  const Places p = Find(l, const_cast<std::byte*>(panel), index);  // read only
  if (l.scale == RawScale::kK || l.scale == RawScale::kK6) {
    b->super_scale = Get<uint16_t>(p.super, c);
    if (l.scale == RawScale::kK) b->super_minimum = Get<uint16_t>(p.super, 16 + c);
    b->factor[0] = Get<uint8_t>(p.header, c);
    b->factor[1] = Get<uint8_t>(p.header, 16 + c);
  } else {
    const uint32_t size = ScaleBytes(l);
    b->scale = 0;
    std::memcpy(&b->scale, p.header + size_t{c} * size, size);
    const std::byte* tail = p.header + kPanelColumns * size;
    if (l.tail == RawTail::kZero) b->zero = Get<uint8_t>(tail, c);
    if (l.tail == RawTail::kMin) b->minimum = Get<uint16_t>(tail, c);
  }
  for (uint32_t k = 0; k < l.block_k; ++k) {
    if (l.code == RawCode::k8 || l.code == RawCode::kFp8) {
      b->code[k] = Get<uint8_t>(p.codes + k / 4 * 64 + c * 4, k % 4);
      continue;
    }
    const uint8_t byte = Get<uint8_t>(p.codes + k / 8 * 64 + c * 4, k % 4);
    uint32_t code = k % 8 < 4 ? byte & 15 : byte >> 4;
    if (l.code == RawCode::k5) code |= (Get<uint32_t>(p.high, c) >> (8 * (k % 4) + k / 4) & 1) << 4;
    if (l.code == RawCode::k6) {
      code |= (Get<uint32_t>(p.high, k / 16 * 16 + c) >> (8 * (k % 4) + 2 * (k % 16 / 4)) & 3) << 4;
    }
    b->code[k] = static_cast<uint8_t>(code);
  }
}

}  // namespace consilium::kernels
