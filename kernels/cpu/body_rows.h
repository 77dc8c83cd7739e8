// Part of body.h: operations on single rows, 16 lanes over the elements.
#pragma once
#include "kernels/cpu/raw.h"

namespace consilium::kernels::CONSILIUM_TARGET {

// The operations of numerics::Exp, lane by lane.
static inline V ExpLanes(V x) {
  using namespace numerics;
  const V c = MaxOf(MinOf(x, Set1(kExpHigh)), Set1(kExpLow));
  const V t = Fma(c, Set1(kLog2E), Set1(kExpMagic));
  const V n = Sub(t, Set1(kExpMagic));
  V r = Fma(n, Set1(-kLn2High), c);
  r = Fma(n, Set1(-kLn2Low), r);
  V p = Set1(kExpPoly[0]);
  for (int i = 1; i < 6; ++i) p = Fma(p, r, Set1(kExpPoly[i]));
  p = Add(Fma(p, Mul(r, r), r), Set1(1.0f));
  V y = AddExponent(p, t, kExpMagic);
  y = IfLess(x, Set1(kExpLow), Zero(), y);
  y = IfLess(Set1(kExpHigh), x, Set1(InfF()), y);
  return IfNan(x, x, y);
}

static inline V OnePlusExpNeg(V x) { return Add(Set1(1.0f), ExpLanes(Neg(x))); }
static inline V SigmoidLanes(V x) { return Div(Set1(1.0f), OnePlusExpNeg(x)); }
static inline V SiluLanes(V x) { return Div(x, OnePlusExpNeg(x)); }

static inline V TanhLanes(V x) {
  using namespace numerics;
  const V a = IfLess(x, Zero(), Neg(x), x);
  const V s = Mul(x, x);
  V p = Set1(kTanhPoly[0]);
  for (int i = 1; i < 5; ++i) p = Fma(p, s, Set1(kTanhPoly[i]));
  const V small = Fma(Mul(p, s), x, x);
  const V y = Sub(Set1(1.0f), Div(Set1(2.0f), Add(ExpLanes(Add(a, a)), Set1(1.0f))));
  const V large = IfLess(x, Zero(), Neg(y), y);
  return IfLess(a, Set1(kTanhBranch), small, large);
}

static inline V GeluErfLanes(V x) {
  using namespace numerics;
  V a = IfLess(x, Zero(), Neg(x), x);
  a = IfLess(a, Set1(kGeluErfEnd), a, Set1(kGeluErfEnd));
  const V z = Mul(Set1(kSqrtHalf), a), t = Div(Set1(1.0f), Fma(Set1(0.5f), z, Set1(1.0f)));
  V p = Set1(kErfcPoly[0]);
  for (int i = 1; i < 10; ++i) p = Fma(p, t, Set1(kErfcPoly[i]));
  const V tail = Mul(Mul(Set1(0.5f), a), Mul(ExpLanes(Neg(Mul(z, z))), p));
  return IfLess(x, Zero(), Neg(tail), Sub(x, tail));
}

static inline V GeluLanes(V x) {
  using namespace numerics;
  const V inner = Fma(Mul(Set1(kGeluCubic), Mul(x, x)), x, x);
  return Mul(Mul(Set1(0.5f), x), Add(Set1(1.0f), TanhLanes(Mul(Set1(kSqrt2OverPi), inner))));
}

// out[i] = f(i, n): lanes i .. i+n, n = 16 but for the tail.
template <class F>
LANES_FN void ForLanes(uint32_t n, float* out, F f) {
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, f([&](const float* p) { return Load(p + i); }));
  if (i < n) StoreN(out + i, f([&](const float* p) { return LoadN(p + i, n - i); }), n - i);
}

static void RmsNorm(const float* x, size_t x_stride, size_t rows, const float* weight, uint32_t n, float eps,
                    float* y, size_t y_stride) {
  for (size_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    V acc = Zero();
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const V v = Load(x + i);
      acc = Fma(v, v, acc);
    }
    if (i < n) {
      const V v = LoadN(x + i, n - i);
      acc = Fma(v, v, acc);
    }
    float lanes[16];
    Store(lanes, acc);
    const float mean = numerics::FoldLanes(lanes) / static_cast<float>(n);
    const V scale = Set1(numerics::Rsqrt(mean + eps));
    ForLanes(n, y, [&](auto load) { return Mul(Mul(load(x), scale), load(weight)); });
  }
}

static void Gated(RawGate kind, const float* gate, const float* up, uint32_t n, float* a) {
  if (kind == RawGate::kGeluTanh) {
    ForLanes(n, a, [&](auto load) { return Mul(GeluLanes(load(gate)), load(up)); });
  } else if (kind == RawGate::kGeluErf) {
    ForLanes(n, a, [&](auto load) { return Mul(GeluErfLanes(load(gate)), load(up)); });
  } else {
    ForLanes(n, a, [&](auto load) { return Mul(SiluLanes(load(gate)), load(up)); });
  }
}

static void LayerNorm(const float* x, size_t x_stride, size_t rows, const float* weight, const float* bias,
                      uint32_t n, float eps, float* y, size_t y_stride) {
  for (size_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    V acc = Zero();
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) acc = Add(acc, Load(x + i));
    if (i < n) acc = Add(acc, LoadN(x + i, n - i));
    float lanes[16];
    Store(lanes, acc);
    const V mean = Set1(numerics::FoldLanes(lanes) / static_cast<float>(n));
    ForLanes(n, y, [&](auto load) { return Sub(load(x), mean); });
    acc = Zero();
    for (i = 0; i + 16 <= n; i += 16) acc = Fma(Load(y + i), Load(y + i), acc);
    if (i < n) acc = Fma(LoadN(y + i, n - i), LoadN(y + i, n - i), acc);
    Store(lanes, acc);
    const V scale = Set1(numerics::Rsqrt(numerics::FoldLanes(lanes) / static_cast<float>(n) + eps));
    if (bias == nullptr) {
      ForLanes(n, y, [&](auto load) { return Mul(Mul(load(y), scale), load(weight)); });
    } else {
      ForLanes(n, y, [&](auto load) { return Add(Mul(Mul(load(y), scale), load(weight)), load(bias)); });
    }
  }
}

static void SwigluClamped(const float* gate, const float* up, float alpha, float limit, uint32_t n,
                          float* a) {
  const V top = Set1(limit), bottom = Set1(-limit), one = Set1(1.0f);
  ForLanes(n, a, [&](auto load) {
    const V g = MinOf(top, load(gate));
    const V u = MaxOf(bottom, MinOf(top, load(up)));
    return Mul(Add(u, one), Mul(g, SigmoidLanes(Mul(Set1(alpha), g))));
  });
}

static void Rope(float* x, uint32_t n, bool interleaved, const float* cos, const float* sin) {
  const uint32_t half = n / 2;
  float pairs[kRopeDimMax];
  const float* first = x;
  const float* second = x + half;
  if (interleaved) {
    for (uint32_t i = 0; i < half; ++i) {
      pairs[i] = x[2 * i];
      pairs[half + i] = x[2 * i + 1];
    }
    first = pairs;
    second = pairs + half;
  }
  for (uint32_t i = 0; i < half; i += 16) {
    const size_t m = half - i;
    if (m >= 16) {
      const V a = Load(first + i), b = Load(second + i), c = Load(cos + i), s = Load(sin + i);
      Store(x + i, Sub(Mul(a, c), Mul(b, s)));
      Store(x + half + i, Add(Mul(b, c), Mul(a, s)));
    } else {
      const V a = LoadN(first + i, m), b = LoadN(second + i, m), c = LoadN(cos + i, m), s = LoadN(sin + i, m);
      StoreN(x + i, Sub(Mul(a, c), Mul(b, s)), m);
      StoreN(x + half + i, Add(Mul(b, c), Mul(a, s)), m);
    }
  }
}

static void Combine(const float* residual, const float* shared, const float* const* slots,
                    const float* weights, uint32_t top_k, uint32_t n, float* out) {
  ForLanes(n, out, [&](auto load) {
    V t = Zero();
    for (uint32_t s = 0; s < top_k; ++s) t = Fma(Set1(weights[s]), load(slots[s]), t);
    if (shared != nullptr) t = Add(t, load(shared));
    return Add(load(residual), t);
  });
}

static void Add(const float* a, const float* b, uint32_t n, float* out) {
  ForLanes(n, out, [&](auto load) { return Add(load(a), load(b)); });
}

static void Scores(bool sigmoid, const float* x, float shift, uint32_t n, float* out) {
  if (sigmoid) {
    ForLanes(n, out, [&](auto load) { return SigmoidLanes(load(x)); });
  } else {
    ForLanes(n, out, [&](auto load) { return ExpLanes(Sub(load(x), Set1(shift))); });
  }
}

// The compiler's vectors over independent elements; nothing here may be reordered or fused.
static void Weights(const float* x, double max, double temperature, uint32_t n, double* out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = numerics::Exp((static_cast<double>(x[i]) - max) / temperature);
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
