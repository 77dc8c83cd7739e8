// The numeric operations of class `f32` (docs/NUMERICS.md). The scalar reference (kernels/ref) defines the
// bits; every table of kernels/cpu equals it bit for bit, for any number of rows, any order, any thread
// count.
//
// Rules of every operation here:
//  * a row of the output depends on that row's inputs and the weights only (row invariance);
//  * a matrix product's output is one chain of fma over k ascending, from 0, weights widened exactly to f32;
//  * SIMD lanes lie over output columns, so the vector width drops out;
//  * reductions across lanes use Fold16 of kernels/api/numerics.h, never the vector width;
//  * nothing allocates and nothing blocks, apart from the pool handed in.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor/dtype.h"
#include "kernels/api/weights.h"
#include "kernels/cpu/raw_delta.h"

namespace consilium {
class KernelPool;  // common/exec/kernel_pool.h
}

namespace consilium::kernels {

inline constexpr uint32_t kKvPageTokens = 16;    // tokens of a KV page; equals kKvBlockTokens
inline constexpr uint32_t kRopeLanesMax = 1024;  // rotary lanes of a head
inline constexpr uint32_t kFoldKeys =
    64;  // keys reduced at a time in attention, aligned to absolute positions

// The arithmetic of matrix products: f32 chains, or integer dots where the weights are integers (other
// formats keep their f32 chain in i8g32 too). Chosen by the caller, one for a whole model.
enum class NumericsClass : uint8_t { kF32, kI8g32 };
std::string_view NumericsClassName(NumericsClass c);  // "f32", "i8g32"

// Rows of f32: row r starts at data + r * stride.
struct Rows {
  float* data = nullptr;
  size_t stride = 0;
  size_t count = 0;
  float* row(size_t r) const { return data + r * stride; }
};
struct ConstRows {
  const float* data = nullptr;
  size_t stride = 0;
  size_t count = 0;
  ConstRows() = default;
  ConstRows(const float* d, size_t s, size_t n) : data(d), stride(s), count(n) {}
  ConstRows(const Rows& r)
      : data(r.data), stride(r.stride), count(r.count) {}  // NOLINT: view of the same rows
  const float* row(size_t r) const { return data + r * stride; }
};

// kSwigluClamped (gpt-oss): g = min(gate, limit), u = clamp(up, -limit, limit), (u + 1) * (g * sigmoid(alpha
// * g)).
enum class Activation : uint8_t { kSilu, kGeluTanh, kSwigluClamped, kGeluErf };

// One routed or dense gated MLP: y = down( act(gate(x)) * up(x) ). gate, up: [inter, hidden]; down: [hidden,
// inter].
struct FfnWeights {
  PackedMatrix gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;  // empty: none
  Activation activation = Activation::kSilu;
  float alpha = 0, limit = 0;  // kSwigluClamped
  size_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
};

// One row of a grouped FFN: reads hidden floats at `in`, writes hidden floats at `out`. May be unaligned
// to 64.
struct FfnRow {
  const float* in;
  float* out;
  // Instead of `in`, class i8g32 only: the row as a frame carries it (WireRowBytes). All rows of a group
  // alike.
  const std::byte* in_i8 = nullptr;
};
struct FfnGroup {
  const FfnWeights* weights;
  uint32_t first = 0;  // rows[first .. first + count) belong to this expert
  uint32_t count = 0;
};

// Attention over paged keys and values. One page holds kKvPageTokens tokens of one layer for all KV heads:
// K as [kv_heads][k_dim][16] (token innermost), V as [kv_heads][16][v_dim]. GQA: kv_heads, k_dim = v_dim =
// head_dim. Absorbed MLA: kv_heads = 1, k_dim = kv_lora + rope, v_dim = kv_lora; V is the latent again.
struct AttentionShape {
  uint32_t q_heads = 0;
  uint32_t kv_heads = 0;
  uint32_t k_dim = 0;
  uint32_t v_dim = 0;
  float scale = 1;               // multiplies q.k
  uint32_t window = 0;           // key j visible to query i iff j <= i and (window == 0 or j > i - window)
  uint32_t chunk = 0;            // and (chunk == 0 or j / chunk == i / chunk)
  float soft_cap = 0;            // not 0: scores become cap * tanh(score / cap)
  const float* sinks = nullptr;  // [q_heads]: a logit beside the keys' that takes its share and adds no value
  // The first key visible to a query at `position`.
  uint32_t FirstKey(uint32_t position) const {
    uint32_t first = window == 0 || position < window ? 0 : position + 1 - window;
    if (chunk != 0 && position / chunk * chunk > first) first = position / chunk * chunk;
    return first;
  }
  size_t page_k_floats() const { return size_t{kv_heads} * k_dim * kKvPageTokens; }
  size_t page_v_floats() const { return size_t{kv_heads} * kKvPageTokens * v_dim; }
};
// One query row: q [q_heads * k_dim], out [q_heads * v_dim], keys 0..position through the page pointers.
struct AttentionRow {
  const float* q;
  float* out;
  uint32_t position;
  const float* const* k_pages;  // k_pages[t / 16] holds token t
  const float* const* v_pages;
};

// How a gate chooses experts (DESIGN of each family: docs/MODELS.md).
struct GateSpec {
  // kSoftmax, kSigmoid: over all experts, in f32. kSoftmaxChosen: the k largest logits, softmax over them.
  // kSigmoidOfLogit: the k largest logits, sigmoid of them. kSparsemixer (Phi): RouteSparsemixer.
  enum class Score : uint8_t { kSoftmax, kSigmoid, kSoftmaxChosen, kSigmoidOfLogit, kSparsemixer };
  uint32_t experts = 0;
  uint32_t top_k = 0;
  Score score = Score::kSoftmax;
  bool has_bias = false;  // correction bias added for the choice only (DeepSeek-V3 noaux_tc)
  uint32_t groups = 1;    // experts lie in `groups` equal groups ...
  uint32_t groups_kept =
      1;  // ... of which the best are kept (group score: sum of its two best biased scores)
  bool renormalize = false;  // weights / (sum + epsilon)
  float renormalize_epsilon = 0;
  float renormalize_min = 0;      // weights / max(sum, min) when above 0
  uint32_t renormalize_norm = 1;  // 2: the sum is the square root of the sum of squares
  bool group_max = false;         // group score: its best choice instead
  float jitter = 0;               // kSparsemixer: entries further than 2 * jitter below the best are masked
  float scale = 1;                // after renormalisation
};

// One table per instruction set. All functions are single-threaded; the drivers below spread them over a
// pool.
struct Ops {
  std::string_view name;
  // y[r][c] for the output columns of panels [panel_begin, panel_end); bias (nullable, [out]) is added after
  // the chain.
  void (*gemm)(const PackedMatrix& w, ConstRows x, Rows y, uint32_t panel_begin, uint32_t panel_end,
               const float* bias);
  // y = x * rsqrt(mean(x^2) + eps) * w, mean by Fold16; 1/sqrt exactly rounded (sqrt, then division).
  void (*rms_norm)(ConstRows x, const float* weight, uint32_t n, float eps, Rows y);
  // a[i] = act(gate[i]) * up[i]
  void (*gated)(Activation act, const float* gate, const float* up, uint32_t n, float* a);
  // d = x - mean(x), mean by Fold16; y = (d * rsqrt(mean(d^2) + eps)) * w, then + bias if it is not null.
  void (*layer_norm)(ConstRows x, const float* weight, const float* bias, uint32_t n, float eps, Rows y);
  // a[i] of Activation::kSwigluClamped
  void (*swiglu_clamped)(const float* gate, const float* up, float alpha, float limit, uint32_t n, float* a);
  // Rotates pairs in place: half style (x[i], x[i + n/2]) or interleaved (x[2i], x[2i+1]) left de-interleaved
  // as Hugging Face does. cos, sin: [n / 2].
  void (*rope)(float* x, uint32_t n, bool interleaved, const float* cos, const float* sin);
  // The query heads [head_begin, head_end) of each row; scratch: AttentionScratchFloats(shape).
  void (*attention)(const AttentionShape& shape, const AttentionRow* rows, size_t count, uint32_t head_begin,
                    uint32_t head_end, float* scratch);
  // Writes token `slot` (0..15) of a page. k [kv_heads * k_dim], v [kv_heads * v_dim].
  void (*kv_write)(const AttentionShape& shape, const float* k, const float* v, uint32_t slot, float* k_page,
                   float* v_page);
  // out = residual + (sum over slots ascending of weight[s] * slot[s], by fma from 0) (+ shared if not null):
  // t = 0; t = fma(w_s, y_s, t)...; t = t + shared; out = residual + t.
  void (*combine)(const float* residual, const float* shared, const float* const* slots, const float* weights,
                  uint32_t top_k, uint32_t n, float* out);
  void (*add)(const float* a, const float* b, uint32_t n, float* out);  // out = a + b
  // Gate scores: out[i] = exp(x[i] - shift), or sigmoid(x[i]).
  void (*scores)(bool sigmoid, const float* x, float shift, uint32_t n, float* out);
  // Sampling weights: out[i] = exp((x[i] - max) / temperature) in double.
  void (*weights)(const float* x, double max, double temperature, uint32_t n, double* out);
  // Class i8g32: rows of n floats to rows of QuantRowBytes(n).
  void (*quantize_rows)(ConstRows x, uint32_t n, std::byte* out);
  // As gemm, by integer dots of groups of 32. w.format: IsIntegerFormat; x.in == w.in.
  void (*gemm_i8)(const PackedMatrix& w, QuantRows x, Rows y, uint32_t panel_begin, uint32_t panel_end,
                  const float* bias);
  // One head of a gated delta rule: raw_delta.h.
  void (*delta)(const DeltaRule& d);
};
// Floats of scratch `attention` needs for one thread.
size_t AttentionScratchFloats(const AttentionShape& shape);

// "ref" (the reference), then "scalar", "avx2", "avx512" as far as this machine can run them: best last.
std::vector<std::string_view> AvailableOps();
// By name, or "auto" (the best). INVALID_ARGUMENT lists what is available.
absl::StatusOr<const Ops*> FindOps(std::string_view name);

// Drivers: spread work over the pool; same bits for every pool size. `pool` may be null: the calling thread
// does it all.
void Gemm(const Ops& ops, KernelPool* pool, const PackedMatrix& w, ConstRows x, Rows y,
          const float* bias = nullptr);
// In class `c`: quantises the rows first where that class does.
void Gemm(const Ops& ops, KernelPool* pool, NumericsClass c, const PackedMatrix& w, ConstRows x, Rows y,
          const float* bias = nullptr);
// Rows quantised already. CHECKs that the format is an integer one.
void Gemm(const Ops& ops, KernelPool* pool, const PackedMatrix& w, QuantRows x, Rows y,
          const float* bias = nullptr);
void RmsNorm(const Ops& ops, KernelPool* pool, ConstRows x, const float* weight, uint32_t n, float eps,
             Rows y);
void LayerNorm(const Ops& ops, KernelPool* pool, ConstRows x, const float* weight, const float* bias,
               uint32_t n, float eps, Rows y);
void Attention(const Ops& ops, KernelPool* pool, const AttentionShape& shape,
               std::span<const AttentionRow> rows);
// Heads of one layer; their state_out and y must not overlap.
void ApplyDeltaRule(const Ops& ops, KernelPool* pool, std::span<const DeltaRule> heads);
// Workspace is grown as needed and kept: no allocation in steady state.
class GroupedFfn {
 public:
  void Run(const Ops& ops, KernelPool* pool, std::span<const FfnGroup> groups, std::span<const FfnRow> rows,
           NumericsClass numerics = NumericsClass::kF32);

 private:
  std::vector<float> gather_, gate_, up_, down_;  // [rows, hidden], [rows, inter] twice, [rows, hidden]
  std::vector<std::byte> quantised_in_, quantised_inter_;  // [rows, QuantRowBytes]
  std::vector<size_t> item_begin_;                         // per group: its first work item
};

// One row: ids and weights [top_k], best selection score first; ties by lowest id. bias: [experts] or null.
// scratch: 2 * experts floats.
void RouteRow(const GateSpec& gate, const float* logits, const float* bias, uint16_t* ids, float* weights,
              float* scratch);

// cos and sin of a rotary table row, rounded once to f32: angle = f32(position) * inv_freq, as Hugging Face
// does.
void RopeRow(std::span<const float> inv_freq, uint32_t position, float attention_scaling, float* cos,
             float* sin);

// 1 + beta * ln(1 + floor((position + offset) / floor)), in double, rounded once.
float QueryFactor(float beta, uint32_t floor, uint32_t offset, uint32_t position);

// Hash over the output bits of fixed vectors through every operation of the table: the class's fingerprint.
// The value of `ref` is a constant of the source tree; a table that gives another one must not serve.
uint64_t Fingerprint(const Ops& ops);
// Of class `c`: the above, and products with packed weights in it. What processes compare.
uint64_t Fingerprint(const Ops& ops, NumericsClass c);

}  // namespace consilium::kernels
