#include "services/attention/cpu_layer_backend_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium {

using kernels::ConstRows;
using kernels::PackedMatrix;
using kernels::Rows;

static_assert(kernels::kKvPageTokens == kKvBlockTokens);

namespace {
const float* OrNull(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }
}  // namespace

CpuAttention::CpuAttention(const ModelSpec& spec, const kernels::Ops& ops, kernels::NumericsClass numerics,
                           KernelPool* pool, uint32_t kv_blocks, uint32_t state_slots)
    : spec_(spec),
      ops_(ops),
      class_(numerics),
      pool_(pool),
      shape_(spec.attention_shape()),
      kv_blocks_(kv_blocks),
      state_slots_(state_slots) {
  for (uint32_t i = 0; i < spec.layers.size(); ++i) {
    const ModelSpec::KvPageFloats page = spec.kv_page_floats(i);
    arenas_.push_back({kernels::AllocateAligned(kv_blocks * page.all() * sizeof(float)), page});
    states_.push_back(kernels::AllocateFresh(state_slots * spec.state_floats(i) * sizeof(float)));
  }
  // Length 1 by the norm of mean squares: 1 / sqrt(k_dim), and the attention scale once more for queries.
  const DeltaNetSpec& d = spec.delta_net;
  zeros_.assign(std::max(spec.hidden, d.channels()), 0.0f);
  if (d.k_dim == 0) return;
  ones_.assign(d.channels(), 1.0f);
  k_length_.assign(d.k_dim, 1.0f / std::sqrt(static_cast<float>(d.k_dim)));
  q_length_.assign(d.k_dim, 1.0f / static_cast<float>(d.k_dim));
}

void CpuAttention::ZeroBlock(KvBlockId block) {
  CHECK(block.value < kv_blocks_);
  for (uint32_t i = 0; i < arenas_.size(); ++i) std::fill_n(KPage(i, block), arenas_[i].page.all(), 0.0f);
}

void CpuAttention::ExportBlock(KvBlockId block, std::byte* out) const {
  for (uint32_t i = 0; i < arenas_.size(); ++i) {
    const size_t bytes = arenas_[i].page.all() * sizeof(float);
    std::memcpy(out, KPage(i, block), bytes);
    out += bytes;
  }
}

void CpuAttention::ImportBlock(KvBlockId block, const std::byte* in) {
  for (uint32_t i = 0; i < arenas_.size(); ++i) {
    const size_t bytes = arenas_[i].page.all() * sizeof(float);
    std::memcpy(KPage(i, block), in, bytes);
    in += bytes;
  }
}

void CpuAttention::ExportState(StateId state, std::byte* out) const {
  for (uint32_t i = 0; i < states_.size(); ++i) {
    const size_t bytes = spec_.state_floats(i) * sizeof(float);
    if (bytes > 0) std::memcpy(out, State(i, state), bytes);
    out += bytes;
  }
}

void CpuAttention::ImportState(StateId state, const std::byte* in) {
  for (uint32_t i = 0; i < states_.size(); ++i) {
    const size_t bytes = spec_.state_floats(i) * sizeof(float);
    if (bytes > 0) std::memcpy(State(i, state), in, bytes);
    in += bytes;
  }
}

void CpuAttention::Prepare(const FlightBatch& batch) {
  Position highest[2] = {0, 0};
  bool any[2] = {false, false};
  for (const FlightRow& row : batch.rows) {
    CHECK(row.sequence < batch.sequences.size());
    const auto blocks = batch.sequences[row.sequence].blocks;
    CHECK_MSG(row.position / kKvBlockTokens < blocks.size(),
              "no KV block reserved for position " + std::to_string(row.position));
    CHECK(blocks[row.position / kKvBlockTokens].value < kv_blocks_);
    const int table = &TableOf(batch, row) == &tables_[1] ? 1 : 0;
    highest[table] = std::max(highest[table], row.position);
    any[table] = true;
  }
  for (int table : {0, 1}) {
    if (any[table]) GrowTable(table == 1, highest[table]);
  }
  PrepareStates(batch);
  first_page_.clear();
  size_t pages = 0;
  for (const FlightSequence& s : batch.sequences) {
    first_page_.push_back(pages);
    pages += s.blocks.size();
  }
  k_pages_.resize(pages);
  v_pages_.resize(pages);
}

void CpuAttention::PrepareStates(const FlightBatch& batch) {
  spans_.assign(batch.sequences.size(), RowSpan{});
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const FlightRow& row = batch.rows[r];
    const FlightSequence& s = batch.sequences[row.sequence];
    RowSpan& span = spans_[row.sequence];
    if (span.count++ == 0) {
      span.first = r;
      if (state_slots_ == 0) continue;
      CHECK_MSG(s.state_out.has_value() && s.state_out->value < state_slots_ && s.state_in != s.state_out,
                "no slot for a new state");
      CHECK_MSG(s.state_in.has_value() == (row.position > 0), "a state that is not the row's");
      CHECK(!s.state_in || s.state_in->value < state_slots_);
    } else {
      CHECK_MSG(batch.rows[r - 1].sequence == row.sequence && batch.rows[r - 1].position + 1 == row.position,
                "rows of a sequence lie apart");
    }
  }
}

// Rotary rows are made once, in runs of 256 positions.
void CpuAttention::GrowTable(bool long_context, Position highest) {
  const RopeSpec& rope = spec_.rope;
  RopeTable* table = &tables_[long_context ? 1 : 0];
  const size_t half = rope.dims / 2;
  if (table->cos.size() > highest * half) return;
  const size_t positions = std::min<size_t>(spec_.context, (highest / 256 + 1) * size_t{256});
  size_t p = table->cos.size() / half;
  table->cos.resize(positions * half);
  table->sin.resize(positions * half);
  for (; p < positions; ++p) {
    kernels::RopeRow(long_context ? rope.long_inv_freq : rope.inv_freq, static_cast<uint32_t>(p),
                     long_context ? rope.long_attention_scaling : rope.attention_scaling,
                     &table->cos[p * half], &table->sin[p * half]);
  }
}

void CpuAttention::Run(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch, ConstRows h,
                       Rows out) {
  for (size_t s = 0, page = 0; s < batch.sequences.size(); ++s) {
    for (const KvBlockId block : batch.sequences[s].blocks) {
      k_pages_[page] = KPage(layer, block);
      v_pages_[page++] = VPage(layer, block);
    }
  }
  if (spec_.layers[layer].mixer == Mixer::kShortConv) {
    RunShortConv(layer, w, batch, h);
  } else if (spec_.layers[layer].mixer == Mixer::kDeltaNet) {
    RunDeltaNet(layer, w, batch, h);
  } else if (spec_.mla_attention) {
    RunMla(w, batch, h);
    TuneQueries(layer, batch, Rows{q_absorbed_.data(), size_t{shape_.q_heads} * shape_.k_dim, h.count});
    WriteAndAttend(layer, w, batch, k_.data(), v_.data(), q_absorbed_.data());
    // o_h = V_h · (sum over t of p_t c_t).
    const MlaSpec& m = spec_.mla;
    const size_t width = size_t{m.heads} * m.v_dim, attended_width = size_t{m.heads} * m.kv_lora;
    float* expanded = Grown(&expanded_, h.count * width);
    PerHead(w.expand_v, ConstRows(attended_.data(), attended_width, h.count), m.kv_lora,
            Rows{expanded, width, h.count}, m.v_dim);
    context_ = expanded;
  } else {
    RunGqa(layer, w, batch, h);
    WriteAndAttend(layer, w, batch, k_.data(), v_.data(), q_.data());
    if (spec_.gqa.out_gate) GateAttended(h.count);
    context_ = attended_.data();
  }
  Gemm(w.o, ConstRows(context_, w.o.in, h.count), out, w.o_bias);
}

void CpuAttention::Gemm(const PackedMatrix& w, ConstRows x, Rows y, const std::vector<float>& bias) {
  kernels::Gemm(ops_, pool_, class_, w, x, y, OrNull(bias));
}

void CpuAttention::QkNorms(const CpuLayerWeights& w, Rows q, Rows k) {
  const GqaSpec& g = spec_.gqa;
  const bool whole = g.qk_norm == QkNorm::kProjection;
  const auto norm = [&](Rows x, const std::vector<float>& weight, uint32_t heads) {
    const uint32_t n = whole ? heads * g.head_dim : g.head_dim;
    const Rows split{x.data, n, x.count * (whole ? 1 : heads)};  // rows lie without gaps
    kernels::RmsNorm(ops_, pool_, split, weight.data(), n, spec_.norm_eps, split);
  };
  norm(q, w.q_norm, g.q_heads);
  norm(k, w.k_norm, g.kv_heads);
}

void CpuAttention::TuneQueries(uint32_t layer, const FlightBatch& batch, Rows q) {
  if (!spec_.layers[layer].tunes_queries) return;
  const QueryTuning& t = spec_.tuning;
  for (size_t r = 0; r < q.count; ++r) {
    const float factor = kernels::QueryFactor(t.beta, t.floor, t.offset, batch.rows[r].position);
    for (size_t i = 0; i < q.stride; ++i) q.row(r)[i] = q.row(r)[i] * factor;
  }
}

void CpuAttention::RunGqa(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch, ConstRows h) {
  const GqaSpec& g = spec_.gqa;
  const size_t q_width = size_t{g.q_heads} * g.head_dim, kv_width = size_t{g.kv_heads} * g.head_dim;
  const Rows q{Grown(&q_, h.count * q_width), q_width, h.count};
  const Rows k{Grown(&k_, h.count * kv_width), kv_width, h.count};
  const Rows v{Grown(&v_, h.count * kv_width), kv_width, h.count};
  if (g.out_gate)
    QueriesAndGates(w, h, q);
  else
    Gemm(w.q, h, q, w.q_bias);
  Gemm(w.k, h, k, w.k_bias);
  Gemm(w.v, h, v, w.v_bias);
  if (g.qk_norm == QkNorm::kHead || g.qk_norm == QkNorm::kProjection) QkNorms(w, q, k);
  if (g.clip != 0) {
    for (const Rows& x : {q, k, v}) {
      for (size_t i = 0; i < x.count * x.stride; ++i) x.data[i] = std::clamp(x.data[i], -g.clip, g.clip);
    }
  }
  const bool rotates = spec_.layers[layer].rotates;
  if (rotates) RotateHeads(batch, q, k);
  if (g.qk_norm == QkNorm::kHeadRotated || (g.qk_norm == QkNorm::kUnitRotated && rotates)) QkNorms(w, q, k);
  TuneQueries(layer, batch, q);
}

// The projection holds query and gate of each head by turns.
void CpuAttention::QueriesAndGates(const CpuLayerWeights& w, ConstRows h, Rows q) {
  const size_t dim = spec_.gqa.head_dim, width = q.stride;
  const Rows both{Grown(&projected_, h.count * 2 * width), 2 * width, h.count};
  float* gates = Grown(&gates_, h.count * width);
  Gemm(w.q, h, both, w.q_bias);
  ForEachRow(pool_, h.count, 2 * width, [&](size_t r, uint32_t) {
    for (size_t i = 0; i < spec_.gqa.q_heads; ++i) {
      const float* head = both.row(r) + 2 * i * dim;
      std::copy_n(head, dim, q.row(r) + i * dim);
      std::copy_n(head + dim, dim, gates + r * width + i * dim);
    }
  });
}

void CpuAttention::GateAttended(size_t rows) {
  const size_t width = size_t{spec_.gqa.q_heads} * spec_.gqa.head_dim;
  ForEachRow(pool_, rows, 8 * width, [&](size_t r, uint32_t) {
    float *gate = gates_.data() + r * width, *out = attended_.data() + r * width;
    ops_.scores(true, gate, 0.0f, static_cast<uint32_t>(width), gate);
    for (size_t i = 0; i < width; ++i) out[i] = out[i] * gate[i];
  });
}

void CpuAttention::RotateHeads(const FlightBatch& batch, Rows q, Rows k) {
  const GqaSpec& g = spec_.gqa;
  const RopeSpec& rope = spec_.rope;
  ForEachRow(pool_, q.count, q.stride + k.stride, [&](size_t r, uint32_t) {
    const float *cos = Cos(batch, batch.rows[r]), *sin = Sin(batch, batch.rows[r]);
    for (uint32_t i = 0; i < g.q_heads; ++i)
      ops_.rope(q.row(r) + i * g.head_dim, rope.dims, rope.interleaved, cos, sin);
    for (uint32_t i = 0; i < g.kv_heads; ++i)
      ops_.rope(k.row(r) + i * g.head_dim, rope.dims, rope.interleaved, cos, sin);
  });
}

void CpuAttention::RunMla(const CpuLayerWeights& w, const FlightBatch& batch, ConstRows h) {
  const MlaSpec& m = spec_.mla;
  const size_t head_width = m.nope + m.rope, q_width = m.heads * head_width;
  const size_t k_width = m.kv_lora + m.rope, absorbed_width = m.heads * k_width, n = h.count;
  const Rows q{Grown(&q_, n * q_width), q_width, n};
  if (m.q_lora == 0) {
    Gemm(w.q, h, q);
  } else {
    const Rows low{Grown(&q_low_, n * m.q_lora), m.q_lora, n},
        normed{Grown(&q_low_normed_, n * m.q_lora), m.q_lora, n};
    Gemm(w.q_a, h, low, w.q_a_bias);
    kernels::RmsNorm(ops_, pool_, low, w.q_a_norm.data(), m.q_lora, m.norm_eps, normed);
    Gemm(w.q_b, normed, q);
  }
  // Key row: [RMS(c) ; rope(k_pe)]; the value row is RMS(c) again.
  const Rows kv{Grown(&kv_, n * k_width), k_width, n}, k{Grown(&k_, n * k_width), k_width, n};
  const Rows v{Grown(&v_, n * m.kv_lora), m.kv_lora, n};
  Gemm(w.kv_a, h, kv, w.kv_a_bias);
  kernels::RmsNorm(ops_, pool_, kv, w.kv_a_norm.data(), m.kv_lora, m.norm_eps, v);
  // Query of head i against that key: [U_i^T q_nope ; rope(q_pe)].
  const Rows absorbed{Grown(&q_absorbed_, n * absorbed_width), absorbed_width, n};
  PerHead(w.absorb_k, q, static_cast<uint32_t>(head_width), absorbed, static_cast<uint32_t>(k_width));
  const RopeSpec& rope = spec_.rope;
  ForEachRow(pool_, n, q_width + k_width, [&](size_t r, uint32_t) {
    const float *cos = Cos(batch, batch.rows[r]), *sin = Sin(batch, batch.rows[r]);
    std::copy_n(v.row(r), m.kv_lora, k.row(r));
    std::copy_n(kv.row(r) + m.kv_lora, m.rope, k.row(r) + m.kv_lora);
    ops_.rope(k.row(r) + m.kv_lora, m.rope, rope.interleaved, cos, sin);
    for (uint32_t i = 0; i < m.heads; ++i) {
      float* pe = absorbed.row(r) + i * k_width + m.kv_lora;
      std::copy_n(q.row(r) + i * head_width + m.nope, m.rope, pe);
      ops_.rope(pe, m.rope, rope.interleaved, cos, sin);
    }
  });
}

// y of head i = w[i] · x of head i, where head i begins x_step, y_step floats after head i - 1.
void CpuAttention::PerHead(const std::vector<PackedMatrix>& w, ConstRows x, uint32_t x_step, Rows y,
                           uint32_t y_step) {
  constexpr size_t kInlineFmas = size_t{1} << 17;  // as in kernels/api/drivers.cc
  const auto head = [&](size_t i, uint32_t) {
    ops_.gemm(w[i], ConstRows(x.data + i * x_step, x.stride, x.count),
              Rows{y.data + i * y_step, y.stride, y.count}, 0, w[i].panels(), nullptr);
  };
  if (pool_ == nullptr || pool_->threads() < 2 || x.count * w.size() * w[0].out * w[0].in < kInlineFmas) {
    for (size_t i = 0; i < w.size(); ++i) head(i, 0);
  } else {
    pool_->ParallelFor(w.size(), head);
  }
}

void CpuAttention::WriteAndAttend(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch,
                                  const float* k, const float* v, const float* q) {
  const size_t n = batch.rows.size();
  const size_t k_width = size_t{shape_.kv_heads} * shape_.k_dim,
               v_width = size_t{shape_.kv_heads} * shape_.v_dim;
  const size_t q_width = size_t{shape_.q_heads} * shape_.k_dim,
               out_width = size_t{shape_.q_heads} * shape_.v_dim;
  float* attended = Grown(&attended_, n * out_width);
  rows_.resize(n);
  // Rows write different slots, so threads touch different floats.
  ForEachRow(pool_, n, k_width + v_width, [&](size_t r, uint32_t) {
    const FlightRow& row = batch.rows[r];
    const KvBlockId block = batch.sequences[row.sequence].blocks[row.position / kKvBlockTokens];
    ops_.kv_write(shape_, k + r * k_width, v + r * v_width, row.position % kKvBlockTokens,
                  KPage(layer, block), VPage(layer, block));
    const size_t page = first_page_[row.sequence];
    rows_[r] = {q + r * q_width, attended + r * out_width, row.position, &k_pages_[page], &v_pages_[page]};
  });
  kernels::AttentionShape shape = spec_.attention_shape(layer);
  shape.sinks = OrNull(w.sinks);
  kernels::Attention(ops_, pool_, shape, rows_);
}

}  // namespace consilium
