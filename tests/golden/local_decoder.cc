#include "tests/golden/local_decoder.h"

#include <algorithm>

#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {

LocalDecoder::~LocalDecoder() = default;

std::unique_ptr<LocalDecoder> LocalDecoder::Open(const std::string& dir, LocalDecoderOptions options) {
  std::unique_ptr<LocalDecoder> d(new LocalDecoder);
  const auto spec = ReadModelSpec(dir);
  CHECK_MSG(spec.ok(), ToString(spec.status()));
  d->spec_ = *spec;
  auto manifest = OpenManifest(dir, "");
  CHECK_MSG(manifest.ok(), ToString(manifest.status()));
  d->manifest_ = *std::move(manifest);
  const auto ops = kernels::FindOps(options.ops);
  CHECK_MSG(ops.ok(), ToString(ops.status()));
  d->options_ = std::move(options);
  d->pool_ = std::make_unique<KernelPool>(d->options_.threads);
  d->greedy_.temperature = 0;
  // Blocks are handed out in a scrambled order, so that nothing can rely on neighbours.
  for (uint32_t i = 0; i < d->options_.kv_blocks; ++i) d->free_blocks_.push_back(KvBlockId(i));
  std::sort(d->free_blocks_.begin(), d->free_blocks_.end(),
            [](KvBlockId a, KvBlockId b) { return Mix(a.value, 1) < Mix(b.value, 1); });
  const auto store = OpenFolderStore(d->manifest_);
  CpuLayerOptions layer_options;
  layer_options.kv_blocks = d->options_.kv_blocks;
  layer_options.flights = d->options_.flights;
  layer_options.rows_max = kFlightRowsMax;
  layer_options.run_compute = d->options_.run_compute;
  LocalDecoder* self = d.get();
  layer_options.observer = [self](const LayerObservation& o) {
    if (self->options_.observer) self->options_.observer(o);
    if (o.kind != LayerObservation::Kind::kLogits || !self->options_.keep_logits) return;
    for (size_t i = 0; i < o.data.count; ++i) {
      const FlightRow& row = o.batch->rows[o.batch->samples[o.first_sample + i].row];
      self->logits_[{self->feed_sequence_[row.sequence], row.position}].assign(
          o.data.row(i), o.data.row(i) + self->spec_.vocab);
    }
  };
  auto layers = CpuLayerBackend::Create(d->spec_, d->manifest_, store.get(), *ops, d->pool_.get(),
                                        &d->buffers_, layer_options);
  CHECK_MSG(layers.ok(), ToString(layers.status()));
  d->layers_ = *std::move(layers);
  d->experts_ = std::make_unique<CpuExpertBackend>(
      CpuExpertOptions{d->spec_.hidden, d->spec_.expert_inter, d->spec_.activation, d->spec_.swiglu_alpha,
                       d->spec_.swiglu_limit, nullptr, nullptr},
      *ops, d->pool_.get());
  for (const ExpertEntry& e : d->manifest_.experts) {
    const auto handle = d->experts_->Load(e, store.get());
    CHECK_MSG(handle.ok(), ToString(handle.status()));
    d->handles_[{e.layer, e.expert}] = *handle;
  }
  return d;
}

uint32_t LocalDecoder::AddSequence(size_t longest) {
  sequences_.emplace_back();
  const uint32_t from = layers_->shape().long_context_from;
  sequences_.back().long_context = from != 0 && longest > from;
  return static_cast<uint32_t>(sequences_.size() - 1);
}

StageOut LocalDecoder::RunStage(const StageJob& job) {
  StageOut result;
  bool done = false;
  layers_->Run(job, [&](StageOut out) {
    result = std::move(out);
    done = true;
  });
  CHECK(done);
  CHECK_MSG(result.status.ok(), ToString(result.status));
  return result;
}

std::unique_ptr<LocalDecoder::Flight> LocalDecoder::Begin(uint32_t slot, const std::vector<Feed>& feeds) {
  auto flight = std::make_unique<Flight>();
  flight->slot = slot;
  for (const Feed& feed : feeds) {
    Sequence& s = sequences_[feed.sequence];
    const uint32_t index = static_cast<uint32_t>(flight->sequences.size());
    flight->sequences.push_back(feed.sequence);
    for (size_t i = 0; i < feed.tokens.size(); ++i, ++s.length) {
      if (s.length % kKvBlockTokens == 0) {
        CHECK_MSG(!free_blocks_.empty(), "no KV block left");
        s.blocks.push_back(free_blocks_.back());
        flight->batch.fresh_blocks.push_back(free_blocks_.back());
        free_blocks_.pop_back();
      }
      if (feed.sample_all || i + 1 == feed.tokens.size()) {
        SampleRow sample;
        sample.row = static_cast<uint32_t>(flight->batch.rows.size());
        sample.sampling = &greedy_;
        flight->batch.samples.push_back(sample);
      }
      flight->batch.rows.push_back(
          {feed.tokens[i], s.length, index, feed.tokens.size() > 1 ? RowKind::kPrompt : RowKind::kDecode});
    }
  }
  for (uint32_t number : flight->sequences)
    flight->batch.sequences.push_back({sequences_[number].blocks, sequences_[number].long_context});
  feed_sequence_ = flight->sequences;
  StageJob job;
  job.flight = FlightId(slot);
  job.batch = &flight->batch;
  flight->out = RunStage(job);
  return flight;
}

void LocalDecoder::RunExperts(Flight* flight) {
  const uint32_t top_k = spec_.gate.top_k;
  const size_t rows = flight->batch.rows.size();
  flight->slots.resize(rows * top_k * spec_.hidden);
  flight->slot_outputs.resize(rows * top_k);
  std::map<uint16_t, std::vector<ExpertRow>> by_expert;
  for (size_t i = 0; i < rows * top_k; ++i) {
    auto* out = reinterpret_cast<std::byte*>(flight->slots.data() + i * spec_.hidden);
    flight->slot_outputs[i] = out;
    by_expert[flight->out.experts[i]].push_back(
        {flight->out.wire_rows.data() + i / top_k * experts_->row_bytes_in(), out});
  }
  std::vector<ExpertGroup> groups;
  std::vector<ExpertRow> all;
  for (const auto& [expert, list] : by_expert) {
    groups.push_back({handles_.at({flight->out.layer, ExpertId(expert)}), static_cast<uint32_t>(all.size()),
                      static_cast<uint32_t>(list.size())});
    all.insert(all.end(), list.begin(), list.end());
  }
  bool done = false;
  experts_->Run({groups, all}, [&](FfnDone result) {
    CHECK_MSG(result.status.ok(), ToString(result.status));
    done = true;
  });
  CHECK(done);
}

bool LocalDecoder::Advance(Flight* flight) {
  feed_sequence_ = flight->sequences;
  if (!flight->out.finished) {
    StageJob job;
    job.flight = FlightId(flight->slot);
    job.batch = &flight->batch;
    if (layers_->shape().shared_experts) {
      job.kind = StageKind::kShared;
      RunStage(job);
    }
    RunExperts(flight);
    job.kind = StageKind::kCombine;
    job.slot_outputs = flight->slot_outputs;
    flight->out = RunStage(job);
  }
  if (!flight->out.finished) return true;
  // The last sample of each feed belongs to its last row.
  flight->next.resize(flight->sequences.size());
  for (size_t i = 0; i < flight->batch.samples.size(); ++i) {
    flight->next[flight->batch.rows[flight->batch.samples[i].row].sequence] = flight->out.samples[i].token;
  }
  return false;
}

std::vector<TokenId> LocalDecoder::Step(const std::vector<Feed>& feeds) {
  const auto flight = Begin(0, feeds);
  while (Advance(flight.get())) {
  }
  return flight->next;
}

std::vector<float> LocalDecoder::Prefill(uint32_t sequence, std::span<const TokenId> tokens, size_t chunk) {
  for (size_t i = 0; i < tokens.size(); i += chunk) {
    const auto part = tokens.subspan(i, std::min(chunk, tokens.size() - i));
    Step({Feed{sequence, {part.begin(), part.end()}, true}});
  }
  std::vector<float> all;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto& row = logits(sequence, static_cast<Position>(i));
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

std::vector<TokenId> LocalDecoder::Greedy(std::span<const TokenId> prompt, size_t count) {
  const uint32_t sequence = AddSequence(prompt.size() + count);
  std::vector<TokenId> out = Step({Feed{sequence, {prompt.begin(), prompt.end()}, false}});
  while (out.size() < count) out.push_back(Step({Feed{sequence, {out.back()}, false}})[0]);
  return out;
}

}  // namespace consilium
