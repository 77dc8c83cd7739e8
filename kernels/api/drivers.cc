// Spreads the operations of a table over the pool. Work is cut along output columns, rows and heads only,
// never along a sum, so every cut gives the same bits.
#include <algorithm>

#include "common/base/status.h"
#include "common/exec/kernel_pool.h"
#include "kernels/api/kernels.h"

namespace consilium::kernels {
namespace {

// Below this many multiply-adds a call is done by its caller: handing out costs a few microseconds, about
// what 2^17 of them take on one core.
constexpr size_t kInlineFmas = size_t{1} << 17;

// Items per thread to aim at, so that a slow thread delays the end by a fraction of its share only.
constexpr size_t kItemsPerThread = 4;

size_t ThreadsFor(KernelPool* pool, size_t fmas) {
  return pool == nullptr || fmas < kInlineFmas ? 1 : pool->threads();
}

template <class F>
void ForItems(KernelPool* pool, size_t threads, size_t items, F f) {
  if (threads > 1) {
    pool->ParallelFor(items, f);
  } else {
    for (size_t i = 0; i < items; ++i) f(i, 0);
  }
}

// Panels per item: multiples of 24 suit the tiles of every row count (8, 6, 4, 3, 2 panels), 8 is the widest
// tile.
uint32_t PanelsPerItem(uint32_t panels, size_t items_wanted) {
  const size_t even = std::max<size_t>(1, panels / std::max<size_t>(1, items_wanted));
  if (even >= 24) return static_cast<uint32_t>(even / 24 * 24);
  if (even >= 8) return static_cast<uint32_t>(even / 8 * 8);
  return static_cast<uint32_t>(even);
}

uint32_t CeilDiv(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// Scratch of this thread, grown once.
float* ThreadScratch(size_t floats) {
  thread_local std::vector<float> scratch;
  if (scratch.size() < floats) scratch.resize(floats);
  return scratch.data();
}

}  // namespace

void Gemm(const Ops& ops, KernelPool* pool, const PackedMatrix& w, ConstRows x, Rows y, const float* bias) {
  const size_t threads = ThreadsFor(pool, x.count * w.out * w.in);
  if (threads <= 1) return ops.gemm(w, x, y, 0, w.panels(), bias);
  const uint32_t block = PanelsPerItem(w.panels(), threads * kItemsPerThread);
  ForItems(pool, threads, CeilDiv(w.panels(), block), [&](size_t item, uint32_t) {
    const uint32_t begin = static_cast<uint32_t>(item) * block;
    ops.gemm(w, x, y, begin, std::min(w.panels(), begin + block), bias);
  });
}

void Gemm(const Ops& ops, KernelPool* pool, const PackedMatrix& w, QuantRows x, Rows y, const float* bias) {
  CHECK_MSG(IsIntegerFormat(w.format) && x.in == w.in,
            "integer dots take integer weights and rows of their size");
  const size_t threads = ThreadsFor(pool, x.count * w.out * w.in);
  const uint32_t block =
      threads <= 1 ? std::max(1u, w.panels()) : PanelsPerItem(w.panels(), threads * kItemsPerThread);
  ForItems(pool, threads, CeilDiv(w.panels(), block), [&](size_t item, uint32_t) {
    const uint32_t begin = static_cast<uint32_t>(item) * block;
    ops.gemm_i8(w, x, y, begin, std::min(w.panels(), begin + block), bias);
  });
}

void Gemm(const Ops& ops, KernelPool* pool, NumericsClass c, const PackedMatrix& w, ConstRows x, Rows y,
          const float* bias) {
  if (c == NumericsClass::kF32 || !IsIntegerFormat(w.format)) return Gemm(ops, pool, w, x, y, bias);
  thread_local std::vector<std::byte> rows;  // of the calling thread, grown once
  if (const size_t bytes = x.count * QuantRowBytes(w.in); rows.size() < bytes) rows.resize(bytes);
  std::byte* const data = rows.data();
  const size_t threads = ThreadsFor(pool, x.count * w.in);
  ForItems(pool, threads, x.count, [&](size_t r, uint32_t) {
    ops.quantize_rows({x.row(r), x.stride, 1}, w.in, data + r * QuantRowBytes(w.in));
  });
  Gemm(ops, pool, w, QuantRows{data, x.count, w.in}, y, bias);
}

std::string_view NumericsClassName(NumericsClass c) { return c == NumericsClass::kF32 ? "f32" : "i8g32"; }

void RmsNorm(const Ops& ops, KernelPool* pool, ConstRows x, const float* weight, uint32_t n, float eps,
             Rows y) {
  const size_t threads = ThreadsFor(pool, x.count * n);
  const size_t block = std::max<size_t>(1, x.count / (threads * kItemsPerThread));
  if (threads <= 1) return ops.rms_norm(x, weight, n, eps, y);
  ForItems(pool, threads, (x.count + block - 1) / block, [&](size_t item, uint32_t) {
    const size_t first = item * block;
    const size_t count = std::min(block, x.count - first);
    ops.rms_norm({x.row(first), x.stride, count}, weight, n, eps, {y.row(first), y.stride, count});
  });
}

void LayerNorm(const Ops& ops, KernelPool* pool, ConstRows x, const float* weight, const float* bias,
               uint32_t n, float eps, Rows y) {
  const size_t threads = ThreadsFor(pool, x.count * n);
  const size_t block = std::max<size_t>(1, x.count / (threads * kItemsPerThread));
  if (threads <= 1) return ops.layer_norm(x, weight, bias, n, eps, y);
  ForItems(pool, threads, (x.count + block - 1) / block, [&](size_t item, uint32_t) {
    const size_t first = item * block;
    const size_t count = std::min(block, x.count - first);
    ops.layer_norm({x.row(first), x.stride, count}, weight, bias, n, eps, {y.row(first), y.stride, count});
  });
}

size_t AttentionScratchFloats(const AttentionShape& shape) {
  return 8 * size_t{kFoldKeys} + size_t{shape.q_heads} * (2 + (size_t{shape.v_dim} + 15) / 16 * 16);
}

void Attention(const Ops& ops, KernelPool* pool, const AttentionShape& shape,
               std::span<const AttentionRow> rows) {
  size_t keys = 0;
  for (const AttentionRow& row : rows) {
    keys += row.position + 1 - shape.FirstKey(row.position);
  }
  const size_t threads = ThreadsFor(pool, keys * shape.q_heads * (shape.k_dim + shape.v_dim));
  // Heads per item: whole rows when there are many, else groups of 8 (a register tile) or of one KV head.
  uint32_t heads = shape.q_heads;
  if (threads > 1 && rows.size() < threads * kItemsPerThread) {
    heads = std::min<uint32_t>(8, shape.q_heads / shape.kv_heads);
  }
  const uint32_t blocks = CeilDiv(shape.q_heads, heads);
  const size_t scratch_floats = AttentionScratchFloats(shape);
  ForItems(pool, threads, rows.size() * blocks, [&](size_t item, uint32_t) {
    const uint32_t begin = static_cast<uint32_t>(item % blocks) * heads;
    const uint32_t end = std::min(shape.q_heads, begin + heads);
    ops.attention(shape, &rows[item / blocks], 1, begin, end, ThreadScratch(scratch_floats));
  });
}

void ApplyDeltaRule(const Ops& ops, KernelPool* pool, std::span<const DeltaRule> heads) {
  size_t fmas = 0;
  for (const DeltaRule& d : heads) fmas += 3 * d.tokens * d.state_floats();
  ForItems(pool, ThreadsFor(pool, fmas), heads.size(), [&](size_t i, uint32_t) { ops.delta(heads[i]); });
}

}  // namespace consilium::kernels
