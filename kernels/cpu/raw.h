// The seam between ordinary code and files compiled with AVX flags: plain structs and function pointers.
// Those files include nothing but this, numerics.h and intrinsics, so no inline function of ours or of the
// standard library is compiled with instructions the machine may lack.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/raw_delta.h"
#include "kernels/cpu/raw_layout.h"

namespace consilium::kernels {

// Panels [panel_begin, panel_end) of a packed matrix [out, in] and the outputs of `rows` rows.
struct RawProduct {
  const void* data;
  RawLayout layout;
  uint32_t out, in;
  size_t rows;
  float* y;
  size_t y_stride;
  uint32_t panel_begin, panel_end;
  const float* bias;
};
struct RawGemm : RawProduct {
  const float* x;
  size_t x_stride;
};
// Class i8g32: rows of QuantRowBytes(in) each, and scratch for the rows of a block (of whole tiles).
struct RawI8Gemm : RawProduct {
  const unsigned char* x;
  int32_t* scratch;
};
inline constexpr size_t kI8RowBlock = 64;  // rows gathered at a time: at in = 4096 about 360 KiB
inline constexpr size_t kI8TileRowsMax = 8;
inline constexpr size_t kI8WordsOfRow = 11;  // per group, at most (body_i8.h)

// One query row, the query heads [head_begin, head_end).
struct RawAttention {
  uint32_t q_heads, kv_heads, k_dim, v_dim;
  float scale;
  uint32_t window;
  uint32_t head_begin, head_end;
  const float* q;
  float* out;
  uint32_t position;
  const float* const* k_pages;
  const float* const* v_pages;
  float* scratch;
  uint32_t chunk;      // 0: none
  float soft_cap;      // 0: none
  const float* sinks;  // [q_heads] or null
};

// What a gated MLP makes of its gate.
enum class RawGate : uint8_t { kSilu, kGeluTanh, kGeluErf };

struct RawOps {
  void (*gemm)(const RawGemm& g);
  void (*rms_norm)(const float* x, size_t x_stride, size_t rows, const float* weight, uint32_t n, float eps,
                   float* y, size_t y_stride);
  void (*gated)(RawGate kind, const float* gate, const float* up, uint32_t n, float* a);
  void (*layer_norm)(const float* x, size_t x_stride, size_t rows, const float* weight, const float* bias,
                     uint32_t n, float eps, float* y, size_t y_stride);
  void (*swiglu_clamped)(const float* gate, const float* up, float alpha, float limit, uint32_t n, float* a);
  void (*rope)(float* x, uint32_t n, bool interleaved, const float* cos, const float* sin);
  void (*attention)(const RawAttention& a);
  void (*combine)(const float* residual, const float* shared, const float* const* slots, const float* weights,
                  uint32_t top_k, uint32_t n, float* out);
  void (*add)(const float* a, const float* b, uint32_t n, float* out);
  // out[i] = exp(x[i] - shift), or the sigmoid of x[i].
  void (*scores)(bool sigmoid, const float* x, float shift, uint32_t n, float* out);
  void (*weights)(const float* x, double max, double temperature, uint32_t n, double* out);
  void (*delta)(const DeltaRule& d);
};

extern const RawOps kScalarRaw;
extern const RawOps kAvx2Raw;
extern const RawOps kAvx512Raw;

struct RawQuantOps {
  void (*gemm)(const RawGemm& g);
  void (*gemm_i8)(const RawI8Gemm& g);
  void (*quantize_rows)(const float* x, size_t x_stride, size_t rows, uint32_t n, unsigned char* out);
};
extern const RawQuantOps kScalarQuant;
extern const RawQuantOps kAvx2Quant;
extern const RawQuantOps kAvx512Quant;      // gemm only
extern const RawQuantOps kAvx512VnniQuant;  // the other two

// How far ahead of use the panels of a tile, all together, are fetched: one to four streams do not keep
// enough lines in flight by the hardware's own prefetching.
inline constexpr size_t kPrefetchBytes = 8192;
inline constexpr uint32_t kRopeDimMax = 1024;  // per head; bounds a stack buffer

}  // namespace consilium::kernels
