// Integer lanes and widening of packed weights with AVX-512 (F BW DQ VL). Included by quant_avx512*.cc only.
#pragma once
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/raw_layout.h"

namespace consilium::kernels::avx512 {

using VI = __m512i;

LANES_FN VI LoadI(const void* p) { return _mm512_loadu_si512(p); }
LANES_FN VI SetI(int32_t x) { return _mm512_set1_epi32(x); }
LANES_FN VI AndI(VI a, VI b) { return _mm512_and_si512(a, b); }
LANES_FN VI OrI(VI a, VI b) { return _mm512_or_si512(a, b); }
LANES_FN VI ShiftRight(VI a, int n) { return (VI)((__v16su)a >> n); }
LANES_FN VI ShiftLeft(VI a, int n) { return (VI)((__v16su)a << n); }
LANES_FN VI SubI(VI a, VI b) { return _mm512_sub_epi32(a, b); }
LANES_FN VI MulI(VI a, VI b) { return _mm512_mullo_epi32(a, b); }
LANES_FN V ToFloat(VI a) { return _mm512_cvtepi32_ps(a); }

// Byte j of every lane, unsigned, as f32.
// Shuffle indices: the byte, and three bytes of the top bit, which give 0.
alignas(64) static constexpr int kByteOfLane[4][16] = {
    {-256, -252, -248, -244, -256, -252, -248, -244, -256, -252, -248, -244, -256, -252, -248, -244},
    {-255, -251, -247, -243, -255, -251, -247, -243, -255, -251, -247, -243, -255, -251, -247, -243},
    {-254, -250, -246, -242, -254, -250, -246, -242, -254, -250, -246, -242, -254, -250, -246, -242},
    {-253, -249, -245, -241, -253, -249, -245, -241, -253, -249, -245, -241, -253, -249, -245, -241},
};
LANES_FN V ByteF(VI v, int j) { return ToFloat(_mm512_shuffle_epi8(v, LoadI(kByteOfLane[j]))); }
// Nibble n of every lane through a table of 16 floats: quicker than a conversion.
static constexpr bool kNibbleLookup = true;
struct Table16 {
  __m512 values;
};
LANES_FN Table16 LoadTable(const float* p) { return {_mm512_loadu_ps(p)}; }
LANES_FN V NibbleF(VI v, int n, const Table16& t) {
  return _mm512_permutexvar_ps(ShiftRight(v, 4 * n), t.values);
}
// Every byte (0..15) through a table of 16 bytes.
LANES_FN VI BytesThrough(VI v, const uint8_t* table) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))),
                             v);
}
// fp8 E4M3 of byte j, times 2^-120.
LANES_FN V Fp8F(VI v, int j) {
  const VI top = ShiftLeft(v, 24 - 8 * j);
  return _mm512_castsi512_ps(AndI((VI)((__v16si)top >> 4), SetI(static_cast<int>(0x87F00000u))));
}

LANES_FN V LoadU8(const void* p) {
  return ToFloat(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
LANES_FN VI LoadU8I(const void* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
LANES_FN V LoadI8(const void* p) {
  return ToFloat(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
LANES_FN V LoadE8m0(const void* p) {  // 2^(e - 128)
  const VI e = LoadU8I(p);
  const VI low = _mm512_sllv_epi32(SetI(0x00200000), e);
  const VI high = ShiftLeft(SubI(e, SetI(1)), 23);
  return _mm512_castsi512_ps(_mm512_mask_blend_epi32(_mm512_cmplt_epu32_mask(e, SetI(2)), high, low));
}

// Four products of unsigned bytes of w and signed bytes of x, added to acc: exact.
#if defined(__AVX512VNNI__)
LANES_FN VI Dot4(VI acc, VI w, VI x) { return _mm512_dpbusd_epi32(acc, w, x); }
#endif
LANES_FN void Pin(VI&) {}
// No sums in 16 bits (ilanes_avx2.h): one instruction does it all.
template <RawCode kCode>
static constexpr int kPairSteps = 0;
static constexpr bool kWideTakesBias = false;
LANES_FN VI WideOf(VI codes) { return codes; }

// Register tiles of packed weights (ilanes_avx2.h says what each number is).
static constexpr int kQuantRows = 8;
static constexpr int kQuantTile[kQuantRows + 1] = {0, 1, 2, 4, 4, 6, 6, 8, 8};
static constexpr int kQuantPanels[kQuantRows + 1] = {0, 4, 4, 4, 4, 2, 2, 2, 2};
static constexpr size_t kWidenRows = ~size_t{0};
static constexpr int kI8Rows = 8;
static constexpr int kI8Tile[kI8Rows + 1] = {0, 1, 2, 4, 4, 6, 6, 8, 8};
static constexpr int kI8Panels[kI8Rows + 1] = {0, 1, 1, 2, 2, 2, 2, 2, 2};
static constexpr int kDotRows = 8;

}  // namespace consilium::kernels::avx512
