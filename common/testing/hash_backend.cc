#include "common/testing/hash_backend.h"

#include <algorithm>
#include <cstring>

#include "common/base/hash.h"
#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {
namespace {

constexpr uint8_t kDtypeU64 = 5;
constexpr uint64_t kEmbed = 0xE0, kKey = 0xE1, kAttend = 0xE2, kDense = 0xE3, kGate = 0xE4, kExpert = 0xE5,
                   kShared = 0xE6, kCombineStep = 0xE7, kHead = 0xE8, kHistory = 0xE9, kRecur = 0xEA;

// A log-probability in (-16, 0] from 24 bits.
float LogprobOf(uint64_t h) { return -static_cast<float>(h & 0xFFFFFF) / 1048576.0f; }

uint64_t Load64(const std::byte* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}

}  // namespace

BackendShape HashShape(const HashModel& m) {
  BackendShape s;
  s.layers = m.layers;
  s.top_k = m.top_k;
  s.experts = m.experts;
  s.vocab = m.vocab;
  s.context = m.context;
  s.hidden = 1;
  s.row_bytes_in = s.row_bytes_out = 8;
  s.dtype_in = s.dtype_out = kDtypeU64;
  s.shared_experts = m.shared_experts;
  s.kv_blocks = m.kv_blocks;
  s.state_slots = m.recurrent ? m.state_slots : 0;
  return s;
}

uint64_t HashExpert(LayerId layer, ExpertId expert, uint64_t x) {
  return Mix(Mix(kExpert, (uint64_t{layer.value} << 16) | expert.value), x);
}

HashLayerBackend::HashLayerBackend(const HashModel& model, BufferPool* pool, HashExecutor executor)
    : model_(model),
      shape_(HashShape(model)),
      pool_(pool),
      executor_(std::move(executor)),
      // Garbage, so that a page that was not zeroed and written shows.
      arena_(size_t{model.kv_blocks} * model.layers * kKvBlockTokens, 0xDEADBEEFDEADBEEFull),
      states_(size_t{shape_.state_slots} * model.layers, 0xDEADBEEFDEADBEEFull) {}

uint64_t& HashLayerBackend::Kv(KvBlockId block, uint32_t layer, uint32_t offset) {
  CHECK(block.value < model_.kv_blocks);
  return arena_[(size_t{block.value} * model_.layers + layer) * kKvBlockTokens + offset];
}

uint64_t& HashLayerBackend::State(StateId state, uint32_t layer) {
  CHECK(state.value < shape_.state_slots);
  return states_[size_t{state.value} * model_.layers + layer];
}

void HashLayerBackend::Run(const StageJob& job, std::function<void(StageOut)> done) {
  if (executor_ == nullptr) {
    done(Compute(job));
    return;
  }
  executor_(job.batch->rows.size(), [this, job, done = std::move(done)] { done(Compute(job)); });
}

void HashLayerBackend::Abandon(FlightId flight) { flights_.erase(flight); }

StageOut HashLayerBackend::Compute(const StageJob& job) {
  StageOut out;
  out.flight = job.flight;
  out.kind = job.kind;
  const FlightBatch& batch = *job.batch;
  if (job.kind == StageKind::kStart) {
    CHECK_MSG(!flights_.contains(job.flight),
              "a flight that was neither finished nor abandoned starts again");
    for (KvBlockId block : batch.fresh_blocks) {
      for (uint32_t l = 0; l < model_.layers; ++l) {
        std::fill_n(&Kv(block, l, 0), kKvBlockTokens, 0);
      }
    }
    Flight& flight = flights_[job.flight];
    for (const FlightRow& row : batch.rows) flight.x.push_back(Mix(Mix(kEmbed, model_.salt), row.token));
    Advance(batch, &flight, &out);
    return out;
  }
  auto it = flights_.find(job.flight);
  CHECK_MSG(it != flights_.end(), "stage of an unknown flight");
  Flight& flight = it->second;
  if (job.kind == StageKind::kShared) {
    CHECK(!flight.shared_done);
    flight.shared.clear();
    for (uint64_t x : flight.x) flight.shared.push_back(Mix(Mix(kShared, flight.layer), x));
    flight.shared_done = true;
    return out;
  }
  CHECK_MSG(flight.shared_done == model_.shared_experts, "combine before the shared part");
  CHECK(job.slot_outputs.size() == batch.rows.size() * model_.top_k);
  for (size_t r = 0; r < flight.x.size(); ++r) {
    uint64_t sum = kCombineStep;
    for (uint32_t s = 0; s < model_.top_k; ++s)
      sum = Mix(sum, Load64(job.slot_outputs[r * model_.top_k + s]));
    if (model_.shared_experts) sum = Mix(sum, flight.shared[r]);
    flight.x[r] = Mix(flight.x[r], sum);
  }
  flight.shared_done = false;
  ++flight.layer;
  Advance(batch, &flight, &out);
  return out;
}

void HashLayerBackend::Attend(const FlightBatch& batch, uint32_t layer, Flight* flight) {
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const FlightRow& row = batch.rows[r];
    const auto blocks = batch.sequences[row.sequence].blocks;
    CHECK_MSG(row.position / kKvBlockTokens < blocks.size(), "row without a reserved page");
    if (row.position % kKvBlockTokens == 0) {
      // The first token of a page: the page must have been zeroed. Left-overs change the tokens, as 0 * NaN
      // would.
      const uint64_t* page = &Kv(blocks[row.position / kKvBlockTokens], layer, 0);
      for (uint32_t t = 0; t < kKvBlockTokens; ++t) {
        if (page[t] != 0) flight->x[r] = Mix(flight->x[r], page[t]);
      }
    }
    Kv(blocks[row.position / kKvBlockTokens], layer, row.position % kKvBlockTokens) =
        Mix(Mix(kKey, layer), Mix(flight->x[r], row.position));
  }
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const FlightRow& row = batch.rows[r];
    const auto blocks = batch.sequences[row.sequence].blocks;
    uint64_t h = Mix(kAttend, layer);
    for (Position p = 0; p <= row.position; ++p)
      h = Mix(h, Kv(blocks[p / kKvBlockTokens], layer, p % kKvBlockTokens));
    flight->x[r] = Mix(flight->x[r], h);
  }
}

// As a kernel would: the rows of a sequence run over the state it leaves.
void HashLayerBackend::Recur(const FlightBatch& batch, uint32_t layer, Flight* flight) {
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const FlightRow& row = batch.rows[r];
    const FlightSequence& sequence = batch.sequences[row.sequence];
    CHECK_MSG(sequence.state_out.has_value() && sequence.state_in != sequence.state_out,
              "no slot for a new state");
    const bool first = r == 0 || batch.rows[r - 1].sequence != row.sequence;
    CHECK_MSG(!first || sequence.state_in.has_value() == (row.position > 0), "a state that is not the row's");
    uint64_t& state = State(*sequence.state_out, layer);
    if (first) state = sequence.state_in ? State(*sequence.state_in, layer) : kRecur;
    state = Mix(Mix(state, flight->x[r]), row.position);
    flight->x[r] = Mix(flight->x[r], state);
  }
}

void HashLayerBackend::Gate(Flight* flight) const {
  flight->experts.clear();
  for (uint64_t x : flight->x) {
    uint64_t h = Mix(Mix(kGate, flight->layer), x);
    const size_t first = flight->experts.size();
    while (flight->experts.size() - first < model_.top_k) {
      h = Mix(h, 1);
      const uint16_t e = static_cast<uint16_t>(h % model_.experts);
      if (std::find(flight->experts.begin() + static_cast<ptrdiff_t>(first), flight->experts.end(), e) ==
          flight->experts.end()) {
        flight->experts.push_back(e);
      }
    }
  }
}

void HashLayerBackend::Advance(const FlightBatch& batch, Flight* flight, StageOut* out) {
  while (flight->layer < model_.layers) {
    if (model_.recurrent && flight->layer % 2 == 1)
      Recur(batch, flight->layer, flight);
    else
      Attend(batch, flight->layer, flight);
    if (flight->layer > 0) {
      Gate(flight);
      flight->wire = pool_->Allocate(flight->x.size() * 8);
      std::memcpy(flight->wire.data(), flight->x.data(), flight->x.size() * 8);
      out->layer = LayerId(static_cast<uint16_t>(flight->layer));
      out->experts = flight->experts;
      out->wire_rows = flight->wire;
      return;
    }
    for (uint64_t& x : flight->x) x = Mix(kDense, x);
    ++flight->layer;
  }
  out->finished = true;
  for (const SampleRow& sample : batch.samples) out->samples.push_back(Head(sample, flight->x[sample.row]));
  flights_.erase(out->flight);
}

SampleResult HashLayerBackend::Head(const SampleRow& s, uint64_t h) const {
  SampleResult result;
  uint64_t logits = Mix(kHead, h);
  if (s.score_only) {
    result.token = s.target;
  } else {
    // Every option and the whole history count, as penalties would.
    uint64_t k = Mix(logits, s.sampling->temperature == 0 ? 0 : s.key.seed);
    k = Mix(Mix(k, s.key.choice), s.key.position);
    if (s.sampling->presence_penalty != 0 || s.sampling->frequency_penalty != 0 ||
        s.sampling->repetition_penalty != 1) {
      for (TokenId t : s.prompt) k = Mix(k, t);
      k = Mix(k, kHistory);
      for (TokenId t : s.generated) k = Mix(k, t);
    }
    do {
      result.token = static_cast<TokenId>(k % model_.vocab);
      k = Mix(k, 1);
    } while (std::find(s.banned.begin(), s.banned.end(), result.token) != s.banned.end());
  }
  result.logprob = LogprobOf(Mix(logits, result.token));
  for (int i = 0; i < s.top_logprobs; ++i) {
    const TokenId t = static_cast<TokenId>(Mix(logits, 0x70 + static_cast<uint64_t>(i)) % model_.vocab);
    result.top.push_back({t, LogprobOf(Mix(logits, t))});
  }
  return result;
}

absl::Status HashLayerBackend::CheckBytes(const char* what, uint32_t id, uint32_t count, size_t words,
                                          size_t bytes) const {
  if (id < count && bytes == words * 8) return absl::OkStatus();
  return InvalidArgument(std::string(what) + " " + std::to_string(id) + " of " + std::to_string(count) +
                         ": expected " + std::to_string(words * 8) + " bytes, got " + std::to_string(bytes));
}

absl::Status HashLayerBackend::ExportBlock(KvBlockId block, std::vector<std::byte>* out) {
  const size_t words = size_t{model_.layers} * kKvBlockTokens;
  RETURN_IF_ERROR(CheckBytes("KV block", block.value, model_.kv_blocks, words, words * 8));
  out->resize(words * 8);
  std::memcpy(out->data(), &Kv(block, 0, 0), words * 8);
  return absl::OkStatus();
}

absl::Status HashLayerBackend::ImportBlock(KvBlockId block, std::span<const std::byte> bytes) {
  const size_t words = size_t{model_.layers} * kKvBlockTokens;
  RETURN_IF_ERROR(CheckBytes("KV block", block.value, model_.kv_blocks, words, bytes.size()));
  std::memcpy(&Kv(block, 0, 0), bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::Status HashLayerBackend::ExportState(StateId state, std::vector<std::byte>* out) {
  const size_t words = model_.layers;
  RETURN_IF_ERROR(CheckBytes("state", state.value, shape_.state_slots, words, words * 8));
  out->resize(words * 8);
  std::memcpy(out->data(), &State(state, 0), words * 8);
  return absl::OkStatus();
}

absl::Status HashLayerBackend::ImportState(StateId state, std::span<const std::byte> bytes) {
  RETURN_IF_ERROR(CheckBytes("state", state.value, shape_.state_slots, model_.layers, bytes.size()));
  std::memcpy(&State(state, 0), bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::StatusOr<ExpertHandle> HashExpertBackend::Load(const ExpertEntry& entry, ModelStore*) {
  loaded_[next_] = {entry.layer, entry.expert};
  return next_++;
}

void HashExpertBackend::Drop(ExpertHandle expert) { CHECK(loaded_.erase(expert) == 1); }

void HashExpertBackend::Run(const GroupedFfnJob& job, std::function<void(FfnDone)> done) {
  auto compute = [this, job, done = std::move(done)] {
    for (const ExpertGroup& group : job.groups) {
      auto it = loaded_.find(group.expert);
      CHECK_MSG(it != loaded_.end(), "job for an expert that is not loaded");
      for (uint32_t i = group.first; i < group.first + group.count; ++i) {
        const uint64_t y = HashExpert(it->second.first, it->second.second, Load64(job.rows[i].in));
        std::memcpy(job.rows[i].out, &y, 8);
      }
    }
    done(FfnDone{absl::OkStatus(), 1});
  };
  if (executor_ == nullptr)
    compute();
  else
    executor_(job.rows.size(), std::move(compute));
}

}  // namespace consilium
