// Part of body.h: attention of one query row over paged keys and values. Keys in blocks of 64 aligned to
// absolute positions; inside a block, q.k is a panel product (a page is a panel of 16 keys) and P.V a product
// over the keys.
#pragma once
#include "kernels/cpu/body_gemm.h"
#include "kernels/cpu/body_rows.h"
#include "kernels/cpu/raw.h"

namespace consilium::kernels::CONSILIUM_TARGET {

static constexpr uint32_t kBlock = 64;
static constexpr uint32_t kPage = 16;
static constexpr size_t kPrefetchKeys = 8;

// The visible keys [begin, end) of one block, as offsets from its first key `base`.
struct KeyRange {
  uint32_t base, begin, end;
};

// acc[r][..] = fma(p[r][j], v_j, acc) for the visible keys ascending; rows x panels of 16 value columns in
// registers.
template <int kRows, int kPanels>
void ValueTile(const RawAttention& a, uint32_t kv_head, KeyRange keys, uint32_t column, const float* prob,
               float* acc, size_t acc_stride) {
  V sum[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) sum[r][p] = Load(acc + static_cast<size_t>(r) * acc_stride + 16 * p);
  }
  const size_t tail = a.v_dim - column - 16 * (kPanels - 1);  // of the last panel
  for (uint32_t j = keys.begin; j < keys.end;) {
    const uint32_t page_end = (j / kPage + 1) * kPage;
    const uint32_t end = page_end < keys.end ? page_end : keys.end;
    const float* v =
        a.v_pages[(keys.base + j) / kPage] + (size_t{kv_head} * kPage + j % kPage) * a.v_dim + column;
    for (; j < end; ++j, v += a.v_dim) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        // With few heads the values come from memory, and a strip of columns defeats the hardware's
        // prefetching.
        if constexpr (kRows <= 4) __builtin_prefetch(v + 16 * p + kPrefetchKeys * a.v_dim);
        const V w = p == kPanels - 1 && tail < 16 ? LoadN(v + 16 * p, tail) : Load(v + 16 * p);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          sum[r][p] = Fma(Set1(prob[static_cast<size_t>(r) * kBlock + j]), w, sum[r][p]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) Store(acc + static_cast<size_t>(r) * acc_stride + 16 * p, sum[r][p]);
  }
}

template <int kRows>
static void ValueRows(const RawAttention& a, uint32_t kv_head, KeyRange keys, const float* prob, float* acc,
                      size_t acc_stride) {
  constexpr int kMax = kTilePanels[kRows];
  const uint32_t panels = static_cast<uint32_t>(acc_stride / 16);
  uint32_t p = 0;
  for (; p + kMax <= panels; p += kMax) {
    ValueTile<kRows, kMax>(a, kv_head, keys, 16 * p, prob, acc + 16 * p, acc_stride);
  }
  for (; p < panels; ++p) ValueTile<kRows, 1>(a, kv_head, keys, 16 * p, prob, acc + 16 * p, acc_stride);
}

static void Values(const RawAttention& a, uint32_t kv_head, KeyRange keys, int rows, const float* prob,
                   float* acc, size_t acc_stride) {
  switch (rows) {
    case 1:
      return ValueRows<1>(a, kv_head, keys, prob, acc, acc_stride);
    case 2:
      return ValueRows<2>(a, kv_head, keys, prob, acc, acc_stride);
    case 3:
      return ValueRows<3>(a, kv_head, keys, prob, acc, acc_stride);
    case 4:
      return ValueRows<4>(a, kv_head, keys, prob, acc, acc_stride);
    default:
      break;
  }
  if constexpr (kTileRows >= 6) {
    if (rows == 5) return ValueRows<5>(a, kv_head, keys, prob, acc, acc_stride);
    if (rows == 6) return ValueRows<6>(a, kv_head, keys, prob, acc, acc_stride);
  }
  if constexpr (kTileRows >= 8) {
    if (rows == 7) return ValueRows<7>(a, kv_head, keys, prob, acc, acc_stride);
    if (rows == 8) return ValueRows<8>(a, kv_head, keys, prob, acc, acc_stride);
  }
}

// q.k of `rows` heads against the pages of the block that hold visible keys; score [row][64].
static void ScoresOfBlock(const RawAttention& a, uint32_t kv_head, KeyRange keys, uint32_t head, int rows,
                          float* score) {
  const uint32_t first = keys.begin / kPage;
  const uint32_t pages = (keys.end - 1) / kPage + 1 - first;
  const int limit = kTilePanels[rows];
  for (uint32_t p = 0; p < pages;) {
    const int step = PanelStep(limit < 4 ? limit : 4, pages - p);
    TileArgs t;
    for (int i = 0; i < step; ++i) {
      const float* page = a.k_pages[keys.base / kPage + first + p + static_cast<uint32_t>(i)];
      t.panels[i] = reinterpret_cast<const char*>(page + size_t{kv_head} * a.k_dim * kPage);
    }
    t.k = a.k_dim;
    t.x = a.q + size_t{head} * a.k_dim;
    t.x_stride = a.k_dim;
    t.y = score + (first + p) * kPage;
    t.y_stride = kBlock;
    t.columns = kBlock;
    t.bias = nullptr;
    RunTile<RawCode::kF32>(t, rows, step);
    p += static_cast<uint32_t>(step);
  }
}

struct SoftmaxState {
  float max;
  float sum;
};

// Scores of one head's block to probabilities, in place; updates the state and returns the factor for the old
// sums.
static float SoftmaxOfBlock(float* s, KeyRange keys, float scale, float soft_cap, SoftmaxState* state) {
  const V factor = Set1(scale);
  for (uint32_t i = 0; i < kBlock; i += 16) Store(s + i, Mul(Load(s + i), factor));
  if (soft_cap != 0.0f) {
    const V cap = Set1(soft_cap);
    for (uint32_t i = 0; i < kBlock; i += 16) Store(s + i, Mul(cap, TanhLanes(Div(Load(s + i), cap))));
  }
  for (uint32_t j = 0; j < keys.begin; ++j) s[j] = -numerics::InfF();
  for (uint32_t j = keys.end; j < kBlock; ++j) s[j] = -numerics::InfF();
  V top = Set1(-numerics::InfF());
  for (uint32_t i = 0; i < kBlock; i += 16) top = MaxOf(Load(s + i), top);
  float lanes[16];
  Store(lanes, top);
  const float max = numerics::MaxOf(numerics::FoldMax16(lanes, 16), state->max);
  V sum = Zero();
  for (uint32_t i = 0; i < kBlock; i += 16) Store(s + i, ExpLanes(Sub(Load(s + i), Set1(max))));
  for (uint32_t j = 0; j < keys.begin; ++j) s[j] = 0.0f;
  for (uint32_t j = keys.end; j < kBlock; ++j) s[j] = 0.0f;
  for (uint32_t i = 0; i < kBlock; i += 16) sum = Add(sum, Load(s + i));
  Store(lanes, sum);
  const float old = numerics::Exp(state->max - max);
  state->sum = numerics::Fma(state->sum, old, numerics::FoldLanes(lanes));
  state->max = max;
  return old;
}

// Scratch of one call: score [kTileRows][64], state [heads], acc [heads][v_dim rounded up to 16].
static void Attention(const RawAttention& a) {
  const uint32_t heads = a.head_end - a.head_begin;
  const uint32_t group = a.q_heads / a.kv_heads;
  const size_t acc_stride = (size_t{a.v_dim} + 15) / 16 * 16;
  float* score = a.scratch;
  SoftmaxState* states = reinterpret_cast<SoftmaxState*>(score + 8 * kBlock);
  float* acc = score + 8 * kBlock + 2 * size_t{heads};
  // A sink is a key seen before all others, of probability exp(sink - max) and no value.
  for (uint32_t h = 0; h < heads; ++h) {
    states[h] = a.sinks == nullptr ? SoftmaxState{-numerics::InfF(), 0.0f}
                                   : SoftmaxState{a.sinks[a.head_begin + h], 1.0f};
  }
  for (size_t i = 0; i < heads * acc_stride; ++i) acc[i] = 0.0f;

  const uint32_t end = a.position + 1;
  uint32_t begin = a.window == 0 || end <= a.window ? 0 : end - a.window;
  if (a.chunk != 0 && a.position / a.chunk * a.chunk > begin) begin = a.position / a.chunk * a.chunk;
  for (uint32_t base = begin / kBlock * kBlock; base < end; base += kBlock) {
    const KeyRange keys{base, begin > base ? begin - base : 0, end - base < kBlock ? end - base : kBlock};
    for (uint32_t h = a.head_begin; h < a.head_end;) {
      const uint32_t kv_head = h / group;
      const uint32_t group_end = (kv_head + 1) * group;
      const uint32_t last = group_end < a.head_end ? group_end : a.head_end;
      const uint32_t tiles = (last - h + kTileRows - 1) / kTileRows;
      const int rows = static_cast<int>((last - h + tiles - 1) / tiles);
      ScoresOfBlock(a, kv_head, keys, h, rows, score);
      float* sums = acc + (h - a.head_begin) * acc_stride;
      for (int r = 0; r < rows; ++r) {
        const V old = Set1(SoftmaxOfBlock(score + static_cast<size_t>(r) * kBlock, keys, a.scale, a.soft_cap,
                                          &states[h - a.head_begin + static_cast<uint32_t>(r)]));
        float* row = sums + static_cast<size_t>(r) * acc_stride;
        for (size_t i = 0; i < acc_stride; i += 16) Store(row + i, Mul(Load(row + i), old));
      }
      Values(a, kv_head, keys, rows, score, sums, acc_stride);
      h += static_cast<uint32_t>(rows);
    }
  }
  for (uint32_t h = 0; h < heads; ++h) {
    const V sum = Set1(states[h].sum);
    const float* row = acc + h * acc_stride;
    ForLanes(a.v_dim, a.out + size_t{a.head_begin + h} * a.v_dim,
             [&](auto load) { return Div(load(row), sum); });
  }
}

}  // namespace consilium::kernels::CONSILIUM_TARGET
