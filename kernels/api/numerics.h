// The scalar arithmetic of class `f32`: folds, exp, tanh, sigmoid, silu, gelu, and the double functions
// behind rotary tables and log-probabilities. No libm transcendental: each function is a fixed sequence of
// IEEE operations, so every machine gives the same bits. docs/NUMERICS.md states the order of every operation
// built from these.
//
// Every function has internal linkage and uses builtins only: the file is also compiled with AVX flags, and a
// shared inline symbol from such a unit could be picked by the linker for a machine without AVX.
#pragma once
#include <cstddef>
#include <cstdint>

namespace consilium::numerics {

static constexpr size_t kLanes = 16;  // of every fold; a constant of the class, not a vector width

static inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float InfF() { return __builtin_inff(); }

// ---- Folds
// ----------------------------------------------------------------------------------------------------- 16
// partial results to one: lane i += lane i+8, then +4, +2, +1.
static inline float FoldLanes(const float* lanes) {
  float t[kLanes];
  for (size_t i = 0; i < kLanes; ++i) t[i] = lanes[i];
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) t[i] = t[i] + t[i + half];
  }
  return t[0];
}

// Sum: lane j % 16 adds x[j], j ascending, from 0; then FoldLanes.
static inline float Fold16(const float* x, size_t n) {
  float lanes[kLanes] = {};
  for (size_t j = 0; j < n; ++j) lanes[j % kLanes] = lanes[j % kLanes] + x[j];
  return FoldLanes(lanes);
}

// Sum of squares: lane j % 16 = fma(x[j], x[j], lane).
static inline float Fold16Squares(const float* x, size_t n) {
  float lanes[kLanes] = {};
  for (size_t j = 0; j < n; ++j) lanes[j % kLanes] = Fma(x[j], x[j], lanes[j % kLanes]);
  return FoldLanes(lanes);
}

// The larger of two, by a > b ? a : b (a NaN in `a` is passed over).
static inline float MaxOf(float a, float b) { return a > b ? a : b; }
static inline float MinOf(float a, float b) { return a < b ? a : b; }

// Maximum over x[0..n): lane j % 16 = MaxOf(x[j], lane) from -inf; then the tree of FoldLanes with MaxOf.
static inline float FoldMax16(const float* x, size_t n) {
  float t[kLanes];
  for (size_t i = 0; i < kLanes; ++i) t[i] = -InfF();
  for (size_t j = 0; j < n; ++j) t[j % kLanes] = MaxOf(x[j], t[j % kLanes]);
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) t[i] = MaxOf(t[i], t[i + half]);
  }
  return t[0];
}

// ---- f32 exp: <= 1 ulp from log(FLT_MIN) up
// -------------------------------------------------------------------------
static constexpr float kExpLow = -87.0f;  // below: +0 (results under the normal range are flushed)
static constexpr float kExpHigh = 88.72283172607422f;  // above: +inf (the largest float with a finite exp)
static constexpr float kExpMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
static constexpr float kLog2E = 1.44269504088896341f;
static constexpr float kLn2High = 0.693359375f;  // 9 bits: n * kLn2High is exact
static constexpr float kLn2Low = -2.12194440e-4f;
// exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2)/2; coefficients of Cephes expf (S. Moshier), highest first.
static constexpr float kExpPoly[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                      4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

static inline float Exp(float x) {
  if (x != x) return x;
  if (x < kExpLow) return 0.0f;
  if (x > kExpHigh) return InfF();
  const float t = Fma(x, kLog2E, kExpMagic);
  const float n = t - kExpMagic;
  float r = Fma(n, -kLn2High, x);
  r = Fma(n, -kLn2Low, r);
  float p = kExpPoly[0];
  for (int i = 1; i < 6; ++i) p = Fma(p, r, kExpPoly[i]);
  p = Fma(p, r * r, r) + 1.0f;
  // Times 2^n by adding n to the exponent field: p >= 1 where n is smallest, p <= 1 where n = 128.
  const uint32_t shift = (__builtin_bit_cast(uint32_t, t) - __builtin_bit_cast(uint32_t, kExpMagic)) << 23;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p) + shift);
}

static inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }
static inline float Silu(float x) { return x / (1.0f + Exp(-x)); }

// tanh: odd polynomial (Cephes tanhf) under 0.625, else 1 - 2 / (exp(2|x|) + 1) with the sign of x.
static constexpr float kTanhBranch = 0.625f;
static constexpr float kTanhPoly[5] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                       1.33314422036e-1f, -3.33332819422e-1f};
static inline float Tanh(float x) {
  const float a = x < 0.0f ? -x : x;
  if (a < kTanhBranch) {
    const float s = x * x;
    float p = kTanhPoly[0];
    for (int i = 1; i < 5; ++i) p = Fma(p, s, kTanhPoly[i]);
    return Fma(p * s, x, x);
  }
  const float y = 1.0f - 2.0f / (Exp(a + a) + 1.0f);
  return x < 0.0f ? -y : y;
}

// gelu (tanh form): (0.5 x) (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the inner sum as fma(0.044715 * (x x),
// x, x).
static constexpr float kSqrt2OverPi = 0.7978845608028654f;
static constexpr float kGeluCubic = 0.044715f;
static inline float GeluTanh(float x) {
  const float inner = Fma(kGeluCubic * (x * x), x, x);
  return (0.5f * x) * (1.0f + Tanh(kSqrt2OverPi * inner));
}

// gelu (erf form): x - t for x >= 0, else -t, where t = (0.5 a) erfc(a / sqrt 2), a = |x|, at most 20.
// erfc(z) = exp(-z^2) P(1 / (1 + z / 2)), relative error of P 3e-8 for z up to 9.5, where exp ends.
static constexpr float kSqrtHalf = 0.7071067811865476f;
static constexpr float kGeluErfEnd = 20.0f;
static constexpr float kErfcPoly[10] = {-0.054956063628196716f, 0.2632972002029419f,  -0.4398438334465027f,
                                        0.2187390774488449f,    0.01933232881128788f, 0.17993497848510742f,
                                        0.2502785921096802f,    0.28098955750465393f, 0.2822348177433014f,
                                        -6.707778993586544e-06f};
static inline float GeluErf(float x) {
  float a = x < 0.0f ? -x : x;
  a = a < kGeluErfEnd ? a : kGeluErfEnd;
  const float z = kSqrtHalf * a, t = 1.0f / Fma(0.5f, z, 1.0f);
  float p = kErfcPoly[0];
  for (int i = 1; i < 10; ++i) p = Fma(p, t, kErfcPoly[i]);
  const float tail = (0.5f * a) * (Exp(-(z * z)) * p);
  return x < 0.0f ? -tail : x - tail;
}

// 1 / sqrt(x), both exactly rounded.
static inline float Rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

// ---- double exp and log: about 1 ulp, without fma, so that they are fast on any machine
// -----------------------------
// Without branches, so that a loop of it becomes vector code.
static inline double Exp(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double kLow = -708.0, kHigh = 709.78271289338397;
  const double low = x < kLow ? kLow : x;
  const double c = low > kHigh ? kHigh : low;
  const double t = c * 1.44269504088896338700 + kMagic;
  const double n = t - kMagic;
  const double r = (c - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  // Taylor, 1/13! .. 1/2!: the first term left out is below 2^-57 for |r| <= ln(2)/2.
  double p = 1.6059043836821613e-10;
  p = p * r + 2.0876756987868099e-09;
  p = p * r + 2.5052108385441720e-08;
  p = p * r + 2.7557319223985888e-07;
  p = p * r + 2.7557319223985893e-06;
  p = p * r + 2.4801587301587302e-05;
  p = p * r + 1.9841269841269841e-04;
  p = p * r + 1.3888888888888889e-03;
  p = p * r + 8.3333333333333332e-03;
  p = p * r + 4.1666666666666664e-02;
  p = p * r + 1.6666666666666666e-01;
  p = p * r + 0.5;
  p = 1.0 + (r + (r * r) * p);
  const uint64_t shift = (__builtin_bit_cast(uint64_t, t) - __builtin_bit_cast(uint64_t, kMagic)) << 52;
  double y = __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, p) + shift);
  y = x < kLow ? 0.0 : y;
  y = x > kHigh ? __builtin_inf() : y;
  return x != x ? x : y;
}

// Natural logarithm (the method and constants of fdlibm's e_log.c). log(0) = -inf, of a negative number NaN.
static inline double Log(double x) {
  if (x != x || x == __builtin_inf()) return x;
  if (x == 0.0) return -__builtin_inf();
  if (x < 0.0) return __builtin_nan("");
  int64_t k = 0;
  if (x < 2.2250738585072014e-308) {
    x *= 18014398509481984.0;  // 2^54
    k = -54;
  }
  uint64_t bits = __builtin_bit_cast(uint64_t, x);
  k += static_cast<int64_t>(bits >> 52) - 1023;
  bits = (bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
  double m = __builtin_bit_cast(double, bits);  // [1, 2)
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++k;
  }
  const double f = m - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double w = z * z;
  const double even =
      w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd =
      z * (6.666666666666735130e-01 +
           w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double half_square = 0.5 * f * f;
  const double dk = static_cast<double>(k);
  return dk * 6.93147180369123816490e-01 -
         ((half_square - (s * (half_square + (even + odd)) + dk * 1.90821492927058770002e-10)) - f);
}

// log(1 + exp(x)), rounded to f32 once. Below 2^-20, where adding 1 would cost digits, log(1 + e) = e - e^2
// / 2.
static inline float Softplus(float x) {
  if (x > 20.0f) return x;  // also within half an ulp of it
  const double e = Exp(static_cast<double>(x));
  return static_cast<float>(e < 0x1p-20 ? e - (0.5 * e) * e : Log(1.0 + e));
}

// ---- double sin and cos: absolute error about 2e-16 for |x| <= 1e7
// ---------------------------------------------------
struct SinCosResult {
  double sin;
  double cos;
};
static inline SinCosResult SinCos(double x) {
  constexpr double kMagic = 6755399441055744.0;
  const double n = (x * 6.36619772367581382433e-01 + kMagic) - kMagic;
  // x - n pi/2, pi/2 in two doubles; fma keeps the product exact.
  double r = __builtin_fma(-n, 1.57079632679489655800e+00, x);
  r = __builtin_fma(-n, 6.12323399573676603587e-17, r);
  const double z = r * r;
  // Kernels of fdlibm (k_sin.c, k_cos.c) on |r| <= pi/4.
  double ps = 1.58969099521155010221e-10;
  ps = ps * z - 2.50507602534068634195e-08;
  ps = ps * z + 2.75573137070700676789e-06;
  ps = ps * z - 1.98412698298579493134e-04;
  ps = ps * z + 8.33333333332248946124e-03;
  ps = ps * z - 1.66666666666666324348e-01;
  const double sine = r + (r * z) * ps;
  double pc = -1.13596475577881948265e-11;
  pc = pc * z + 2.08757232129817482790e-09;
  pc = pc * z - 2.75573143513906633035e-07;
  pc = pc * z + 2.48015872894767294178e-05;
  pc = pc * z - 1.38888888888741095749e-03;
  pc = pc * z + 4.16666666666666019037e-02;
  const double half = 0.5 * z;
  const double w = 1.0 - half;
  const double cosine = w + (((1.0 - w) - half) + (z * z) * pc);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      return {sine, cosine};
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    default:
      return {-cosine, sine};
  }
}

// ---- Widening
// -----------------------------------------------------------------------------------------------------
static inline float FromBf16(uint16_t v) { return __builtin_bit_cast(float, static_cast<uint32_t>(v) << 16); }
static inline float FromF16(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1F;
  const uint32_t mantissa = h & 0x3FF;
  if (exponent == 0) {  // zero or denormal: mantissa * 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return __builtin_bit_cast(float, sign | (wide << 23) | (mantissa << 13));
}

// ---- Activation groups of class i8g32
// -----------------------------------------------------------------------------------------------------
// q[0..32) from x[0..n), n <= 32, the rest 0; returns the scale. Scale = amax / 127, q = x * (127 / amax) to
// the nearest, ties to even; |q| <= 127 follows. Below kQuantFloor 127 / amax would overflow: the group is 0.
// A group with a NaN or an infinity has scale NaN, q 0: its output is NaN.
static constexpr float kQuantFloor = 0x1p-100f;
static constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23
static inline float QuantizeGroup(const float* x, size_t n, int8_t* q) {
  uint32_t largest = 0;  // magnitudes compare as their bits do; NaN above infinity
  for (size_t i = 0; i < n; ++i) {
    const uint32_t a = __builtin_bit_cast(uint32_t, x[i]) & 0x7FFFFFFFu;
    largest = a > largest ? a : largest;
  }
  const float amax = __builtin_bit_cast(float, largest);
  const bool finite = largest < 0x7F800000u;
  if (!finite || amax < kQuantFloor) {
    for (size_t i = 0; i < 32; ++i) q[i] = 0;
    return finite ? 0.0f : __builtin_nanf("");
  }
  const float inverse = 127.0f / amax;
  for (size_t i = 0; i < n; ++i) {
    const float t = x[i] * inverse + kRoundMagic;
    q[i] = static_cast<int8_t>(__builtin_bit_cast(int32_t, t) - __builtin_bit_cast(int32_t, kRoundMagic));
  }
  for (size_t i = n; i < 32; ++i) q[i] = 0;
  return amax / 127.0f;
}

}  // namespace consilium::numerics
