#include "services/attention/cpu_layer_backend_weights.h"

#include <string>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/log/log.h"
#include "common/model/stored_matrix.h"
#include "kernels/api/numerics.h"

namespace consilium {
namespace {

using kernels::PackedMatrix;

constexpr MonoTime kProgressUs = 2'000'000;

class Loader {
 public:
  Loader(const ModelSpec& spec, const Manifest& manifest, ModelStore* store)
      : spec_(spec),
        manifest_(manifest),
        store_(store),
        started_(NowUs()),
        next_report_(started_ + kProgressUs) {
    for (const TensorInfo& t : manifest.dense) bytes_total_ += t.bytes();
  }

  absl::StatusOr<CpuDenseWeights> Run() {
    CpuDenseWeights w;
    RETURN_IF_ERROR(Matrix("embed", &w.embed));
    RETURN_IF_ERROR(Norm("final_norm", &w.final_norm));
    if (!spec_.tied_embeddings) RETURN_IF_ERROR(Matrix("head", &w.head));
    if (spec_.head_bias) RETURN_IF_ERROR(Vector("head_bias", &w.head_bias));
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
    RETURN_IF_ERROR(Norm("input_norm", &w->input_norm));
    RETURN_IF_ERROR(Norm("post_norm", &w->post_norm));
    if (spec_.post_norms) {
      RETURN_IF_ERROR(Norm("attention_out_norm", &w->attention_out_norm));
      RETURN_IF_ERROR(Norm("ffn_out_norm", &w->ffn_out_norm));
    }
    RETURN_IF_ERROR(Mixing(layer.mixer, w));
    RETURN_IF_ERROR(Matrix("o", &w->o));
    w->ffn.activation = spec_.activation;
    w->ffn.alpha = spec_.swiglu_alpha;
    w->ffn.limit = spec_.swiglu_limit;
    if (layer.ffn == FfnKind::kDense) return Ffn("dense", w);
    if (layer.shared_inter > 0) {
      RETURN_IF_ERROR(Ffn("shared", w));
      if (spec_.shared_gate) RETURN_IF_ERROR(Matrix("shared_gate", &w->shared_gate));
    }
    if (spec_.gate_weight_bias) RETURN_IF_ERROR(Vector("gate_weight_bias", &w->gate_weight_bias));
    if (spec_.gate.has_bias) RETURN_IF_ERROR(Vector("gate_bias", &w->gate_bias));
    return Matrix("gate", &w->gate);
  }

  absl::Status Mixing(Mixer mixer, CpuLayerWeights* w) {
    if (mixer == Mixer::kShortConv) return ShortConv(w);
    if (mixer == Mixer::kDeltaNet) return DeltaNet(w);
    return spec_.mla_attention ? Mla(w) : Gqa(w);
  }

  absl::Status Ffn(const std::string& group, CpuLayerWeights* w) {
    RETURN_IF_ERROR(Matrix(group + ".gate", &w->ffn.gate));
    RETURN_IF_ERROR(Matrix(group + ".up", &w->ffn.up));
    RETURN_IF_ERROR(Matrix(group + ".down", &w->ffn.down));
    if (manifest_.FindDense(prefix_ + group + ".gate_bias") == nullptr) return absl::OkStatus();
    RETURN_IF_ERROR(Vector(group + ".gate_bias", &w->ffn.gate_bias));
    RETURN_IF_ERROR(Vector(group + ".up_bias", &w->ffn.up_bias));
    return Vector(group + ".down_bias", &w->ffn.down_bias);
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
    if (spec_.gqa.sinks) RETURN_IF_ERROR(Vector("sinks", &w->sinks));
    if (spec_.gqa.qk_norm == QkNorm::kUnitRotated) {
      w->q_norm.assign(spec_.gqa.head_dim, 1.0f);
      w->k_norm.assign(spec_.gqa.head_dim, 1.0f);
    } else if (spec_.gqa.qk_norm != QkNorm::kNone) {
      RETURN_IF_ERROR(NormWeight("q_norm", &w->q_norm));
      RETURN_IF_ERROR(NormWeight("k_norm", &w->k_norm));
    }
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
    if (spec_.mla.bias) {
      if (spec_.mla.q_lora > 0) RETURN_IF_ERROR(Vector("q_a_bias", &w->q_a_bias));
      RETURN_IF_ERROR(Vector("kv_a_bias", &w->kv_a_bias));
      RETURN_IF_ERROR(Vector("o_bias", &w->o_bias));
    }
    return SplitKvB(w);
  }

  absl::Status ShortConv(CpuLayerWeights* w) {
    RETURN_IF_ERROR(Matrix("conv_in", &w->conv_in));
    RETURN_IF_ERROR(Taps(spec_.short_conv.taps, &w->conv));
    if (!spec_.short_conv.bias) return absl::OkStatus();
    RETURN_IF_ERROR(Vector("conv_in_bias", &w->conv_in_bias));
    RETURN_IF_ERROR(Vector("conv_bias", &w->conv_bias));
    return Vector("o_bias", &w->o_bias);
  }

  absl::Status DeltaNet(CpuLayerWeights* w) {
    if (spec_.delta_net.split) {
      RETURN_IF_ERROR(Matrix("delta_qkv", &w->delta_qkv));
      RETURN_IF_ERROR(Matrix("delta_z", &w->delta_z));
      RETURN_IF_ERROR(Matrix("delta_b", &w->delta_b));
      RETURN_IF_ERROR(Matrix("delta_a", &w->delta_a));
    } else {
      RETURN_IF_ERROR(Matrix("delta_in", &w->delta_in));
      RETURN_IF_ERROR(Matrix("delta_gates", &w->delta_gates));
    }
    RETURN_IF_ERROR(Taps(spec_.delta_net.taps, &w->conv));
    RETURN_IF_ERROR(Vector("a_log", &w->decay_rate));
    for (float& a : w->decay_rate) a = -numerics::Exp(a);
    RETURN_IF_ERROR(Vector("dt_bias", &w->dt_bias));
    return Vector("delta_norm", &w->delta_norm);
  }

  // Stored [lanes][taps].
  absl::Status Taps(size_t taps, std::vector<float>* out) {
    std::vector<float> by_lane;
    RETURN_IF_ERROR(Vector("conv", &by_lane));
    const size_t lanes = by_lane.size() / taps;
    out->resize(by_lane.size());
    for (size_t i = 0; i < by_lane.size(); ++i) (*out)[i % taps * lanes + i / taps] = by_lane[i];
    return absl::OkStatus();
  }

  absl::Status SplitKvB(CpuLayerWeights* w) {
    const MlaSpec& m = spec_.mla;
    LatentHeads heads;
    uint64_t read = 0;
    if (manifest_.FindDense(prefix_ + "kv_b") != nullptr) {
      ASSIGN_OR_RETURN(const TensorInfo* t, Find("kv_b"));
      ASSIGN_OR_RETURN(heads, LoadLatentHeads(*t, m.heads, m.nope, m.v_dim, store_));
      read = t->bytes();
    } else {  // stored in two halves
      ASSIGN_OR_RETURN(const TensorInfo* k, Find("k_b"));
      ASSIGN_OR_RETURN(const TensorInfo* v, Find("v_b"));
      ASSIGN_OR_RETURN(heads, LoadLatentHeads(*k, *v, store_));
      read = k->bytes() + v->bytes();
    }
    packed_bytes_ += heads.bytes();
    w->absorb_k = std::move(heads.absorb_k);
    w->expand_v = std::move(heads.expand_v);
    Report(read);
    return absl::OkStatus();
  }

  absl::StatusOr<const TensorInfo*> Find(const std::string& suffix) {
    const TensorInfo* t = manifest_.FindDense(prefix_ + suffix);
    if (t == nullptr)
      return FailedPrecondition("manifest of " + manifest_.id + " lacks role " + prefix_ + suffix);
    return t;
  }

  absl::Status Matrix(const std::string& suffix, PackedMatrix* out) {
    ASSIGN_OR_RETURN(const TensorInfo* t, Find(suffix));
    ASSIGN_OR_RETURN(*out, LoadMatrix(*t, store_));
    packed_bytes_ += out->bytes();
    Report(t->bytes());
    return absl::OkStatus();
  }

  absl::Status Vector(const std::string& suffix, std::vector<float>* out) {
    ASSIGN_OR_RETURN(const TensorInfo* t, Find(suffix));
    ASSIGN_OR_RETURN(*out, LoadFloats(*t, store_));
    packed_bytes_ += out->size() * sizeof(float);
    Report(t->bytes());
    return absl::OkStatus();
  }

  // A norm and, where the model's norms have one, its bias.
  absl::Status Norm(const std::string& suffix, NormWeights* out) {
    RETURN_IF_ERROR(NormWeight(suffix, &out->weight));
    return spec_.norm_bias ? Vector(suffix + "_bias", &out->bias) : absl::OkStatus();
  }

  absl::Status NormWeight(const std::string& suffix, std::vector<float>* out) {
    RETURN_IF_ERROR(Vector(suffix, out));
    if (!spec_.norm_plus_one) return absl::OkStatus();
    for (float& w : *out) w = 1.0f + w;
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

void CpuDenseWeights::Embed(TokenId token, float* out) const { kernels::WidenRow(embed, token, out); }

absl::StatusOr<CpuDenseWeights> LoadDenseWeights(const ModelSpec& spec, const Manifest& manifest,
                                                 ModelStore* store) {
  return Loader(spec, manifest, store).Run();
}

}  // namespace consilium
