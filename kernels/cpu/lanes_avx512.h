// Sixteen f32 lanes in one AVX-512 register. Included by kernel_avx512.cc only.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace consilium::kernels::avx512 {

#define LANES_FN static inline __attribute__((always_inline))

using V = __m512;

LANES_FN V Zero() { return _mm512_setzero_ps(); }
LANES_FN V Set1(float x) { return _mm512_set1_ps(x); }
LANES_FN V Load(const float* p) { return _mm512_loadu_ps(p); }
LANES_FN void Store(float* p, V v) { _mm512_storeu_ps(p, v); }
LANES_FN __mmask16 FirstN(size_t n) { return static_cast<__mmask16>((1u << n) - 1u); }  // n < 16
LANES_FN V LoadN(const float* p, size_t n) { return _mm512_maskz_loadu_ps(FirstN(n), p); }
LANES_FN void StoreN(float* p, V v, size_t n) { _mm512_mask_storeu_ps(p, FirstN(n), v); }
LANES_FN V LoadBf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
LANES_FN V LoadF16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
LANES_FN V Fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
LANES_FN V Add(V a, V b) { return _mm512_add_ps(a, b); }
LANES_FN V Sub(V a, V b) { return _mm512_sub_ps(a, b); }
LANES_FN V Mul(V a, V b) { return _mm512_mul_ps(a, b); }
LANES_FN V Div(V a, V b) { return _mm512_div_ps(a, b); }
LANES_FN V Neg(V a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
LANES_FN V MaxOf(V a, V b) { return _mm512_max_ps(a, b); }  // a > b ? a : b
LANES_FN V MinOf(V a, V b) { return _mm512_min_ps(a, b); }  // a < b ? a : b
LANES_FN V IfLess(V a, V b, V yes, V no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
LANES_FN V IfNan(V a, V yes, V no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), no, yes);
}
// Adds the integer held by the low bits of t (t = magic + n) to the exponent of p.
LANES_FN V AddExponent(V p, V t, float magic) {
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(_mm512_set1_ps(magic)));
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(n, 23)));
}

// Register tiles: rows x panels of 16 columns. 32 registers: rows * panels accumulators + panels of weights
// + 1. At least 8 accumulators hide 4 cycles of fma latency on two pipes; one or two rows are bound by
// memory, where four streams fetched ahead are quicker than eight.
static constexpr int kTileRows = 8;
static constexpr int kTilePanels[kTileRows + 1] = {0, 4, 4, 6, 4, 4, 4, 3, 3};

}  // namespace consilium::kernels::avx512
