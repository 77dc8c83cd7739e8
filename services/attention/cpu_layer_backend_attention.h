// Attention, or what a layer has in its place, for all rows of a flight, over the paged KV arena and the
// states of this backend. Rows of several sequences, prompt and decode, those of one together; what all rows
// keep is written before any row reads.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/exec/kernel_pool.h"
#include "common/model/model_spec.h"
#include "kernels/api/kernels.h"
#include "services/attention/cpu_layer_backend_weights.h"
#include "services/attention/layer_backend.h"

namespace consilium {

class CpuAttention {
 public:
  // `spec`, `ops` and `pool` outlive this; `pool` may be null.
  CpuAttention(const ModelSpec& spec, const kernels::Ops& ops, kernels::NumericsClass numerics,
               KernelPool* pool, uint32_t kv_blocks, uint32_t state_slots);

  // Once for a flight's stage, before Run: tables of page pointers and rotary rows up to the highest
  // position.
  void Prepare(const FlightBatch& batch);
  // out[r] = attention(h[r]) of `layer`, [rows, H]; writes the layer's part of the rows' pages or of their
  // sequences' new states.
  void Run(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch, kernels::ConstRows h,
           kernels::Rows out);

  void ZeroBlock(KvBlockId block);
  size_t block_bytes() const { return spec_.kv_page_bytes(); }
  void ExportBlock(KvBlockId block, std::byte* out) const;
  void ImportBlock(KvBlockId block, const std::byte* in);
  void ExportState(StateId state, std::byte* out) const;
  void ImportState(StateId state, const std::byte* in);

 private:
  void RunGqa(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch, kernels::ConstRows h);
  void Gemm(const kernels::PackedMatrix& w, kernels::ConstRows x, kernels::Rows y,
            const std::vector<float>& bias = {});
  void RotateHeads(const FlightBatch& batch, kernels::Rows q, kernels::Rows k);
  void QkNorms(const CpuLayerWeights& w, kernels::Rows q, kernels::Rows k);
  // Multiplies queries by their position's factor on layers that tune them.
  void TuneQueries(uint32_t layer, const FlightBatch& batch, kernels::Rows q);
  void RunMla(const CpuLayerWeights& w, const FlightBatch& batch, kernels::ConstRows h);
  // In cpu_layer_backend_conv.cc. Convolve: out[r] = the sum over the last `taps` tokens of weights
  // [taps][lanes] * in. Those before the flight are the head of the sequence's state, where the last taps - 1
  // go again.
  void Convolve(uint32_t layer, const FlightBatch& batch, uint32_t taps, const float* weights,
                kernels::ConstRows in, kernels::Rows out);
  void RunShortConv(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch, kernels::ConstRows h);
  // In cpu_layer_backend_delta.cc.
  void RunDeltaNet(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch, kernels::ConstRows h);
  void ProjectDelta(const CpuLayerWeights& w, kernels::ConstRows h);
  void RunDeltaHeads(uint32_t layer, const FlightBatch& batch, kernels::Rows mixed, float* y);
  void PrepareStates(const FlightBatch& batch);
  void QueriesAndGates(const CpuLayerWeights& w, kernels::ConstRows h, kernels::Rows q);
  // The attended values times the sigmoid of the gates beside the queries.
  void GateAttended(size_t rows);
  // Writes k, v of every row, then attends q -> attended_.
  void WriteAndAttend(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch, const float* k,
                      const float* v, const float* q);
  void PerHead(const std::vector<kernels::PackedMatrix>& w, kernels::ConstRows x, uint32_t x_step,
               kernels::Rows y, uint32_t y_step);
  // Rotary rows of each position so far, [positions][rope dims / 2]; the second of longrope's long tables.
  struct RopeTable {
    std::vector<float> cos, sin;
  };
  void GrowTable(bool long_context, Position highest);
  const RopeTable& TableOf(const FlightBatch& batch, const FlightRow& row) const {
    return tables_[spec_.rope.original != 0 && batch.sequences[row.sequence].long_context ? 1 : 0];
  }
  const float* Cos(const FlightBatch& batch, const FlightRow& row) const {
    return TableOf(batch, row).cos.data() + size_t{row.position} * (spec_.rope.dims / 2);
  }
  const float* Sin(const FlightBatch& batch, const FlightRow& row) const {
    return TableOf(batch, row).sin.data() + size_t{row.position} * (spec_.rope.dims / 2);
  }
  // A page of a layer: its keys, then its values.
  struct LayerArena {
    kernels::AlignedBytes bytes;  // [kv_blocks][page floats]
    ModelSpec::KvPageFloats page;
  };
  float* KPage(uint32_t layer, KvBlockId block) const {
    const LayerArena& arena = arenas_[layer];
    return reinterpret_cast<float*>(arena.bytes.get()) + block.value * arena.page.all();
  }
  float* VPage(uint32_t layer, KvBlockId block) const { return KPage(layer, block) + arenas_[layer].page.k; }
  float* State(uint32_t layer, StateId state) const {
    return reinterpret_cast<float*>(states_[layer].get()) + state.value * spec_.state_floats(layer);
  }
  // The rows of a sequence in a flight.
  struct RowSpan {
    size_t first = 0, count = 0;
  };

  const ModelSpec& spec_;
  const kernels::Ops& ops_;
  const kernels::NumericsClass class_;
  KernelPool* const pool_;
  const kernels::AttentionShape shape_;
  const uint32_t kv_blocks_, state_slots_;
  std::vector<LayerArena> arenas_;             // per layer
  std::vector<kernels::AlignedBytes> states_;  // per layer: [state_slots][state floats]
  RopeTable tables_[2];
  // Workspaces, grown to the largest flight seen and kept.
  std::vector<float> q_low_, q_low_normed_, q_, q_absorbed_, kv_, k_, v_, attended_, expanded_, conv_in_,
      gates_, projected_, projected_gates_, mixed_, decay_, beta_;
  std::vector<float> zeros_, ones_, q_length_, k_length_;  // constants of convolutions and delta nets
  std::vector<RowSpan> spans_;                             // per sequence
  std::vector<kernels::DeltaRule> delta_heads_;
  std::vector<const float*> k_pages_, v_pages_;
  std::vector<size_t> first_page_;  // per sequence: index into k_pages_
  std::vector<kernels::AttentionRow> rows_;
  const float* context_ = nullptr;  // what o_proj reads, [rows, heads * v_dim]; of a convolution [rows, H]
};

// Calls f(row, thread) for every row; on the pool only when the work is worth a hand-over.
template <class F>
void ForEachRow(KernelPool* pool, size_t rows, size_t floats_per_row, F f) {
  constexpr size_t kInlineFloats = size_t{1} << 15;  // some 10 us of moves, about what waking a thread costs
  if (pool == nullptr || pool->threads() < 2 || rows < 2 || rows * floats_per_row < kInlineFloats) {
    for (size_t r = 0; r < rows; ++r) f(r, 0u);
    return;
  }
  pool->ParallelFor(rows, [&](size_t r, uint32_t thread) { f(r, thread); });
}

// At least n floats; contents undefined.
inline float* Grown(std::vector<float>* v, size_t n) {
  if (v->size() < n) v->resize(n);
  return v->data();
}

}  // namespace consilium
