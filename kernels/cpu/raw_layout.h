// How the panels of a weight format lie in memory, for code with and without AVX flags: plain numbers.
//
// A panel (16 output columns) is one stream, read once: for K-quants a super header per 8 blocks, then per
// block of `block_k` inputs a header (scales of the 16 columns) and its codes. Codes are unsigned:
//   k8       [k/4][16 columns][k%4] bytes
//   k4       [k/8][16][k%4] bytes: k%8 < 4 in the low nibble, the others in the high one
//   k4Zero, k4Table, k4Iq: the same; with zero points, through kFp4Codes, through kIq4Codes
//   k5       one word per column: the fifth bit of input k at bit 8*(k%4) + k/4; then k4
//   k6       two words per column (k/16), bits 8*(k%4) + 2*(k%16/4): the two upper bits; then k4
//   k2       two words per column as k6's
//   k3       the same; then one word per column as k5's: the third bit
//   kFp8     as k8, 128 inputs
// so that four inputs of a column are the four bytes of one 32-bit lane (an integer dot takes them at once).
#pragma once
#include <cstddef>
#include <cstdint>

namespace consilium::kernels {

enum class RawCode : uint8_t { kF32, kBf16, kF16, kFp8, k8, k4, k4Zero, k4Table, k5, k6, k2, k3, k4Iq };
// Scales of a block header: one per column. From kK on factors of the super header's: kK u8, kK6 and kK2 two
// (of 16 inputs each; i8, and u8 of which the upper half is the minimum's), kKS i8.
enum class RawScale : uint8_t { kNone, kF16, kBf16, kF32, kE8m0, kK, kK6, kK2, kKS };
// What follows the scales: zero points (u8), minima (f16; kK: 6-bit factors in u8, kK2: with the scales).
enum class RawTail : uint8_t { kNone, kZero, kMin };

constexpr bool HasSuper(RawScale s) { return s >= RawScale::kK; }
constexpr bool HasHalves(RawScale s) { return s == RawScale::kK6 || s == RawScale::kK2; }
constexpr bool HasHalves(RawCode c) { return c == RawCode::k6 || c == RawCode::k2 || c == RawCode::k3; }
// Bytes before the codes proper: fifth bits, or pairs of bits.
constexpr uint32_t HighBytes(RawCode c) { return c == RawCode::k5 ? 64 : HasHalves(c) ? 128 : 0; }

struct RawLayout {
  RawCode code = RawCode::kF32;
  RawScale scale = RawScale::kNone;
  RawTail tail = RawTail::kNone;
  uint32_t bias = 0;          // the weight's integer is code - bias (- zero point)
  uint32_t block_k = 1;       // inputs per block
  uint32_t super_shift = 0;   // 2^shift blocks per super header
  uint32_t super_header = 0;  // bytes
  uint32_t header = 0;        // bytes
  uint32_t block_bytes = 0;   // header and codes
  size_t panel_bytes = 0;

  size_t SuperBytes() const { return super_header + (size_t{block_bytes} << super_shift); }
  size_t SuperOffset(size_t b) const { return (b >> super_shift) * SuperBytes(); }
  size_t BlockOffset(size_t b) const {
    return SuperOffset(b) + super_header + (b & ((size_t{1} << super_shift) - 1)) * block_bytes;
  }
};

// Codes of MXFP4 and their values, doubled so that they are integers, plus 12 so that none is negative.
static constexpr uint8_t kFp4Codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
// Values of IQ4 codes plus 128.
static constexpr uint8_t kIq4Codes[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                          129, 141, 153, 166, 181, 197, 217, 241};

}  // namespace consilium::kernels
