// Weight matrices in memory and the formats they come from. Quantised weights stay packed: a panel holds
// codes and scales as they are, widened only in registers. docs/NUMERICS.md defines the value of a weight per
// format.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/tensor/dtype.h"
#include "kernels/cpu/raw_layout.h"

namespace consilium::kernels {

inline constexpr uint32_t kPanelColumns = 16;  // output columns of a weight panel
inline constexpr uint32_t kGroup = 32;         // inputs that share a scale in packed integer formats and rows

// Bytes aligned to 64, owned.
struct AlignedDelete {
  size_t mapped = 0;  // bytes of pages of its own; 0: from malloc
  void operator()(std::byte* p) const;
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;
// Zeroed; from 2 MiB on in huge pages where the system has them. Fresh: the system may give the memory only
// when it is first written.
AlignedBytes AllocateAligned(size_t bytes);
AlignedBytes AllocateFresh(size_t bytes);

enum class WeightFormat : uint8_t {
  kF32,
  kBf16,
  kF16,
  kFp8,   // E4M3, scales per 128 inputs
  kInt8,  // group of 32 (and multiples), scales f16, bf16 or f32
  kInt4,
  kInt4Zero,  // with zero points
  kMxfp4,
  kQ8_0,  // the ggml formats
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIq4Nl,
  kQ4K,
  kQ5K,
  kQ6K,
  kQ2K,
  kQ3K,
  kIq4Xs,
};
inline constexpr WeightFormat kWeightFormatLast = WeightFormat::kIq4Xs;
std::string_view WeightFormatName(WeightFormat format);
// The format of plain elements. CHECKs that dtype is F32, BF16 or F16.
WeightFormat PlainFormat(DType dtype);
// Whether class i8g32 runs integer dots on it; the other formats keep the f32 chain there.
bool IsIntegerFormat(WeightFormat format);
// Bytes of one ggml block of the format (of 32 or 256 inputs); 0 if it is none of ggml's.
constexpr size_t GgufBlockBytes(WeightFormat f) {
  switch (f) {
    case WeightFormat::kQ8_0:
      return 34;
    case WeightFormat::kQ4_0:
    case WeightFormat::kIq4Nl:
      return 18;
    case WeightFormat::kQ4_1:
      return 20;
    case WeightFormat::kQ5_0:
      return 22;
    case WeightFormat::kQ5_1:
      return 24;
    case WeightFormat::kMxfp4:
      return 17;
    case WeightFormat::kQ4K:
      return 144;
    case WeightFormat::kQ5K:
      return 176;
    case WeightFormat::kQ6K:
      return 210;
    case WeightFormat::kQ2K:
      return 84;
    case WeightFormat::kQ3K:
      return 110;
    case WeightFormat::kIq4Xs:
      return 136;
    default:
      return 0;
  }
}
// Inputs of one unit of the format that cannot be cut (256 for K-quants, 1 where a ragged end is allowed).
uint32_t GranularityK(WeightFormat format);

// A weight matrix W [out, in], packed at load for y = x W^T: panel p holds columns 16p..16p+15 of the output,
// padded with zeros (raw_layout.h). `scale`: of kInt8, kInt4, kInt4Zero.
struct PackedMatrix {
  uint32_t out = 0;
  uint32_t in = 0;
  WeightFormat format = WeightFormat::kBf16;
  DType scale = DType::kF16;
  AlignedBytes data;

  uint32_t panels() const { return (out + kPanelColumns - 1) / kPanelColumns; }
  RawLayout layout() const;
  size_t panel_bytes() const { return layout().panel_bytes; }
  size_t bytes() const { return panels() * panel_bytes(); }
};

// Where the bytes of a matrix lie in a checkpoint. The stored matrix is [out, in] (a stack [E, out, in] is
// [E * out, in]); what is packed is a range of its rows and columns.
struct WeightSource {
  enum class Layout : uint8_t {
    kPlain,       // row-major elements: F32, BF16, F16, FP8 bytes, int8 (signed)
    kTransposed,  // F32, BF16, F16 stored [in, out]
    kCompressed,  // compressed-tensors pack-quantized: kInt4, kInt4Zero, kInt8; 32-bit words along in
    kWords,       // GPTQ: kInt4, kInt4Zero, kInt8; 32-bit words along in, outputs side by side
    kGptOss,      // MXFP4: element 2b in the low nibble of byte b, scales apart
    kGguf,        // ggml blocks, row by row; MXFP4 there: elements j and j + 16 in one byte
  };
  WeightFormat format = WeightFormat::kBf16;
  Layout layout = Layout::kPlain;
  uint32_t out = 0, in = 0;  // of the stored matrix
  std::span<const std::byte> values;
  // FP8: [ceil(out / scale_rows), ceil(in / group)]; kInt*: [out, ceil(in / group)]; MXFP4: E8M0 bytes
  // [out, in / 32]. kWords: [ceil(in / group), out].
  std::span<const std::byte> scales;
  std::span<const std::byte> zeros;  // kInt4Zero: words [ceil(out / 8), groups] of eight outputs; kWords:
                                     // [groups, ceil(out / 8)]
  DType scale_type = DType::kF32;
  uint32_t group = 0;         // inputs per scale; 0: the whole row. FP8: 128, or any multiple
  uint32_t scale_rows = 128;  // FP8: rows per scale; 0: the whole matrix

  // The part: rows first_row, first_row + row_step, ...; inputs [first_k, first_k + count_k). Counts of 0: as
  // many as there are. `row_map`, if not empty, instead names the stored row of every row.
  uint32_t first_row = 0, row_count = 0, row_step = 1;
  uint32_t first_k = 0, count_k = 0;
  std::span<const uint32_t> row_map;

  uint32_t rows() const;
  uint32_t columns() const { return count_k != 0 ? count_k : in - first_k; }
};

// OK, or INVALID_ARGUMENT: sizes of the spans, an unsupported group, a range that cuts a group.
absl::Status CheckSource(const WeightSource& source);
// INVALID_ARGUMENT as CheckSource, and for scales or fp8 codes that are no numbers or too large to be
// weights.
absl::StatusOr<PackedMatrix> Pack(const WeightSource& source);
// Packs row [0, count) of a matrix made by AllocatePacked at output columns from `at` on (a multiple of 16)
// and inputs from `at_k` on (a multiple of 32; of packed formats only), so that a large matrix is packed
// piece by piece. `in`: 0: the source's.
absl::StatusOr<PackedMatrix> AllocatePacked(const WeightSource& source, uint32_t out, uint32_t in = 0);
absl::Status PackInto(const WeightSource& source, uint32_t at, PackedMatrix* matrix, uint32_t at_k = 0);
// Row `row` (of the part) as f32: the values of class f32. The source must pass CheckSource.
void DequantizeRow(const WeightSource& source, uint32_t row, float* out);
// The value of W[column][k] in class f32: the definition (kernels/ref).
float WeightValue(const PackedMatrix& matrix, uint32_t column, uint32_t k);
// All of them of one column, [in]: a row of the matrix as stored.
void WidenRow(const PackedMatrix& matrix, uint32_t column, float* out);

// Quantises rows to kInt8 or kInt4 with groups of 32 at load. Error measured against the source's values.
struct QuantError {
  double squared = 0;       // sum of (w - w')^2
  double reference = 0;     // sum of w^2
  double largest = 0;       // largest |w - w'|
  double relative() const;  // sqrt(squared / reference), 0 if there is nothing
  void Add(const QuantError& other);
};
absl::StatusOr<PackedMatrix> PackQuantized(const WeightSource& source, WeightFormat target, DType scale_type,
                                           QuantError* error);

// Plain elements: row-major [out, in] of `dtype` (kF32, kBf16, kF16), any alignment.
PackedMatrix Pack(DType dtype, const std::byte* source, uint32_t out, uint32_t in);
PackedMatrix PackF32(std::span<const float> source, uint32_t out, uint32_t in);

// ---- Quantised activation rows of class i8g32
// A row in memory: ceil(in / 32) * 32 bytes int8 (the rest 0), a f32 scale per group, then the
// int16 sums of either half of each group.
constexpr uint32_t Groups(uint32_t in) { return (in + kGroup - 1) / kGroup; }
constexpr size_t QuantRowBytes(uint32_t in) { return size_t{Groups(in)} * (kGroup + 8); }
struct QuantRows {
  const std::byte* data = nullptr;  // aligned to 4
  size_t count = 0;
  uint32_t in = 0;
  const std::byte* row(size_t r) const { return data + r * QuantRowBytes(in); }
};
// The same row in a frame (dtype 4): `in` bytes int8, then a f32 scale per group, little endian.
constexpr size_t WireRowBytes(uint32_t in) { return in + size_t{4} * Groups(in); }
void WireFromQuantRow(const std::byte* row, uint32_t in, std::byte* wire);
void QuantRowFromWire(const std::byte* wire, uint32_t in, std::byte* row);
void DequantizeQuantRow(const std::byte* row, uint32_t in, float* x);  // float(q) * scale

}  // namespace consilium::kernels
