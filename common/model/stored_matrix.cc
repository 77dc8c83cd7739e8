#include "common/model/stored_matrix.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/base/status.h"
#include "common/model/coding_layout.h"
#include "common/model/safetensors.h"
#include "common/model/word_matrix.h"

namespace consilium {

using kernels::PackedMatrix;
using kernels::WeightFormat;
using kernels::WeightSource;

WeightFormat QuantFormat(WeightsAs as) {
  CHECK(as != WeightsAs::kStored);
  return as == WeightsAs::kInt8 ? WeightFormat::kInt8 : WeightFormat::kInt4;
}

namespace {

// Row of the file for every row meant: heads of `width` rows whose rotary pairs lie side by side.
std::vector<uint32_t> RotaryOrder(uint64_t rows, uint32_t width) {
  std::vector<uint32_t> order(rows);
  const uint32_t half = width / 2;
  for (uint32_t r = 0; r < rows; ++r) {
    const uint32_t lane = r % width;
    order[r] = r - lane + (lane < half ? 2 * lane : 2 * (lane - half) + 1);
  }
  return order;
}

std::string Where(const TensorInfo& t) { return "tensor \"" + t.name + "\": "; }

// Rows of the matrix in pieces that a WeightSource can be cut at without looking further.
uint64_t PieceRows(const TensorInfo& t) {
  const bool in_order = t.first_row == 0 && t.row_step == 1 && !t.transposed && t.rotary_head == 0;
  if (!in_order) return t.rows();
  const uint64_t unit =
      t.coding == Coding::kFp8Block ? std::max(t.block_rows, kernels::kPanelColumns) : kernels::kPanelColumns;
  if (unit % kernels::kPanelColumns != 0) return t.rows();
  return std::max<uint64_t>(1, kStagingBytes / std::max<uint64_t>(1, RowBytes(t) * unit)) * unit;
}

// The rows [begin, begin + rows) as a tensor of their own; begin at a multiple of PieceRows.
TensorInfo RowsOf(const TensorInfo& t, uint64_t begin, uint64_t rows) {
  TensorInfo piece = t;
  piece.shape[0] = rows;
  if (rows == t.rows()) return piece;
  piece.range.offset += begin * RowBytes(t);
  piece.range.length = rows * RowBytes(t);
  const bool one_scale = t.coding == Coding::kFp8Block && t.block_rows == 0;
  if (t.scales.length > 0 && !one_scale) {
    const uint64_t height = t.coding == Coding::kFp8Block ? t.block_rows : 1;
    const uint64_t row_scales = t.scales.length / ((t.rows() + height - 1) / height);
    piece.scales.offset += begin / height * row_scales;
    piece.scales.length = (rows + height - 1) / height * row_scales;
  }
  if (t.zeros.length > 0) {  // words of eight rows
    const uint64_t word_row = t.zeros.length / ((t.rows() + 7) / 8);
    piece.zeros.offset += begin / 8 * word_row;
    piece.zeros.length = (rows + 7) / 8 * word_row;
  }
  return piece;
}

absl::Status Named(const absl::Status& status, const TensorInfo& t) {
  return status.ok() ? status : Annotate(status, "tensor \"" + t.name + "\"");
}

}  // namespace

absl::StatusOr<WeightSource> SourceOf(const TensorInfo& t, TensorBytes bytes,
                                      std::vector<uint32_t>* row_map) {
  if (t.coding == Coding::kPlain && t.dtype != DType::kF32 && t.dtype != DType::kF16 &&
      t.dtype != DType::kBf16)
    return Unimplemented(Where(t) + "expected dtype F32, F16 or BF16, got " +
                         std::string(DTypeName(t.dtype)));
  if (t.transposed && t.coding != Coding::kPlain)
    return Unimplemented(Where(t) + std::string(CodingName(t.coding)) + " stored as [in, out]");
  // A vector is one row, or, where it is part of a longer one, rows of one element.
  const bool vector = t.shape.size() <= 1 && t.first_row == 0 && t.row_step == 1 && t.rotary_head == 0;
  const uint64_t rows = vector ? 1 : t.rows(), columns = vector ? t.elements() : t.columns();
  if (rows > UINT32_MAX || columns > UINT32_MAX)
    return InvalidArgument(Where(t) + "shape " + ShapeText(t.shape));
  WeightSource s;
  s.format = FormatOf(t);
  s.layout = LayoutOf(t);
  s.in = static_cast<uint32_t>(columns);
  s.values = bytes.values;
  s.scales = bytes.scales;
  if (s.format == WeightFormat::kInt4Zero) s.zeros = bytes.zeros;
  s.scale_type = t.scale_dtype;
  s.group = t.block_columns;
  s.scale_rows = t.block_rows;
  uint64_t stored = rows;
  if (t.first_row != 0 || t.row_step != 1 || t.transposed) {
    const uint64_t one = t.transposed ? columns * DTypeBytes(t.dtype) : RowBytes(t);
    stored = one == 0 ? 0 : bytes.values.size() / one;
    s.first_row = t.first_row;
    s.row_step = t.row_step;
    s.row_count = static_cast<uint32_t>(rows);
    if (rows == 0 || t.first_row + (rows - 1) * t.row_step >= stored || stored > UINT32_MAX)
      return InvalidArgument(Where(t) + "rows beyond the " + std::to_string(stored) + " stored");
  }
  s.out = static_cast<uint32_t>(stored);
  if (t.rotary_head != 0) {
    if (t.rotary_head % 2 != 0 || rows % t.rotary_head != 0)
      return InvalidArgument(Where(t) + std::to_string(rows) + " rows are no heads of " +
                             std::to_string(t.rotary_head));
    *row_map = RotaryOrder(rows, t.rotary_head);
    s.row_map = *row_map;
  }
  RETURN_IF_ERROR(Named(kernels::CheckSource(s), t));
  return s;
}

absl::Status OwnedTensor::Read(const TensorInfo& t, const RangeReader& read) {
  values_ = t.range.length;
  scales_ = t.scales.length;
  zeros_ = t.zeros.length;
  if (values_ + scales_ + zeros_ > capacity_) {
    capacity_ = values_ + scales_ + zeros_;
    buffer_ = std::make_unique_for_overwrite<std::byte[]>(capacity_);
  }
  std::byte* at = buffer_.get();
  for (const ByteRange& range : t.ranges()) {
    if (range.length > 0) RETURN_IF_ERROR(read(range, {at, range.length}));
    at += range.length;
  }
  if (!IsInWords(t)) return absl::OkStatus();
  return NormaliseWords(t, {buffer_.get(), values_}, {buffer_.get() + values_ + scales_, zeros_});
}

TensorBytes OwnedTensor::bytes() const {
  std::byte* scales = buffer_.get() + values_;
  return {{buffer_.get(), values_}, {scales, scales_}, {scales + scales_, zeros_}};
}

RangeReader ReaderOf(ModelStore* store) {
  return [store](const ByteRange& range, std::span<std::byte> out) { return store->Read(range, out); };
}

absl::StatusOr<std::vector<float>> WidenTensor(const TensorInfo& t, TensorBytes bytes) {
  std::vector<uint32_t> order;
  ASSIGN_OR_RETURN(const WeightSource source, SourceOf(t, bytes, &order));
  std::vector<float> out(size_t{source.rows()} * source.columns());
  for (uint32_t r = 0; r < source.rows(); ++r)
    kernels::DequantizeRow(source, r, out.data() + size_t{r} * source.columns());
  return out;
}

absl::StatusOr<std::vector<float>> LoadFloats(const TensorInfo& t, ModelStore* store) {
  OwnedTensor owned;
  RETURN_IF_ERROR(owned.Read(t, ReaderOf(store)));
  return WidenTensor(t, owned.bytes());
}

namespace {

// In words inputs lie one after the other: some of them at a time, of all rows.
absl::StatusOr<PackedMatrix> PackInputs(const TensorInfo& t, const RangeReader& read) {
  PackedMatrix out;
  OwnedTensor owned;
  std::vector<uint32_t> order;
  const uint64_t step = WordPieceInputs(t);
  for (uint64_t at = 0; at < t.columns(); at += step) {
    const TensorInfo piece = WordInputsOf(t, at, std::min(step, t.columns() - at));
    RETURN_IF_ERROR(owned.Read(piece, read));
    ASSIGN_OR_RETURN(const WeightSource source, SourceOf(piece, owned.bytes(), &order));
    if (at == 0) {
      ASSIGN_OR_RETURN(out,
                       kernels::AllocatePacked(source, source.rows(), static_cast<uint32_t>(t.columns())));
    }
    RETURN_IF_ERROR(Named(kernels::PackInto(source, 0, &out, static_cast<uint32_t>(at)), t));
  }
  return out;
}

// The output columns of `matrix` from `at` on; at 0 it is made, with `out` columns.
absl::Status PackPiece(const WeightSource& source, uint32_t at, uint32_t out, WeightsAs as,
                       PackedMatrix* matrix, kernels::QuantError* error) {
  if (as == WeightsAs::kStored) {
    if (at == 0) {
      ASSIGN_OR_RETURN(*matrix, kernels::AllocatePacked(source, out));
    }
    return kernels::PackInto(source, at, matrix);
  }
  ASSIGN_OR_RETURN(PackedMatrix piece, kernels::PackQuantized(source, QuantFormat(as), kQuantScale, error));
  if (source.rows() == out) {
    *matrix = std::move(piece);
    return absl::OkStatus();
  }
  if (at == 0) {
    matrix->out = out;
    matrix->in = piece.in;
    matrix->format = piece.format;
    matrix->scale = piece.scale;
    matrix->data = kernels::AllocateFresh(matrix->bytes());
  }
  std::memcpy(matrix->data.get() + at / kernels::kPanelColumns * matrix->panel_bytes(), piece.data.get(),
              piece.bytes());
  return absl::OkStatus();
}

// Some rows at a time where their order allows it.
absl::StatusOr<PackedMatrix> PackRows(const TensorInfo& t, const RangeReader& read, WeightsAs as,
                                      kernels::QuantError* error) {
  if (t.shape.size() != 2 || t.elements() == 0)
    return InvalidArgument(Where(t) + "expected a matrix, got shape " + ShapeText(t.shape));
  if (IsInWords(t)) {
    CHECK(as == WeightsAs::kStored);  // ChooseNumerics
    return PackInputs(t, read);
  }
  const uint64_t step = PieceRows(t);
  PackedMatrix out;
  OwnedTensor owned;
  std::vector<uint32_t> order;
  for (uint64_t row = 0; row < t.rows(); row += step) {
    const TensorInfo piece = RowsOf(t, row, std::min(step, t.rows() - row));
    RETURN_IF_ERROR(owned.Read(piece, read));
    ASSIGN_OR_RETURN(const WeightSource source, SourceOf(piece, owned.bytes(), &order));
    RETURN_IF_ERROR(Named(
        PackPiece(source, static_cast<uint32_t>(row), static_cast<uint32_t>(t.rows()), as, &out, error), t));
  }
  return out;
}

// Reads the ranges of an expert in the order of its checksum: values as they are asked for, each followed by
// its scales and zero points, which are needed beside them and so are read ahead.
class ExpertReader {
 public:
  explicit ExpertReader(ModelStore* store) : store_(store) {}

  // Of one tensor; Finish when all its values are read.
  absl::Status Begin(const TensorInfo& t) {
    tensor_ = &t;
    for (size_t i = 0; i < 2; ++i) {
      const ByteRange range = t.ranges()[i + 1];
      beside_[i].resize(range.length);
      if (range.length > 0) RETURN_IF_ERROR(store_->Read(range, beside_[i]));
    }
    return absl::OkStatus();
  }
  absl::Status Read(const ByteRange& range, std::span<std::byte> out) {
    for (size_t i = 0; i < 2; ++i) {
      const ByteRange all = tensor_->ranges()[i + 1];
      if (all.length > 0 && range.file == all.file && range.offset >= all.offset &&
          range.offset + range.length <= all.offset + all.length) {
        std::memcpy(out.data(), beside_[i].data() + (range.offset - all.offset), range.length);
        return absl::OkStatus();
      }
    }
    RETURN_IF_ERROR(store_->Read(range, out));
    if (!Seen(tensor_->range)) hash_.Update(out);
    return absl::OkStatus();
  }
  void Finish() {
    if (!Seen(tensor_->range)) seen_.push_back(tensor_->range);
    for (size_t i = 0; i < 2; ++i) {
      const ByteRange range = tensor_->ranges()[i + 1];
      if (range.length == 0 || Seen(range)) continue;
      hash_.Update(beside_[i]);
      seen_.push_back(range);
    }
  }
  uint64_t checksum() const { return hash_.value(); }

 private:
  // Gate and up may lie in one range; it counts once.
  bool Seen(const ByteRange& r) const { return std::find(seen_.begin(), seen_.end(), r) != seen_.end(); }

  ModelStore* const store_;
  const TensorInfo* tensor_ = nullptr;
  std::vector<std::byte> beside_[2];  // scales, zero points
  std::vector<ByteRange> seen_;
  Xxh3Stream hash_;
};

absl::Status ReadExpert(const ExpertEntry& entry, WeightsAs as, ExpertReader* reader,
                        kernels::FfnWeights* out, kernels::QuantError* error) {
  const RangeReader read = [reader](const ByteRange& range, std::span<std::byte> to) {
    return reader->Read(range, to);
  };
  PackedMatrix* matrices[3] = {&out->gate, &out->up, &out->down};
  std::vector<float>* biases[3] = {&out->gate_bias, &out->up_bias, &out->down_bias};
  for (int i = 0; i < 3; ++i) {
    RETURN_IF_ERROR(reader->Begin(entry.parts[i]));
    ASSIGN_OR_RETURN(*matrices[i], PackRows(entry.parts[i], read, as, error));
    reader->Finish();
  }
  OwnedTensor owned;
  for (int i = 0; entry.has_biases() && i < 3; ++i) {
    RETURN_IF_ERROR(reader->Begin(entry.biases[i]));
    RETURN_IF_ERROR(owned.Read(entry.biases[i], read));
    ASSIGN_OR_RETURN(*biases[i], WidenTensor(entry.biases[i], owned.bytes()));
    reader->Finish();
  }
  return absl::OkStatus();
}

// Of the bytes as they lie in the files.
absl::StatusOr<uint64_t> ChecksumOf(const ExpertEntry& entry, ModelStore* store) {
  Xxh3Stream hash;
  std::vector<std::byte> bytes;
  for (const ByteRange& range : entry.Ranges()) {
    RETURN_IF_ERROR(
        ReadPieces(store, range, &bytes, [&](std::span<const std::byte> piece) { hash.Update(piece); }));
  }
  return hash.value();
}

}  // namespace

absl::StatusOr<PackedMatrix> LoadMatrix(const TensorInfo& t, ModelStore* store) {
  return PackRows(t, ReaderOf(store), WeightsAs::kStored, nullptr);
}

absl::StatusOr<kernels::FfnWeights> LoadExpert(const ExpertEntry& entry, ModelStore* store, WeightsAs as,
                                               kernels::QuantError* error) {
  kernels::FfnWeights out;
  kernels::QuantError lost;
  ExpertReader reader(store);
  const absl::Status status = ReadExpert(entry, as, &reader, &out, &lost);
  uint64_t checksum = reader.checksum();
  if (!status.ok()) {  // damaged bytes may be no numbers, too: say the cause
    ASSIGN_OR_RETURN(checksum, ChecksumOf(entry, store));
  }
  if (checksum != entry.checksum) {
    return DataLoss("expert " + std::to_string(entry.expert.value) + " of layer " +
                    std::to_string(entry.layer.value) + ": checksum of the bytes read: expected " +
                    std::to_string(entry.checksum) + ", got " + std::to_string(checksum));
  }
  RETURN_IF_ERROR(status);
  if (error != nullptr) error->Add(lost);
  return out;
}

uint64_t LatentHeads::bytes() const {
  uint64_t n = 0;
  for (const PackedMatrix& m : absorb_k) n += m.bytes();
  for (const PackedMatrix& m : expand_v) n += m.bytes();
  return n;
}

absl::StatusOr<LatentHeads> LoadLatentHeads(const TensorInfo& kv_b, uint32_t heads, uint32_t nope,
                                            uint32_t v_dim, ModelStore* store) {
  OwnedTensor owned;
  RETURN_IF_ERROR(owned.Read(kv_b, ReaderOf(store)));
  std::vector<uint32_t> order;
  ASSIGN_OR_RETURN(const WeightSource all, SourceOf(kv_b, owned.bytes(), &order));
  if (all.rows() != uint64_t{heads} * (nope + v_dim))
    return InvalidArgument(Where(kv_b) + "expected " + std::to_string(uint64_t{heads} * (nope + v_dim)) +
                           " rows, got " + std::to_string(all.rows()));
  LatentHeads out;
  const uint32_t lora = all.columns();
  std::vector<float> wide(size_t{nope} * lora);
  for (uint32_t h = 0; h < heads; ++h) {
    const uint32_t first = h * (nope + v_dim);
    WeightSource u;  // stored [nope, kv_lora]: transposed
    u.layout = WeightSource::Layout::kTransposed;
    u.out = lora;
    u.in = nope;
    if (kv_b.coding == Coding::kPlain) {
      u.format = all.format;
      const size_t row_bytes = owned.bytes().values.size() / all.rows();
      u.values = owned.bytes().values.subspan(first * row_bytes, nope * row_bytes);
    } else {  // scales lie along kv_lora, which is the output here: no packed form holds that
      u.format = WeightFormat::kF32;
      for (uint32_t r = 0; r < nope; ++r)
        kernels::DequantizeRow(all, first + r, wide.data() + size_t{r} * lora);
      u.values = std::as_bytes(std::span(wide));
    }
    auto absorbed = kernels::Pack(u);
    RETURN_IF_ERROR(Named(absorbed.status(), kv_b));
    out.absorb_k.push_back(*std::move(absorbed));
    WeightSource v = all;
    v.first_row = first + nope;
    v.row_count = v_dim;
    auto expanded = kernels::Pack(v);
    RETURN_IF_ERROR(Named(expanded.status(), kv_b));
    out.expand_v.push_back(*std::move(expanded));
  }
  return out;
}

absl::StatusOr<LatentHeads> LoadLatentHeads(const TensorInfo& k_b, const TensorInfo& v_b, ModelStore* store) {
  LatentHeads out;
  const TensorInfo* tensors[2] = {&k_b, &v_b};
  std::vector<PackedMatrix>* lists[2] = {&out.absorb_k, &out.expand_v};
  for (int i = 0; i < 2; ++i) {
    const TensorInfo& t = *tensors[i];
    if (t.shape.size() != 3)
      return InvalidArgument(Where(t) + "expected [heads, out, in], got " + ShapeText(t.shape));
    for (uint64_t h = 0; h < t.shape[0]; ++h) {
      TensorInfo head = t;
      head.shape.erase(head.shape.begin());
      head.range.length /= t.shape[0];
      head.range.offset += h * head.range.length;
      ASSIGN_OR_RETURN(PackedMatrix packed, LoadMatrix(head, store));
      lists[i]->push_back(std::move(packed));
    }
  }
  return out;
}

}  // namespace consilium
