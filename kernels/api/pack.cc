// Weights to column panels, once at load.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "common/base/status.h"
#include "kernels/api/kernels.h"
#include "kernels/api/panel_block.h"
#include "kernels/api/read_block.h"

namespace consilium::kernels {
namespace {

size_t ElementBytes(WeightFormat f) { return f == WeightFormat::kF32 ? 4 : 2; }

// Bytes of element (row, 0) of the part and the step from one input to the next, of a plain format.
struct PlainRow {
  const std::byte* first;
  size_t step;
};
PlainRow PlainRowOf(const WeightSource& s, uint32_t row) {
  const size_t size = ElementBytes(s.format);
  const size_t stored = s.row_map.empty() ? s.first_row + size_t{row} * s.row_step : s.row_map[row];
  if (s.layout == WeightSource::Layout::kTransposed) {
    return {s.values.data() + (size_t{s.first_k} * s.out + stored) * size, s.out * size};
  }
  return {s.values.data() + (stored * s.in + s.first_k) * size, size};
}

// ---- Plain elements: eight rows of eight are transposed at a time
template <class T>
struct Eight {
  typedef T Half __attribute__((vector_size(16)));
};
using Shorts = Eight<uint16_t>::Half;
using Words = Eight<uint32_t>::Half;

void TransposeTo(const std::byte* const* rows, size_t at, uint16_t* out) {  // out: [8][kPanelColumns]
  Shorts a[8], b[8];
  for (int r = 0; r < 8; ++r) std::memcpy(&a[r], rows[r] + at, 16);
  for (int r = 0; r < 4; ++r) {
    b[2 * r] = __builtin_shufflevector(a[r], a[r + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    b[2 * r + 1] = __builtin_shufflevector(a[r], a[r + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
  for (int r = 0; r < 4; ++r) {
    a[2 * r] = __builtin_shufflevector(b[r], b[r + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    a[2 * r + 1] = __builtin_shufflevector(b[r], b[r + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
  for (int r = 0; r < 4; ++r) {
    b[2 * r] = __builtin_shufflevector(a[r], a[r + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    b[2 * r + 1] = __builtin_shufflevector(a[r], a[r + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
  for (int r = 0; r < 8; ++r) std::memcpy(out + r * kPanelColumns, &b[r], 16);
}

void TransposeTo(const std::byte* const* rows, size_t at, uint32_t* out) {  // four by four
  for (int half = 0; half < 8; half += 4) {
    for (int column = 0; column < 8; column += 4) {
      Words a[4], b[4];
      for (int r = 0; r < 4; ++r) std::memcpy(&a[r], rows[column + r] + at + half * 4, 16);
      for (int r = 0; r < 2; ++r) {
        b[2 * r] = __builtin_shufflevector(a[r], a[r + 2], 0, 4, 1, 5);
        b[2 * r + 1] = __builtin_shufflevector(a[r], a[r + 2], 2, 6, 3, 7);
      }
      for (int r = 0; r < 2; ++r) {
        a[2 * r] = __builtin_shufflevector(b[r], b[r + 2], 0, 4, 1, 5);
        a[2 * r + 1] = __builtin_shufflevector(b[r], b[r + 2], 2, 6, 3, 7);
      }
      for (int r = 0; r < 4; ++r) std::memcpy(out + (half + r) * kPanelColumns + column, &a[r], 16);
    }
  }
}

// Rows contiguous in memory.
template <class T>
void RowsPanel(const std::byte* const* rows, uint32_t columns, uint32_t count, std::byte* panel) {
  T* out = reinterpret_cast<T*>(panel);
  uint32_t k = 0;
  if (count == kPanelColumns) {
    for (; k + 8 <= columns; k += 8) {
      for (uint32_t c = 0; c < kPanelColumns; c += 8) {
        TransposeTo(rows + c, size_t{k} * sizeof(T), out + size_t{k} * kPanelColumns + c);
      }
    }
  }
  for (; k < columns; ++k) {
    for (uint32_t c = 0; c < count; ++c) {
      std::memcpy(out + size_t{k} * kPanelColumns + c, rows[c] + size_t{k} * sizeof(T), sizeof(T));
    }
  }
}

template <class T>
void PlainPanel(const WeightSource& s, uint32_t first, uint32_t count, std::byte* panel) {
  const std::byte* rows[kPanelColumns];
  for (uint32_t c = 0; c < count; ++c) rows[c] = PlainRowOf(s, first + c).first;
  if (s.layout == WeightSource::Layout::kPlain) return RowsPanel<T>(rows, s.columns(), count, panel);
  // One input of all rows lies together, in one piece unless rows are chosen one by one.
  const size_t step = PlainRowOf(s, first).step;
  const bool whole = s.row_map.empty() && s.row_step == 1;
  for (uint32_t k = 0; k < s.columns(); ++k) {
    std::byte* to = panel + size_t{k} * kPanelColumns * sizeof(T);
    if (whole && count == kPanelColumns) {
      std::memcpy(to, rows[0] + k * step, kPanelColumns * sizeof(T));
    } else {
      for (uint32_t c = 0; c < count; ++c) std::memcpy(to + c * sizeof(T), rows[c] + k * step, sizeof(T));
    }
  }
}

// ---- Blocks
absl::Status NotAWeight(const WeightSource& s, const RawLayout& layout, const Block& block, uint32_t row,
                        uint32_t b) {
  const absl::Status why = CheckBlock(layout, block);
  return InvalidArgument(std::string(WeightFormatName(s.format)) + " matrix, row " + std::to_string(row) +
                         ", input " + std::to_string(b * layout.block_k) + ": " +
                         std::string(why.message().data(), why.message().size()));
}

template <WeightFormat F, SourceLayout L>
absl::Status BlockPanel(const WeightSource& s, const RawLayout& l, uint32_t first, uint32_t count,
                        uint32_t at_k, std::byte* panel) {
  const RawLayout layout = l;
  RowPlace rows[kPanelColumns];
  for (uint32_t c = 0; c < count; ++c) rows[c] = PlaceOf(s, first + c);
  const uint32_t shared = BlocksPerGroup(s, layout), first_block = s.first_k / layout.block_k;
  Block block;
  for (uint32_t b = 0; b * layout.block_k < s.columns(); ++b) {
    const size_t index = size_t{first_block} + b, group = index / shared;
    const PanelPlaces places = PlacesIn(layout, panel, at_k / layout.block_k + b);
    for (uint32_t c = 0; c < count; ++c) {
      ReadBlock<F, L>(s, rows[c], index, group, &block);
      if (!Plausible(layout, block)) return NotAWeight(s, layout, block, first + c, b);
      WriteBlock<CodeOfFormat(F)>(layout, block, places, c);
    }
  }
  return absl::OkStatus();
}

template <class T, class F>
void Widen(const PlainRow& row, uint32_t n, float* out, F f) {
  if (row.step == sizeof(T)) {  // apart, so that it is vectorised
    for (uint32_t k = 0; k < n; ++k) out[k] = f(LoadAs<T>(row.first + size_t{k} * sizeof(T)));
  } else {
    for (uint32_t k = 0; k < n; ++k) out[k] = f(LoadAs<T>(row.first + k * row.step));
  }
}

}  // namespace

absl::StatusOr<PackedMatrix> AllocatePacked(const WeightSource& s, uint32_t out, uint32_t in) {
  RETURN_IF_ERROR(CheckSource(s));
  PackedMatrix m;
  m.out = out;
  m.in = in != 0 ? in : s.columns();
  m.format = s.format;
  m.scale = s.scale_type;
  m.data = AllocateFresh(m.bytes());
  return m;
}

absl::Status PackInto(const WeightSource& s, uint32_t at, PackedMatrix* m, uint32_t at_k) {
  RETURN_IF_ERROR(CheckSource(s));
  const RawLayout layout = m->layout();
  const bool inputs_fit =
      at_k == 0 && s.columns() == m->in
          ? true
          : layout.block_k > 1 && at_k % layout.block_k == 0 && uint64_t{at_k} + s.columns() <= m->in;
  CHECK_MSG(at % kPanelColumns == 0 && at + s.rows() <= m->out && inputs_fit && s.format == m->format,
            "the piece does not fit the matrix");
  for (uint32_t first = 0; first < s.rows(); first += kPanelColumns) {
    std::byte* panel = m->data.get() + (at + first) / kPanelColumns * layout.panel_bytes;
    const uint32_t count = std::min(kPanelColumns, s.rows() - first);
    if (layout.block_k > 1) {
      RETURN_IF_ERROR(WithFormat(s, [&]<WeightFormat F, SourceLayout L>() {
        return BlockPanel<F, L>(s, layout, first, count, at_k, panel);
      }));
    } else if (s.format == WeightFormat::kF32) {
      PlainPanel<uint32_t>(s, first, count, panel);
    } else {
      PlainPanel<uint16_t>(s, first, count, panel);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PackedMatrix> Pack(const WeightSource& s) {
  ASSIGN_OR_RETURN(PackedMatrix m, AllocatePacked(s, s.rows()));
  RETURN_IF_ERROR(PackInto(s, 0, &m));
  return m;
}

void DequantizeRow(const WeightSource& s, uint32_t row, float* out) {
  const uint32_t n = s.columns();
  if (s.format <= WeightFormat::kF16) {
    const PlainRow plain = PlainRowOf(s, row);
    if (s.format == WeightFormat::kF32) return Widen<float>(plain, n, out, [](float v) { return v; });
    if (s.format == WeightFormat::kBf16) return Widen<uint16_t>(plain, n, out, numerics::FromBf16);
    return Widen<uint16_t>(plain, n, out, numerics::FromF16);
  }
  PackedMatrix shape;
  shape.format = s.format;
  shape.scale = s.scale_type;
  const RawLayout layout = shape.layout();
  const RowPlace place = PlaceOf(s, row);
  const uint32_t shared = BlocksPerGroup(s, layout);
  Block block;
  WithFormat(s, [&]<WeightFormat F, SourceLayout L>() {
    for (uint32_t k = 0; k < n; k += layout.block_k) {
      const size_t index = (s.first_k + k) / layout.block_k;
      ReadBlock<F, L>(s, place, index, index / shared, &block);
      BlockValues(layout, block, std::min(layout.block_k, n - k), out + k);
    }
  });
}

PackedMatrix Pack(DType dtype, const std::byte* source, uint32_t out, uint32_t in) {
  WeightSource s;
  s.format = PlainFormat(dtype);
  s.out = out;
  s.in = in;
  s.values = {source, size_t{out} * in * ElementBytes(s.format)};
  absl::StatusOr<PackedMatrix> m = Pack(s);
  CHECK_MSG(m.ok(), std::string(m.status().message().data(), m.status().message().size()));
  return *std::move(m);
}

PackedMatrix PackF32(std::span<const float> source, uint32_t out, uint32_t in) {
  CHECK_MSG(source.size() == size_t{out} * in, "source holds " + std::to_string(source.size()) + " floats");
  return Pack(DType::kF32, reinterpret_cast<const std::byte*>(source.data()), out, in);
}

}  // namespace consilium::kernels
