// The gated delta net (Qwen3-Next): a mixer whose memory of a sequence is one state of fixed size. Its
// convolution and its delta rule run token by token in the order of positions, lanes and heads side by side,
// so a prompt's cuts into flights do not show.
#include <algorithm>

#include "kernels/api/numerics.h"
#include "services/attention/cpu_layer_backend_attention.h"

namespace consilium {

using kernels::Activation;
using kernels::ConstRows;
using kernels::Rows;

namespace {
constexpr float kLengthEps = 1e-6f;  // beside the sum of squares of a query or key

struct DeltaRow {
  float *qkv, *z, *b, *a;
};
// From the joint projections' order, by key head.
void SplitDeltaRow(const DeltaNetSpec& d, const float* in, const float* gates, const DeltaRow& to) {
  const uint32_t group = d.v_heads / d.k_heads;  // value heads of a key head
  const size_t values = size_t{group} * d.v_dim;
  for (uint32_t i = 0; i < d.k_heads; ++i, in += 2 * d.k_dim + 2 * values, gates += 2 * group) {
    std::copy_n(in, d.k_dim, to.qkv + i * d.k_dim);
    std::copy_n(in + d.k_dim, d.k_dim, to.qkv + d.k_width() + i * d.k_dim);
    std::copy_n(in + 2 * d.k_dim, values, to.qkv + 2 * d.k_width() + i * values);
    std::copy_n(in + 2 * d.k_dim + values, values, to.z + i * values);
    std::copy_n(gates, group, to.b + i * group);
    std::copy_n(gates + group, group, to.a + i * group);
  }
}
}  // namespace

void CpuAttention::RunDeltaNet(uint32_t layer, const CpuLayerWeights& w, const FlightBatch& batch,
                               ConstRows h) {
  const DeltaNetSpec& d = spec_.delta_net;
  const size_t n = h.count, lanes = d.channels(), width = d.v_width();
  ProjectDelta(w, h);
  const Rows mixed{Grown(&mixed_, n * lanes), lanes, n};
  Convolve(layer, batch, d.taps, w.conv.data(), ConstRows(conv_in_.data(), lanes, n), mixed);
  const float eps = kLengthEps / static_cast<float>(d.k_dim);
  ForEachRow(pool_, n, 8 * lanes, [&](size_t r, uint32_t) {
    float* row = mixed.row(r);
    ops_.gated(Activation::kSilu, row, ones_.data(), d.channels(), row);
    const Rows q{row, d.k_dim, d.k_heads}, k{row + d.k_width(), d.k_dim, d.k_heads};
    ops_.rms_norm(q, q_length_.data(), d.k_dim, eps, q);
    ops_.rms_norm(k, k_length_.data(), d.k_dim, eps, k);
  });
  const Rows y{Grown(&attended_, n * width), width, n};
  RunDeltaHeads(layer, batch, mixed, y.data);
  ForEachRow(pool_, n, 8 * width, [&](size_t r, uint32_t) {
    const Rows heads{y.row(r), d.v_dim, d.v_heads};
    ops_.rms_norm(heads, w.delta_norm.data(), d.v_dim, spec_.norm_eps, heads);
    ops_.gated(Activation::kSilu, gates_.data() + r * width, y.row(r), d.v_width(), y.row(r));
  });
  context_ = y.data;
}

// conv_in_ [q | k | v] of all heads, gates_ the output gates, beta_ and decay_.
void CpuAttention::ProjectDelta(const CpuLayerWeights& w, ConstRows h) {
  const DeltaNetSpec& d = spec_.delta_net;
  const size_t n = h.count, lanes = d.channels(), width = d.v_width(), heads = d.v_heads;
  const Rows qkv{Grown(&conv_in_, n * lanes), lanes, n}, z{Grown(&gates_, n * width), width, n};
  const Rows b{Grown(&beta_, n * heads), heads, n}, a{Grown(&decay_, n * heads), heads, n};
  if (d.split) {
    Gemm(w.delta_qkv, h, qkv);
    Gemm(w.delta_z, h, z);
    Gemm(w.delta_b, h, b);
    Gemm(w.delta_a, h, a);
  } else {
    const Rows in{Grown(&projected_, n * (lanes + width)), lanes + width, n};
    const Rows gates{Grown(&projected_gates_, n * 2 * heads), 2 * heads, n};
    Gemm(w.delta_in, h, in);
    Gemm(w.delta_gates, h, gates);
    ForEachRow(pool_, n, 2 * (lanes + width), [&](size_t r, uint32_t) {
      SplitDeltaRow(d, in.row(r), gates.row(r), {qkv.row(r), z.row(r), b.row(r), a.row(r)});
    });
  }
  ForEachRow(pool_, n, 64 * heads, [&](size_t r, uint32_t) {
    for (size_t i = 0; i < heads; ++i) {
      b.row(r)[i] = numerics::Sigmoid(b.row(r)[i]);
      a.row(r)[i] = numerics::Exp(w.decay_rate[i] * numerics::Softplus(a.row(r)[i] + w.dt_bias[i]));
    }
  });
}

void CpuAttention::RunDeltaHeads(uint32_t layer, const FlightBatch& batch, Rows mixed, float* y) {
  const DeltaNetSpec& d = spec_.delta_net;
  const size_t before = size_t{d.taps - 1} * d.channels(), width = d.v_width();
  delta_heads_.clear();
  for (size_t s = 0; s < batch.sequences.size(); ++s) {
    const FlightSequence& sequence = batch.sequences[s];
    const size_t first = spans_[s].first;
    for (uint32_t head = 0; head < d.v_heads; ++head) {
      const size_t state = before + head * d.head_state_floats();
      const uint32_t key = head / (d.v_heads / d.k_heads);
      kernels::DeltaRule rule;
      rule.k_dim = d.k_dim, rule.v_dim = d.v_dim;
      rule.tokens = spans_[s].count;
      rule.state_in = sequence.state_in ? State(layer, *sequence.state_in) + state : nullptr;
      rule.state_out = State(layer, *sequence.state_out) + state;
      rule.q = mixed.row(first) + key * d.k_dim;
      rule.k = mixed.row(first) + d.k_width() + key * d.k_dim;
      rule.v = mixed.row(first) + 2 * d.k_width() + head * d.v_dim;
      rule.q_stride = rule.k_stride = rule.v_stride = mixed.stride;
      rule.decay = decay_.data() + first * d.v_heads + head;
      rule.beta = beta_.data() + first * d.v_heads + head;
      rule.decay_stride = rule.beta_stride = d.v_heads;
      rule.y = y + first * width + head * d.v_dim;
      rule.y_stride = width;
      delta_heads_.push_back(rule);
    }
  }
  kernels::ApplyDeltaRule(ops_, pool_, delta_heads_);
}

}  // namespace consilium
