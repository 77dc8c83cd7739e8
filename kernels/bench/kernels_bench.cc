// Question: how close do the CPU kernels come to what the machine can do, and how fast are weights packed?
// Bounds, both measured in the same run (bench/peaks.cc): plain read bandwidth of a 512 MiB buffer; f32 fma
// peak. Matrix products are compared with a plain read right after each of them (medians of both; `of_read`),
// since the machine may have other users. Formulas: bytes = weights (or keys and values) read once per call;
// flops = 2 * rows * out * in (6 * rows * hidden * inter for a gated FFN; 2 * heads * keys * (k_dim + v_dim)
// for attention). Weights rotate through at least 256 MiB, so every call finds them in memory, not in cache.
// Counters: GB/s, GFLOP/s, and their share of the peak of as many threads. Few rows are bound by memory, many
// by arithmetic; the bound that matters is the larger of the two shares. Run: kernels_bench
// --benchmark_repetitions=5
// --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/base/hash.h"
#include "common/exec/kernel_pool.h"
#include "kernels/api/kernels.h"
#include "kernels/bench/peaks.h"

namespace consilium::kernels {
namespace {

constexpr size_t kRotateBytes = size_t{256} << 20;

std::vector<float> Floats(size_t n) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<float>(static_cast<int>(Mix(1, i) % 2001) - 1000) * 1e-3f;
  return v;
}

PackedMatrix Matrix(DType dtype, uint32_t out, uint32_t in) {
  const std::vector<float> wide = Floats(size_t{out} * in);
  if (dtype == DType::kF32) return PackF32(wide, out, in);
  std::vector<uint16_t> half(wide.size());
  for (size_t i = 0; i < half.size(); ++i) {
    half[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, wide[i]) >> 16);
  }
  return Pack(dtype, reinterpret_cast<const std::byte*>(half.data()), out, in);
}

void Report(benchmark::State& state, uint32_t threads, double bytes, double flops) {
  using benchmark::Counter;
  const double n = static_cast<double>(state.iterations());
  state.counters["GB/s"] = Counter(n * bytes * 1e-9, Counter::kIsRate);
  state.counters["GFLOP/s"] = Counter(n * flops * 1e-9, Counter::kIsRate);
  state.counters["of_read"] = Counter(n * bytes / bench::ReadBandwidth(threads), Counter::kIsRate);
  state.counters["of_fma"] = Counter(n * flops / bench::FmaPeak(threads), Counter::kIsRate);
}

double Median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

template <class F>
double Seconds(F f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Times f(weights[i]) in turns with a plain read of another of them. State must use manual time.
template <class F>
void BesideReads(benchmark::State& state, KernelPool* pool, const std::vector<PackedMatrix>& weights,
                 double flops, F f) {
  std::vector<double> seconds, rates;
  size_t i = 0;
  bench::ReadBandwidth(pool->threads());  // finds the way to read before anything is timed
  for (auto _ : state) {
    seconds.push_back(Seconds([&] { f(weights[i % weights.size()]); }));
    state.SetIterationTime(seconds.back());
    const PackedMatrix& other = weights[(i + weights.size() / 2) % weights.size()];
    rates.push_back(bench::ReadRate(pool, {other.data.get(), other.bytes()}));
    ++i;
  }
  const double rate = static_cast<double>(weights[0].bytes()) / Median(seconds);
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["read_GB/s"] = Median(rates) * 1e-9;
  state.counters["of_read"] = rate / Median(rates);
  state.counters["GFLOP/s"] = flops / Median(seconds) * 1e-9;
  state.counters["of_fma"] = flops / Median(seconds) / bench::FmaPeak(pool->threads());
}

void BM_Peaks(benchmark::State& state) {
  const uint32_t threads = static_cast<uint32_t>(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(threads);
  state.counters["read_GB/s"] = bench::ReadBandwidth(threads) * 1e-9;
  state.counters["fma_GFLOP/s"] = bench::FmaPeak(threads) * 1e-9;
}
BENCHMARK(BM_Peaks)->ArgName("threads")->Arg(1)->Arg(2)->Iterations(1);

// Args: table (index into AvailableOps), rows, threads.
void GemmOf(benchmark::State& state, DType dtype, uint32_t out, uint32_t in) {
  const Ops& ops = *FindOps(AvailableOps()[static_cast<size_t>(state.range(0))]).value();
  const size_t rows = static_cast<size_t>(state.range(1));
  const uint32_t threads = static_cast<uint32_t>(state.range(2));
  KernelPool pool(threads);
  std::vector<PackedMatrix> weights;
  for (size_t bytes = 0; bytes < kRotateBytes; bytes += weights.back().bytes())
    weights.push_back(Matrix(dtype, out, in));
  const std::vector<float> x = Floats(rows * in);
  std::vector<float> y(rows * out);
  BesideReads(state, &pool, weights, 2.0 * static_cast<double>(rows) * out * in, [&](const PackedMatrix& w) {
    Gemm(ops, &pool, w, {x.data(), in, rows}, {y.data(), out, rows});
  });
  state.SetLabel(std::string(ops.name) + " " + std::string(DTypeName(dtype)));
}
void BM_GemvBf16(benchmark::State& state) { GemmOf(state, DType::kBf16, 4096, 4096); }
void BM_GemvF32(benchmark::State& state) { GemmOf(state, DType::kF32, 4096, 4096); }
void BM_GemmBf16(benchmark::State& state) { GemmOf(state, DType::kBf16, 2048, 2048); }

void Tables(benchmark::internal::Benchmark* b, std::vector<int64_t> rows, bool manual = false) {
  b->ArgNames({"table", "rows", "threads"})->Unit(benchmark::kMicrosecond);
  manual ? b->UseManualTime() : b->UseRealTime();
  const int64_t tables = static_cast<int64_t>(AvailableOps().size());
  for (int64_t t = tables > 2 ? 2 : 1; t < tables; ++t) {  // scalar only where there is nothing else
    for (int64_t r : rows) {
      for (int64_t threads : {1, 2}) b->Args({t, r, threads});
    }
  }
}
BENCHMARK(BM_GemvBf16)->Apply([](auto* b) { Tables(b, {1}, true); });
BENCHMARK(BM_GemvF32)->Apply([](auto* b) { Tables(b, {1}, true); });
BENCHMARK(BM_GemmBf16)->Apply([](auto* b) { Tables(b, {4, 8, 16, 64, 256}, true); });

// A matrix in a checkpoint. Its bytes repeat: what they say does not change the time.
struct Checkpoint {
  std::vector<std::byte> values, scales;
  WeightSource source;

  Checkpoint(WeightFormat format, WeightSource::Layout layout, uint32_t out, uint32_t in) {
    using L = WeightSource::Layout;
    const size_t elements = size_t{out} * in;
    source.format = format;
    source.layout = layout;
    source.out = layout == L::kTransposed ? in : out;
    source.in = layout == L::kTransposed ? out : in;
    source.group = format == WeightFormat::kFp8 ? 128 : 32;
    source.scale_type = format == WeightFormat::kFp8 ? DType::kF32 : DType::kBf16;
    size_t value_bytes = elements, scale_bytes = 0;
    if (layout == L::kGguf) {
      value_bytes = elements / (GranularityK(format) == 256 ? 256 : 32) * GgufBlockBytes(format);
    } else if (format <= WeightFormat::kF16) {
      value_bytes = elements * (format == WeightFormat::kF32 ? 4 : 2);
    } else {
      if (format != WeightFormat::kFp8 && format != WeightFormat::kInt8) value_bytes = elements / 2;
      scale_bytes = format == WeightFormat::kFp8 ? elements / 128 / 128 * 4
                                                 : elements / 32 * (layout == L::kGptOss ? 1 : 2);
    }
    values.resize(value_bytes);
    // Codes and scales as of weights: no fp8 or f16 below the normal numbers, E8M0 near 2^-7.
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::byte>(Mix(2, i) % 0x38 + 8);
    if (format == WeightFormat::kMxfp4 && layout == L::kGguf) {
      for (size_t i = 0; i < values.size(); i += GgufBlockBytes(format)) values[i] = std::byte{0x79};
    }
    scales.assign(scale_bytes, std::byte{0x3C});  // f32 and bf16 near 2^-7
    source.values = values;
    source.scales = scales;
  }
  double bytes() const { return static_cast<double>(values.size() + scales.size()); }
};

WeightSource::Layout UsualLayout(WeightFormat f) {
  return f <= WeightFormat::kFp8    ? WeightSource::Layout::kPlain
         : f <= WeightFormat::kInt4 ? WeightSource::Layout::kCompressed
                                    : WeightSource::Layout::kGguf;
}

// Packed formats in both classes. Args: table, format, class, rows, threads.
void BM_Packed(benchmark::State& state) {
  constexpr uint32_t kOut = 4096, kIn = 4096;
  const Ops& ops = *FindOps(AvailableOps()[static_cast<size_t>(state.range(0))]).value();
  const auto format = static_cast<WeightFormat>(state.range(1));
  const auto numerics = static_cast<NumericsClass>(state.range(2));
  const size_t rows = static_cast<size_t>(state.range(3));
  const uint32_t threads = static_cast<uint32_t>(state.range(4));
  KernelPool pool(threads);
  static std::vector<PackedMatrix> weights;  // of the last format
  if (weights.empty() || weights[0].format != format) {
    weights.clear();
    const Checkpoint checkpoint(format, UsualLayout(format), kOut, kIn);
    for (size_t bytes = 0; bytes < kRotateBytes; bytes += weights[0].bytes())
      weights.push_back(Pack(checkpoint.source).value());
  }
  const std::vector<float> x = Floats(rows * kIn);
  std::vector<float> y(rows * kOut);
  BesideReads(state, &pool, weights, 2.0 * static_cast<double>(rows) * kOut * kIn,
              [&](const PackedMatrix& w) {
                Gemm(ops, &pool, numerics, w, {x.data(), kIn, rows}, {y.data(), kOut, rows});
              });
  state.SetLabel(std::string(ops.name) + " " + std::string(WeightFormatName(format)) + " " +
                 std::string(NumericsClassName(numerics)));
}
void PackedCases(benchmark::internal::Benchmark* b) {
  b->ArgNames({"table", "format", "class", "rows", "threads"})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
  const int64_t best = static_cast<int64_t>(AvailableOps().size()) - 1;
  for (WeightFormat f : {WeightFormat::kF32, WeightFormat::kBf16, WeightFormat::kQ8_0, WeightFormat::kInt8,
                         WeightFormat::kQ4_0, WeightFormat::kInt4, WeightFormat::kQ4_1, WeightFormat::kQ4K,
                         WeightFormat::kQ5K, WeightFormat::kQ6K, WeightFormat::kMxfp4, WeightFormat::kFp8}) {
    for (int64_t c : {0, 1}) {
      if (c == 1 && !IsIntegerFormat(f)) continue;
      for (int64_t rows : {1, 2, 4, 8, 16, 64}) {
        for (int64_t threads : {1, 2}) b->Args({best, static_cast<int64_t>(f), c, rows, threads});
      }
    }
  }
}
BENCHMARK(BM_Packed)->Apply(PackedCases);

// From a checkpoint's bytes in memory to panels in fresh memory, one thread. Args: format, layout. GB/s of
// the checkpoint's bytes.
void BM_Pack(benchmark::State& state) {
  const auto format = static_cast<WeightFormat>(state.range(0));
  const auto layout = static_cast<WeightSource::Layout>(state.range(1));
  std::vector<std::unique_ptr<Checkpoint>> all;
  for (double bytes = 0; bytes < kRotateBytes / 2; bytes += all[0]->bytes())
    all.push_back(std::make_unique<Checkpoint>(format, layout, 4096, 4096));
  size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(Pack(all[i++ % all.size()]->source).value());
  constexpr std::string_view kLayouts[] = {"plain", "transposed", "compressed", "gpt-oss", "gguf"};
  state.SetLabel(std::string(WeightFormatName(format)) + " " + std::string(kLayouts[state.range(1)]));
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * all[0]->bytes() * 1e-9, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Pack)->ArgNames({"format", "layout"})->Unit(benchmark::kMillisecond)->Apply([](auto* b) {
  using L = WeightSource::Layout;
  for (int f = 0; f <= static_cast<int>(kWeightFormatLast); ++f) {
    const auto format = static_cast<WeightFormat>(f);
    if (format != WeightFormat::kInt4Zero) b->Args({f, static_cast<int64_t>(UsualLayout(format))});
  }
  b->Args({static_cast<int64_t>(WeightFormat::kBf16), static_cast<int64_t>(L::kTransposed)});
  b->Args({static_cast<int64_t>(WeightFormat::kMxfp4), static_cast<int64_t>(L::kGptOss)});
});

// bf16 to INT8 or INT4 at load, its error measured. Arg: the target. One thread.
void BM_PackQuantized(benchmark::State& state) {
  const auto target = static_cast<WeightFormat>(state.range(0));
  Checkpoint from(WeightFormat::kBf16, WeightSource::Layout::kPlain, 4096, 4096);
  const std::vector<float> wide = Floats(from.values.size() / 2);
  for (size_t i = 0; i < wide.size(); ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, wide[i]);
    from.values[2 * i] = static_cast<std::byte>(bits >> 16);
    from.values[2 * i + 1] = static_cast<std::byte>(bits >> 24);
  }
  QuantError error;
  for (auto _ : state)
    benchmark::DoNotOptimize(PackQuantized(from.source, target, DType::kF16, &error).value());
  state.SetLabel("BF16 to " + std::string(WeightFormatName(target)));
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(state.iterations()) * from.bytes() * 1e-9,
                                              benchmark::Counter::kIsRate);
}
BENCHMARK(BM_PackQuantized)
    ->ArgName("target")
    ->Unit(benchmark::kMillisecond)
    ->Arg(static_cast<int64_t>(WeightFormat::kInt8))
    ->Arg(static_cast<int64_t>(WeightFormat::kInt4));

// Rows per expert, 16 experts of hidden 2048, inter 1408 (DeepSeek-V2-Lite), bf16.
void BM_GroupedFfn(benchmark::State& state) {
  constexpr uint32_t kHidden = 2048, kInter = 1408, kExperts = 16;
  const Ops& ops = *FindOps(AvailableOps()[static_cast<size_t>(state.range(0))]).value();
  const uint32_t rows = static_cast<uint32_t>(state.range(1));
  const uint32_t threads = static_cast<uint32_t>(state.range(2));
  KernelPool pool(threads);
  static std::vector<FfnWeights> weights;
  while (weights.size() < kExperts) {
    FfnWeights w;
    w.gate = Matrix(DType::kBf16, kInter, kHidden);
    w.up = Matrix(DType::kBf16, kInter, kHidden);
    w.down = Matrix(DType::kBf16, kHidden, kInter);
    weights.push_back(std::move(w));
  }
  const size_t total = size_t{rows} * kExperts;
  const std::vector<float> x = Floats(total * kHidden);
  std::vector<float> y(total * kHidden);
  std::vector<FfnRow> ffn_rows;  // in an order without a stride, as rows of many frames come
  for (size_t i = 0; i < total; ++i) {
    const size_t at = (i * 7919) % total;
    ffn_rows.push_back({x.data() + at * kHidden, y.data() + at * kHidden});
  }
  std::vector<FfnGroup> groups;
  for (uint32_t e = 0; e < kExperts; ++e) groups.push_back({&weights[e], e * rows, rows});
  GroupedFfn ffn;
  for (auto _ : state) {
    ffn.Run(ops, &pool, groups, ffn_rows);
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(ops.name) + " BF16");
  Report(state, threads, kExperts * static_cast<double>(weights[0].bytes()),
         6.0 * static_cast<double>(total) * kHidden * kInter);
}
BENCHMARK(BM_GroupedFfn)->Apply([](auto* b) { Tables(b, {1, 2, 4, 16, 64}); });

// `rows` decode rows of separate sequences of 4096 keys each.
void AttentionOf(benchmark::State& state, AttentionShape shape) {
  constexpr uint32_t kKeys = 4096;
  const Ops& ops = *FindOps(AvailableOps()[static_cast<size_t>(state.range(0))]).value();
  const size_t rows = static_cast<size_t>(state.range(1));
  const uint32_t threads = static_cast<uint32_t>(state.range(2));
  KernelPool pool(threads);
  const size_t pages = rows * kKeys / kKvPageTokens;
  const std::vector<float> k = Floats(pages * shape.page_k_floats()),
                           v = Floats(pages * shape.page_v_floats());
  std::vector<const float*> k_pages, v_pages;
  for (size_t p = 0; p < pages; ++p) {
    k_pages.push_back(k.data() + p * shape.page_k_floats());
    v_pages.push_back(v.data() + p * shape.page_v_floats());
  }
  const std::vector<float> q = Floats(rows * shape.q_heads * shape.k_dim);
  std::vector<float> out(rows * shape.q_heads * shape.v_dim);
  std::vector<AttentionRow> list;
  for (size_t r = 0; r < rows; ++r) {
    const size_t first = r * kKeys / kKvPageTokens;
    list.push_back({q.data() + r * shape.q_heads * shape.k_dim, out.data() + r * shape.q_heads * shape.v_dim,
                    kKeys - 1, k_pages.data() + first, v_pages.data() + first});
  }
  for (auto _ : state) {
    Attention(ops, &pool, shape, list);
    benchmark::ClobberMemory();
  }
  state.SetLabel(std::string(ops.name));
  Report(state, threads, static_cast<double>((k.size() + v.size()) * sizeof(float)),
         2.0 * static_cast<double>(rows) * shape.q_heads * kKeys * (shape.k_dim + shape.v_dim));
}
void BM_AttentionGqa(benchmark::State& state) { AttentionOf(state, {32, 8, 128, 128, 0.088f, 0}); }
void BM_AttentionMla(benchmark::State& state) { AttentionOf(state, {16, 1, 576, 512, 0.1147f, 0}); }
BENCHMARK(BM_AttentionGqa)->Apply([](auto* b) { Tables(b, {1, 8}); });
BENCHMARK(BM_AttentionMla)->Apply([](auto* b) { Tables(b, {1, 8}); });

}  // namespace
}  // namespace consilium::kernels
