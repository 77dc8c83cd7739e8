// Sixteen f32 lanes in two AVX2 registers. Included by kernel_avx2.cc only.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace consilium::kernels::avx2 {

#define LANES_FN static inline __attribute__((always_inline))

struct V {
  __m256 a, b;  // lanes 0..7, 8..15
};

LANES_FN V Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LANES_FN V Set1(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
LANES_FN V Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LANES_FN void Store(float* p, V v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
LANES_FN __m256i FirstN(size_t n, int base) {
  const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(base));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}
LANES_FN V LoadN(const float* p, size_t n) {
  return {_mm256_maskload_ps(p, FirstN(n, 0)), _mm256_maskload_ps(p + 8, FirstN(n, 8))};
}
LANES_FN void StoreN(float* p, V v, size_t n) {
  _mm256_maskstore_ps(p, FirstN(n, 0), v.a);
  _mm256_maskstore_ps(p + 8, FirstN(n, 8), v.b);
}
LANES_FN V LoadBf16(const uint16_t* p) {
  const __m128i lo = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i hi = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(lo), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(hi), 16))};
}
LANES_FN V LoadF16(const void* p) {  // F16C
  const __m128i* h = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
LANES_FN V Fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
LANES_FN V Add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LANES_FN V Sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LANES_FN V Mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LANES_FN V Div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LANES_FN V Neg(V x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
LANES_FN V MaxOf(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
LANES_FN V MinOf(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LANES_FN V IfLess(V x, V y, V yes, V no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
LANES_FN V IfNan(V x, V yes, V no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))};
}
LANES_FN __m256 AddExponent8(__m256 p, __m256 t, float magic) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(_mm256_set1_ps(magic)));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23)));
}
// Adds the integer held by the low bits of t (t = magic + n) to the exponent of p.
LANES_FN V AddExponent(V p, V t, float magic) {
  return {AddExponent8(p.a, t.a, magic), AddExponent8(p.b, t.b, magic)};
}

// Register tiles: rows x panels of 16 columns, two registers each, of 16 registers.
static constexpr int kTileRows = 6;
static constexpr int kTilePanels[kTileRows + 1] = {0, 4, 2, 1, 1, 1, 1};

}  // namespace consilium::kernels::avx2
