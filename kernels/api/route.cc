// The gate's choice of experts, and rotary tables: per-row work that is not a table operation.
#include <algorithm>
#include <cstring>
#include <limits>

#include "common/base/status.h"
#include "kernels/api/kernels.h"
#include "kernels/api/numerics.h"

namespace consilium::kernels {
namespace {

const Ops& Fastest() {
  static const Ops* const ops = FindOps("auto").value();
  return *ops;
}

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Sum of the two largest of choice[0..n): a group's score. One expert alone counts once.
float GroupScore(const float* choice, uint32_t n) {
  float best = kMasked, second = kMasked;
  for (uint32_t i = 0; i < n; ++i) {
    if (choice[i] > best) {
      second = best;
      best = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return n < 2 ? best : best + second;
}

// Index of the largest value not yet taken, ties and NaN by lowest index; `taken` values are NaN-free marks
// in `state`.
uint32_t BestUntaken(const float* value, const bool* taken, uint32_t n) {
  uint32_t best = n;
  for (uint32_t i = 0; i < n; ++i) {
    if (!taken[i] && (best == n || value[i] > value[best])) best = i;
  }
  return best;
}

constexpr uint32_t kExpertsMax = 4096;  // bounds a stack array of marks

void MaskGroups(const GateSpec& gate, float* choice) {
  const uint32_t size = gate.experts / gate.groups;
  float score[kExpertsMax];
  bool kept[kExpertsMax] = {};
  for (uint32_t g = 0; g < gate.groups; ++g) {
    score[g] = gate.group_max ? choice[g * size + BestUntaken(choice + g * size, kept, size)]
                              : GroupScore(choice + g * size, size);
  }
  for (uint32_t i = 0; i < gate.groups_kept; ++i) kept[BestUntaken(score, kept, gate.groups)] = true;
  for (uint32_t g = 0; g < gate.groups; ++g) {
    if (!kept[g]) std::fill(choice + g * size, choice + (g + 1) * size, kMasked);
  }
}

bool ChoosesByLogit(const GateSpec& gate) {
  return gate.score == GateSpec::Score::kSoftmaxChosen || gate.score == GateSpec::Score::kSigmoidOfLogit;
}

// Few values, so the scalar definition itself.
void SoftmaxInPlace(float* x, uint32_t n) {
  const float max = numerics::FoldMax16(x, n);
  for (uint32_t i = 0; i < n; ++i) x[i] = numerics::Exp(x[i] - max);
  const float sum = numerics::Fold16(x, n);
  for (uint32_t i = 0; i < n; ++i) x[i] = x[i] / sum;
}

// Phi: the best logit, then the best of the rest; each weighs its share among the entries not yet taken that
// lie close to it: (best - l) / max(|l|, best) <= 2 * jitter. Weights of a row add up to 2 at most.
void RouteSparsemixer(const GateSpec& gate, const float* logits, uint16_t* ids, float* weights,
                      float* scratch) {
  const uint32_t n = gate.experts;
  bool taken[kExpertsMax];
  std::fill(taken, taken + n, false);
  for (uint32_t s = 0; s < gate.top_k; ++s) {
    const uint32_t best = BestUntaken(logits, taken, n);
    const float top = logits[best];
    for (uint32_t e = 0; e < n; ++e) {
      const float magnitude = numerics::MaxOf(logits[e] < 0.0f ? -logits[e] : logits[e], top);
      const bool far = (top - logits[e]) / magnitude > 2.0f * gate.jitter;
      scratch[e] = taken[e] || far ? 0.0f : numerics::Exp(logits[e] - top);
    }
    weights[s] = scratch[best] / numerics::Fold16(scratch, n);
    ids[s] = static_cast<uint16_t>(best);
    taken[best] = true;
  }
}

}  // namespace

void RouteRow(const GateSpec& gate, const float* logits, const float* bias, uint16_t* ids, float* weights,
              float* scratch) {
  CHECK(gate.experts <= kExpertsMax && gate.top_k <= gate.experts && gate.groups > 0 &&
        gate.experts % gate.groups == 0 && gate.groups_kept <= gate.groups);
  const uint32_t n = gate.experts;
  float* score = scratch;
  float* choice = scratch + n;
  if (gate.score == GateSpec::Score::kSparsemixer)
    return RouteSparsemixer(gate, logits, ids, weights, scratch);
  if (ChoosesByLogit(gate)) {
    std::copy_n(logits, n, score);
  } else if (gate.score == GateSpec::Score::kSigmoid) {
    Fastest().scores(true, logits, 0.0f, n, score);
  } else {
    Fastest().scores(false, logits, numerics::FoldMax16(logits, n), n, score);
    const float sum = numerics::Fold16(score, n);
    for (uint32_t e = 0; e < n; ++e) score[e] = score[e] / sum;
  }
  for (uint32_t e = 0; e < n; ++e)
    choice[e] = gate.has_bias && bias != nullptr ? score[e] + bias[e] : score[e];
  if (gate.groups_kept < gate.groups) MaskGroups(gate, choice);

  bool taken[kExpertsMax];
  std::fill(taken, taken + n, false);
  for (uint32_t s = 0; s < gate.top_k; ++s) {
    const uint32_t e = BestUntaken(choice, taken, n);
    taken[e] = true;
    ids[s] = static_cast<uint16_t>(e);
    weights[s] = score[e];
  }
  if (gate.score == GateSpec::Score::kSoftmaxChosen) SoftmaxInPlace(weights, gate.top_k);
  if (gate.score == GateSpec::Score::kSigmoidOfLogit) {
    for (uint32_t s = 0; s < gate.top_k; ++s) weights[s] = numerics::Sigmoid(weights[s]);
  }
  float sum = 0.0f;
  for (uint32_t s = 0; s < gate.top_k; ++s) {
    sum = gate.renormalize_norm == 2 ? numerics::Fma(weights[s], weights[s], sum) : sum + weights[s];
  }
  if (gate.renormalize_norm == 2) sum = __builtin_sqrtf(sum);
  if (gate.renormalize_min > 0.0f) sum = numerics::MaxOf(sum, gate.renormalize_min);
  for (uint32_t s = 0; s < gate.top_k; ++s) {
    if (gate.renormalize) weights[s] = weights[s] / (sum + gate.renormalize_epsilon);
    weights[s] = weights[s] * gate.scale;
  }
}

float QueryFactor(float beta, uint32_t floor, uint32_t offset, uint32_t position) {
  const double steps = static_cast<double>((uint64_t{position} + offset) / floor);
  return static_cast<float>(1.0 + static_cast<double>(beta) * numerics::Log(1.0 + steps));
}

void RopeRow(std::span<const float> inv_freq, uint32_t position, float attention_scaling, float* cos,
             float* sin) {
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    const numerics::SinCosResult r = numerics::SinCos(static_cast<double>(angle));
    cos[i] = static_cast<float>(r.cos * static_cast<double>(attention_scaling));
    sin[i] = static_cast<float>(r.sin * static_cast<double>(attention_scaling));
  }
}

}  // namespace consilium::kernels
