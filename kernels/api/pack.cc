// Weights to column panels, once at load.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "common/base/status.h"
#include "kernels/api/blocks.h"
#include "kernels/api/kernels.h"

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

template <class T>
void PlainPanel(const WeightSource& s, uint32_t first, uint32_t count, std::byte* panel) {
  for (uint32_t c = 0; c < count; ++c) {
    const PlainRow row = PlainRowOf(s, first + c);
    std::byte* to = panel + c * sizeof(T);
    for (uint32_t k = 0; k < s.columns(); ++k) {
      std::memcpy(to + size_t{k} * kPanelColumns * sizeof(T), row.first + k * row.step, sizeof(T));
    }
  }
}

absl::Status BlockPanel(const WeightSource& s, const RawLayout& layout, uint32_t first, uint32_t count,
                        std::byte* panel) {
  Block block;
  for (uint32_t b = 0; b * layout.block_k < s.columns(); ++b) {
    for (uint32_t c = 0; c < count; ++c) {
      ReadBlock(s, layout, first + c, b * layout.block_k, &block);
      if (absl::Status ok = CheckBlock(layout, block); !ok.ok()) {
        return InvalidArgument(std::string(WeightFormatName(s.format)) + " matrix, row " +
                               std::to_string(first + c) + ", input " + std::to_string(b * layout.block_k) +
                               ": " + std::string(ok.message().data(), ok.message().size()));
      }
      WriteBlock(layout, block, b, c, panel);
    }
  }
  return absl::OkStatus();
}

float PlainValue(WeightFormat f, const std::byte* p) {
  if (f == WeightFormat::kF32) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
  }
  uint16_t v;
  std::memcpy(&v, p, 2);
  return f == WeightFormat::kBf16 ? numerics::FromBf16(v) : numerics::FromF16(v);
}

}  // namespace

absl::StatusOr<PackedMatrix> AllocatePacked(const WeightSource& s, uint32_t out) {
  RETURN_IF_ERROR(CheckSource(s));
  PackedMatrix m;
  m.out = out;
  m.in = s.columns();
  m.format = s.format;
  m.scale = s.scale_type;
  m.data = AllocateFresh(m.bytes());
  return m;
}

absl::Status PackInto(const WeightSource& s, uint32_t at, PackedMatrix* m) {
  RETURN_IF_ERROR(CheckSource(s));
  CHECK_MSG(
      at % kPanelColumns == 0 && at + s.rows() <= m->out && s.columns() == m->in && s.format == m->format,
      "the piece does not fit the matrix");
  const RawLayout layout = m->layout();
  for (uint32_t first = 0; first < s.rows(); first += kPanelColumns) {
    std::byte* panel = m->data.get() + (at + first) / kPanelColumns * layout.panel_bytes;
    const uint32_t count = std::min(kPanelColumns, s.rows() - first);
    if (layout.block_k > 1) {
      RETURN_IF_ERROR(BlockPanel(s, layout, first, count, panel));
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
  if (s.format <= WeightFormat::kF16) {
    const PlainRow plain = PlainRowOf(s, row);
    for (uint32_t k = 0; k < s.columns(); ++k) out[k] = PlainValue(s.format, plain.first + k * plain.step);
    return;
  }
  PackedMatrix shape;
  shape.format = s.format;
  shape.scale = s.scale_type;
  const RawLayout layout = shape.layout();
  Block block;
  for (uint32_t k = 0; k < s.columns(); k += layout.block_k) {
    ReadBlock(s, layout, row, k, &block);
    for (uint32_t i = 0; i < std::min(layout.block_k, s.columns() - k); ++i) {
      out[k + i] = BlockValue(layout, block, i);
    }
  }
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
