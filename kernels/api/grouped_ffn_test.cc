#include <memory>
#include <numeric>

#include "common/exec/kernel_pool.h"
#include "kernels/api/test_support.h"

namespace consilium::kernels {
namespace {

class GroupedFfnTest : public EveryTable {};
INSTANTIATE_TEST_SUITE_P(Tables, GroupedFfnTest, testing::ValuesIn(TablesUnderTest()), TableName);

struct Experts {
  uint32_t hidden;
  std::vector<FfnWeights> weights;
  Experts(uint32_t h, uint32_t inter, uint32_t count, DType dtype = DType::kBf16,
          Activation act = Activation::kSilu)
      : hidden(h) {
    for (uint32_t e = 0; e < count; ++e) {
      FfnWeights w;
      w.gate = TestMatrix(dtype, inter, h, 10 * e + 1).packed;
      w.up = TestMatrix(dtype, inter, h, 10 * e + 2).packed;
      w.down = TestMatrix(dtype, h, inter, 10 * e + 3).packed;
      w.activation = act;
      weights.push_back(std::move(w));
    }
  }
};

// Rows per expert in `counts`; row i reads input order[i] and writes output order[i].
std::vector<float> Apply(const Ops& ops, KernelPool* pool, const Experts& experts,
                         const std::vector<uint32_t>& counts, const std::vector<float>& x,
                         const std::vector<size_t>& order, GroupedFfn* ffn) {
  std::vector<float> y(x.size(), -7.0f);
  std::vector<FfnRow> rows;
  for (size_t i : order) rows.push_back({x.data() + i * experts.hidden, y.data() + i * experts.hidden});
  std::vector<FfnGroup> groups;
  uint32_t first = 0;
  for (size_t e = 0; e < counts.size(); ++e) {
    groups.push_back({&experts.weights[e], first, counts[e]});
    first += counts[e];
  }
  ffn->Run(ops, pool, groups, rows);
  return y;
}

// One row through one expert by the table's own operations.
std::vector<float> OneRow(const Ops& ops, const FfnWeights& w, const float* x) {
  std::vector<float> gate(w.gate.out), up(w.up.out), y(w.down.out);
  Gemm(ops, nullptr, w.gate, {x, w.gate.in, 1}, {gate.data(), gate.size(), 1});
  Gemm(ops, nullptr, w.up, {x, w.up.in, 1}, {up.data(), up.size(), 1});
  ops.gated(w.activation, gate.data(), up.data(), w.gate.out, gate.data());
  Gemm(ops, nullptr, w.down, {gate.data(), w.down.in, 1}, {y.data(), y.size(), 1});
  return y;
}

std::vector<size_t> Straight(size_t n) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  return order;
}

TEST_P(GroupedFfnTest, EqualsTheReferenceRowByRowForEveryGrouping) {
  for (DType dtype : {DType::kBf16, DType::kF32}) {
    for (const auto& [hidden, inter] : {std::pair{16u, 16u}, {33u, 50u}, {100u, 17u}}) {
      const Experts experts(hidden, inter, 4, dtype,
                            dtype == DType::kF32 ? Activation::kGeluTanh : Activation::kSilu);
      for (const std::vector<uint32_t>& counts :
           {std::vector<uint32_t>{1, 1, 1, 1}, {0, 9, 0, 2}, {33, 0, 0, 0}, {0, 0, 0, 0}, {2, 3, 16, 5}}) {
        const size_t n = std::accumulate(counts.begin(), counts.end(), size_t{0});
        const std::vector<float> x = TestFloats(n * hidden, n + hidden);
        GroupedFfn ffn;
        const std::vector<float> y = Apply(ops(), nullptr, experts, counts, x, Straight(n), &ffn);
        size_t row = 0;
        for (size_t e = 0; e < counts.size(); ++e) {
          for (uint32_t i = 0; i < counts[e]; ++i, ++row) {
            ASSERT_TRUE(SameBits({y.data() + row * hidden, hidden},
                                 OneRow(Ref(), experts.weights[e], x.data() + row * hidden)))
                << "expert " << e << " row " << i << " hidden " << hidden << " inter " << inter;
          }
        }
      }
    }
  }
}

TEST_P(GroupedFfnTest, ScatteredRowsPoolSizeAndAUsedWorkspaceDoNotShow) {
  const Experts experts(200, 330, 3);
  const std::vector<uint32_t> counts = {7, 1, 12};
  const std::vector<float> x = TestFloats(20 * 200, 1);
  // The same rows of each expert, listed in an order without a stride: their memory does not move.
  std::vector<size_t> mixed = Straight(20);
  std::swap(mixed[1], mixed[5]);
  std::swap(mixed[9], mixed[18]);
  GroupedFfn fresh;
  const std::vector<float> want = Apply(ops(), nullptr, experts, counts, x, Straight(20), &fresh);
  for (uint32_t threads : {1, 2, 3}) {
    KernelPool pool(threads);
    GroupedFfn ffn;
    for (int repeat = 0; repeat < 2; ++repeat) {
      EXPECT_TRUE(SameBits(Apply(ops(), &pool, experts, counts, x, Straight(20), &ffn), want)) << threads;
      EXPECT_TRUE(SameBits(Apply(ops(), &pool, experts, counts, x, mixed, &ffn), want)) << threads;
    }
  }
}

TEST_P(GroupedFfnTest, IsCloseToDouble) {
  const uint32_t hidden = 64, inter = 48;
  const TestMatrix gate(DType::kF32, inter, hidden, 1), up(DType::kF32, inter, hidden, 2),
      down(DType::kF32, hidden, inter, 3);
  FfnWeights w;
  w.gate = PackF32(gate.values, inter, hidden);
  w.up = PackF32(up.values, inter, hidden);
  w.down = PackF32(down.values, hidden, inter);
  std::vector<float> x = TestFloats(hidden, 4);
  for (float& v : x) v = std::min(3.0f, std::max(-3.0f, v)) * 0.01f;
  const std::vector<float> y = OneRow(ops(), w, x.data());
  std::vector<double> a(inter), size(inter);
  for (uint32_t i = 0; i < inter; ++i) {
    double g = 0, u = 0, gs = 0, us = 0;
    for (uint32_t k = 0; k < hidden; ++k) {
      g += static_cast<double>(x[k]) * gate.values[i * hidden + k];
      u += static_cast<double>(x[k]) * up.values[i * hidden + k];
      gs += std::abs(static_cast<double>(x[k]) * gate.values[i * hidden + k]);
      us += std::abs(static_cast<double>(x[k]) * up.values[i * hidden + k]);
    }
    a[i] = g / (1 + std::exp(-g)) * u;
    size[i] = gs * us;  // bounds |a| and, times the relative error of the sums, its error
  }
  for (uint32_t c = 0; c < hidden; ++c) {
    double want = 0, magnitude = 0;
    for (uint32_t i = 0; i < inter; ++i) {
      want += a[i] * down.values[c * inter + i];
      magnitude += size[i] * std::abs(static_cast<double>(down.values[c * inter + i]));
    }
    EXPECT_NEAR(y[c], want, magnitude * (2.2 * hidden + inter + 8) * 0x1p-24 + 1e-37);
  }
}

}  // namespace
}  // namespace consilium::kernels
