// LayerBackend on CPU kernels. The same class over kernels/ref is the reference.
//
// Where class f32 rounds, in order (docs/NUMERICS.md); H = hidden:
//   x = embedding row, widened exactly
//   each layer: h = RmsNorm(x, input_norm); a = attention(h); x = x + a          (one add per element)
//               h2 = RmsNorm(x, post_norm)
//     dense:    x = x + FFN(h2)
//     MoE:      routing = RouteRow(gate · h2); experts read h2 as it is (f32, 4 H bytes a row);
//               x = x + ((fma over slots ascending of weight · slot) + FFN_shared(h2))
//   logits = head · RmsNorm(x, final_norm), for the rows that are sampled only
// What a ModelSpec may add, each a rounding of its own: x · embed_scale; LayerNorm for RmsNorm; sandwich
// norms on a and FFN; residual_scale on them; sigmoid(shared_gate · h2) on FFN_shared; gate weight · h2 as
// the row that experts read (Llama-4; weight 1 in the sum then); logit_scale. With sandwich norms or
// residual_scale the MoE sum is made against 0 first and added then. Latent attention runs absorbed at every
// position, prompt or decode, so that both give the same bits. A short convolution in attention's place:
// [B | C | X] = in · h; v = B * X; s = 0, then s = s + w_t * v over the last taps' tokens, oldest first,
// product and sum rounded apart; + bias; a = out · (C * s). A gated delta net in attention's place: the order
// is that of cpu_layer_backend_delta.cc and kernels::DeltaRule. What both need of earlier tokens is a state,
// read from one slot and left in another. Class i8g32: every product above with a matrix of integers
// quantises its rows first; experts then read h2 quantised once (NumericsChoice::integer_rows). The two
// halves of kv_b, the embedding and all else are as in f32.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/exec/kernel_pool.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/model/numerics_choice.h"
#include "kernels/api/kernels.h"
#include "services/attention/cpu_layer_backend_attention.h"
#include "services/attention/cpu_layer_backend_weights.h"
#include "services/attention/layer_backend.h"

namespace consilium {

// What a test or `verify` may look at while a flight walks; data is valid during the call only.
struct LayerObservation {
  enum class Kind : uint8_t {
    kHidden,         // rows [rows, H] as they enter `layer`; layer == layers: before the final norm
    kRouterLogits,   // [rows, E] of `layer`
    kRouterWeights,  // [rows, top_k] of `layer`, and `experts`
    kLogits,         // [samples, V]; first_sample says where in FlightBatch::samples
  };
  Kind kind = Kind::kHidden;
  uint32_t layer = 0;
  kernels::ConstRows data;
  std::span<const uint16_t> experts;
  const FlightBatch* batch = nullptr;
  size_t first_sample = 0;
};

struct CpuLayerOptions {
  NumericsChoice numerics = {};
  uint32_t kv_blocks = 0;
  uint32_t state_slots = 0;  // used by models with recurrent layers only, at least kStateSlotsMin there
  uint32_t flights = 1;
  uint32_t rows_max = 0;  // of one flight
  // Runs work on the compute thread: one at a time, in order. Null: inline.
  std::function<void(std::function<void()>)> run_compute;
  // Brings a completion to the strand. Null: inline.
  std::function<void(std::function<void()>)> post_done;
  std::function<void(const LayerObservation&)> observer;  // on the compute thread; null: none
};

class CpuLayerBackend final : public LayerBackend {
 public:
  // Loads the dense part through `store`. `ops`, `pool` (null: one thread) and `buffers` outlive the backend;
  // all stages must have ended before it dies.
  static absl::StatusOr<std::unique_ptr<CpuLayerBackend>> Create(ModelSpec spec, const Manifest& manifest,
                                                                 ModelStore* store, const kernels::Ops* ops,
                                                                 KernelPool* pool, BufferPool* buffers,
                                                                 CpuLayerOptions options);

  const BackendShape& shape() const override { return shape_; }
  void Run(const StageJob& job, std::function<void(StageOut)> done) override;
  void Abandon(FlightId flight) override;
  // Safe beside a running stage for blocks that it does not write (export) or use (import).
  absl::Status ExportBlock(KvBlockId block, std::vector<std::byte>* out) override;
  absl::Status ImportBlock(KvBlockId block, std::span<const std::byte> bytes) override;
  absl::Status ExportState(StateId state, std::vector<std::byte>* out) override;
  absl::Status ImportState(StateId state, std::span<const std::byte> bytes) override;

  uint64_t weight_bytes() const { return weights_.bytes; }
  uint64_t kv_bytes() const { return attention_.block_bytes() * options_.kv_blocks; }

 private:
  // A slot for one flight; vectors keep their capacity from flight to flight.
  struct Flight {
    std::vector<float> x;         // [rows, H] residual stream
    std::vector<float> h2;        // [rows, H] h2 of `layer` where the wire carries it quantised
    std::vector<float> unscaled;  // [rows, H] what the shared experts read, where experts read something else
    std::vector<float> shared;    // [rows, H] output of the shared experts of `layer`
    std::vector<uint16_t> experts;
    std::vector<float> weights;
    BufferRef wire;  // what experts read in `layer`
    uint32_t layer = 0;
    bool shared_done = false;
    bool running = false;  // a stage is under way; strand only
    StageJob job;
    StageOut out;
    std::function<void(StageOut)> done;
  };

  CpuLayerBackend(ModelSpec spec, CpuDenseWeights weights, const kernels::Ops* ops, KernelPool* pool,
                  BufferPool* buffers, CpuLayerOptions options);
  void Compute(Flight* flight);
  absl::Status Start(Flight* flight);
  void Shared(Flight* flight);
  void Combine(Flight* flight);
  void Advance(Flight* flight);
  void Gate(Flight* flight, kernels::Rows h2);
  void ScaleInputs(Flight* flight, kernels::Rows h2);
  void QuantiseInputs(Flight* flight, kernels::ConstRows h2);
  kernels::ConstRows SharedInputs(const Flight& flight) const;
  void Gemm(const kernels::PackedMatrix& w, kernels::ConstRows x, kernels::Rows y,
            const std::vector<float>& bias = {});
  void Scale(kernels::Rows x, float factor);
  void Norm(const NormWeights& w, kernels::ConstRows x, kernels::Rows y);
  void AddToResidual(const NormWeights& out_norm, kernels::Rows y, kernels::Rows x);
  void Head(Flight* flight);
  void SampleRows(Flight* flight, size_t first, size_t count, kernels::ConstRows logits);
  void Ffn(const kernels::FfnWeights& w, kernels::ConstRows x, kernels::Rows y);
  void Observe(const LayerObservation& observation) const {
    if (options_.observer) options_.observer(observation);
  }

  const ModelSpec spec_;
  const CpuDenseWeights weights_;
  const kernels::Ops& ops_;
  KernelPool* const pool_;
  BufferPool* const buffers_;
  const CpuLayerOptions options_;
  BackendShape shape_;
  // One stage runs at a time, so these are shared by all flights.
  CpuAttention attention_;
  kernels::GroupedFfn grouped_ffn_;
  std::vector<std::byte> quantised_;  // [rows, QuantRowBytes]
  std::vector<float> zeros_, h_, block_out_, router_logits_, route_scratch_, logits_;
  std::vector<const float*> slots_;
  std::vector<kernels::FfnRow> ffn_rows_;
  std::vector<SampleScratch> sample_scratch_;  // per thread
  std::vector<Flight> flights_;
};

}  // namespace consilium
