#include "common/exec/kernel_pool.h"
#include "kernels/api/test_support.h"

namespace consilium::kernels {
namespace {

class DeltaRuleTest : public EveryTable {};
INSTANTIATE_TEST_SUITE_P(Tables, DeltaRuleTest, testing::ValuesIn(TablesUnderTest()), TableName);

struct Sizes {
  uint32_t k_dim, v_dim;
};
constexpr Sizes kSizes[] = {{1, 1}, {7, 15}, {16, 16}, {5, 17}, {128, 128}, {24, 80}, {33, 100}, {256, 65}};

std::vector<float> Unit(size_t n, uint64_t seed) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = 0.5f + 0.499f * std::sin(static_cast<float>(seed * 31 + i));
  return v;
}

// `heads` heads over `tokens` tokens, with rows that lie apart as those of a projection do.
struct Work {
  Sizes size;
  size_t heads, tokens;
  std::vector<float> q, k, v, decay, beta, y;

  Work(Sizes s, size_t h, size_t t, uint64_t seed)
      : size(s),
        heads(h),
        tokens(t),
        q(TestFloats(t * h * s.k_dim, seed)),
        k(TestFloats(t * h * s.k_dim, seed + 1)),
        v(TestFloats(t * h * s.v_dim, seed + 2)),
        decay(Unit(t * h, seed + 3)),
        beta(Unit(t * h, seed + 4)),
        y(t * h * s.v_dim, -7.0f) {
    // As the model has it: keys and queries of length about one.
    for (float& x : k) x = std::min(1.0f, std::max(-1.0f, x)) / std::sqrt(static_cast<float>(s.k_dim));
    for (float& x : q) x = std::min(1.0f, std::max(-1.0f, x)) / std::sqrt(static_cast<float>(s.k_dim));
  }
  size_t state_floats() const {
    DeltaRule d;
    d.k_dim = size.k_dim, d.v_dim = size.v_dim;
    return d.state_floats();
  }
  // Head h over tokens [begin, end).
  DeltaRule Head(size_t h, size_t begin, size_t end, const float* in, float* out) {
    DeltaRule d;
    d.k_dim = size.k_dim, d.v_dim = size.v_dim;
    d.tokens = end - begin;
    d.state_in = in, d.state_out = out;
    d.q_stride = d.k_stride = heads * size.k_dim;
    d.v_stride = d.y_stride = heads * size.v_dim;
    d.decay_stride = d.beta_stride = heads;
    d.q = q.data() + begin * d.q_stride + h * size.k_dim;
    d.k = k.data() + begin * d.k_stride + h * size.k_dim;
    d.v = v.data() + begin * d.v_stride + h * size.v_dim;
    d.y = y.data() + begin * d.y_stride + h * size.v_dim;
    d.decay = decay.data() + begin * heads + h;
    d.beta = beta.data() + begin * heads + h;
    return d;
  }
  // All heads, the tokens cut into chunks; the states after the last one.
  std::vector<float> Run(const Ops& ops, KernelPool* pool, size_t chunk) {
    std::vector<float> state[2] = {std::vector<float>(heads * state_floats(), NAN),
                                   std::vector<float>(heads * state_floats(), NAN)};
    int now = 0;
    for (size_t begin = 0; begin < tokens; begin += chunk, now = 1 - now) {
      std::vector<DeltaRule> all;
      for (size_t h = 0; h < heads; ++h) {
        const float* in = begin == 0 ? nullptr : state[1 - now].data() + h * state_floats();
        all.push_back(
            Head(h, begin, std::min(tokens, begin + chunk), in, state[now].data() + h * state_floats()));
      }
      const std::vector<float> before = state[1 - now];
      ApplyDeltaRule(ops, pool, all);
      EXPECT_TRUE(SameBits(before, state[1 - now])) << "the state it reads was changed";
    }
    return state[1 - now];
  }
};

TEST_P(DeltaRuleTest, EqualsTheReferenceInEveryBit) {
  for (const Sizes size : kSizes) {
    Work got(size, 3, 9, size.k_dim), want(size, 3, 9, size.k_dim);
    const std::vector<float> state = got.Run(ops(), nullptr, 4), truth = want.Run(Ref(), nullptr, 4);
    EXPECT_TRUE(SameBits(state, truth)) << size.k_dim << "x" << size.v_dim;
    EXPECT_TRUE(SameBits(got.y, want.y)) << size.k_dim << "x" << size.v_dim;
  }
}

TEST_P(DeltaRuleTest, ChunksAndPoolSizeDoNotShow) {
  const Sizes size{64, 72};
  Work whole(size, 6, 40, 3);
  const std::vector<float> state = whole.Run(ops(), nullptr, 40);
  for (size_t chunk : {1, 7, 16}) {
    for (uint32_t threads : {1, 2, 3}) {
      KernelPool pool(threads);
      Work cut(size, 6, 40, 3);
      EXPECT_TRUE(SameBits(cut.Run(ops(), &pool, chunk), state)) << chunk << ", " << threads << " threads";
      EXPECT_TRUE(SameBits(cut.y, whole.y)) << chunk << ", " << threads << " threads";
    }
  }
}

// The formula in double, the state decayed before it is read: an update in another order is far off.
TEST_P(DeltaRuleTest, IsCloseToDouble) {
  const Sizes size{48, 20};
  Work w(size, 1, 30, 5);
  for (float& x : w.v) x = std::min(3.0f, std::max(-3.0f, x));
  const std::vector<float> state = w.Run(ops(), nullptr, 30);
  std::vector<double> s(size_t{size.k_dim} * size.v_dim);
  for (size_t t = 0; t < w.tokens; ++t) {
    const float *q = &w.q[t * size.k_dim], *k = &w.k[t * size.k_dim], *v = &w.v[t * size.v_dim];
    for (double& x : s) x *= w.decay[t];
    for (size_t c = 0; c < size.v_dim; ++c) {
      double m = 0, y = 0;
      for (size_t i = 0; i < size.k_dim; ++i) m += s[i * size.v_dim + c] * k[i];
      for (size_t i = 0; i < size.k_dim; ++i) {
        s[i * size.v_dim + c] += k[i] * w.beta[t] * (v[c] - m);
        y += s[i * size.v_dim + c] * q[i];
      }
      EXPECT_NEAR(w.y[t * size.v_dim + c], y, 2e-6);
    }
  }
  for (size_t i = 0; i < size.k_dim; ++i) {
    for (size_t c = 0; c < size.v_dim; ++c)
      EXPECT_NEAR(state[c / 16 * size.k_dim * 16 + i * 16 + c % 16], s[i * size.v_dim + c], 2e-6);
  }
}

}  // namespace
}  // namespace consilium::kernels
