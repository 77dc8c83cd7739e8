#include "common/exec/kernel_pool.h"
#include "kernels/api/test_support.h"

namespace consilium::kernels {
namespace {

class AttentionTest : public EveryTable {};
INSTANTIATE_TEST_SUITE_P(Tables, AttentionTest, testing::ValuesIn(TablesUnderTest()), TableName);

// Wild values make the softmax one-hot, which hides wrong folds: `limit` bounds queries and keys.
std::vector<float> Bounded(size_t n, uint64_t seed, float limit) {
  std::vector<float> v = TestFloats(n, seed);
  for (float& x : v) x = std::min(limit, std::max(-limit, x));
  return v;
}

std::vector<float> Queries(const AttentionShape& s, size_t rows, uint64_t seed, float limit = 2.0f) {
  return Bounded(rows * s.q_heads * s.k_dim, seed, limit);
}

// Keys and values of `tokens` tokens in pages scattered through a pool of pages.
struct Cache {
  AttentionShape shape;
  uint32_t tokens;
  std::vector<float> k, v;  // [tokens][kv_heads * dim], as written
  std::vector<float> k_pool, v_pool;
  std::vector<const float*> k_pages, v_pages;

  Cache(const Ops& ops, AttentionShape s, uint32_t n, uint64_t seed, bool reversed_pages, float limit = 2.0f)
      : shape(s), tokens(n) {
    k = Bounded(size_t{n} * s.kv_heads * s.k_dim, seed, limit);
    v = TestFloats(size_t{n} * s.kv_heads * s.v_dim, seed + 1);
    const uint32_t pages = (n + kKvPageTokens - 1) / kKvPageTokens;
    k_pool.assign(pages * s.page_k_floats(), 0.0f);
    v_pool.assign(pages * s.page_v_floats(), 0.0f);
    std::vector<float*> kp, vp;
    for (uint32_t p = 0; p < pages; ++p) {
      const uint32_t at = reversed_pages ? pages - 1 - p : p;
      kp.push_back(k_pool.data() + at * s.page_k_floats());
      vp.push_back(v_pool.data() + at * s.page_v_floats());
    }
    for (uint32_t t = 0; t < n; ++t) {
      ops.kv_write(s, k.data() + size_t{t} * s.kv_heads * s.k_dim,
                   v.data() + size_t{t} * s.kv_heads * s.v_dim, t % kKvPageTokens, kp[t / kKvPageTokens],
                   vp[t / kKvPageTokens]);
    }
    k_pages.assign(kp.begin(), kp.end());
    v_pages.assign(vp.begin(), vp.end());
  }
};

std::vector<float> Apply(const Ops& ops, const Cache& c, const std::vector<float>& q,
                         std::vector<uint32_t> positions, KernelPool* pool = nullptr) {
  const size_t qs = size_t{c.shape.q_heads} * c.shape.k_dim, os = size_t{c.shape.q_heads} * c.shape.v_dim;
  std::vector<float> out(positions.size() * os, -7.0f);
  std::vector<AttentionRow> rows;
  for (size_t r = 0; r < positions.size(); ++r) {
    rows.push_back(
        {q.data() + r * qs, out.data() + r * os, positions[r], c.k_pages.data(), c.v_pages.data()});
  }
  Attention(ops, pool, c.shape, rows);
  return out;
}

constexpr float kSinks[16] = {0.5f, -3.0f, 20.0f, -0.0f, 1.0f, 2.0f, -100.0f, 4.0f, 0.25f};

const std::vector<AttentionShape>& Shapes() {
  static const std::vector<AttentionShape> shapes = {{1, 1, 1, 1, 1.0f, 0},
                                                     {4, 2, 16, 16, 0.25f, 0},
                                                     {8, 8, 32, 32, 0.2f, 0},
                                                     {7, 1, 40, 24, 0.15f, 0},
                                                     {14, 2, 20, 20, 0.22f, 0},
                                                     {16, 1, 72, 64, 0.11f, 0},
                                                     {9, 3, 33, 17, 0.17f, 0},
                                                     {4, 4, 16, 16, 0.25f, 1},
                                                     {4, 2, 16, 16, 0.25f, 50},
                                                     {13, 1, 48, 100, 0.1f, 64},
                                                     {32, 8, 64, 64, 0.125f, 129},
                                                     // chunks, caps and sinks, alone and together
                                                     {4, 2, 16, 16, 0.25f, 0, 16},
                                                     {6, 3, 24, 24, 0.2f, 50, 70},
                                                     {4, 2, 16, 16, 0.25f, 0, 0, 3.0f},
                                                     {8, 2, 16, 16, 0.25f, 8, 0, 0, kSinks},
                                                     {9, 3, 20, 20, 0.3f, 100, 96, 1.5f, kSinks}};
  return shapes;
}

TEST_P(AttentionTest, EqualsTheReferenceInEveryBitForEveryShapeAndLength) {
  for (const AttentionShape& shape : Shapes()) {
    const Cache mild(ops(), shape, 210, 3, false), wild(ops(), shape, 210, 3, false, 1e4f);
    for (uint32_t position :
         {0u, 1u, 14u, 15u, 16u, 17u, 47u, 62u, 63u, 64u, 65u, 127u, 128u, 200u, 208u, 209u}) {
      const Cache& cache = position % 4 == 1 ? wild : mild;
      const std::vector<float> q = Queries(shape, 1, position);
      ASSERT_TRUE(SameBits(Apply(ops(), cache, q, {position}), Apply(Ref(), cache, q, {position})))
          << "heads " << shape.q_heads << "/" << shape.kv_heads << " k " << shape.k_dim << " v "
          << shape.v_dim << " window " << shape.window << " position " << position;
    }
  }
}

TEST_P(AttentionTest, PagingBatchAndPoolSizeDoNotShow) {
  const AttentionShape shape{8, 2, 64, 48, 0.125f, 0};
  const Cache straight(ops(), shape, 300, 5, false), reversed(ops(), shape, 300, 5, true);
  const std::vector<uint32_t> positions = {299, 0, 64, 63, 128, 17, 255};
  const std::vector<float> q = Queries(shape, positions.size(), 6);
  const size_t qs = size_t{shape.q_heads} * shape.k_dim, os = size_t{shape.q_heads} * shape.v_dim;
  const std::vector<float> all = Apply(ops(), straight, q, positions);
  for (size_t r = 0; r < positions.size(); ++r) {
    const std::vector<float> alone =
        Apply(ops(), straight, {q.begin() + r * qs, q.begin() + (r + 1) * qs}, {positions[r]});
    EXPECT_TRUE(SameBits({all.data() + r * os, os}, alone)) << "row " << r;
  }
  EXPECT_TRUE(SameBits(Apply(ops(), reversed, q, positions), all));
  for (uint32_t threads : {1, 2, 3}) {
    KernelPool pool(threads);
    EXPECT_TRUE(SameBits(Apply(ops(), straight, q, positions, &pool), all)) << threads << " threads";
    EXPECT_TRUE(SameBits(Apply(ops(), straight, q, {299}, &pool), Apply(ops(), straight, q, {299})));
  }
}

TEST_P(AttentionTest, KeysThatAreNotVisibleAreNeverRead) {
  AttentionShape shape{4, 2, 16, 16, 0.25f, 20};
  Cache cache(ops(), shape, 200, 7, false);
  const std::vector<float> q = Queries(shape, 1, 8);
  const std::vector<float> want = Apply(ops(), cache, q, {120});
  // Keys 0..100 are outside the window, 121.. in the future: poison them, and take away whole pages.
  const auto poison = [&](uint32_t t) {
    for (size_t h = 0; h < shape.kv_heads; ++h) {
      const uint32_t p = t / kKvPageTokens, slot = t % kKvPageTokens;
      for (size_t d = 0; d < shape.k_dim; ++d) {
        cache.k_pool[p * shape.page_k_floats() + (h * shape.k_dim + d) * kKvPageTokens + slot] = NAN;
      }
      for (size_t c = 0; c < shape.v_dim; ++c) {
        cache.v_pool[p * shape.page_v_floats() + (h * kKvPageTokens + slot) * shape.v_dim + c] = NAN;
      }
    }
  };
  for (uint32_t t = 0; t <= 100; ++t) poison(t);
  for (uint32_t t = 121; t < 200; ++t) poison(t);
  for (uint32_t p = 0; p < cache.k_pages.size(); ++p) {
    if (p < 101 / 16 || p > 120 / 16) cache.k_pages[p] = cache.v_pages[p] = nullptr;
  }
  EXPECT_TRUE(SameBits(Apply(ops(), cache, q, {120}), want));
  EXPECT_TRUE(SameBits(Apply(Ref(), cache, q, {120}), want));
}

TEST_P(AttentionTest, AWindowOfOneReturnsTheTokensOwnValue) {
  const AttentionShape shape{2, 2, 8, 8, 0.3f, 1};
  const Cache cache(ops(), shape, 100, 9, false);
  const std::vector<float> out = Apply(ops(), cache, Queries(shape, 1, 10), {77});
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(out[i], cache.v[77 * 16 + i] * 1.0f + 0.0f);
}

TEST_P(AttentionTest, IsCloseToDouble) {
  for (const AttentionShape& shape : Shapes()) {
    Cache cache(ops(), shape, 150, 11, false);
    const std::vector<float> q = Queries(shape, 1, 12);
    const uint32_t position = 149;
    const std::vector<float> out = Apply(ops(), cache, q, {position});
    for (uint32_t h = 0; h < shape.q_heads; ++h) {
      const uint32_t kv = h / (shape.q_heads / shape.kv_heads);
      uint32_t begin = 0;
      while ((shape.window != 0 && position - begin >= shape.window) ||
             (shape.chunk != 0 && begin / shape.chunk != position / shape.chunk)) {
        ++begin;
      }
      std::vector<double> s;
      double max = -INFINITY, size = 0;
      for (uint32_t t = begin; t <= position; ++t) {
        double dot = 0;
        for (uint32_t d = 0; d < shape.k_dim; ++d) {
          const double a = q[h * shape.k_dim + d],
                       b = cache.k[(size_t{t} * shape.kv_heads + kv) * shape.k_dim + d];
          dot += a * b;
          size = std::max(size, std::abs(a * b));
        }
        s.push_back(dot * shape.scale);
        if (shape.soft_cap != 0) s.back() = shape.soft_cap * std::tanh(s.back() / shape.soft_cap);
        max = std::max(max, s.back());
      }
      double sum = 0;
      if (shape.sinks != nullptr) {
        max = std::max<double>(max, shape.sinks[h]);
        sum = std::exp(shape.sinks[h] - max);
      }
      for (double& x : s) sum += x = std::exp(x - max);
      for (uint32_t c = 0; c < shape.v_dim; ++c) {
        double want = 0, magnitude = 0;
        for (size_t j = 0; j < s.size(); ++j) {
          const double v = cache.v[(size_t{begin + j} * shape.kv_heads + kv) * shape.v_dim + c];
          want += s[j] / sum * v;
          magnitude += s[j] / sum * std::abs(v);
        }
        // A score is off by up to k_dim roundings of its largest term, and moves its weight by that factor.
        const double score_error = size * shape.scale * shape.k_dim * 0x1p-24;
        EXPECT_NEAR(out[h * shape.v_dim + c], want, magnitude * (2 * score_error + 300 * 0x1p-24) + 1e-37);
      }
    }
  }
}

}  // namespace
}  // namespace consilium::kernels
