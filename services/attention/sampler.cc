#include "services/attention/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/philox.h"
#include "kernels/api/kernels.h"
#include "kernels/api/numerics.h"

namespace consilium {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

float Clean(float x) { return std::isnan(x) ? kMinusInf : x; }

const kernels::Ops& Kernels() {
  static const kernels::Ops* const ops = kernels::FindOps("auto").value();
  return *ops;
}

// Ascending keys are the total order of candidates: logit descending, then id ascending. NaN as -inf, -0 as
// 0.
uint64_t KeyOf(float logit, TokenId id) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, Clean(logit) + 0.0f);
  const uint32_t descending = (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
  return (uint64_t{descending} << 32) | id;
}

TokenId BestToken(std::span<const float> logits) {
  float lanes[16];
  std::fill(lanes, lanes + 16, kMinusInf);
  size_t i = 0;
  for (; i + 16 <= logits.size(); i += 16) {
    for (size_t j = 0; j < 16; ++j) lanes[j] = numerics::MaxOf(logits[i + j], lanes[j]);
  }
  float max = numerics::FoldMax16(lanes, 16);
  for (; i < logits.size(); ++i) max = numerics::MaxOf(logits[i], max);
  for (TokenId t = 0; t < logits.size(); ++t) {
    if (logits[t] == max) return t;
  }
  return 0;  // all NaN
}

// out[i] = exp((x[i] - max) / temperature); 1 for the largest, 0 for -inf and NaN, also where `max` is
// infinite.
void Weights(std::span<const float> x, float max, double temperature, double* out) {
  if (std::isfinite(max)) {
    const double t = std::min(temperature, std::numeric_limits<double>::max());
    Kernels().weights(x.data(), static_cast<double>(max), t, static_cast<uint32_t>(x.size()), out);
    for (size_t i = 0; i < x.size(); ++i) out[i] = std::isnan(x[i]) ? 0.0 : out[i];
  } else {
    for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] == max ? 1.0 : 0.0;
  }
}

// log(sum(exp(x - max))) + max, the sum in index order. Infinities: the mass is shared by the +inf entries.
class LogSoftmax {
 public:
  explicit LogSoftmax(std::span<const float> logits) : max_(Clean(logits[BestToken(logits)])) {
    constexpr size_t kChunk = 1024;
    double w[kChunk];
    double sum = 0;
    for (size_t first = 0; first < logits.size(); first += kChunk) {
      const size_t n = std::min(kChunk, logits.size() - first);
      Weights(logits.subspan(first, n), max_, 1.0, w);
      for (size_t i = 0; i < n; ++i) sum += w[i];
    }
    log_sum_ = numerics::Log(sum);
  }
  float operator()(float x) const {
    x = Clean(x);
    if (x == kMinusInf) return kMinusInf;
    const double below = x == max_ ? 0.0 : static_cast<double>(x) - static_cast<double>(max_);
    return static_cast<float>(below - log_sum_);
  }

 private:
  float max_;
  double log_sum_ = 0;
};

// Candidates in total order, made explicit only as far as they are asked for: tokens are counted by the
// leading bits of their keys, and as many of those buckets as needed are picked out and sorted.
class Candidates {
 public:
  Candidates(std::span<const float> logits, SampleScratch* scratch) : s_(*scratch) {
    s_.keys.resize(logits.size());
    s_.order.clear();
    s_.buckets.assign(kBuckets, 0);
    for (TokenId t = 0; t < logits.size(); ++t) {
      s_.keys[t] = KeyOf(logits[t], t);
      ++s_.buckets[s_.keys[t] >> kShift];
    }
  }
  size_t size() const { return s_.keys.size(); }
  TokenId at(size_t i) {
    while (i >= s_.order.size()) Extend();
    return static_cast<TokenId>(s_.order[i]);
  }

 private:
  static constexpr size_t kBuckets = 4096;
  static constexpr int kShift = 52;

  void Extend() {
    const size_t done = s_.order.size();
    const size_t wanted = std::max<size_t>(64, 3 * done);
    size_t end = next_, more = 0;
    while (end < kBuckets && more < wanted) more += s_.buckets[end++];
    for (uint64_t key : s_.keys) {
      const size_t bucket = key >> kShift;
      if (bucket >= next_ && bucket < end) s_.order.push_back(key);
    }
    std::sort(s_.order.begin() + static_cast<std::ptrdiff_t>(done), s_.order.end());
    next_ = end;
  }
  SampleScratch& s_;
  size_t next_ = 0;  // first bucket not yet in the order
};

void FillLogprobs(std::span<const float> logits, TokenId token, int top_logprobs, SampleScratch* scratch,
                  SampleResult* out) {
  if (top_logprobs < 0) return;
  const LogSoftmax log_softmax(logits);
  out->logprob = token < logits.size() ? log_softmax(logits[token]) : kMinusInf;
  const size_t n = std::min<size_t>(static_cast<size_t>(top_logprobs), logits.size());
  if (n == 0) return;
  Candidates candidates(logits, scratch);
  for (size_t i = 0; i < n; ++i) {
    const TokenId t = candidates.at(i);
    out->top.push_back({t, log_softmax(logits[t])});
  }
}

// Penalties as vLLM and Hugging Face apply them, once per distinct token, in f32.
void ApplyPenalties(const Sampling& s, std::span<const TokenId> prompt, std::span<const TokenId> generated,
                    std::span<float> logits, std::vector<uint32_t>* counts) {
  const size_t vocabulary = logits.size();
  const bool repetition = s.repetition_penalty != 1;
  if (!repetition && s.frequency_penalty == 0 && s.presence_penalty == 0) return;
  if (counts->size() < vocabulary) counts->resize(vocabulary, 0);
  const auto repeat = [&](TokenId t) {
    const float p = static_cast<float>(s.repetition_penalty);
    logits[t] = Clean(logits[t] > 0 ? logits[t] / p : logits[t] * p);
  };
  for (TokenId t : generated) {
    if (t < vocabulary && (*counts)[t]++ == 0 && repetition) repeat(t);
  }
  if (repetition) {
    constexpr uint32_t kSeen = 1u << 31;  // marks tokens of the prompt
    for (TokenId t : prompt) {
      if (t >= vocabulary || (*counts)[t] != 0) continue;
      (*counts)[t] = kSeen;
      repeat(t);
    }
    for (TokenId t : prompt) {
      if (t < vocabulary && (*counts)[t] == kSeen) (*counts)[t] = 0;
    }
  }
  for (TokenId t : generated) {
    if (t >= vocabulary || (*counts)[t] == 0) continue;
    logits[t] = logits[t] - static_cast<float>(s.frequency_penalty) * static_cast<float>((*counts)[t]);
    logits[t] = Clean(logits[t] - static_cast<float>(s.presence_penalty));
    (*counts)[t] = 0;
  }
}

// The draw among tokens with weight by id. `total` is summed in id order over what top_k left; the cumulated
// mass in candidate order. Both in double, so the choice does not depend on how far the order was made
// explicit.
TokenId Draw(const Sampling& s, const std::vector<double>& weight, SampleKey key, size_t limit, double total,
             Candidates* order) {
  Candidates& candidates = *order;
  size_t kept = limit;
  double mass = total;
  const double top_p = std::isnan(s.top_p) ? 1.0 : s.top_p;
  const double least = s.min_p > 0 ? s.min_p * weight[candidates.at(0)] : 0.0;
  if (top_p < 1 || least > 0) {
    mass = 0;
    kept = 0;
    while (kept < limit) {
      const double w = weight[candidates.at(kept)];
      if (kept > 0 && (w < least || mass >= top_p * total)) break;
      mass += w;
      ++kept;
    }
  }
  const double target = PhiloxUniform(key.seed, key.choice, key.position) * mass;
  double sum = 0;
  TokenId last = candidates.at(0);
  for (size_t i = 0; i < kept; ++i) {
    const TokenId t = candidates.at(i);
    if (weight[t] == 0) break;
    last = t;
    sum += weight[t];
    if (sum > target) return t;
  }
  return last;  // rounding left the target at the very end
}

// The choice among the processed logits at a temperature above 0; the largest of them is `max`.
TokenId Choose(const Sampling& s, SampleKey key, std::span<const float> processed, float max,
               SampleScratch* scratch) {
  Candidates candidates(processed, scratch);
  scratch->weights.resize(processed.size());
  size_t limit = processed.size();
  double total = 0;
  if (s.top_k == 0 || s.top_k >= limit) {
    Weights(processed, max, s.temperature, scratch->weights.data());
    for (double w : scratch->weights) total += w;
  } else {
    limit = s.top_k;
    scratch->ids.clear();
    for (size_t i = 0; i < limit; ++i) scratch->ids.push_back(candidates.at(i));
    std::sort(scratch->ids.begin(), scratch->ids.end());
    for (TokenId t : scratch->ids) {
      Weights(processed.subspan(t, 1), max, s.temperature, &scratch->weights[t]);
      total += scratch->weights[t];
    }
  }
  return Draw(s, scratch->weights, key, limit, total, &candidates);
}

}  // namespace

SampleResult Sample(std::span<const float> logits, const Sampling& sampling, std::span<const TokenId> prompt,
                    std::span<const TokenId> generated, std::span<const TokenId> banned, int top_logprobs,
                    SampleKey key, SampleScratch* scratch) {
  SampleResult result;
  if (logits.empty()) return result;
  const size_t vocabulary = logits.size();
  scratch->logits.resize(vocabulary);
  std::transform(logits.begin(), logits.end(), scratch->logits.begin(), Clean);
  const std::span<float> processed(scratch->logits);
  ApplyPenalties(sampling, prompt, generated, processed, &scratch->counts);
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (token < vocabulary) processed[token] = Clean(processed[token] + bias);
  }
  for (TokenId t : banned) {
    if (t < vocabulary) processed[t] = kMinusInf;
  }
  const TokenId best = BestToken(processed);
  const float max = Clean(processed[best]);
  result.token = best;
  if (max == kMinusInf) {  // nothing is possible: the lowest id that is not banned
    for (TokenId t = 0; t < vocabulary; ++t) {
      if (std::find(banned.begin(), banned.end(), t) == banned.end()) {
        result.token = t;
        break;
      }
    }
  } else if (sampling.temperature > 0 && sampling.top_k != 1) {
    result.token = Choose(sampling, key, processed, max, scratch);
  }
  FillLogprobs(logits, result.token, top_logprobs, scratch, &result);
  return result;
}

SampleResult ScoreToken(std::span<const float> logits, TokenId token, int top_logprobs) {
  SampleResult result;
  result.token = token;
  SampleScratch scratch;
  if (!logits.empty()) FillLogprobs(logits, token, top_logprobs, &scratch, &result);
  return result;
}

}  // namespace consilium
