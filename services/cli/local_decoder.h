// A whole model in one object without network or scheduler: LayerBackend, ExpertBackend and the loop between
// them, on the calling thread and a kernel pool. `verify` and `perplexity` run on it; tests look at every
// logit of it. After an error a decoder is of no further use.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/exec/kernel_pool.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/model/numerics_choice.h"
#include "services/attention/cpu_layer_backend.h"
#include "services/expert/cpu_expert_backend.h"

namespace consilium {

struct LocalDecoderOptions {
  std::string ops = "auto";
  std::string state_dir;  // keeps the manifest; empty: made anew
  NumericsFlags numerics = {};
  uint32_t threads = 1;  // 0: the cores of this process
  uint32_t kv_blocks = 64;
  uint32_t state_slots = 16;  // of models with recurrent layers; a sequence takes two while it computes
  uint32_t flights = 1;
  bool keep_logits = true;
  std::function<void(const LayerObservation&)> observer;
  std::function<void(std::function<void()>)> run_compute;
  std::function<void(size_t loaded, size_t all)> progress;  // after each routed expert, one call at a time
};

// What one sequence adds in a step: `tokens` follow what it holds already.
struct Feed {
  uint32_t sequence = 0;
  std::vector<TokenId> tokens;
  bool sample_all = true;  // logits of every row, else of the last one only
  // Not empty: nothing is sampled; rows from `score_from` on are scored, row i for targets[i].
  std::vector<TokenId> targets = {};
  size_t score_from = 0;
  int top_logprobs = -1;  // of sampled rows (sampler.h)
};

class LocalDecoder {
 public:
  // `model`: a folder or a GGUF file.
  static absl::StatusOr<std::unique_ptr<LocalDecoder>> Open(const std::string& model,
                                                            LocalDecoderOptions options = {});
  ~LocalDecoder();

  const ModelSpec& spec() const { return spec_; }
  CpuLayerBackend& layers() { return *layers_; }
  const NumericsChoice& numerics() const { return numerics_; }
  uint64_t expert_bytes() const { return experts_->loaded_bytes(); }
  // Of experts quantised at load.
  kernels::QuantError quant_error() const { return experts_->quant_error(); }
  // `longest`: tokens it may come to; decides between the two rotary tables of longrope.
  uint32_t AddSequence(size_t longest = 0);
  // Its pages and logits are free again.
  void Release(uint32_t sequence);
  // One flight of at most kFlightRowsMax rows; the greedy token after each feed's last row.
  // RESOURCE_EXHAUSTED: no KV block or state left; INVALID_ARGUMENT: a token or position beyond the model.
  absl::StatusOr<std::vector<TokenId>> Step(const std::vector<Feed>& feeds);
  // The same for one feed: results of all its sampled or scored rows, in order.
  absl::StatusOr<std::vector<SampleResult>> StepResults(Feed feed);
  // Logits of (sequence, position) seen so far.
  const std::vector<float>& logits(uint32_t sequence, Position position) const {
    return logits_.at({sequence, position});
  }

  // Feeds all tokens in chunks and returns the logits of every position, [tokens * V].
  absl::StatusOr<std::vector<float>> Prefill(uint32_t sequence, std::span<const TokenId> tokens,
                                             size_t chunk);
  // Greedy continuation with log-probabilities, without stop ids.
  absl::StatusOr<std::vector<SampleResult>> Greedy(std::span<const TokenId> prompt, size_t count);
  const std::vector<KvBlockId>& blocks(uint32_t sequence) const { return sequences_[sequence].blocks; }
  // What its recurrent layers keep after all its tokens; null if the model has none.
  const std::optional<StateId>& state(uint32_t sequence) const { return sequences_[sequence].state; }
  // Steps in two halves, so that a test can let flights overlap.
  struct Flight;
  absl::StatusOr<std::unique_ptr<Flight>> Begin(uint32_t slot, const std::vector<Feed>& feeds);
  // One more stage (experts and combine); false when the flight has ended.
  absl::StatusOr<bool> Advance(Flight* flight);

 private:
  struct Sequence {
    std::vector<KvBlockId> blocks;
    Position length = 0;
    std::optional<StateId> state;
    bool long_context = false;
  };
  LocalDecoder() = default;
  absl::Status Load();
  absl::Status LoadExperts(ModelStore* store);
  absl::StatusOr<std::unique_ptr<Flight>> RunFlight(const std::vector<Feed>& feeds);
  absl::Status AddRows(const Feed& feed, Flight* flight);
  absl::StatusOr<FlightSequence> FlightSequenceOf(uint32_t sequence);
  void TakeStates(const Flight& flight);
  absl::Status RunExperts(Flight* flight);
  absl::StatusOr<StageOut> RunStage(const StageJob& job);
  void KeepLogits(const LayerObservation& observation);

  ModelSpec spec_;
  Manifest manifest_;
  NumericsChoice numerics_;
  std::unique_ptr<KernelPool> pool_;
  BufferPool buffers_;
  LocalDecoderOptions options_;
  std::unique_ptr<CpuLayerBackend> layers_;
  std::unique_ptr<CpuExpertBackend> experts_;
  std::map<std::pair<LayerId, ExpertId>, ExpertHandle> handles_;
  std::vector<KvBlockId> free_blocks_;
  std::vector<StateId> free_states_;
  std::vector<Sequence> sequences_;
  std::map<std::pair<uint32_t, Position>, std::vector<float>> logits_;
  Sampling greedy_;
  std::vector<uint32_t> feed_sequence_;  // of the flight under observation: its sequences' numbers
};

struct LocalDecoder::Flight {
  uint32_t slot = 0;
  FlightBatch batch;
  std::vector<uint32_t> sequences;  // number of each batch sequence
  std::vector<TokenId> next;        // greedy token after each feed
  StageOut out;
  std::vector<float> slots;  // [rows * top_k, H]
  std::vector<const std::byte*> slot_outputs;
};

}  // namespace consilium
