// The tables of this machine: what the processor can run, chosen once.
#include <algorithm>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "kernels/api/kernels.h"
#include "kernels/cpu/raw.h"
#include "kernels/ref/ref_kernels.h"

namespace consilium::kernels {
namespace {

static_assert(kRopeLanesMax == kRopeDimMax);

void KvWrite(const AttentionShape& shape, const float* k, const float* v, uint32_t slot, float* k_page,
             float* v_page) {
  kRefOps.kv_write(shape, k, v, slot, k_page, v_page);  // moves only; no arithmetic
}

RawProduct ProductOf(const PackedMatrix& w, size_t rows, Rows y, uint32_t panel_begin, uint32_t panel_end,
                     const float* bias) {
  return {w.data.get(), w.layout(), w.out, w.in, rows, y.data, y.stride, panel_begin, panel_end, bias};
}

// Of this thread, grown once. A last tile may hold spare rows.
int32_t* I8Scratch(size_t rows, uint32_t in) {
  thread_local std::vector<int32_t> scratch;
  const size_t tiles = (std::min(rows, kI8RowBlock) + kI8TileRowsMax - 1) / kI8TileRowsMax;
  const size_t words = tiles * kI8TileRowsMax * Groups(in) * kI8WordsOfRow;
  if (scratch.size() < words) scratch.resize(words);
  return scratch.data();
}

// The functions of Ops for raw tables: of plain weights and the rest, of packed weights, of integer dots.
template <const RawOps& kRaw, const RawQuantOps& kQuant, const RawQuantOps& kDots>
struct Table {
  static void Gemm(const PackedMatrix& w, ConstRows x, Rows y, uint32_t panel_begin, uint32_t panel_end,
                   const float* bias) {
    const RawGemm g{ProductOf(w, x.count, y, panel_begin, panel_end, bias), x.data, x.stride};
    w.format == WeightFormat::kF32 || w.format == WeightFormat::kBf16 ? kRaw.gemm(g) : kQuant.gemm(g);
  }
  static void GemmI8(const PackedMatrix& w, QuantRows x, Rows y, uint32_t panel_begin, uint32_t panel_end,
                     const float* bias) {
    kDots.gemm_i8({ProductOf(w, x.count, y, panel_begin, panel_end, bias),
                   reinterpret_cast<const unsigned char*>(x.data), I8Scratch(x.count, w.in)});
  }
  static void QuantizeRows(ConstRows x, uint32_t n, std::byte* out) {
    kDots.quantize_rows(x.data, x.stride, x.count, n, reinterpret_cast<unsigned char*>(out));
  }
  static void RmsNorm(ConstRows x, const float* weight, uint32_t n, float eps, Rows y) {
    kRaw.rms_norm(x.data, x.stride, x.count, weight, n, eps, y.data, y.stride);
  }
  static void Gated(Activation act, const float* gate, const float* up, uint32_t n, float* a) {
    kRaw.gated(act == Activation::kGeluTanh  ? RawGate::kGeluTanh
               : act == Activation::kGeluErf ? RawGate::kGeluErf
                                             : RawGate::kSilu,
               gate, up, n, a);
  }
  static void LayerNorm(ConstRows x, const float* weight, const float* bias, uint32_t n, float eps, Rows y) {
    kRaw.layer_norm(x.data, x.stride, x.count, weight, bias, n, eps, y.data, y.stride);
  }
  static void Rope(float* x, uint32_t n, bool interleaved, const float* cos, const float* sin) {
    CHECK_MSG(n <= kRopeDimMax, "rotary dimension " + std::to_string(n));
    kRaw.rope(x, n, interleaved, cos, sin);
  }
  static void Attention(const AttentionShape& s, const AttentionRow* rows, size_t count, uint32_t head_begin,
                        uint32_t head_end, float* scratch) {
    for (size_t r = 0; r < count; ++r) {
      kRaw.attention(RawAttention{s.q_heads, s.kv_heads, s.k_dim, s.v_dim, s.scale, s.window, head_begin,
                                  head_end, rows[r].q, rows[r].out, rows[r].position, rows[r].k_pages,
                                  rows[r].v_pages, scratch, s.chunk, s.soft_cap, s.sinks});
    }
  }
  static constexpr Ops Make(std::string_view name) {
    return {name,         Gemm,         RmsNorm, Gated,        LayerNorm, kRaw.swiglu_clamped,
            Rope,         Attention,    KvWrite, kRaw.combine, kRaw.add,  kRaw.scores,
            kRaw.weights, QuantizeRows, GemmI8,  kRaw.delta};
  }
};

const Ops& ScalarOps() {
  static const Ops ops = Table<kScalarRaw, kScalarQuant, kScalarQuant>::Make("scalar");
  return ops;
}

#if defined(CONSILIUM_X86_KERNELS)
const Ops& Avx2Ops() {
  static const Ops ops = Table<kAvx2Raw, kAvx2Quant, kAvx2Quant>::Make("avx2");
  return ops;
}
const Ops& Avx512Ops() {
  static const Ops plain = Table<kAvx512Raw, kAvx512Quant, kAvx2Quant>::Make("avx512");
  static const Ops vnni = Table<kAvx512Raw, kAvx512Quant, kAvx512VnniQuant>::Make("avx512");
  return __builtin_cpu_supports("avx512vnni") ? vnni : plain;
}
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

std::vector<const Ops*> MakeTables() {
  std::vector<const Ops*> tables = {&kRefOps, &ScalarOps()};
#if defined(CONSILIUM_X86_KERNELS)
  __builtin_cpu_init();
  if (HasAvx2()) tables.push_back(&Avx2Ops());
  if (HasAvx512()) tables.push_back(&Avx512Ops());
#endif
  return tables;
}

const std::vector<const Ops*>& Tables() {
  static const std::vector<const Ops*> tables = MakeTables();
  return tables;
}

}  // namespace

std::vector<std::string_view> AvailableOps() {
  std::vector<std::string_view> names;
  for (const Ops* ops : Tables()) names.push_back(ops->name);
  return names;
}

absl::StatusOr<const Ops*> FindOps(std::string_view name) {
  if (name == "auto") return Tables().back();
  std::string known = "auto";
  for (const Ops* ops : Tables()) {
    if (ops->name == name) return ops;
    known += ", " + std::string(ops->name);
  }
  return InvalidArgument("no kernels \"" + std::string(name) + "\" on this machine; available: " + known);
}

}  // namespace consilium::kernels
