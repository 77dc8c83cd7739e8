// The class fingerprint: every operation over fixed vectors, its output bits hashed.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/base/hash.h"
#include "kernels/api/kernels.h"
#include "kernels/api/numerics.h"

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

  // ggml blocks with finite scales, or fp8 codes.
  std::vector<std::byte> Blocks(WeightFormat format, uint32_t out, uint32_t in) {
    const size_t inputs = GranularityK(format) == 256 ? 256 : 32;
    const size_t bytes = format == WeightFormat::kFp8 ? 32 : GgufBlockBytes(format);
    std::vector<std::byte> v(size_t{out} * in / inputs * bytes);
    for (size_t i = 0; i < v.size(); ++i) {
      const uint64_t h = Mix(0x18, ++count_);
      const size_t at = i % bytes;
      const size_t scale = ScaleAt(format);
      v[i] = static_cast<std::byte>(h);
      if (format == WeightFormat::kFp8) v[i] = static_cast<std::byte>(h % 0x7F | (h & 0x80));
      if (format == WeightFormat::kMxfp4 && at == 0) v[i] = static_cast<std::byte>(118 + h % 8);
      // The upper byte of an f16: 2^-9 .. 2^-4, signed.
      const bool half = at == scale + 1 || (at == scale + 3 && HasMinimum(format));
      if (format >= WeightFormat::kQ8_0 && half) v[i] = static_cast<std::byte>((6 + h % 5) << 2 | (h & 0x80));
    }
    return v;
  }

 private:
  static bool HasMinimum(WeightFormat f) {
    return f == WeightFormat::kQ4_1 || f == WeightFormat::kQ5_1 || f == WeightFormat::kQ4K ||
           f == WeightFormat::kQ5K || f == WeightFormat::kQ2K;
  }
  static size_t ScaleAt(WeightFormat f) {  // the first byte of a ggml block's f16
    return f == WeightFormat::kQ6K ? 208 : f == WeightFormat::kQ3K ? 108 : f == WeightFormat::kQ2K ? 80 : 0;
  }
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
  for (Activation act : {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
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

void CheckNormsAndClamps(const Ops& ops, Vectors* in, Hash* hash) {
  const uint32_t n = 77;
  const std::vector<float> a = in->Floats(n), b = in->Floats(n), c = in->Floats(n);
  std::vector<float> out(n);
  ops.layer_norm({a.data(), n, 1}, b.data(), c.data(), n, 1e-5f, {out.data(), n, 1});
  hash->Add(out);
  ops.layer_norm({a.data(), n, 1}, b.data(), nullptr, n, 1e-5f, {out.data(), n, 1});
  hash->Add(out);
  ops.swiglu_clamped(a.data(), b.data(), 1.702f, 7.0f, n, out.data());
  hash->Add(out);
}

void CheckDelta(const Ops& ops, Vectors* in, Hash* hash) {
  const size_t tokens = 5;
  for (const uint32_t v_dim : {37u, 128u}) {
    DeltaRule d;
    d.k_dim = 24;
    d.v_dim = v_dim;
    d.tokens = tokens;
    const std::vector<float> q = in->Floats(tokens * d.k_dim), k = in->Floats(tokens * d.k_dim),
                             v = in->Floats(tokens * v_dim), decay = in->Floats(tokens),
                             beta = in->Floats(tokens);
    std::vector<float> first(d.state_floats()), second(d.state_floats()), y(tokens * v_dim);
    d.q = q.data(), d.k = k.data(), d.v = v.data(), d.decay = decay.data(), d.beta = beta.data();
    d.q_stride = d.k_stride = d.k_dim;
    d.v_stride = d.y_stride = v_dim;
    d.decay_stride = d.beta_stride = 1;
    d.y = y.data();
    d.state_out = first.data();
    ops.delta(d);
    hash->Add(y);  // and what follows from the state: lanes beyond v_dim hold zeros of either sign
    d.state_in = first.data();
    d.state_out = second.data();
    ops.delta(d);
    hash->Add(y);
  }
  std::vector<float> ramp(400);
  for (size_t i = 0; i < ramp.size(); ++i)
    ramp[i] = numerics::Softplus(static_cast<float>(i) * 0.5f - 100.0f);
  hash->Add(ramp);
}

// A matrix of every format: bytes from the stream, scales in a sane range.
PackedMatrix Quantised(WeightFormat format, uint32_t out, uint32_t in, Vectors* v) {
  WeightSource s;
  const std::vector<float> wide = v->Floats(size_t{out} * in);
  s.out = out;
  s.in = in;
  s.format = WeightFormat::kF32;
  s.values = std::as_bytes(std::span<const float>(wide));
  if (format == WeightFormat::kInt8 || format == WeightFormat::kInt4) {
    QuantError error;
    return PackQuantized(s, format, DType::kF16, &error).value();
  }
  const std::vector<std::byte> bytes = v->Blocks(format, out, in);
  s.format = format;
  s.layout = format == WeightFormat::kFp8 ? WeightSource::Layout::kPlain : WeightSource::Layout::kGguf;
  s.values = bytes;
  s.group = 128;
  const std::vector<float> scales((out + 127) / 128 * ((in + 127) / 128), 0.0371f);
  if (format == WeightFormat::kFp8) s.scales = std::as_bytes(std::span<const float>(scales));
  return Pack(s).value();
}

void CheckPacked(const Ops& ops, NumericsClass c, Vectors* in, Hash* hash) {
  for (WeightFormat format :
       {WeightFormat::kFp8, WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kMxfp4,
        WeightFormat::kQ8_0, WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ5_0,
        WeightFormat::kQ5_1, WeightFormat::kQ4K, WeightFormat::kQ5K, WeightFormat::kQ6K, WeightFormat::kIq4Nl,
        WeightFormat::kQ2K, WeightFormat::kQ3K, WeightFormat::kIq4Xs}) {
    const uint32_t out = 35, k = 256;
    const PackedMatrix w = Quantised(format, out, k, in);
    for (size_t rows : {1, 3, 9}) {
      const std::vector<float> x = in->Floats(rows * k);
      std::vector<float> y(rows * out);
      Gemm(ops, nullptr, c, w, {x.data(), k, rows}, {y.data(), out, rows});
      hash->Add(y);
    }
  }
}

}  // namespace

uint64_t Fingerprint(const Ops& ops, NumericsClass c) {
  Vectors in;
  Hash hash;
  hash.Add(std::vector<uint64_t>{Fingerprint(ops)});
  CheckPacked(ops, c, &in, &hash);
  return hash.value();
}

uint64_t Fingerprint(const Ops& ops) {
  Vectors in;
  Hash hash;
  CheckGemm(ops, &in, &hash);
  CheckRows(ops, &in, &hash);
  CheckRope(ops, &in, &hash);
  CheckAttention(ops, &in, &hash, {6, 2, 24, 24, 0.2f, 0});    // grouped queries
  CheckAttention(ops, &in, &hash, {4, 4, 16, 16, 0.25f, 70});  // a window
  CheckAttention(ops, &in, &hash, {11, 1, 40, 27, 0.17f, 0});  // absorbed MLA, a tail
  CheckNormsAndClamps(ops, &in, &hash);
  constexpr float kSinks[6] = {0.5f, -3.0f, 20.0f, 0.0f, 1.0f, -100.0f};
  CheckAttention(ops, &in, &hash, {6, 2, 24, 24, 0.2f, 90, 60, 2.5f, kSinks});
  CheckDelta(ops, &in, &hash);
  return hash.value();
}

}  // namespace consilium::kernels
