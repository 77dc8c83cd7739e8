// Gated MLPs of many experts in one call: rows of an expert are gathered unless they already lie at one
// stride, then the pool takes (expert, column block) items, first of gate and up, then of down.
#include <algorithm>
#include <cstring>

#include "common/base/status.h"
#include "common/exec/kernel_pool.h"
#include "kernels/api/kernels.h"

namespace consilium::kernels {
namespace {

constexpr size_t kInlineFmas = size_t{1}
                               << 17;  // as in drivers.cc: below, handing out costs more than it wins
constexpr size_t kItemsPerThread = 4;
constexpr uint32_t kRowsPerItem = 4;  // gathered or quantised at a time
constexpr uint32_t kPanelsMax = 24;   // per item; divisible by every tile's panels
constexpr uint32_t kPanelsMin = 4;

// Padding of workspace rows: strides that are multiples of 4 KiB would map all rows of a tile to one cache
// set.
constexpr size_t kRowPad = 16;

// The stride in floats if `count` addresses are evenly spaced, at least `width` floats apart; else 0.
template <class Get>
size_t EvenStride(size_t count, size_t width, Get address) {
  if (count < 2) return width;
  const uintptr_t first = reinterpret_cast<uintptr_t>(address(0));
  const uintptr_t step = reinterpret_cast<uintptr_t>(address(1)) - first;
  if (step % sizeof(float) != 0 || step / sizeof(float) < width || step > (uintptr_t{1} << 40)) return 0;
  for (size_t i = 2; i < count; ++i) {
    if (reinterpret_cast<uintptr_t>(address(i)) != first + i * step) return 0;
  }
  return step / sizeof(float);
}

void Grow(std::vector<float>* v, size_t n) {
  if (v->size() < n) v->resize(n);
}

struct Sizes {
  uint32_t hidden = 0, inter = 0;  // the largest of all groups
  size_t fmas = 0;
  size_t panels = 0;  // of all down projections
};

Sizes SizesOf(std::span<const FfnGroup> groups, size_t rows) {
  Sizes s;
  for (const FfnGroup& g : groups) {
    CHECK_MSG(size_t{g.first} + g.count <= rows, "group beyond the rows");
    if (g.count == 0) continue;
    CHECK_MSG(g.weights->down.in == g.weights->gate.out, "gate and down do not fit");
    s.hidden = std::max(s.hidden, g.weights->gate.in);
    s.inter = std::max(s.inter, g.weights->gate.out);
    s.fmas += size_t{3} * g.count * g.weights->gate.in * g.weights->gate.out;
    s.panels += g.weights->down.panels();
  }
  return s;
}

// Panels per item, so that each thread finds several items.
uint32_t BlockOf(size_t panels, size_t threads) {
  const size_t even = panels / (threads * kItemsPerThread);
  if (even >= kPanelsMax) return kPanelsMax;
  return even >= 8 ? 8 : std::max(kPanelsMin, static_cast<uint32_t>(even));
}

// Calls f(group, first panel, end panel) for every block of `panels_of(group)` panels of every group with
// rows. `begins`: workspace, the first item of each group.
template <class PanelsOf, class F>
void ForBlocks(KernelPool* pool, uint32_t block, std::span<const FfnGroup> groups,
               std::vector<size_t>* begins, PanelsOf panels_of, F f) {
  begins->clear();
  size_t items = 0;
  for (const FfnGroup& g : groups) {
    begins->push_back(items);
    if (g.count > 0) items += (panels_of(g) + block - 1) / block;
  }
  const auto run = [&](size_t item, uint32_t) {
    const size_t i =
        static_cast<size_t>(std::upper_bound(begins->begin(), begins->end(), item) - begins->begin()) - 1;
    const uint32_t begin = static_cast<uint32_t>(item - (*begins)[i]) * block;
    f(groups[i], begin, std::min(panels_of(groups[i]), begin + block));
  };
  if (pool != nullptr) {
    pool->ParallelFor(items, run);
  } else {
    for (size_t i = 0; i < items; ++i) run(i, 0);
  }
}

const float* OrNull(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

// Rows of a product: floats, and quantised where the class has integer dots for the weights (else null).
struct Input {
  ConstRows x;
  const std::byte* quantised;
};
void Product(const Ops& ops, const PackedMatrix& w, const Input& in, Rows y, uint32_t begin, uint32_t end,
             const float* bias) {
  if (in.quantised != nullptr && IsIntegerFormat(w.format)) {
    return ops.gemm_i8(w, {in.quantised, in.x.count, w.in}, y, begin, end, bias);
  }
  ops.gemm(w, in.x, y, begin, end, bias);
}

// gate, up and the activation of output columns of panels [begin, end), left in `gate`.
void GateAndUp(const Ops& ops, const FfnWeights& w, const Input& x, Rows gate, Rows up, uint32_t begin,
               uint32_t end) {
  Product(ops, w.gate, x, gate, begin, end, OrNull(w.gate_bias));
  Product(ops, w.up, x, up, begin, end, OrNull(w.up_bias));
  const uint32_t c = begin * kPanelColumns;
  const uint32_t n = std::min(w.gate.out, end * kPanelColumns) - c;
  for (size_t r = 0; r < x.x.count; ++r) {
    float* g = gate.row(r) + c;
    if (w.activation == Activation::kSwigluClamped) {
      ops.swiglu_clamped(g, up.row(r) + c, w.alpha, w.limit, n, g);
    } else {
      ops.gated(w.activation, g, up.row(r) + c, n, g);
    }
  }
}

// down of the columns of panels [begin, end) into the rows' outputs, through `staging` if they have no
// stride.
void Down(const Ops& ops, const PackedMatrix& w, const float* bias, const Input& a,
          std::span<const FfnRow> rows, Rows staging, uint32_t begin, uint32_t end) {
  if (const size_t stride = EvenStride(rows.size(), w.out, [&](size_t i) { return rows[i].out; });
      stride != 0) {
    return Product(ops, w, a, {rows[0].out, stride, rows.size()}, begin, end, bias);
  }
  Product(ops, w, a, staging, begin, end, bias);
  const uint32_t c = begin * kPanelColumns;
  const uint32_t n = std::min(w.out, end * kPanelColumns) - c;
  for (size_t r = 0; r < rows.size(); ++r)
    std::memcpy(rows[r].out + c, staging.row(r) + c, n * sizeof(float));
}

bool HasIntegers(const FfnGroup& g) {
  return IsIntegerFormat(g.weights->gate.format) || IsIntegerFormat(g.weights->up.format);
}

// A row's floats into `x` if they are gathered, quantised into `q` if that is wanted.
void TakeRow(const Ops& ops, const FfnRow& row, uint32_t hidden, bool gather, bool quantise, float* x,
             std::byte* q) {
  if (row.in_i8 != nullptr) {
    QuantRowFromWire(row.in_i8, hidden, q);
    return DequantizeQuantRow(q, hidden, x);
  }
  if (quantise) ops.quantize_rows({row.in, hidden, 1}, hidden, q);
  if (gather) std::memcpy(x, row.in, hidden * sizeof(float));
}

}  // namespace

void GroupedFfn::Run(const Ops& ops, KernelPool* pool, std::span<const FfnGroup> groups,
                     std::span<const FfnRow> rows, NumericsClass numerics) {
  const Sizes sizes = SizesOf(groups, rows.size());
  if (sizes.fmas == 0) return;
  const size_t hidden_stride = sizes.hidden + kRowPad, inter_stride = sizes.inter + kRowPad;
  Grow(&gather_, rows.size() * hidden_stride);
  Grow(&down_, rows.size() * hidden_stride);
  Grow(&gate_, rows.size() * inter_stride);
  Grow(&up_, rows.size() * inter_stride);
  if (sizes.fmas < kInlineFmas) pool = nullptr;
  const uint32_t block = pool == nullptr ? kPanelsMax : BlockOf(sizes.panels, pool->threads());

  const auto rows_of = [&](const FfnGroup& g) { return rows.subspan(g.first, g.count); };
  const auto in_stride = [&](const FfnGroup& g) {
    if (rows[g.first].in_i8 != nullptr) return size_t{0};
    return EvenStride(g.count, g.weights->gate.in, [&](size_t i) { return rows[g.first + i].in; });
  };
  const auto area = [](std::vector<float>& v, const FfnGroup& g, size_t stride) {
    return Rows{v.data() + g.first * stride, stride, g.count};
  };
  const bool integer = numerics == NumericsClass::kI8g32;
  const size_t in_bytes = QuantRowBytes(sizes.hidden), inter_bytes = QuantRowBytes(sizes.inter);
  if (integer) {
    if (const size_t n = rows.size() * in_bytes; quantised_in_.size() < n) quantised_in_.resize(n);
    if (const size_t n = rows.size() * inter_bytes; quantised_inter_.size() < n) quantised_inter_.resize(n);
  }
  CHECK_MSG(
      integer || std::none_of(rows.begin(), rows.end(), [](const FfnRow& r) { return r.in_i8 != nullptr; }),
      "quantised rows outside class i8g32");
  const auto rows_in_group = [](const FfnGroup& g) { return g.count; };
  ForBlocks(pool, kRowsPerItem, groups, &item_begin_, rows_in_group,
            [&](const FfnGroup& g, uint32_t begin, uint32_t end) {
              const uint32_t hidden = g.weights->gate.in;
              const bool gather = in_stride(g) == 0, quantise = integer && HasIntegers(g);
              for (uint32_t r = begin; r < end; ++r) {
                const FfnRow& row = rows[g.first + r];
                float* x = area(gather_, g, hidden_stride).row(r);
                std::byte* q = quantised_in_.data() + g.first * in_bytes + r * QuantRowBytes(hidden);
                TakeRow(ops, row, hidden, gather, quantise, x, q);
              }
            });
  ForBlocks(
      pool, block, groups, &item_begin_, [](const FfnGroup& g) { return g.weights->gate.panels(); },
      [&](const FfnGroup& g, uint32_t begin, uint32_t end) {
        const size_t stride = in_stride(g);
        const ConstRows x = stride != 0 ? ConstRows(rows[g.first].in, stride, g.count)
                                        : ConstRows(area(gather_, g, hidden_stride));
        const Input input{x, integer ? quantised_in_.data() + g.first * in_bytes : nullptr};
        GateAndUp(ops, *g.weights, input, area(gate_, g, inter_stride), area(up_, g, inter_stride), begin,
                  end);
      });
  if (integer) {
    ForBlocks(pool, kRowsPerItem, groups, &item_begin_, rows_in_group,
              [&](const FfnGroup& g, uint32_t begin, uint32_t end) {
                if (!IsIntegerFormat(g.weights->down.format)) return;
                const uint32_t inter = g.weights->down.in;
                ops.quantize_rows(
                    {area(gate_, g, inter_stride).row(begin), inter_stride, end - begin}, inter,
                    quantised_inter_.data() + g.first * inter_bytes + begin * QuantRowBytes(inter));
              });
  }
  ForBlocks(
      pool, block, groups, &item_begin_, [](const FfnGroup& g) { return g.weights->down.panels(); },
      [&](const FfnGroup& g, uint32_t begin, uint32_t end) {
        const Input input{area(gate_, g, inter_stride),
                          integer ? quantised_inter_.data() + g.first * inter_bytes : nullptr};
        Down(ops, g.weights->down, OrNull(g.weights->down_bias), input, rows_of(g),
             area(down_, g, hidden_stride), begin, end);
      });
}

}  // namespace consilium::kernels
