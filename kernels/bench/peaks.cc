#include "kernels/bench/peaks.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <map>
#include <vector>

#include "common/exec/kernel_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace consilium::bench {
namespace {

constexpr size_t kBufferBytes = size_t{512} << 20;
constexpr size_t kSliceBytes = size_t{1} << 20;
constexpr int kRepeats = 7;
constexpr int kChains = 16;
constexpr int kSteps = 200000;

template <class F>
double BestSeconds(F f) {
  double best = 1e9;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

volatile uint64_t sink;

template <size_t kStreams>
uint64_t SumWords(const std::byte* p, size_t bytes) {
  uint64_t sum[8] = {};
  const size_t part = bytes / kStreams;
  for (size_t i = 0; i + 64 <= part; i += 64) {
    for (size_t j = 0; j < 8 * kStreams; ++j) {
      uint64_t w;
      std::memcpy(&w, p + part * (j / 8) + i + 8 * (j % 8), 8);
      sum[j % 8] += w;
    }
  }
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

#if defined(__x86_64__)
// `streams` reads side by side: one stream does not reach what a core can have in flight.
template <size_t kStreams>
__attribute__((target("avx512f"))) uint64_t SumAvx512(const std::byte* p, size_t bytes) {
  __m512i s[kStreams] = {};
  const size_t part = bytes / kStreams;
  for (size_t i = 0; i + 64 <= part; i += 64) {
#pragma GCC unroll 8
    for (size_t j = 0; j < kStreams; ++j) {
      s[j] = _mm512_add_epi64(s[j], _mm512_loadu_si512(p + i + part * j));
    }
  }
  __m512i t = s[0];
  for (size_t j = 1; j < kStreams; ++j) t = _mm512_add_epi64(t, s[j]);
  uint64_t lanes[8];
  _mm512_storeu_si512(lanes, t);
  return lanes[0] ^ lanes[7];
}

template <size_t kStreams>
__attribute__((target("avx2"))) uint64_t SumAvx2(const std::byte* p, size_t bytes) {
  __m256i s[2 * kStreams] = {};
  const size_t part = bytes / kStreams;
  for (size_t i = 0; i + 64 <= part; i += 64) {
#pragma GCC unroll 8
    for (size_t j = 0; j < kStreams; ++j) {
      const auto* line = reinterpret_cast<const __m256i*>(p + i + part * j);
      s[2 * j] = _mm256_add_epi64(s[2 * j], _mm256_loadu_si256(line));
      s[2 * j + 1] = _mm256_add_epi64(s[2 * j + 1], _mm256_loadu_si256(line + 1));
    }
  }
  __m256i t = s[0];
  for (size_t j = 1; j < 2 * kStreams; ++j) t = _mm256_add_epi64(t, s[j]);
  uint64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), t);
  return lanes[0] ^ lanes[3];
}

__attribute__((target("avx512f"))) double ChainsAvx512() {
  __m512 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int s = 0; s < kSteps; ++s) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
  }
  float lanes[16];
  for (int i = 0; i < kChains; ++i) {
    _mm512_storeu_ps(lanes, acc[i]);
    sink = sink + static_cast<uint64_t>(lanes[3]);
  }
  return 2.0 * 16 * kChains * kSteps;
}

__attribute__((target("avx2,fma"))) double ChainsAvx2() {
  __m256 acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int s = 0; s < kSteps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
  }
  float lanes[8];
  for (int i = 0; i < 12; ++i) {
    _mm256_storeu_ps(lanes, acc[i]);
    sink = sink + static_cast<uint64_t>(lanes[3]);
  }
  return 2.0 * 8 * 12 * kSteps;
}
#endif

double Chains() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return ChainsAvx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return ChainsAvx2();
#endif
  float acc[kChains] = {};
  for (int s = 0; s < kSteps; ++s) {
    for (float& x : acc) x = x * 0.999f + 0.001f;
  }
  sink = sink + static_cast<uint64_t>(acc[3]);
  return 2.0 * kChains * kSteps;
}

using SumFn = uint64_t (*)(const std::byte* p, size_t bytes);

std::vector<SumFn> Sums() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {SumAvx512<1>, SumAvx512<4>, SumAvx512<8>};
  if (__builtin_cpu_supports("avx2")) return {SumAvx2<1>, SumAvx2<4>, SumAvx2<8>};
#endif
  return {SumWords<1>, SumWords<8>};
}

}  // namespace

namespace {

double ReadOnce(KernelPool* pool, const std::byte* p, size_t bytes, SumFn sum) {
  const auto start = std::chrono::steady_clock::now();
  pool->ParallelFor(bytes / kSliceBytes,
                    [&](size_t i, uint32_t) { sink = sink + sum(p + i * kSliceBytes, kSliceBytes); });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(bytes / kSliceBytes * kSliceBytes) / seconds.count();
}

// The way to read that was the fastest with so many threads, and its rate.
struct Reading {
  SumFn sum = nullptr;
  double rate = 0;
};
const Reading& BestReading(uint32_t threads) {
  static std::map<uint32_t, Reading> known;
  Reading& best = known[threads];
  if (best.sum == nullptr) {
    const std::vector<std::byte> buffer(kBufferBytes, std::byte{1});
    KernelPool pool(threads);
    for (int i = 0; i < kRepeats; ++i) {
      for (SumFn sum : Sums()) {
        const double rate = ReadOnce(&pool, buffer.data(), kBufferBytes, sum);
        if (rate > best.rate) best = {sum, rate};
      }
    }
  }
  return best;
}

}  // namespace

double ReadBandwidth(uint32_t threads) { return BestReading(threads).rate; }

double ReadRate(KernelPool* pool, std::span<const std::byte> data) {
  return ReadOnce(pool, data.data(), data.size(), BestReading(pool->threads()).sum);
}

double FmaPeak(uint32_t threads) {
  static std::map<uint32_t, double> known;
  if (!known.contains(threads)) {
    KernelPool pool(threads);
    const size_t items = size_t{threads} * 8;
    double flops = 0;
    const double seconds = BestSeconds([&] {
      pool.ParallelFor(items, [&](size_t item, uint32_t) {
        const double f = Chains();
        if (item == 0) flops = f * static_cast<double>(items);
      });
    });
    known[threads] = flops / seconds;
  }
  return known[threads];
}

}  // namespace consilium::bench
