#include "common/model/word_matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/base/status.h"

namespace consilium {
namespace {

constexpr size_t kEight = 8;
// Nibble n of an AWQ word belongs to output kAwqOrder[n] of its eight.
constexpr size_t kAwqOrder[kEight] = {0, 2, 4, 6, 1, 3, 5, 7};

using Words = std::vector<uint32_t>;

Words WordsOf(std::span<const std::byte> bytes) {
  Words words(bytes.size() / sizeof(uint32_t));
  if (!words.empty()) std::memcpy(words.data(), bytes.data(), words.size() * sizeof(uint32_t));
  return words;
}

// Nibble i of word n becomes nibble n of word i: ever smaller squares off the diagonal change places.
void TransposeNibbles(uint32_t (&w)[kEight]) {
  uint32_t mask = 0x0000FFFF;
  for (uint32_t half = 4; half > 0; half /= 2, mask ^= mask << (4 * half)) {
    for (uint32_t k = 0; k < kEight; ++k) {
      if ((k & half) != 0) continue;
      const uint32_t swapped = (w[k] >> (4 * half) ^ w[k + half]) & mask;
      w[k + half] ^= swapped;
      w[k] ^= swapped << (4 * half);
    }
  }
}

// Eight inputs of all outputs, [8, out / 8] words, to [out] words.
void AwqStrip(size_t words, std::byte* strip, Words* copy) {
  copy->resize(kEight * words);
  std::memcpy(copy->data(), strip, copy->size() * sizeof(uint32_t));
  for (size_t c = 0; c < words; ++c) {
    uint32_t w[kEight], out[kEight];
    for (size_t i = 0; i < kEight; ++i) w[i] = (*copy)[i * words + c];
    TransposeNibbles(w);
    for (size_t n = 0; n < kEight; ++n) out[kAwqOrder[n]] = w[n];
    std::memcpy(strip + c * sizeof out, out, sizeof out);
  }
}

uint32_t AwqZeros(uint32_t word) {
  uint32_t out = 0;
  for (size_t n = 0; n < kEight; ++n) out |= (word >> (4 * n) & 15) << (4 * kAwqOrder[n]);
  return out;
}

uint64_t StoredRows(const TensorInfo& t) {  // may be more than the tensor's own
  const uint64_t row = t.coding == Coding::kGptq8 ? t.columns() : t.columns() / 2;
  return row == 0 ? 0 : t.range.length / row;
}

uint64_t BytesOfEight(const TensorInfo& t) {  // inputs, of all rows
  return StoredRows(t) * (t.coding == Coding::kGptq8 ? 8 : 4);
}

}  // namespace

bool IsInWords(const TensorInfo& t) {
  return t.coding == Coding::kGptq4 || t.coding == Coding::kGptq8 || t.coding == Coding::kAwq;
}

absl::Status NormaliseWords(const TensorInfo& t, std::span<std::byte> values, std::span<std::byte> zeros) {
  const bool bytes = t.coding == Coding::kGptq8;
  Words words = WordsOf(zeros);
  for (uint32_t& w : words) {
    if (t.coding == Coding::kAwq) w = AwqZeros(w);
    if (t.zeros_minus_one) w += bytes ? 0x01010101 : 0x11111111;  // of the whole word, as they were taken off
    if (t.centred && w != (bytes ? 0x80808080 : 0x88888888)) {
      return InvalidArgument(
          "tensor \"" + t.name +
          "\": zero points other than the middle, though the configuration says symmetric");
    }
  }
  if (!words.empty()) std::memcpy(zeros.data(), words.data(), zeros.size());
  if (t.coding != Coding::kAwq) return absl::OkStatus();
  const uint64_t strip = BytesOfEight(t);
  for (size_t at = 0; at + strip <= values.size() && strip > 0; at += strip)
    AwqStrip(strip / sizeof(uint32_t) / kEight, values.data() + at, &words);
  return absl::OkStatus();
}

uint64_t WordPieceInputs(const TensorInfo& t) {
  const uint64_t unit = t.block_columns == 0 ? 32 : t.block_columns;
  return std::max<uint64_t>(1, kStagingBytes / std::max<uint64_t>(1, BytesOfEight(t) * unit / 8)) * unit;
}

TensorInfo WordInputsOf(const TensorInfo& t, uint64_t begin, uint64_t count) {
  TensorInfo piece = t;
  piece.shape[1] = count;
  piece.range.offset += begin / 8 * BytesOfEight(t);
  piece.range.length = count / 8 * BytesOfEight(t);
  if (t.block_columns == 0) return piece;
  const uint64_t group = t.block_columns, groups = (t.columns() + group - 1) / group;
  for (ByteRange* beside : {&piece.scales, &piece.zeros}) {
    const uint64_t one = beside->length / groups;
    beside->offset += begin / group * one;
    beside->length = (count + group - 1) / group * one;
  }
  return piece;
}

}  // namespace consilium
