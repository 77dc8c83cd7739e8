// Integer lanes and widening of packed weights on any machine. Included by quant_scalar.cc only.
#pragma once
#include "kernels/cpu/lanes_scalar.h"
#include "kernels/cpu/raw_layout.h"

namespace consilium::kernels::scalar {

struct VI {
  uint32_t l[16];
};

template <class F>
LANES_FN VI EachI(F f) {
  VI v;
  for (int i = 0; i < 16; ++i) v.l[i] = f(i);
  return v;
}
LANES_FN const uint8_t* Bytes8(const void* p) { return static_cast<const uint8_t*>(p); }

LANES_FN VI LoadI(const void* p) {
  VI v;
  __builtin_memcpy(v.l, p, 64);
  return v;
}
LANES_FN VI SetI(int32_t x) {
  return EachI([&](int) { return static_cast<uint32_t>(x); });
}
LANES_FN VI AndI(VI a, VI b) {
  return EachI([&](int i) { return a.l[i] & b.l[i]; });
}
LANES_FN VI OrI(VI a, VI b) {
  return EachI([&](int i) { return a.l[i] | b.l[i]; });
}
LANES_FN VI ShiftRight(VI a, int n) {
  return EachI([&](int i) { return a.l[i] >> n; });
}
LANES_FN VI ShiftLeft(VI a, int n) {
  return EachI([&](int i) { return a.l[i] << n; });
}
LANES_FN VI SubI(VI a, VI b) {
  return EachI([&](int i) { return a.l[i] - b.l[i]; });
}
LANES_FN VI MulI(VI a, VI b) {
  return EachI([&](int i) { return a.l[i] * b.l[i]; });
}
LANES_FN V ToFloat(VI a) {
  return Each([&](int i) { return static_cast<float>(static_cast<int32_t>(a.l[i])); });
}
LANES_FN V ByteF(VI v, int j) {
  return Each([&](int i) { return static_cast<float>(v.l[i] >> (8 * j) & 255); });
}
static constexpr bool kNibbleLookup = true;
struct Table16 {
  const float* values;
};
LANES_FN Table16 LoadTable(const float* p) { return {p}; }
LANES_FN V NibbleF(VI v, int n, const Table16& t) {
  return Each([&](int i) { return t.values[v.l[i] >> (4 * n) & 15]; });
}
LANES_FN VI BytesThrough(VI v, const uint8_t* table) {
  return EachI([&](int i) {
    uint32_t w = 0;
    for (int j = 0; j < 32; j += 8) w |= static_cast<uint32_t>(table[v.l[i] >> j & 15]) << j;
    return w;
  });
}
LANES_FN V Fp8F(VI v, int j) {
  return Each([&](int i) {
    const uint32_t code = v.l[i] >> (8 * j) & 255;
    return __builtin_bit_cast(float, (code & 0x80) << 24 | (code & 0x7F) << 20);
  });
}
LANES_FN VI LoadU8I(const void* p) {
  return EachI([&](int i) { return Bytes8(p)[i]; });
}
LANES_FN V LoadU8(const void* p) { return ToFloat(LoadU8I(p)); }
LANES_FN V LoadI8(const void* p) {
  return Each([&](int i) { return static_cast<float>(static_cast<int8_t>(Bytes8(p)[i])); });
}
LANES_FN V LoadE8m0(const void* p) {
  return Each([&](int i) {
    const uint32_t e = Bytes8(p)[i];
    return __builtin_bit_cast(float, e < 2 ? 0x00200000u << e : (e - 1) << 23);
  });
}
LANES_FN VI Dot4(VI acc, VI w, VI x) {
  return EachI([&](int i) {
    int32_t sum = static_cast<int32_t>(acc.l[i]);
    for (int j = 0; j < 32; j += 8) {
      sum += static_cast<int32_t>(w.l[i] >> j & 255) * static_cast<int8_t>(x.l[i] >> j);
    }
    return static_cast<uint32_t>(sum);
  });
}
LANES_FN void Pin(VI&) {}
template <RawCode kCode>
static constexpr int kPairSteps = 0;
static constexpr bool kWideTakesBias = false;
LANES_FN VI WideOf(VI codes) { return codes; }

// Tiles of packed weights (ilanes_avx2.h says what each number is).
static constexpr int kQuantRows = 2;
static constexpr int kQuantTile[kQuantRows + 1] = {0, 1, 2};
static constexpr int kQuantPanels[kQuantRows + 1] = {0, 1, 1};
static constexpr size_t kWidenRows = ~size_t{0};
static constexpr int kI8Rows = 2;
static constexpr int kI8Tile[kI8Rows + 1] = {0, 1, 2};
static constexpr int kI8Panels[kI8Rows + 1] = {0, 1, 1};
static constexpr int kDotRows = 2;

}  // namespace consilium::kernels::scalar
