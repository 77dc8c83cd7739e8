// Integer lanes and widening of packed weights with AVX2 and F16C. Included by quant_avx2.cc only.
#pragma once
#include "kernels/cpu/lanes_avx2.h"

namespace consilium::kernels::avx2 {

struct VI {
  __m256i a, b;  // lanes 0..7, 8..15
};
template <class F>
LANES_FN VI BothI(VI x, F f) {
  return {f(x.a), f(x.b)};
}

LANES_FN VI LoadI(const void* p) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(p)),
          _mm256_loadu_si256(static_cast<const __m256i*>(p) + 1)};
}
LANES_FN VI SetI(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LANES_FN VI AndI(VI x, VI y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
LANES_FN VI OrI(VI x, VI y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
LANES_FN VI ShiftRight(VI x, int n) { return {(__m256i)((__v8su)x.a >> n), (__m256i)((__v8su)x.b >> n)}; }
LANES_FN VI ShiftLeft(VI x, int n) { return {(__m256i)((__v8su)x.a << n), (__m256i)((__v8su)x.b << n)}; }
LANES_FN VI SubI(VI x, VI y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
LANES_FN VI MulI(VI x, VI y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
LANES_FN V ToFloat(VI x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

LANES_FN V ByteF(VI v, int j) { return ToFloat(AndI(ShiftRight(v, 8 * j), SetI(255))); }
struct Table16 {
  __m256 low, high;
};
LANES_FN Table16 LoadTable(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LANES_FN __m256 Nibble8(__m256i v, const Table16& t) {
  // Bit 3 of the lane, moved to the sign, chooses the half.
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, v), _mm256_permutevar8x32_ps(t.high, v),
                          _mm256_castsi256_ps(_mm256_slli_epi32(v, 28)));
}
LANES_FN V NibbleF(VI v, int n, const Table16& t) {
  const VI s = ShiftRight(v, 4 * n);
  return {Nibble8(s.a, t), Nibble8(s.b, t)};
}
LANES_FN V NibbleNumberF(VI v, int n, const Table16&) {
  return ToFloat(AndI(ShiftRight(v, 4 * n), SetI(15)));
}
LANES_FN VI BytesThrough(VI v, const uint8_t* table) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, v.a), _mm256_shuffle_epi8(t, v.b)};
}
LANES_FN __m256 Fp8Top(__m256i top) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(_mm256_srai_epi32(top, 4), _mm256_set1_epi32(static_cast<int>(0x87F00000u))));
}
LANES_FN V Fp8F(VI v, int j) {
  const VI top = ShiftLeft(v, 24 - 8 * j);
  return {Fp8Top(top.a), Fp8Top(top.b)};
}

LANES_FN VI LoadU8I(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
LANES_FN V LoadU8(const void* p) { return ToFloat(LoadU8I(p)); }
LANES_FN V LoadI8(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return ToFloat({_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))});
}
LANES_FN __m256 E8m0Of(__m256i e) {
  const __m256i low = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  const __m256i high = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  return _mm256_castsi256_ps(_mm256_blendv_epi8(high, low, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}
LANES_FN V LoadE8m0(const void* p) {
  const VI e = LoadU8I(p);
  return {E8m0Of(e.a), E8m0Of(e.b)};
}

// Four products of unsigned bytes of w and signed bytes of x (|x| <= 127), added to acc. maddubs adds pairs
// in 16 bits and saturates: exact for codes up to 128 (2 * 128 * 127 = 32512 < 2^15), which all but bytes
// are.
LANES_FN __m256i Dot8(__m256i acc, __m256i w, __m256i x) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
LANES_FN VI Dot4(VI acc, VI w, VI x) { return {Dot8(acc.a, w.a, x.a), Dot8(acc.b, w.b, x.b)}; }
// For bytes of bias 128: w = s + 128 with |s| <= 128, and |s| * (x with the sign of s) fits: the bias is off
// already.
static constexpr bool kWideTakesBias = true;
LANES_FN __m256i DotWide8(__m256i acc, __m256i w, __m256i x) {
  const __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  return Dot8(acc, _mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
}
LANES_FN VI Dot4Wide(VI acc, VI w, VI x) { return {DotWide8(acc.a, w.a, x.a), DotWide8(acc.b, w.b, x.b)}; }

// The same in 16-bit pairs, for sums that fit. AddPairs folds them.
LANES_FN __m256i Pairs8(__m256i acc, __m256i w, __m256i x) {
  return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
}
LANES_FN VI DotPairs(VI acc, VI w, VI x) { return {Pairs8(acc.a, w.a, x.a), Pairs8(acc.b, w.b, x.b)}; }
LANES_FN __m256i AddPairs8(__m256i acc, __m256i pairs) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
LANES_FN VI AddPairs(VI acc, VI pairs) { return {AddPairs8(acc.a, pairs.a), AddPairs8(acc.b, pairs.b)}; }
static constexpr bool kPairs = true;

static constexpr int kQuantRows = 4;
static constexpr int kQuantPanels[kQuantRows + 1] = {0, 4, 2, 1, 1};
static constexpr int kI8Panels[kQuantRows + 1] = {0, 4, 2, 1, 1};

}  // namespace consilium::kernels::avx2
