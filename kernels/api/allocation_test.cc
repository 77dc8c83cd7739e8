// Kernels allocate nothing in steady state: operator new is counted.
#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "common/exec/kernel_pool.h"
#include "kernels/api/test_support.h"

namespace {
std::atomic<size_t> allocations{0};
}  // namespace

#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // new and delete are both replaced here
void* operator new(size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* p = std::malloc(n)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace consilium::kernels {
namespace {

TEST(Allocation, DriversAllocateNothingOnceTheirWorkspaceHasGrown) {
  const Ops& ops = *FindOps("auto").value();
  KernelPool pool(2);
  const uint32_t hidden = 256, inter = 512, rows = 12;
  FfnWeights w;
  w.gate = TestMatrix(DType::kBf16, inter, hidden, 1).packed;
  w.up = TestMatrix(DType::kBf16, inter, hidden, 2).packed;
  w.down = TestMatrix(DType::kBf16, hidden, inter, 3).packed;
  const AttentionShape shape{8, 2, 64, 64, 0.125f, 0};
  const std::vector<float> x = TestFloats(rows * hidden, 4), norm = TestFloats(hidden, 5);
  const std::vector<float> k(20 * shape.page_k_floats(), 0.5f), v(20 * shape.page_v_floats(), 0.25f);
  std::vector<float> y(rows * hidden), logits(rows * inter), out(rows * 8 * 64), q(rows * 8 * 64, 0.1f);
  std::vector<const float*> k_pages, v_pages;
  for (size_t p = 0; p < 20; ++p) {
    k_pages.push_back(k.data() + p * shape.page_k_floats());
    v_pages.push_back(v.data() + p * shape.page_v_floats());
  }
  std::vector<FfnRow> ffn_rows;
  std::vector<AttentionRow> queries;
  for (size_t i = 0; i < rows; ++i) {
    const size_t at = (i * 5) % rows;
    ffn_rows.push_back({x.data() + at * hidden, y.data() + at * hidden});
    queries.push_back({q.data() + i * 512, out.data() + i * 512, 300, k_pages.data(), v_pages.data()});
  }
  const std::vector<FfnGroup> groups = {{&w, 0, 5}, {&w, 5, 7}};
  GroupedFfn ffn;
  const auto step = [&] {
    RmsNorm(ops, &pool, {x.data(), hidden, rows}, norm.data(), hidden, 1e-6f, {y.data(), hidden, rows});
    Gemm(ops, &pool, w.gate, {x.data(), hidden, rows}, {logits.data(), inter, rows});
    Attention(ops, &pool, shape, queries);
    ffn.Run(ops, &pool, groups, ffn_rows);
  };
  // Each thread grows its attention scratch at its first item: one item per thread, held until all have one.
  std::atomic<uint32_t> here{0};
  pool.ParallelFor(pool.threads(), [&](size_t, uint32_t) {
    here.fetch_add(1);
    while (here.load() < pool.threads()) std::this_thread::yield();
    Attention(ops, nullptr, shape, queries);
  });
  step();
  const size_t before = allocations.load();
  for (int i = 0; i < 50; ++i) step();
  EXPECT_EQ(allocations.load(), before);
}

}  // namespace
}  // namespace consilium::kernels
