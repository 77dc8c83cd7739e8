// The class fingerprint: every operation over fixed vectors, its output bits hashed.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/base/hash.h"
#include "kernels/api/kernels.h"

namespace consilium::kernels {
namespace {

// Fixed pseudo-random floats: signs, a spread of magnitudes, now and then a denormal or a zero. From integer
// hashes and exact scalings only.
class Vectors {
 public:
  float Next() {
    const uint64_t h = Mix(0xF32, ++count_);
    if (h % 61 == 0) return 0.0f;
    if (h % 67 == 0) return __builtin_bit_cast(float, static_cast<uint32_t>(h >> 41));  // denormal
    const float unit = static_cast<float>(static_cast<int32_t>(h >> 40) - (1 << 23)) * 0x1p-23f;
    const int magnitude = static_cast<int>((h >> 8) % 7);
    return unit * (magnitude < 5 ? 1.0f : magnitude == 5 ? 16.0f : 0x1p-12f);
  }
  std::vector<float> Floats(size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = Next();
    return v;
  }
  std::vector<uint16_t> Bf16(size_t n) {
    std::vector<uint16_t> v(n);
    for (uint16_t& x : v) x = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, Next()) >> 16);
    return v;
  }

 private:
  uint64_t count_ = 0;
};

class Hash {
 public:
  template <class T>
  void Add(const std::vector<T>& v) {
    value_ = Mix(value_, Xxh3(std::as_bytes(std::span<const T>(v))));
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0;
};

void CheckGemm(const Ops& ops, Vectors* in, Hash* hash) {
  const uint32_t out = 83, k = 129;
  const PackedMatrix wide = PackF32(in->Floats(size_t{out} * k), out, k);
  const std::vector<uint16_t> half = in->Bf16(size_t{out} * k);
  const PackedMatrix narrow = Pack(DType::kBf16, reinterpret_cast<const std::byte*>(half.data()), out, k);
  const std::vector<float> bias = in->Floats(out);
  for (size_t rows : {1, 2, 3, 5, 9, 17}) {
    const std::vector<float> x = in->Floats(rows * k);
    std::vector<float> y(rows * out);
    ops.gemm(wide, {x.data(), k, rows}, {y.data(), out, rows}, 0, wide.panels(), nullptr);
    hash->Add(y);
    ops.gemm(narrow, {x.data(), k, rows}, {y.data(), out, rows}, 0, narrow.panels(), bias.data());
    hash->Add(y);
  }
}

void CheckRows(const Ops& ops, Vectors* in, Hash* hash) {
  const uint32_t n = 77;
  const std::vector<float> a = in->Floats(n), b = in->Floats(n), c = in->Floats(n), d = in->Floats(n);
  std::vector<float> out(n);
  ops.rms_norm({a.data(), n, 1}, b.data(), n, 1e-6f, {out.data(), n, 1});
  hash->Add(out);
  for (Activation act : {Activation::kSilu, Activation::kGeluTanh}) {
    ops.gated(act, a.data(), b.data(), n, out.data());
    hash->Add(out);
  }
  const float* slots[] = {b.data(), c.data()};
  const float weights[] = {0.3f, 0.7f};
  ops.combine(a.data(), d.data(), slots, weights, 2, n, out.data());
  hash->Add(out);
  ops.combine(a.data(), nullptr, slots, weights, 2, n, out.data());
  hash->Add(out);
  ops.add(a.data(), b.data(), n, out.data());
  hash->Add(out);
  for (bool sigmoid : {false, true}) {
    ops.scores(sigmoid, a.data(), 0.5f, n, out.data());
    hash->Add(out);
  }
  std::vector<float> ramp(400);  // exp and sigmoid over their whole range
  for (size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<float>(i) * 0.5f - 100.0f;
  std::vector<float> image(ramp.size());
  for (bool sigmoid : {false, true}) {
    ops.scores(sigmoid, ramp.data(), 0.0f, static_cast<uint32_t>(ramp.size()), image.data());
    hash->Add(image);
  }
  std::vector<double> mass(ramp.size());
  ops.weights(ramp.data(), 99.5, 0.7, static_cast<uint32_t>(ramp.size()), mass.data());
  hash->Add(mass);
}

void CheckRope(const Ops& ops, Vectors* in, Hash* hash) {
  const uint32_t n = 46;
  std::vector<float> inverse(n / 2), cos(n / 2), sin(n / 2);
  for (size_t i = 0; i < inverse.size(); ++i) inverse[i] = 1.0f / static_cast<float>(1 + 7 * i * i);
  for (uint32_t position : {0u, 1u, 4097u, 1000003u}) {
    RopeRow(inverse, position, 1.25f, cos.data(), sin.data());
    hash->Add(cos);
    hash->Add(sin);
    for (bool interleaved : {false, true}) {
      std::vector<float> x = in->Floats(n);
      ops.rope(x.data(), n, interleaved, cos.data(), sin.data());
      hash->Add(x);
    }
  }
}

void CheckAttention(const Ops& ops, Vectors* in, Hash* hash, AttentionShape shape) {
  const uint32_t tokens = 150, pages = (tokens + kKvPageTokens - 1) / kKvPageTokens;
  std::vector<float> k_data(pages * shape.page_k_floats()), v_data(pages * shape.page_v_floats());
  std::vector<const float*> k_pages, v_pages;
  for (uint32_t p = 0; p < pages; ++p) {
    k_pages.push_back(k_data.data() + p * shape.page_k_floats());
    v_pages.push_back(v_data.data() + p * shape.page_v_floats());
  }
  for (uint32_t t = 0; t < tokens; ++t) {
    const std::vector<float> k = in->Floats(shape.kv_heads * shape.k_dim),
                             v = in->Floats(shape.kv_heads * shape.v_dim);
    const uint32_t p = t / kKvPageTokens;
    ops.kv_write(shape, k.data(), v.data(), t % kKvPageTokens, k_data.data() + p * shape.page_k_floats(),
                 v_data.data() + p * shape.page_v_floats());
  }
  hash->Add(k_data);
  hash->Add(v_data);
  std::vector<float> scratch(AttentionScratchFloats(shape));
  for (uint32_t position : {0u, 15u, 16u, 63u, 64u, 100u, 149u}) {
    const std::vector<float> q = in->Floats(size_t{shape.q_heads} * shape.k_dim);
    std::vector<float> out(size_t{shape.q_heads} * shape.v_dim);
    const AttentionRow row{q.data(), out.data(), position, k_pages.data(), v_pages.data()};
    ops.attention(shape, &row, 1, 0, shape.q_heads, scratch.data());
    hash->Add(out);
  }
}

}  // namespace

uint64_t Fingerprint(const Ops& ops) {
  Vectors in;
  Hash hash;
  CheckGemm(ops, &in, &hash);
  CheckRows(ops, &in, &hash);
  CheckRope(ops, &in, &hash);
  CheckAttention(ops, &in, &hash, {6, 2, 24, 24, 0.2f, 0});    // grouped queries
  CheckAttention(ops, &in, &hash, {4, 4, 16, 16, 0.25f, 70});  // a window
  CheckAttention(ops, &in, &hash, {11, 1, 40, 27, 0.17f, 0});  // absorbed MLA, a tail
  return hash.value();
}

}  // namespace consilium::kernels
