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

namespace consilium {
class KernelPool;  // common/exec/kernel_pool.h
}

namespace consilium::kernels {

inline constexpr uint32_t kPanelColumns = 16;  // output columns of a weight panel
inline constexpr uint32_t kKvPageTokens = 16;  // tokens of a KV page; equals kKvBlockTokens
inline constexpr uint32_t kFoldKeys =
    64;  // keys reduced at a time in attention, aligned to absolute positions

// Bytes aligned to 64, owned.
struct AlignedDelete {
  void operator()(std::byte* p) const;
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;
AlignedBytes AllocateAligned(size_t bytes);  // zeroed

// A weight matrix W [out, in], packed at load for y = x W^T: panel p holds columns 16p..16p+15 of the output
// as [in][16], padded with zeros; dtype kF32 or kBf16 (kept as stored).
struct PackedMatrix {
  uint32_t out = 0;
  uint32_t in = 0;
  DType dtype = DType::kBf16;
  AlignedBytes data;

  uint32_t panels() const { return (out + kPanelColumns - 1) / kPanelColumns; }
  size_t panel_bytes() const { return size_t{in} * kPanelColumns * DTypeBytes(dtype); }
  size_t bytes() const { return panels() * panel_bytes(); }
};
// `source`: row-major [out, in], elements of `dtype` (kF32, kBf16; kF16 is widened to kF32), any alignment.
PackedMatrix Pack(DType dtype, const std::byte* source, uint32_t out, uint32_t in);
// The same from floats.
PackedMatrix PackF32(std::span<const float> source, uint32_t out, uint32_t in);

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

enum class Activation : uint8_t { kSilu, kGeluTanh };

// One routed or dense gated MLP: y = down( act(gate(x)) * up(x) ). gate, up: [inter, hidden]; down: [hidden,
// inter].
struct FfnWeights {
  PackedMatrix gate, up, down;
  Activation activation = Activation::kSilu;
  size_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
};

// One row of a grouped FFN: reads hidden floats at `in`, writes hidden floats at `out`. May be unaligned
// to 64.
struct FfnRow {
  const float* in;
  float* out;
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
  float scale = 1;      // multiplies q.k
  uint32_t window = 0;  // key j visible to query i iff j <= i and (window == 0 or j > i - window)
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
  enum class Score : uint8_t { kSoftmax, kSigmoid };  // over all experts, in f32
  uint32_t experts = 0;
  uint32_t top_k = 0;
  Score score = Score::kSoftmax;
  bool has_bias = false;  // correction bias added for the choice only (DeepSeek-V3 noaux_tc)
  uint32_t groups = 1;    // experts lie in `groups` equal groups ...
  uint32_t groups_kept =
      1;  // ... of which the best are kept (group score: sum of its two best biased scores)
  bool renormalize = false;  // weights / (sum + epsilon)
  float renormalize_epsilon = 0;
  float scale = 1;  // after renormalisation
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
void RmsNorm(const Ops& ops, KernelPool* pool, ConstRows x, const float* weight, uint32_t n, float eps,
             Rows y);
void Attention(const Ops& ops, KernelPool* pool, const AttentionShape& shape,
               std::span<const AttentionRow> rows);
// Workspace is grown as needed and kept: no allocation in steady state.
class GroupedFfn {
 public:
  void Run(const Ops& ops, KernelPool* pool, std::span<const FfnGroup> groups, std::span<const FfnRow> rows);

 private:
  std::vector<float> gather_, gate_, up_, down_;  // [rows, hidden], [rows, inter] twice, [rows, hidden]
  std::vector<size_t> item_begin_;                // per group: its first work item
};

// One row: ids and weights [top_k], best selection score first; ties by lowest id. bias: [experts] or null.
// scratch: 2 * experts floats.
void RouteRow(const GateSpec& gate, const float* logits, const float* bias, uint16_t* ids, float* weights,
              float* scratch);

// cos and sin of a rotary table row, rounded once to f32: angle = f32(position) * inv_freq, as Hugging Face
// does.
void RopeRow(std::span<const float> inv_freq, uint32_t position, float attention_scaling, float* cos,
             float* sin);

// Hash over the output bits of fixed vectors through every operation of the table: the class's fingerprint.
// The value of `ref` is a constant of the source tree; a table that gives another one must not serve.
uint64_t Fingerprint(const Ops& ops);
inline constexpr std::string_view kClassName = "f32";

}  // namespace consilium::kernels
