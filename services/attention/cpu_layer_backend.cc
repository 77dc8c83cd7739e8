#include "services/attention/cpu_layer_backend.h"

#include <algorithm>
#include <string>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {
namespace {

using kernels::ConstRows;
using kernels::Rows;

// Codes of WIRE.md.
constexpr uint8_t kWireF32 = 2, kWireI8Scale32 = 4;
// Rows whose logits lie in memory at a time: 32 of 129,280 floats are 16 MiB.
constexpr size_t kHeadRows = 32;

BackendShape ShapeOf(const ModelSpec& spec, const CpuLayerOptions& options) {
  BackendShape s;
  s.layers = static_cast<uint32_t>(spec.layers.size());
  s.top_k = spec.gate.top_k;
  s.experts = spec.gate.experts;
  s.vocab = spec.vocab;
  s.context = spec.context;
  s.hidden = spec.hidden;
  s.row_bytes_in = s.row_bytes_out = spec.hidden * static_cast<uint32_t>(sizeof(float));
  s.dtype_in = s.dtype_out = kWireF32;
  if (options.numerics.integer_rows) {
    s.row_bytes_in = static_cast<uint32_t>(kernels::WireRowBytes(spec.hidden));
    s.dtype_in = kWireI8Scale32;
  }
  s.long_context_from = spec.rope.original;
  s.shared_experts = std::any_of(spec.layers.begin(), spec.layers.end(),
                                 [](const LayerSpec& l) { return l.shared_inter > 0; });
  s.kv_blocks = options.kv_blocks;
  s.state_slots = spec.state_bytes() > 0 ? options.state_slots : 0;
  return s;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuLayerBackend>> CpuLayerBackend::Create(
    ModelSpec spec, const Manifest& manifest, ModelStore* store, const kernels::Ops* ops, KernelPool* pool,
    BufferPool* buffers, CpuLayerOptions options) {
  if (options.kv_blocks == 0 || options.flights == 0 || options.rows_max == 0) {
    return InvalidArgument("attention backend: kv_blocks, flights and rows_max must be above 0");
  }
  if (spec.state_bytes() > 0 && options.state_slots < kStateSlotsMin) {
    return InvalidArgument("attention backend: this model keeps states; expected state_slots of at least " +
                           std::to_string(kStateSlotsMin) + ", got " + std::to_string(options.state_slots));
  }
  ASSIGN_OR_RETURN(CpuDenseWeights weights, LoadDenseWeights(spec, manifest, store));
  return std::unique_ptr<CpuLayerBackend>(
      new CpuLayerBackend(std::move(spec), std::move(weights), ops, pool, buffers, std::move(options)));
}

CpuLayerBackend::CpuLayerBackend(ModelSpec spec, CpuDenseWeights weights, const kernels::Ops* ops,
                                 KernelPool* pool, BufferPool* buffers, CpuLayerOptions options)
    : spec_(std::move(spec)),
      weights_(std::move(weights)),
      ops_(*ops),
      pool_(pool),
      buffers_(buffers),
      options_(std::move(options)),
      shape_(ShapeOf(spec_, options_)),
      attention_(spec_, ops_, options_.numerics.arithmetic, pool, options_.kv_blocks, shape_.state_slots),
      sample_scratch_(pool == nullptr ? 1 : pool->threads()),
      flights_(options_.flights) {}

void CpuLayerBackend::Run(const StageJob& job, std::function<void(StageOut)> done) {
  CHECK_MSG(job.flight.value < flights_.size(), "flight " + std::to_string(job.flight.value));
  Flight* flight = &flights_[job.flight.value];
  CHECK_MSG(!flight->running, "flight " + std::to_string(job.flight.value) + " has a stage under way");
  flight->running = true;
  flight->job = job;
  flight->done = std::move(done);
  // Two pointers fit into a std::function: no allocation.
  const auto work = [this, flight] {
    Compute(flight);
    const auto finish = [flight] {
      flight->running = false;
      const auto callback = std::move(flight->done);
      callback(std::move(flight->out));
    };
    options_.post_done ? options_.post_done(finish) : finish();
  };
  options_.run_compute ? options_.run_compute(work) : work();
}

void CpuLayerBackend::Abandon(FlightId id) {
  CHECK(id.value < flights_.size());
  Flight* flight = &flights_[id.value];
  // Behind a stage that may still run; the next kStart of the slot comes behind this.
  const auto release = [flight] { flight->wire = BufferRef(); };
  options_.run_compute ? options_.run_compute(release) : release();
}

absl::Status CpuLayerBackend::ExportBlock(KvBlockId block, std::vector<std::byte>* out) {
  if (block.value >= options_.kv_blocks) return InvalidArgument("no KV block " + std::to_string(block.value));
  out->resize(attention_.block_bytes());
  attention_.ExportBlock(block, out->data());
  return absl::OkStatus();
}

absl::Status CpuLayerBackend::ImportBlock(KvBlockId block, std::span<const std::byte> bytes) {
  if (block.value >= options_.kv_blocks) return InvalidArgument("no KV block " + std::to_string(block.value));
  if (bytes.size() != attention_.block_bytes()) {
    return InvalidArgument("KV block: expected " + std::to_string(attention_.block_bytes()) + " bytes, got " +
                           std::to_string(bytes.size()));
  }
  attention_.ImportBlock(block, bytes.data());
  return absl::OkStatus();
}

absl::Status CpuLayerBackend::ExportState(StateId state, std::vector<std::byte>* out) {
  if (state.value >= shape_.state_slots) return InvalidArgument("no state " + std::to_string(state.value));
  out->resize(spec_.state_bytes());
  attention_.ExportState(state, out->data());
  return absl::OkStatus();
}

absl::Status CpuLayerBackend::ImportState(StateId state, std::span<const std::byte> bytes) {
  if (state.value >= shape_.state_slots) return InvalidArgument("no state " + std::to_string(state.value));
  if (bytes.size() != spec_.state_bytes()) {
    return InvalidArgument("state: expected " + std::to_string(spec_.state_bytes()) + " bytes, got " +
                           std::to_string(bytes.size()));
  }
  attention_.ImportState(state, bytes.data());
  return absl::OkStatus();
}

void CpuLayerBackend::Compute(Flight* flight) {
  const MonoTime begin = NowUs();
  flight->out = StageOut{};
  flight->out.flight = flight->job.flight;
  flight->out.kind = flight->job.kind;
  switch (flight->job.kind) {
    case StageKind::kStart:
      flight->out.status = Start(flight);
      break;
    case StageKind::kShared:
      Shared(flight);
      break;
    case StageKind::kCombine:
      Combine(flight);
      break;
  }
  flight->out.compute_us = static_cast<uint32_t>(NowUs() - begin);
}

absl::Status CpuLayerBackend::Start(Flight* flight) {
  const FlightBatch& batch = *flight->job.batch;
  CHECK_MSG(batch.rows.size() <= options_.rows_max, std::to_string(batch.rows.size()) + " rows");
  for (const FlightRow& row : batch.rows) {
    if (row.token >= spec_.vocab) {
      return InvalidArgument("token " + std::to_string(row.token) + "; expected below " +
                             std::to_string(spec_.vocab));
    }
    if (row.position >= spec_.context) {
      return InvalidArgument("position " + std::to_string(row.position) + "; expected below " +
                             std::to_string(spec_.context));
    }
  }
  for (const KvBlockId block : batch.fresh_blocks) attention_.ZeroBlock(block);
  float* x = Grown(&flight->x, batch.rows.size() * spec_.hidden);
  for (size_t r = 0; r < batch.rows.size(); ++r) weights_.Embed(batch.rows[r].token, x + r * spec_.hidden);
  Scale(Rows{x, spec_.hidden, batch.rows.size()}, spec_.embed_scale);
  flight->layer = 0;
  Advance(flight);
  return absl::OkStatus();
}

// x = x * factor, rounded once; nothing for 1.
void CpuLayerBackend::Scale(Rows x, float factor) {
  if (factor == 1.0f) return;
  ForEachRow(pool_, x.count, x.stride, [&](size_t r, uint32_t) {
    for (size_t i = 0; i < x.stride; ++i) x.row(r)[i] = x.row(r)[i] * factor;
  });
}

void CpuLayerBackend::Norm(const NormWeights& w, ConstRows x, Rows y) {
  if (spec_.norm == NormKind::kRms)
    return kernels::RmsNorm(ops_, pool_, x, w.weight.data(), spec_.hidden, spec_.norm_eps, y);
  kernels::LayerNorm(ops_, pool_, x, w.weight.data(), w.bias.empty() ? nullptr : w.bias.data(), spec_.hidden,
                     spec_.norm_eps, y);
}

// x = x + y, y first normed (sandwich norms) and multiplied where the model does that.
void CpuLayerBackend::AddToResidual(const NormWeights& out_norm, Rows y, Rows x) {
  if (spec_.post_norms) Norm(out_norm, y, y);
  Scale(y, spec_.residual_scale);
  ForEachRow(pool_, x.count, 3 * x.stride,
             [&](size_t r, uint32_t) { ops_.add(x.row(r), y.row(r), spec_.hidden, x.row(r)); });
}

// From the start of flight->layer on, until routed experts are needed or the head is done.
void CpuLayerBackend::Advance(Flight* flight) {
  const FlightBatch& batch = *flight->job.batch;
  const size_t n = batch.rows.size(), width = spec_.hidden;
  const Rows x{flight->x.data(), width, n};
  const Rows h{Grown(&h_, n * width), width, n}, block_out{Grown(&block_out_, n * width), width, n};
  attention_.Prepare(batch);
  for (; flight->layer < spec_.layers.size(); ++flight->layer) {
    const CpuLayerWeights& w = weights_.layers[flight->layer];
    Observe({LayerObservation::Kind::kHidden, flight->layer, x, {}, &batch, 0});
    Norm(w.input_norm, x, h);
    attention_.Run(flight->layer, w, batch, h, block_out);
    AddToResidual(w.attention_out_norm, block_out, x);
    if (spec_.layers[flight->layer].ffn == FfnKind::kMoe) {
      flight->wire = buffers_->Allocate(n * shape_.row_bytes_in);
      const Rows h2{options_.numerics.integer_rows ? Grown(&flight->h2, n * width)
                                                   : reinterpret_cast<float*>(flight->wire.data()),
                    width, n};
      Norm(w.post_norm, x, h2);
      Gate(flight, h2);
      return;
    }
    Norm(w.post_norm, x, h);
    Ffn(w.ffn, h, block_out);
    AddToResidual(w.ffn_out_norm, block_out, x);
  }
  Observe({LayerObservation::Kind::kHidden, flight->layer, x, {}, &batch, 0});
  Head(flight);
}

void CpuLayerBackend::Gate(Flight* flight, Rows h2) {
  const CpuLayerWeights& w = weights_.layers[flight->layer];
  const uint32_t experts = spec_.gate.experts, top_k = spec_.gate.top_k;
  const size_t n = h2.count, scratch = size_t{2} * experts;
  const Rows logits{Grown(&router_logits_, n * experts), experts, n};
  Gemm(w.gate, h2, logits, w.gate_weight_bias);
  flight->experts.resize(n * top_k);
  flight->weights.resize(n * top_k);
  float* scratches = Grown(&route_scratch_, sample_scratch_.size() * scratch);
  const float* bias = w.gate_bias.empty() ? nullptr : w.gate_bias.data();
  ForEachRow(pool_, n, size_t{8} * experts, [&](size_t r, uint32_t thread) {
    kernels::RouteRow(spec_.gate, logits.row(r), bias, &flight->experts[r * top_k],
                      &flight->weights[r * top_k], scratches + thread * scratch);
  });
  Observe({LayerObservation::Kind::kRouterLogits, flight->layer, logits, {}, flight->job.batch, 0});
  Observe({LayerObservation::Kind::kRouterWeights, flight->layer, ConstRows(flight->weights.data(), top_k, n),
           flight->experts, flight->job.batch, 0});
  if (spec_.scale_expert_input) ScaleInputs(flight, h2);
  if (options_.numerics.integer_rows) QuantiseInputs(flight, h2);
  flight->shared_done = false;
  flight->out.layer = LayerId(static_cast<uint16_t>(flight->layer));
  flight->out.experts = flight->experts;
  flight->out.wire_rows = flight->wire;
}

// The row that experts read is h2 times the gate's weight; the shared expert reads h2 as it was.
void CpuLayerBackend::ScaleInputs(Flight* flight, Rows h2) {
  flight->unscaled.assign(h2.data, h2.data + h2.count * h2.stride);
  for (size_t r = 0; r < h2.count; ++r) {
    for (size_t i = 0; i < h2.stride; ++i) h2.row(r)[i] = h2.row(r)[i] * flight->weights[r];
    flight->weights[r] = 1.0f;
  }
}

void CpuLayerBackend::QuantiseInputs(Flight* flight, ConstRows h2) {
  const size_t quant_bytes = kernels::QuantRowBytes(spec_.hidden);
  if (quantised_.size() < h2.count * quant_bytes) quantised_.resize(h2.count * quant_bytes);
  ForEachRow(pool_, h2.count, size_t{2} * spec_.hidden, [&](size_t r, uint32_t) {
    std::byte* q = quantised_.data() + r * quant_bytes;
    ops_.quantize_rows({h2.row(r), h2.stride, 1}, spec_.hidden, q);
    kernels::WireFromQuantRow(q, spec_.hidden, flight->wire.data() + r * shape_.row_bytes_in);
  });
}

ConstRows CpuLayerBackend::SharedInputs(const Flight& flight) const {
  const float* rows = spec_.scale_expert_input         ? flight.unscaled.data()
                      : options_.numerics.integer_rows ? flight.h2.data()
                                                       : reinterpret_cast<const float*>(flight.wire.data());
  return {rows, spec_.hidden, flight.job.batch->rows.size()};
}

void CpuLayerBackend::Gemm(const kernels::PackedMatrix& w, ConstRows x, Rows y,
                           const std::vector<float>& bias) {
  kernels::Gemm(ops_, pool_, options_.numerics.arithmetic, w, x, y, bias.empty() ? nullptr : bias.data());
}

void CpuLayerBackend::Shared(Flight* flight) {
  CHECK_MSG(flight->wire && flight->layer < spec_.layers.size(), "kShared without routing");
  if (spec_.layers[flight->layer].shared_inter == 0) return;
  const size_t n = flight->job.batch->rows.size(), width = spec_.hidden;
  const CpuLayerWeights& w = weights_.layers[flight->layer];
  const ConstRows h2 = SharedInputs(*flight);
  const Rows shared{Grown(&flight->shared, n * width), width, n};
  Ffn(w.ffn, h2, shared);
  if (w.shared_gate.out != 0) {
    const Rows gate{Grown(&router_logits_, n), 1, n};
    Gemm(w.shared_gate, h2, gate);
    ops_.scores(true, gate.data, 0.0f, static_cast<uint32_t>(n), gate.data);
    for (size_t r = 0; r < n; ++r) {
      for (size_t i = 0; i < width; ++i) shared.row(r)[i] = shared.row(r)[i] * gate.data[r];
    }
  }
  flight->shared_done = true;
}

void CpuLayerBackend::Combine(Flight* flight) {
  const size_t n = flight->job.batch->rows.size(), width = spec_.hidden, top_k = spec_.gate.top_k;
  CHECK_MSG(flight->wire, "kCombine without routing");
  CHECK_MSG(flight->job.slot_outputs.size() == n * top_k,
            std::to_string(flight->job.slot_outputs.size()) + " slots");
  const bool has_shared = spec_.layers[flight->layer].shared_inter > 0;
  if (has_shared && !flight->shared_done)
    Shared(flight);  // kShared only says when; the sum needs it in any case
  slots_.resize(n * top_k);
  for (size_t i = 0; i < slots_.size(); ++i)
    slots_[i] = reinterpret_cast<const float*>(flight->job.slot_outputs[i]);
  // Sandwich norms and residual multipliers need the sum by itself: it is combined with a row of zeros then.
  const bool apart = spec_.post_norms || spec_.residual_scale != 1.0f;
  const Rows x{flight->x.data(), width, n}, sum{apart ? Grown(&block_out_, n * width) : x.data, width, n};
  if (apart) zeros_.resize(width);
  ForEachRow(pool_, n, (top_k + 3) * width, [&](size_t r, uint32_t) {
    ops_.combine(apart ? zeros_.data() : x.row(r), has_shared ? flight->shared.data() + r * width : nullptr,
                 &slots_[r * top_k], &flight->weights[r * top_k], static_cast<uint32_t>(top_k), spec_.hidden,
                 sum.row(r));
  });
  if (apart) AddToResidual(weights_.layers[flight->layer].ffn_out_norm, sum, x);
  flight->wire = BufferRef();
  ++flight->layer;
  Advance(flight);
}

void CpuLayerBackend::Head(Flight* flight) {
  const FlightBatch& batch = *flight->job.batch;
  const size_t width = spec_.hidden;
  flight->out.finished = true;
  flight->out.samples.resize(batch.samples.size());
  for (size_t first = 0; first < batch.samples.size(); first += kHeadRows) {
    const size_t count = std::min(kHeadRows, batch.samples.size() - first);
    const Rows h{Grown(&h_, count * width), width, count};
    const Rows gathered{Grown(&block_out_, count * width), width, count};
    for (size_t i = 0; i < count; ++i) {
      const uint32_t row = batch.samples[first + i].row;
      CHECK(row < batch.rows.size());
      std::copy_n(flight->x.data() + row * width, width, gathered.row(i));
    }
    Norm(weights_.final_norm, gathered, h);
    const Rows logits{Grown(&logits_, count * spec_.vocab), spec_.vocab, count};
    Gemm(weights_.lm_head(), h, logits, weights_.head_bias);
    Scale(logits, spec_.logit_scale);
    Observe({LayerObservation::Kind::kLogits, flight->layer, logits, {}, &batch, first});
    SampleRows(flight, first, count, logits);
  }
}

void CpuLayerBackend::SampleRows(Flight* flight, size_t first, size_t count, ConstRows logits) {
  ForEachRow(pool_, count, spec_.vocab, [&](size_t i, uint32_t thread) {
    const SampleRow& s = flight->job.batch->samples[first + i];
    const std::span<const float> row(logits.row(i), spec_.vocab);
    flight->out.samples[first + i] = s.score_only ? ScoreToken(row, s.target, s.top_logprobs)
                                                  : Sample(row, *s.sampling, s.prompt, s.generated, s.banned,
                                                           s.top_logprobs, s.key, &sample_scratch_[thread]);
  });
}

void CpuLayerBackend::Ffn(const kernels::FfnWeights& w, ConstRows x, Rows y) {
  ffn_rows_.resize(x.count);
  for (size_t r = 0; r < x.count; ++r) ffn_rows_[r] = {x.row(r), y.row(r)};
  const kernels::FfnGroup group{&w, 0, static_cast<uint32_t>(x.count)};
  grouped_ffn_.Run(ops_, pool_, {&group, 1}, ffn_rows_, options_.numerics.arithmetic);
}

}  // namespace consilium
