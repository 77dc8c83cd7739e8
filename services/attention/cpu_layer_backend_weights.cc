#include "services/attention/cpu_layer_backend_weights.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/log/log.h"

namespace consilium {
namespace {

using kernels::PackedMatrix;

constexpr size_t kReadBytes = size_t{16} << 20;  // source bytes held at a time
constexpr MonoTime kProgressUs = 2'000'000;

// Element (row, column) of the matrix that was packed, exact in f32.
float Element(const PackedMatrix& m, uint32_t row, uint32_t column) {
  const std::byte* panel = m.data.get() + row / kernels::kPanelColumns * m.panel_bytes();
  const size_t index = size_t{column} * kernels::kPanelColumns + row % kernels::kPanelColumns;
  if (m.dtype == DType::kF32) {
    float v;
    std::memcpy(&v, panel + index * 4, 4);
    return v;
  }
  uint16_t half;
  std::memcpy(&half, panel + index * 2, 2);
  return std::bit_cast<float>(uint32_t{half} << 16);
}

class Loader {
 public:
  Loader(const ModelSpec& spec, const Manifest& manifest, ModelStore* store)
      : spec_(spec),
        manifest_(manifest),
        store_(store),
        started_(NowUs()),
        next_report_(started_ + kProgressUs) {
    for (const TensorInfo& t : manifest.dense) bytes_total_ += t.range.length;
  }

  absl::StatusOr<CpuDenseWeights> Run() {
    CpuDenseWeights w;
    RETURN_IF_ERROR(Matrix("embed", &w.embed));
    RETURN_IF_ERROR(Vector("final_norm", &w.final_norm));
    if (!spec_.tied_embeddings) RETURN_IF_ERROR(Matrix("head", &w.head));
    w.layers.resize(spec_.layers.size());
    for (size_t i = 0; i < w.layers.size(); ++i) {
      prefix_ = "layers." + std::to_string(i) + ".";
      RETURN_IF_ERROR(Layer(spec_.layers[i], &w.layers[i]));
    }
    w.bytes = packed_bytes_;
    log::Info("attention: dense weights loaded",
              {{"model", manifest_.id},
               {"bytes", bytes_done_},
               {"seconds", static_cast<double>(NowUs() - started_) / 1e6}});
    return w;
  }

 private:
  absl::Status Layer(const LayerSpec& layer, CpuLayerWeights* w) {
    RETURN_IF_ERROR(Vector("input_norm", &w->input_norm));
    RETURN_IF_ERROR(Vector("post_norm", &w->post_norm));
    RETURN_IF_ERROR(spec_.mla_attention ? Mla(w) : Gqa(w));
    RETURN_IF_ERROR(Matrix("o", &w->o));
    w->ffn.activation = spec_.activation;
    if (layer.ffn == FfnKind::kDense) return Ffn("dense", w);
    if (layer.shared_inter > 0) RETURN_IF_ERROR(Ffn("shared", w));
    if (spec_.gate.has_bias) RETURN_IF_ERROR(Vector("gate_bias", &w->gate_bias));
    return Matrix("gate", &w->gate);
  }

  absl::Status Ffn(const std::string& group, CpuLayerWeights* w) {
    RETURN_IF_ERROR(Matrix(group + ".gate", &w->ffn.gate));
    RETURN_IF_ERROR(Matrix(group + ".up", &w->ffn.up));
    return Matrix(group + ".down", &w->ffn.down);
  }

  absl::Status Gqa(CpuLayerWeights* w) {
    RETURN_IF_ERROR(Matrix("q", &w->q));
    RETURN_IF_ERROR(Matrix("k", &w->k));
    RETURN_IF_ERROR(Matrix("v", &w->v));
    if (spec_.gqa.qkv_bias) {
      RETURN_IF_ERROR(Vector("q_bias", &w->q_bias));
      RETURN_IF_ERROR(Vector("k_bias", &w->k_bias));
      RETURN_IF_ERROR(Vector("v_bias", &w->v_bias));
    }
    if (spec_.gqa.o_bias) RETURN_IF_ERROR(Vector("o_bias", &w->o_bias));
    return absl::OkStatus();
  }

  absl::Status Mla(CpuLayerWeights* w) {
    if (spec_.mla.q_lora == 0) {
      RETURN_IF_ERROR(Matrix("q", &w->q));
    } else {
      RETURN_IF_ERROR(Matrix("q_a", &w->q_a));
      RETURN_IF_ERROR(Vector("q_a_norm", &w->q_a_norm));
      RETURN_IF_ERROR(Matrix("q_b", &w->q_b));
    }
    RETURN_IF_ERROR(Matrix("kv_a", &w->kv_a));
    RETURN_IF_ERROR(Vector("kv_a_norm", &w->kv_a_norm));
    return SplitKvB(w);
  }

  // kv_b [heads * (nope + v_dim), kv_lora] into U^T and V of each head; elements move, none is rounded.
  absl::Status SplitKvB(CpuLayerWeights* w) {
    ASSIGN_OR_RETURN(const TensorInfo* t, Find("kv_b"));
    std::vector<std::byte> source(t->range.length);
    RETURN_IF_ERROR(store_->Read(t->range, source));
    const MlaSpec& m = spec_.mla;
    const size_t size = DTypeBytes(t->dtype), row_bytes = m.kv_lora * size;
    std::vector<std::byte> transposed(size_t{m.nope} * row_bytes);
    for (uint32_t h = 0; h < m.heads; ++h) {
      const std::byte* head = source.data() + size_t{h} * (m.nope + m.v_dim) * row_bytes;
      for (uint32_t n = 0; n < m.nope; ++n) {
        for (uint32_t c = 0; c < m.kv_lora; ++c) {
          std::memcpy(transposed.data() + (size_t{c} * m.nope + n) * size, head + n * row_bytes + c * size,
                      size);
        }
      }
      w->absorb_k.push_back(kernels::Pack(t->dtype, transposed.data(), m.kv_lora, m.nope));
      w->expand_v.push_back(kernels::Pack(t->dtype, head + m.nope * row_bytes, m.v_dim, m.kv_lora));
      packed_bytes_ += w->absorb_k.back().bytes() + w->expand_v.back().bytes();
    }
    Report(t->range.length);
    return absl::OkStatus();
  }

  absl::StatusOr<const TensorInfo*> Find(const std::string& suffix) {
    const TensorInfo* t = manifest_.FindDense(prefix_ + suffix);
    if (t == nullptr)
      return FailedPrecondition("manifest of " + manifest_.id + " lacks role " + prefix_ + suffix);
    return t;
  }

  // Reads and packs some panels at a time, so that source and packed form never lie in memory whole together.
  absl::Status Matrix(const std::string& suffix, PackedMatrix* out) {
    ASSIGN_OR_RETURN(const TensorInfo* t, Find(suffix));
    const uint32_t rows = static_cast<uint32_t>(t->shape.at(0)),
                   columns = static_cast<uint32_t>(t->shape.at(1));
    const size_t row_bytes = columns * DTypeBytes(t->dtype);
    const uint32_t step = static_cast<uint32_t>(
        std::max<size_t>(1, kReadBytes / (row_bytes * kernels::kPanelColumns)) * kernels::kPanelColumns);
    out->out = rows;
    out->in = columns;
    out->dtype = t->dtype == DType::kF16 ? DType::kF32 : t->dtype;  // as Pack widens it
    out->data = kernels::AllocateAligned(out->bytes());
    std::vector<std::byte> source;
    for (uint32_t row = 0; row < rows; row += step) {
      const uint32_t n = std::min(step, rows - row);
      source.resize(n * row_bytes);
      RETURN_IF_ERROR(
          store_->Read(ByteRange{t->range.file, t->range.offset + row * row_bytes, source.size()}, source));
      const PackedMatrix part = kernels::Pack(t->dtype, source.data(), n, columns);
      std::memcpy(out->data.get() + row / kernels::kPanelColumns * out->panel_bytes(), part.data.get(),
                  part.bytes());
    }
    packed_bytes_ += out->bytes();
    Report(t->range.length);
    return absl::OkStatus();
  }

  // A vector widened to f32: packed as one row and read back.
  absl::Status Vector(const std::string& suffix, std::vector<float>* out) {
    ASSIGN_OR_RETURN(const TensorInfo* t, Find(suffix));
    std::vector<std::byte> source(t->range.length);
    RETURN_IF_ERROR(store_->Read(t->range, source));
    const uint32_t n = static_cast<uint32_t>(t->shape.at(0));
    const PackedMatrix row = kernels::Pack(t->dtype, source.data(), 1, n);
    for (uint32_t i = 0; i < n; ++i) out->push_back(Element(row, 0, i));
    packed_bytes_ += n * sizeof(float);
    Report(t->range.length);
    return absl::OkStatus();
  }

  void Report(uint64_t bytes) {
    bytes_done_ += bytes;
    const MonoTime now = NowUs();
    if (now < next_report_) return;
    next_report_ = now + kProgressUs;
    const double rate = static_cast<double>(bytes_done_) * 1e6 / static_cast<double>(now - started_);
    log::Info("attention: loading dense weights",
              {{"model", manifest_.id},
               {"bytes_done", bytes_done_},
               {"bytes", bytes_total_},
               {"bytes_per_second", rate},
               {"seconds_left", static_cast<double>(bytes_total_ - bytes_done_) / rate}});
  }

  const ModelSpec& spec_;
  const Manifest& manifest_;
  ModelStore* const store_;
  std::string prefix_;  // "layers.N."
  uint64_t packed_bytes_ = 0, bytes_done_ = 0, bytes_total_ = 0;
  const MonoTime started_;
  MonoTime next_report_;
};

}  // namespace

void CpuDenseWeights::Embed(TokenId token, float* out) const {
  for (uint32_t i = 0; i < embed.in; ++i) out[i] = Element(embed, token, i);
}

absl::StatusOr<CpuDenseWeights> LoadDenseWeights(const ModelSpec& spec, const Manifest& manifest,
                                                 ModelStore* store) {
  return Loader(spec, manifest, store).Run();
}

}  // namespace consilium
