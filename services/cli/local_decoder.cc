#include "services/cli/local_decoder.h"

#include <algorithm>
#include <mutex>

#include "common/base/hash.h"
#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {

LocalDecoder::~LocalDecoder() = default;

absl::StatusOr<std::unique_ptr<LocalDecoder>> LocalDecoder::Open(const std::string& model,
                                                                 LocalDecoderOptions options) {
  std::unique_ptr<LocalDecoder> d(new LocalDecoder);
  ASSIGN_OR_RETURN(d->spec_, ReadModelSpec(model));
  ASSIGN_OR_RETURN(d->manifest_, OpenManifest(model, options.state_dir));
  d->options_ = std::move(options);
  d->pool_ = std::make_unique<KernelPool>(d->options_.threads);
  d->greedy_.temperature = 0;
  RETURN_IF_ERROR(d->Load());
  return d;
}

absl::Status LocalDecoder::Load() {
  ASSIGN_OR_RETURN(const kernels::Ops* ops, kernels::FindOps(options_.ops));
  ASSIGN_OR_RETURN(numerics_, ChooseNumerics(options_.numerics, manifest_));
  // Blocks are handed out in a scrambled order, so that nothing can rely on neighbours.
  for (uint32_t i = 0; i < options_.kv_blocks; ++i) free_blocks_.push_back(KvBlockId(i));
  std::sort(free_blocks_.begin(), free_blocks_.end(),
            [](KvBlockId a, KvBlockId b) { return Mix(a.value, 1) < Mix(b.value, 1); });
  const auto store = OpenFolderStore(manifest_);
  CpuLayerOptions layer_options;
  layer_options.numerics = numerics_;
  layer_options.kv_blocks = options_.kv_blocks;
  layer_options.state_slots = options_.state_slots;
  layer_options.flights = options_.flights;
  layer_options.rows_max = kFlightRowsMax;
  layer_options.run_compute = options_.run_compute;
  layer_options.observer = [this](const LayerObservation& o) {
    if (options_.observer) options_.observer(o);
    if (o.kind == LayerObservation::Kind::kLogits && options_.keep_logits) KeepLogits(o);
  };
  ASSIGN_OR_RETURN(layers_, CpuLayerBackend::Create(spec_, manifest_, store.get(), ops, pool_.get(),
                                                    &buffers_, layer_options));
  for (uint32_t i = 0; i < layers_->shape().state_slots; ++i) free_states_.push_back(StateId(i));
  CpuExpertOptions expert_options = ExpertOptionsOf(spec_);
  expert_options.numerics = numerics_;
  experts_ = std::make_unique<CpuExpertBackend>(std::move(expert_options), ops, pool_.get());
  return LoadExperts(store.get());
}

// On all threads of the pool; after an error the rest is left out.
absl::Status LocalDecoder::LoadExperts(ModelStore* store) {
  std::mutex mutex;
  absl::Status status;
  pool_->ParallelFor(manifest_.experts.size(), [&](size_t i, uint32_t) {
    {
      const std::lock_guard lock(mutex);
      if (!status.ok()) return;
    }
    const ExpertEntry& entry = manifest_.experts[i];
    const absl::StatusOr<ExpertHandle> handle = experts_->Load(entry, store);
    const std::lock_guard lock(mutex);
    if (!handle.ok()) {
      status = handle.status();
      return;
    }
    handles_[{entry.layer, entry.expert}] = *handle;
    if (options_.progress) options_.progress(handles_.size(), manifest_.experts.size());
  });
  return status;
}

void LocalDecoder::KeepLogits(const LayerObservation& o) {
  for (size_t i = 0; i < o.data.count; ++i) {
    const FlightRow& row = o.batch->rows[o.batch->samples[o.first_sample + i].row];
    logits_[{feed_sequence_[row.sequence], row.position}].assign(o.data.row(i), o.data.row(i) + spec_.vocab);
  }
}

uint32_t LocalDecoder::AddSequence(size_t longest) {
  sequences_.emplace_back();
  const uint32_t from = layers_->shape().long_context_from;
  sequences_.back().long_context = from != 0 && longest > from;
  return static_cast<uint32_t>(sequences_.size() - 1);
}

void LocalDecoder::Release(uint32_t sequence) {
  Sequence& s = sequences_[sequence];
  free_blocks_.insert(free_blocks_.end(), s.blocks.rbegin(), s.blocks.rend());
  if (s.state) free_states_.push_back(*s.state);
  s = Sequence();
  logits_.erase(logits_.lower_bound({sequence, 0}), logits_.lower_bound({sequence + 1, 0}));
}

absl::StatusOr<StageOut> LocalDecoder::RunStage(const StageJob& job) {
  StageOut result;
  bool done = false;
  layers_->Run(job, [&](StageOut out) {
    result = std::move(out);
    done = true;
  });
  CHECK_MSG(done, "run_compute must run at once");
  RETURN_IF_ERROR(result.status);
  return result;
}

absl::Status LocalDecoder::AddRows(const Feed& feed, Flight* flight) {
  CHECK(feed.targets.empty() || feed.targets.size() == feed.tokens.size());
  Sequence& s = sequences_[feed.sequence];
  const uint32_t index = static_cast<uint32_t>(flight->sequences.size());
  flight->sequences.push_back(feed.sequence);
  for (size_t i = 0; i < feed.tokens.size(); ++i, ++s.length) {
    if (s.length % kKvBlockTokens == 0) {
      if (free_blocks_.empty()) {
        return ResourceExhausted("no KV block left: all " + std::to_string(options_.kv_blocks) +
                                 " are in use");
      }
      s.blocks.push_back(free_blocks_.back());
      flight->batch.fresh_blocks.push_back(free_blocks_.back());
      free_blocks_.pop_back();
    }
    const bool scores = !feed.targets.empty();
    if (scores ? i >= feed.score_from : feed.sample_all || i + 1 == feed.tokens.size()) {
      SampleRow sample;
      sample.row = static_cast<uint32_t>(flight->batch.rows.size());
      sample.sampling = &greedy_;
      sample.top_logprobs = feed.top_logprobs;
      if (scores) {
        sample.score_only = true;
        sample.target = feed.targets[i];
        sample.top_logprobs = 0;
      }
      flight->batch.samples.push_back(sample);
    }
    flight->batch.rows.push_back(
        {feed.tokens[i], s.length, index, feed.tokens.size() > 1 ? RowKind::kPrompt : RowKind::kDecode});
  }
  return absl::OkStatus();
}

absl::StatusOr<FlightSequence> LocalDecoder::FlightSequenceOf(uint32_t sequence) {
  const Sequence& s = sequences_[sequence];
  FlightSequence out{s.blocks, s.long_context, s.state, std::nullopt};
  if (layers_->shape().state_slots == 0) return out;
  if (free_states_.empty()) {
    return ResourceExhausted("no state left: all " + std::to_string(options_.state_slots) + " are in use");
  }
  out.state_out = free_states_.back();
  free_states_.pop_back();
  return out;
}

// What a finished flight left is what its sequences go on from.
void LocalDecoder::TakeStates(const Flight& flight) {
  for (size_t i = 0; i < flight.sequences.size(); ++i) {
    const std::optional<StateId>& left = flight.batch.sequences[i].state_out;
    std::optional<StateId>& state = sequences_[flight.sequences[i]].state;
    if (!left) continue;
    if (state) free_states_.push_back(*state);
    state = left;
  }
}

absl::StatusOr<std::unique_ptr<LocalDecoder::Flight>> LocalDecoder::Begin(uint32_t slot,
                                                                          const std::vector<Feed>& feeds) {
  auto flight = std::make_unique<Flight>();
  flight->slot = slot;
  for (const Feed& feed : feeds) RETURN_IF_ERROR(AddRows(feed, flight.get()));
  for (uint32_t number : flight->sequences) {
    ASSIGN_OR_RETURN(const FlightSequence sequence, FlightSequenceOf(number));
    flight->batch.sequences.push_back(sequence);
  }
  feed_sequence_ = flight->sequences;
  StageJob job;
  job.flight = FlightId(slot);
  job.batch = &flight->batch;
  ASSIGN_OR_RETURN(flight->out, RunStage(job));
  return flight;
}

absl::Status LocalDecoder::RunExperts(Flight* flight) {
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
  absl::Status status;
  experts_->Run({groups, all}, [&](FfnDone result) {
    status = result.status;
    done = true;
  });
  CHECK(done);
  return status;
}

absl::StatusOr<bool> LocalDecoder::Advance(Flight* flight) {
  feed_sequence_ = flight->sequences;
  if (!flight->out.finished) {
    StageJob job;
    job.flight = FlightId(flight->slot);
    job.batch = &flight->batch;
    if (layers_->shape().shared_experts) {
      job.kind = StageKind::kShared;
      RETURN_IF_ERROR(RunStage(job).status());
    }
    RETURN_IF_ERROR(RunExperts(flight));
    job.kind = StageKind::kCombine;
    job.slot_outputs = flight->slot_outputs;
    ASSIGN_OR_RETURN(flight->out, RunStage(job));
  }
  if (!flight->out.finished) return true;
  TakeStates(*flight);
  // The last sample of each feed belongs to its last row.
  flight->next.resize(flight->sequences.size());
  for (size_t i = 0; i < flight->batch.samples.size(); ++i) {
    flight->next[flight->batch.rows[flight->batch.samples[i].row].sequence] = flight->out.samples[i].token;
  }
  return false;
}

absl::StatusOr<std::unique_ptr<LocalDecoder::Flight>> LocalDecoder::RunFlight(
    const std::vector<Feed>& feeds) {
  ASSIGN_OR_RETURN(std::unique_ptr<Flight> flight, Begin(0, feeds));
  for (bool more = true; more;) {
    ASSIGN_OR_RETURN(more, Advance(flight.get()));
  }
  return flight;
}

absl::StatusOr<std::vector<TokenId>> LocalDecoder::Step(const std::vector<Feed>& feeds) {
  ASSIGN_OR_RETURN(const auto flight, RunFlight(feeds));
  return std::move(flight->next);
}

absl::StatusOr<std::vector<SampleResult>> LocalDecoder::StepResults(Feed feed) {
  ASSIGN_OR_RETURN(const auto flight, RunFlight({std::move(feed)}));
  return std::move(flight->out.samples);
}

absl::StatusOr<std::vector<float>> LocalDecoder::Prefill(uint32_t sequence, std::span<const TokenId> tokens,
                                                         size_t chunk) {
  for (size_t i = 0; i < tokens.size(); i += chunk) {
    const auto part = tokens.subspan(i, std::min(chunk, tokens.size() - i));
    Feed feed;
    feed.sequence = sequence;
    feed.tokens.assign(part.begin(), part.end());
    RETURN_IF_ERROR(Step({std::move(feed)}).status());
  }
  std::vector<float> all;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto& row = logits(sequence, static_cast<Position>(i));
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

absl::StatusOr<std::vector<SampleResult>> LocalDecoder::Greedy(std::span<const TokenId> prompt,
                                                               size_t count) {
  const uint32_t sequence = AddSequence(prompt.size() + count);
  Feed feed;
  feed.sequence = sequence;
  feed.sample_all = false;
  feed.top_logprobs = 0;
  std::vector<SampleResult> out;
  feed.tokens.assign(prompt.begin(), prompt.end());
  while (out.size() < count) {
    ASSIGN_OR_RETURN(std::vector<SampleResult> results, StepResults(feed));
    out.push_back(std::move(results[0]));
    feed.tokens = {out.back().token};
  }
  Release(sequence);
  return out;
}

}  // namespace consilium
