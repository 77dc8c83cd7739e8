// Sixteen f32 lanes as an array: any machine. Included by kernel_scalar.cc only. Without an FMA instruction
// the compiler calls libm's fmaf, which is exact and slow.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/api/numerics.h"

namespace consilium::kernels::scalar {

#define LANES_FN static inline

struct V {
  float l[16];
};

template <class F>
LANES_FN V Each(F f) {
  V v;
  for (int i = 0; i < 16; ++i) v.l[i] = f(i);
  return v;
}

LANES_FN V Zero() { return V{}; }
LANES_FN V Set1(float x) {
  return Each([&](int) { return x; });
}
LANES_FN V LoadN(const float* p, size_t n) {
  return Each([&](int i) { return static_cast<size_t>(i) < n ? p[i] : 0.0f; });
}
LANES_FN V Load(const float* p) { return LoadN(p, 16); }
LANES_FN void StoreN(float* p, V v, size_t n) {
  for (size_t i = 0; i < n; ++i) p[i] = v.l[i];
}
LANES_FN void Store(float* p, V v) { StoreN(p, v, 16); }
LANES_FN V LoadBf16(const uint16_t* p) {
  return Each([&](int i) { return numerics::FromBf16(p[i]); });
}
LANES_FN V LoadF16(const void* p) {
  return Each([&](int i) {
    uint16_t h;
    __builtin_memcpy(&h, static_cast<const char*>(p) + 2 * i, 2);
    return numerics::FromF16(h);
  });
}
LANES_FN V Fma(V a, V b, V c) {
  return Each([&](int i) { return __builtin_fmaf(a.l[i], b.l[i], c.l[i]); });
}
LANES_FN V Add(V a, V b) {
  return Each([&](int i) { return a.l[i] + b.l[i]; });
}
LANES_FN V Sub(V a, V b) {
  return Each([&](int i) { return a.l[i] - b.l[i]; });
}
LANES_FN V Mul(V a, V b) {
  return Each([&](int i) { return a.l[i] * b.l[i]; });
}
LANES_FN V Div(V a, V b) {
  return Each([&](int i) { return a.l[i] / b.l[i]; });
}
LANES_FN V Neg(V a) {
  return Each([&](int i) { return -a.l[i]; });
}
LANES_FN V MaxOf(V a, V b) {
  return Each([&](int i) { return a.l[i] > b.l[i] ? a.l[i] : b.l[i]; });
}
LANES_FN V MinOf(V a, V b) {
  return Each([&](int i) { return a.l[i] < b.l[i] ? a.l[i] : b.l[i]; });
}
LANES_FN V IfLess(V a, V b, V yes, V no) {
  return Each([&](int i) { return a.l[i] < b.l[i] ? yes.l[i] : no.l[i]; });
}
LANES_FN V IfNan(V a, V yes, V no) {
  return Each([&](int i) { return a.l[i] != a.l[i] ? yes.l[i] : no.l[i]; });
}
// Adds the integer held by the low bits of t (t = magic + n) to the exponent of p.
LANES_FN V AddExponent(V p, V t, float magic) {
  return Each([&](int i) {
    const uint32_t n = __builtin_bit_cast(uint32_t, t.l[i]) - __builtin_bit_cast(uint32_t, magic);
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p.l[i]) + (n << 23));
  });
}

static constexpr int kTileRows = 4;
static constexpr int kTilePanels[kTileRows + 1] = {0, 1, 1, 1, 1};

}  // namespace consilium::kernels::scalar
