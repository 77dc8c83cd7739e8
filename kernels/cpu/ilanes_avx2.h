// Integer lanes and widening of packed weights with AVX2 and F16C. Included by quant_avx2.cc only.
#pragma once
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/raw_layout.h"

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

// Byte j of every lane, unsigned, as f32: one shuffle, whose other indices give 0.
LANES_FN V ByteF(VI v, int j) {
  const __m256i index = _mm256_add_epi32(_mm256_setr_epi32(-256, -252, -248, -244, -256, -252, -248, -244),
                                         _mm256_set1_epi32(j));
  return ToFloat({_mm256_shuffle_epi8(v.a, index), _mm256_shuffle_epi8(v.b, index)});
}
// Nibbles become bytes first: a table of floats takes two registers and four operations a lookup here.
static constexpr bool kNibbleLookup = false;
struct Table16 {};
LANES_FN Table16 LoadTable(const float*) { return {}; }
LANES_FN VI BytesThrough(VI v, const uint8_t* table) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, v.a), _mm256_shuffle_epi8(t, v.b)};
}
// fp8 E4M3 of byte j, times 2^-120. Its bits lie in the upper half of an f32: two bytes are placed at a time.
LANES_FN __m256i Fp8Halves(__m256i v, bool odd) {
  const __m256i high = odd ? v : _mm256_slli_epi16(v, 8);
  return _mm256_and_si256(_mm256_srai_epi16(high, 4), _mm256_set1_epi16(static_cast<short>(0x87F0)));
}
LANES_FN V Fp8F(VI v, int j) {
  const VI halves = BothI(v, [&](__m256i x) { return Fp8Halves(x, j % 2 != 0); });
  const VI top = j < 2 ? ShiftLeft(halves, 16) : AndI(halves, SetI(static_cast<int>(0xFFFF0000u)));
  return {_mm256_castsi256_ps(top.a), _mm256_castsi256_ps(top.b)};
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

// Dots of codes (unsigned bytes) and inputs (|x| <= 127). maddubs adds pairs in 16 bits and saturates; they
// are added up there for as many steps as stay exact.
constexpr int LargestCode(RawCode code) {
  switch (code) {
    case RawCode::k2:
      return 3;
    case RawCode::k3:
      return 7;
    case RawCode::k4:
      return 15;
    case RawCode::k4Table:
      return 24;
    case RawCode::k5:
      return 31;
    case RawCode::k6:
      return 63;
    default:
      return 255;
  }
}
constexpr bool PairsFit(int steps, RawCode code) { return steps * 2 * 127 * LargestCode(code) < 1 << 15; }
template <RawCode kCode>
static constexpr int kPairSteps = PairsFit(8, kCode)   ? 8
                                  : PairsFit(4, kCode) ? 4
                                  : PairsFit(2, kCode) ? 2
                                                       : 0;
LANES_FN VI DotPairs(VI acc, VI w, VI x) {
  return {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, x.a)),
          _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, x.b))};
}
LANES_FN __m256i AddPairs8(__m256i acc, __m256i pairs) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
LANES_FN VI AddPairs(VI acc, VI pairs) { return {AddPairs8(acc.a, pairs.a), AddPairs8(acc.b, pairs.b)}; }
// Bytes of bias 128: s = w - 128, |s| <= 128, and |s| * (x with the sign of s) fits once. The bias is off.
static constexpr bool kWideTakesBias = true;
struct SignedCodes {
  VI value, magnitude;
};
LANES_FN SignedCodes WideOf(VI w) {
  const VI s = BothI(w, [](__m256i v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); });
  return {s, BothI(s, [](__m256i v) { return _mm256_abs_epi8(v); })};
}
LANES_FN __m256i DotWide8(__m256i acc, __m256i s, __m256i magnitude, __m256i x) {
  return AddPairs8(acc, _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, s)));
}
LANES_FN VI Dot4(VI acc, const SignedCodes& w, VI x) {
  return {DotWide8(acc.a, w.value.a, w.magnitude.a, x.a), DotWide8(acc.b, w.value.b, w.magnitude.b, x.b)};
}
// Keeps sums in registers step by step: GCC would do all products of a group first, and spill them.
LANES_FN void Pin(VI& v) {
  asm volatile("" : "+x"(v.a));
  asm volatile("" : "+x"(v.b));
}

// Tiles of class f32: the rows of the tile that serves so many, and panels by rows. More rows than
// kWidenRows take the weights from a buffer.
static constexpr int kQuantRows = 6;
static constexpr int kQuantTile[kQuantRows + 1] = {0, 1, 2, 3, 4, 5, 6};
static constexpr int kQuantPanels[kQuantRows + 1] = {0, 2, 1, 1, 1, 1, 1};
static constexpr size_t kWidenRows = 6;
// Tiles of class i8g32; kDotRows of their rows have their dots in registers at a time.
static constexpr int kI8Rows = 8;
static constexpr int kI8Tile[kI8Rows + 1] = {0, 1, 2, 3, 4, 6, 6, 8, 8};
static constexpr int kI8Panels[kI8Rows + 1] = {0, 4, 2, 1, 1, 1, 1, 1, 1};
static constexpr int kDotRows = 4;

}  // namespace consilium::kernels::avx2
