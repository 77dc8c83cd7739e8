#include "common/model/coding_layout.h"

#include "common/base/status.h"
#include "common/model/stored_matrix.h"

namespace consilium {
namespace {

using kernels::WeightFormat;
using Layout = kernels::WeightSource::Layout;

// A row of n inputs has ceil(n / inputs) units of so many bytes.
struct Row {
  Coding coding;
  WeightFormat format;
  Layout layout;
  uint32_t inputs, bytes;
};
constexpr Row kRows[] = {
    {Coding::kFp8Block, WeightFormat::kFp8, Layout::kPlain, 1, 1},
    {Coding::kInt4Group, WeightFormat::kInt4, Layout::kCompressed, 8, 4},
    {Coding::kInt8Group, WeightFormat::kInt8, Layout::kCompressed, 4, 4},
    {Coding::kInt8, WeightFormat::kInt8, Layout::kPlain, 1, 1},
    {Coding::kGptq4, WeightFormat::kInt4, Layout::kWords, 2, 1},
    {Coding::kGptq8, WeightFormat::kInt8, Layout::kWords, 1, 1},
    {Coding::kAwq, WeightFormat::kInt4, Layout::kWords, 2, 1},
    {Coding::kMxfp4, WeightFormat::kMxfp4, Layout::kGptOss, 2, 1},
    {Coding::kMxfp4Ggml, WeightFormat::kMxfp4, Layout::kGguf, 32, 17},
    {Coding::kQ8_0, WeightFormat::kQ8_0, Layout::kGguf, 32, 34},
    {Coding::kQ4_0, WeightFormat::kQ4_0, Layout::kGguf, 32, 18},
    {Coding::kQ4_1, WeightFormat::kQ4_1, Layout::kGguf, 32, 20},
    {Coding::kQ5_0, WeightFormat::kQ5_0, Layout::kGguf, 32, 22},
    {Coding::kQ5_1, WeightFormat::kQ5_1, Layout::kGguf, 32, 24},
    {Coding::kIq4Nl, WeightFormat::kIq4Nl, Layout::kGguf, 32, 18},
    {Coding::kQ4K, WeightFormat::kQ4K, Layout::kGguf, 256, 144},
    {Coding::kQ5K, WeightFormat::kQ5K, Layout::kGguf, 256, 176},
    {Coding::kQ6K, WeightFormat::kQ6K, Layout::kGguf, 256, 210},
    {Coding::kQ2K, WeightFormat::kQ2K, Layout::kGguf, 256, 84},
    {Coding::kQ3K, WeightFormat::kQ3K, Layout::kGguf, 256, 110},
    {Coding::kIq4Xs, WeightFormat::kIq4Xs, Layout::kGguf, 256, 136},
};

const Row& RowOf(Coding coding) {
  for (const Row& row : kRows) {
    if (row.coding == coding) return row;
  }
  CHECK_MSG(false, "coding " + std::to_string(static_cast<int>(coding)) + " is not in the table");
  return kRows[0];
}

}  // namespace

WeightFormat FormatOf(const TensorInfo& t) {
  if (t.coding == Coding::kPlain) return kernels::PlainFormat(t.dtype);
  const WeightFormat format = RowOf(t.coding).format;
  return format == WeightFormat::kInt4 && t.zeros.length > 0 && !t.centred ? WeightFormat::kInt4Zero : format;
}

Layout LayoutOf(const TensorInfo& t) {
  if (t.coding == Coding::kPlain) return t.transposed ? Layout::kTransposed : Layout::kPlain;
  return RowOf(t.coding).layout;
}

uint64_t RowBytes(const TensorInfo& t) {
  const uint64_t n = t.shape.size() == 1 ? 1 : t.columns();
  if (t.coding == Coding::kPlain) return n * DTypeBytes(t.dtype);
  const Row& row = RowOf(t.coding);
  return (n + row.inputs - 1) / row.inputs * row.bytes;
}

}  // namespace consilium
