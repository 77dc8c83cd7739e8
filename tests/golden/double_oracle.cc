#include "tests/golden/double_oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numbers>
#include <numeric>

#include "common/base/status.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"

namespace consilium {
namespace {

using Vec = std::vector<double>;

struct Matrix {
  size_t rows = 0, columns = 0;
  Vec values;
  Vec Times(const double* x) const {
    Vec y(rows);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns; ++c) y[r] += values[r * columns + c] * x[c];
    }
    return y;
  }
};

double Half(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

class Oracle {
 public:
  explicit Oracle(const std::string& dir)
      : spec_(*ReadModelSpec(dir)), manifest_(*OpenManifest(dir, "")), store_(OpenFolderStore(manifest_)) {}

  Vec Logits(std::span<const TokenId> tokens) {
    const Matrix embed = Read("embed");
    std::vector<Vec> x;
    for (TokenId t : tokens)
      x.emplace_back(embed.values.begin() + t * embed.columns,
                     embed.values.begin() + (t + 1) * embed.columns);
    for (size_t layer = 0; layer < spec_.layers.size(); ++layer) {
      layer_ = layer;
      prefix_ = "layers." + std::to_string(layer) + ".";
      std::vector<Vec> h;
      for (const Vec& row : x) h.push_back(Norm(row, "input_norm", spec_.norm_eps));
      const bool convolves = spec_.layers[layer].mixer == Mixer::kShortConv;
      const bool recurs = spec_.layers[layer].mixer == Mixer::kDeltaNet;
      const std::vector<Vec> a = convolves             ? ShortConv(h)
                                 : recurs              ? DeltaNet(h)
                                 : spec_.mla_attention ? Mla(h)
                                                       : Gqa(h);
      for (size_t t = 0; t < x.size(); ++t) {
        Add(&x[t], Read("o").Times(a[t].data()), 1);
        if (convolves && spec_.short_conv.bias) Add(&x[t], Read("o_bias").values, 1);
        const Vec h2 = Norm(x[t], "post_norm", spec_.norm_eps);
        Add(&x[t], spec_.layers[layer].ffn == FfnKind::kDense ? Mlp("dense", h2) : Moe(layer, h2), 1);
      }
    }
    prefix_ = "";
    const Matrix head = spec_.tied_embeddings ? embed : Read("head");
    Vec logits;
    for (const Vec& row : x) {
      const Vec y = head.Times(Norm(row, "final_norm", spec_.norm_eps).data());
      logits.insert(logits.end(), y.begin(), y.end());
    }
    return logits;
  }

 private:
  Matrix Decode(const TensorInfo& t) {
    std::vector<std::byte> bytes(t.range.length);
    CHECK(store_->Read(t.range, bytes).ok());
    Matrix m{t.shape[0], t.elements() / t.shape[0], {}};
    for (size_t i = 0; i < m.rows * m.columns; ++i) {
      if (t.dtype == DType::kF32) {
        float v;
        std::memcpy(&v, &bytes[i * 4], 4);
        m.values.push_back(v);
      } else {
        uint16_t v;
        std::memcpy(&v, &bytes[i * 2], 2);
        m.values.push_back(t.dtype == DType::kF16 ? Half(v) : std::bit_cast<float>(uint32_t{v} << 16));
      }
    }
    return m;
  }
  const Matrix& Read(const std::string& suffix) {
    auto [it, fresh] = cache_.try_emplace(prefix_ + suffix);
    if (fresh) it->second = Decode(*manifest_.FindDense(prefix_ + suffix));
    return it->second;
  }
  static void Add(Vec* a, const Vec& b, double factor) {
    for (size_t i = 0; i < a->size(); ++i) (*a)[i] += factor * b[i];
  }
  Vec Norm(Vec x, const std::string& weight, double eps) {
    const double mean =
        std::inner_product(x.begin(), x.end(), x.begin(), 0.0) / static_cast<double>(x.size());
    const Vec& w = Read(weight).values;
    const double one = spec_.norm_plus_one && weight != "delta_norm" ? 1 : 0;
    for (size_t i = 0; i < x.size(); ++i) x[i] *= (one + w[i]) / std::sqrt(mean + eps);
    return x;
  }
  static double Sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
  double Activated(double v) const {
    if (spec_.activation == kernels::Activation::kSilu) return v / (1 + std::exp(-v));
    return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v)));
  }
  Vec Gated(const Matrix& gate, const Matrix& up, const Matrix& down, const Vec& x) {
    Vec g = gate.Times(x.data());
    const Vec u = up.Times(x.data());
    for (size_t i = 0; i < g.size(); ++i) g[i] = Activated(g[i]) * u[i];
    return down.Times(g.data());
  }
  Vec Mlp(const std::string& group, const Vec& x) {
    return Gated(Read(group + ".gate"), Read(group + ".up"), Read(group + ".down"), x);
  }

  Vec Moe(size_t layer, const Vec& x) {
    const auto& g = spec_.gate;
    Vec score = Read("gate").Times(x.data());
    if (g.score == kernels::GateSpec::Score::kSigmoid) {
      for (double& s : score) s = Sigmoid(s);
    } else {
      double sum = 0;
      for (double s : score) sum += std::exp(s);
      for (double& s : score) s = std::exp(s) / sum;
    }
    Vec choice = score;
    if (g.has_bias) Add(&choice, Read("gate_bias").values, 1);
    if (g.groups > 1) {
      const size_t size = g.experts / g.groups;
      std::vector<std::pair<double, size_t>> groups;
      for (size_t i = 0; i < g.groups; ++i) {
        Vec members(choice.begin() + i * size, choice.begin() + (i + 1) * size);
        std::sort(members.rbegin(), members.rend());
        groups.emplace_back(-(members[0] + members[1]), i);
      }
      std::sort(groups.begin(), groups.end());
      for (size_t i = g.groups_kept; i < g.groups; ++i) {
        std::fill_n(choice.begin() + groups[i].second * size, size, -std::numeric_limits<double>::infinity());
      }
    }
    std::vector<size_t> order(g.experts);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return choice[a] > choice[b]; });
    double sum = 0;
    for (size_t i = 0; i < g.top_k; ++i) sum += score[order[i]];
    Vec y(spec_.hidden);
    for (size_t i = 0; i < g.top_k; ++i) {
      const ExpertEntry* e = manifest_.FindExpert(LayerId(static_cast<uint16_t>(layer)),
                                                  ExpertId(static_cast<uint16_t>(order[i])));
      auto& parts = experts_[{layer, order[i]}];
      if (parts.empty()) {
        for (const TensorInfo& t : e->parts) parts.push_back(Decode(t));
      }
      Add(&y, Gated(parts[0], parts[1], parts[2], x),
          score[order[i]] / (g.renormalize ? sum + g.renormalize_epsilon : 1) * g.scale);
    }
    const double shared = spec_.shared_gate ? Sigmoid(Read("shared_gate").Times(x.data())[0]) : 1;
    if (spec_.layers[layer].shared_inter > 0) Add(&y, Mlp("shared", x), shared);
    return y;
  }

  void Rope(double* x, size_t position) {
    const size_t half = spec_.rope.dims / 2;
    const Vec old(x, x + 2 * half);
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * spec_.rope.inv_freq[i];
      const double c = std::cos(angle) * spec_.rope.attention_scaling,
                   s = std::sin(angle) * spec_.rope.attention_scaling;
      const double a = spec_.rope.interleaved ? old[2 * i] : old[i],
                   b = spec_.rope.interleaved ? old[2 * i + 1] : old[i + half];
      x[i] = a * c - b * s;
      x[i + half] = b * c + a * s;
    }
  }

  // Softmax over the visible keys of query t, then the mean of the values; head by head.
  static Vec Attend(const Vec& q, const std::vector<Vec>& keys, const std::vector<Vec>& values, size_t t,
                    size_t window, double scale) {
    Vec p, y(values[0].size());
    double sum = 0;
    const size_t first = window == 0 || t < window ? 0 : t - window + 1;
    for (size_t j = first; j <= t; ++j) {
      p.push_back(std::exp(scale * std::inner_product(q.begin(), q.end(), keys[j].begin(), 0.0)));
      sum += p.back();
    }
    for (size_t j = first; j <= t; ++j) Add(&y, values[j], p[j - first] / sum);
    return y;
  }
  static Vec Slice(const Vec& v, size_t begin, size_t n) {
    return Vec(v.begin() + static_cast<long>(begin), v.begin() + static_cast<long>(begin + n));
  }

  std::vector<Vec> Gqa(const std::vector<Vec>& h) {
    const GqaSpec& g = spec_.gqa;
    std::vector<Vec> out(h.size());
    for (size_t head = 0; head < g.q_heads; ++head) {
      const size_t kv = head / (g.q_heads / g.kv_heads);
      std::vector<Vec> keys, values;
      for (size_t t = 0; t < h.size(); ++t) {
        keys.push_back(Slice(Read("k").Times(h[t].data()), kv * g.head_dim, g.head_dim));
        values.push_back(Slice(Read("v").Times(h[t].data()), kv * g.head_dim, g.head_dim));
        if (g.qk_norm == QkNorm::kHead) keys[t] = Norm(keys[t], "k_norm", spec_.norm_eps);
        Rope(keys[t].data(), t);
      }
      for (size_t t = 0; t < h.size(); ++t) {
        const Vec both = Read("q").Times(h[t].data());
        const size_t step = g.out_gate ? 2 * g.head_dim : g.head_dim;
        Vec q = Slice(both, head * step, g.head_dim);
        if (g.qk_norm == QkNorm::kHead) q = Norm(q, "q_norm", spec_.norm_eps);
        Rope(q.data(), t);
        Vec y = Attend(q, keys, values, t, spec_.layers[layer_].window,
                       1 / std::sqrt(static_cast<double>(g.head_dim)));
        for (size_t i = 0; g.out_gate && i < y.size(); ++i)
          y[i] *= Sigmoid(both[head * step + g.head_dim + i]);
        out[t].insert(out[t].end(), y.begin(), y.end());
      }
    }
    return out;
  }

  std::vector<Vec> ShortConv(const std::vector<Vec>& h) {
    const size_t width = spec_.hidden, taps = spec_.short_conv.taps;
    const Matrix& weights = Read("conv");  // [H, taps]
    std::vector<Vec> in, out;
    for (size_t t = 0; t < h.size(); ++t) {
      in.push_back(Read("conv_in").Times(h[t].data()));
      if (spec_.short_conv.bias) Add(&in[t], Read("conv_in_bias").values, 1);
      out.emplace_back(width);
      for (size_t i = 0; i < width; ++i) {
        double sum = spec_.short_conv.bias ? Read("conv_bias").values[i] : 0;
        for (size_t back = 0; back < taps && back <= t; ++back)
          sum += weights.values[(i + 1) * taps - 1 - back] * in[t - back][i] * in[t - back][2 * width + i];
        out[t][i] = in[t][width + i] * sum;
      }
    }
    return out;
  }

  static double Silu(double v) { return v * Sigmoid(v); }
  static void Unit(double* x, size_t n, double length) {
    const double sum = std::inner_product(x, x + n, x, 1e-6);
    for (size_t i = 0; i < n; ++i) x[i] *= length / std::sqrt(sum);
  }

  // Head by head, each from its first token on.
  std::vector<Vec> DeltaNet(const std::vector<Vec>& h) {
    const DeltaNetSpec& d = spec_.delta_net;
    const size_t group = d.v_heads / d.k_heads, block = 2 * d.k_dim + 2 * group * d.v_dim;
    const Matrix& weights = Read("conv");  // [lanes, taps]
    std::vector<Vec> in, gates, out(h.size());
    for (const Vec& row : h) {
      in.push_back(Read("delta_in").Times(row.data()));
      gates.push_back(Read("delta_gates").Times(row.data()));
    }
    // Lane `i` of `lanes` from `lane` on in the convolution's order, `at` in the projection's.
    const auto mixed = [&](size_t t, size_t lane, size_t at, size_t lanes) {
      Vec x(lanes);
      for (size_t i = 0; i < lanes; ++i) {
        for (size_t back = 0; back < d.taps && back <= t; ++back)
          x[i] += weights.values[(lane + i + 1) * d.taps - 1 - back] * in[t - back][at + i];
        x[i] = Silu(x[i]);
      }
      return x;
    };
    for (size_t head = 0; head < d.v_heads; ++head) {
      const size_t key = head / group, j = head % group, value = 2 * d.k_dim + j * d.v_dim;
      std::vector<Vec> state(d.k_dim, Vec(d.v_dim));
      for (size_t t = 0; t < h.size(); ++t) {
        Vec q = mixed(t, key * d.k_dim, key * block, d.k_dim);
        Vec k = mixed(t, (d.k_heads + key) * d.k_dim, key * block + d.k_dim, d.k_dim);
        const Vec v =
            mixed(t, size_t{2} * d.k_heads * d.k_dim + head * d.v_dim, key * block + value, d.v_dim);
        Unit(q.data(), q.size(), 1 / std::sqrt(static_cast<double>(d.k_dim)));
        Unit(k.data(), k.size(), 1);
        const double* ba = &gates[t][2 * key * group];
        const double step = std::log1p(std::exp(ba[group + j] + Read("dt_bias").values[head]));
        const double decay = std::exp(-std::exp(Read("a_log").values[head]) * step), beta = Sigmoid(ba[j]);
        Vec wrong = v, y(d.v_dim);
        for (size_t i = 0; i < d.k_dim; ++i) {
          for (double& s : state[i]) s *= decay;
          Add(&wrong, state[i], -k[i]);
        }
        for (size_t i = 0; i < d.k_dim; ++i) {
          Add(&state[i], wrong, beta * k[i]);
          Add(&y, state[i], q[i]);
        }
        y = Norm(y, "delta_norm", spec_.norm_eps);
        for (size_t i = 0; i < d.v_dim; ++i) y[i] *= Silu(in[t][key * block + value + group * d.v_dim + i]);
        out[t].insert(out[t].end(), y.begin(), y.end());
      }
    }
    return out;
  }

  std::vector<Vec> Mla(const std::vector<Vec>& h) {
    const MlaSpec& m = spec_.mla;
    std::vector<Vec> q, kv, pe, out(h.size());
    for (size_t t = 0; t < h.size(); ++t) {
      q.push_back(m.q_lora == 0 ? Read("q").Times(h[t].data())
                                : Read("q_b").Times(
                                      Norm(Read("q_a").Times(h[t].data()), "q_a_norm", m.norm_eps).data()));
      const Vec low = Read("kv_a").Times(h[t].data());
      pe.push_back(Slice(low, m.kv_lora, m.rope));
      Rope(pe[t].data(), t);
      kv.push_back(Read("kv_b").Times(Norm(Slice(low, 0, m.kv_lora), "kv_a_norm", m.norm_eps).data()));
    }
    for (size_t head = 0; head < m.heads; ++head) {
      std::vector<Vec> keys, values;
      for (size_t t = 0; t < h.size(); ++t) {
        keys.push_back(Slice(kv[t], head * (m.nope + m.v_dim), m.nope));
        keys[t].insert(keys[t].end(), pe[t].begin(), pe[t].end());
        values.push_back(Slice(kv[t], head * (m.nope + m.v_dim) + m.nope, m.v_dim));
      }
      for (size_t t = 0; t < h.size(); ++t) {
        Vec one = Slice(q[t], head * (m.nope + m.rope), m.nope + m.rope);
        Rope(one.data() + m.nope, t);
        const Vec y = Attend(one, keys, values, t, 0, m.scale);
        out[t].insert(out[t].end(), y.begin(), y.end());
      }
    }
    return out;
  }

  const ModelSpec spec_;
  const Manifest manifest_;
  std::unique_ptr<ModelStore> store_;
  size_t layer_ = 0;
  std::string prefix_;
  std::map<std::string, Matrix> cache_;
  std::map<std::pair<size_t, size_t>, std::vector<Matrix>> experts_;
};

}  // namespace

std::vector<double> OracleLogits(const std::string& dir, std::span<const TokenId> tokens) {
  return Oracle(dir).Logits(tokens);
}

}  // namespace consilium
