// A whole model in one object without network or scheduler: LayerBackend, ExpertBackend and the loop between
// them. Tests feed tokens of some sequences and look at every logit.
#pragma once
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/exec/kernel_pool.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "services/attention/cpu_layer_backend.h"
#include "services/expert/cpu_expert_backend.h"

namespace consilium {

struct LocalDecoderOptions {
  std::string ops = "auto";
  uint32_t threads = 1;
  uint32_t kv_blocks = 64;
  uint32_t flights = 1;
  bool keep_logits = true;
  std::function<void(const LayerObservation&)> observer;
  std::function<void(std::function<void()>)> run_compute;
};

// What one sequence adds in a step: `tokens` follow what it holds already.
struct Feed {
  uint32_t sequence = 0;
  std::vector<TokenId> tokens;
  bool sample_all = true;  // logits of every row, else of the last one only
};

class LocalDecoder {
 public:
  static std::unique_ptr<LocalDecoder> Open(const std::string& dir, LocalDecoderOptions options = {});
  ~LocalDecoder();

  const ModelSpec& spec() const { return spec_; }
  CpuLayerBackend& layers() { return *layers_; }
  // `longest`: tokens it may come to; decides between the two rotary tables of longrope.
  uint32_t AddSequence(size_t longest = 0);
  // One flight; the result holds the greedy token after each feed's last row.
  std::vector<TokenId> Step(const std::vector<Feed>& feeds);
  // Logits of (sequence, position) seen so far.
  const std::vector<float>& logits(uint32_t sequence, Position position) const {
    return logits_.at({sequence, position});
  }

  // Feeds all tokens in chunks and returns the logits of every position, [tokens * V].
  std::vector<float> Prefill(uint32_t sequence, std::span<const TokenId> tokens, size_t chunk);
  // Greedy continuation, without stop ids.
  std::vector<TokenId> Greedy(std::span<const TokenId> prompt, size_t count);
  const std::vector<KvBlockId>& blocks(uint32_t sequence) const { return sequences_[sequence].blocks; }
  // Steps in two halves, so that a test can let flights overlap.
  struct Flight;
  std::unique_ptr<Flight> Begin(uint32_t slot, const std::vector<Feed>& feeds);
  // One more stage (experts and combine); false when the flight has ended.
  bool Advance(Flight* flight);

 private:
  struct Sequence {
    std::vector<KvBlockId> blocks;
    Position length = 0;
    bool long_context = false;
  };
  LocalDecoder() = default;
  void RunExperts(Flight* flight);
  StageOut RunStage(const StageJob& job);

  ModelSpec spec_;
  Manifest manifest_;
  std::unique_ptr<KernelPool> pool_;
  BufferPool buffers_;
  LocalDecoderOptions options_;
  std::unique_ptr<CpuLayerBackend> layers_;
  std::unique_ptr<CpuExpertBackend> experts_;
  std::map<std::pair<LayerId, ExpertId>, ExpertHandle> handles_;
  std::vector<KvBlockId> free_blocks_;
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
