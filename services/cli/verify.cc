#include "services/cli/verify.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <tuple>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/model/model_files.h"
#include "services/cli/local_decoder.h"
#include "services/cli/progress.h"

namespace consilium {
namespace {

using Kind = GoldenCheck::Kind;

constexpr size_t kChunk = 512;  // rows of a flight

// What one whole prompt shows, rows by position.
struct Trace {
  std::map<uint32_t, std::vector<float>> hidden, router_logits, router_weights;
  std::map<uint32_t, std::vector<uint16_t>> router_ids;
  std::vector<float> logits;

  void Add(const LayerObservation& o) {
    if (o.kind == LayerObservation::Kind::kRouterWeights)
      router_ids[o.layer].insert(router_ids[o.layer].end(), o.experts.begin(), o.experts.end());
    std::vector<float>* to = o.kind == LayerObservation::Kind::kHidden         ? &hidden[o.layer]
                             : o.kind == LayerObservation::Kind::kRouterLogits ? &router_logits[o.layer]
                             : o.kind == LayerObservation::Kind::kLogits       ? &logits
                                                                               : &router_weights[o.layer];
    for (size_t r = 0; r < o.data.count; ++r)
      to->insert(to->end(), o.data.row(r), o.data.row(r) + o.data.stride);
  }
};

std::string Number(double v) {
  char text[40];
  std::snprintf(text, sizeof text, "%.6g", v);
  return text;
}

template <class T>
std::string List(std::span<const T> ids) {
  std::string out = "[";
  for (const T id : ids) out += (out.size() > 1 ? ", " : "") + std::to_string(id);
  return out + "]";
}

GoldenCheck Started(Kind kind, uint32_t layer, const std::string& prompt, double tolerance) {
  GoldenCheck check;
  check.kind = kind;
  check.layer = layer;
  check.prompt = prompt;
  check.tolerance = tolerance;
  return check;
}

// Rows of `width` values, one a token. A value that is no number differs by infinity.
void CompareFloats(std::span<const float> expected, std::span<const float> got, size_t width,
                   GoldenCheck* check) {
  CHECK(expected.size() == got.size());
  check->values = expected.size();
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = std::abs(static_cast<double>(expected[i]) - got[i]);
    const double difference = std::isnan(d) ? INFINITY : d;
    const Position position = static_cast<Position>(i / width);
    if (difference > check->largest) {
      check->largest = difference;
      check->largest_at = position;
    }
    if (difference > check->tolerance && !check->miss) {
      const std::string element = width == 1 ? "" : " in element " + std::to_string(i % width);
      check->miss = {position, Number(expected[i]) + element, Number(got[i])};
    }
  }
}

// Rows of `width` ids, one row a token.
template <class T, class U>
void CompareIds(std::span<const T> expected, std::span<const U> got, size_t width, GoldenCheck* check) {
  CHECK(expected.size() == got.size());
  check->values = expected.size();
  for (size_t i = 0; i < expected.size(); i += width) {
    const auto want = expected.subspan(i, width);
    const auto have = got.subspan(i, width);
    size_t differ = 0;
    for (size_t j = 0; j < width; ++j)
      differ += static_cast<int64_t>(want[j]) != static_cast<int64_t>(have[j]);
    if (differ == 0) continue;
    check->largest += static_cast<double>(differ);
    if (check->miss) continue;
    check->largest_at = static_cast<Position>(i / width);
    check->miss = {check->largest_at, width == 1 ? std::to_string(want[0]) : List(want),
                   width == 1 ? std::to_string(have[0]) : List(have)};
  }
}

// Sorts each row of ids and its weights by id.
template <class T>
void SortRows(size_t width, std::vector<T>* ids, std::vector<float>* weights) {
  std::vector<std::pair<T, float>> row(width);
  for (size_t i = 0; i < ids->size(); i += width) {
    for (size_t j = 0; j < width; ++j) row[j] = {(*ids)[i + j], (*weights)[i + j]};
    std::sort(row.begin(), row.end());
    for (size_t j = 0; j < width; ++j) std::tie((*ids)[i + j], (*weights)[i + j]) = row[j];
  }
}

class Verifier {
 public:
  Verifier(const ModelSpec& spec, const Golden& golden) : spec_(spec), golden_(golden) {}

  absl::Status Run(const VerifyOptions& options) {
    LocalDecoderOptions o;
    o.ops = options.ops;
    o.state_dir = options.state_dir;
    o.threads = options.threads;
    o.kv_blocks = BlocksNeeded();
    o.keep_logits = false;
    o.observer = [this](const LayerObservation& observation) {
      if (trace_ != nullptr) trace_->Add(observation);
    };
    Progress progress(options.progress);
    o.progress = [&](size_t loaded, size_t all) { progress.Show("loading experts", loaded, all); };
    ASSIGN_OR_RETURN(const auto decoder, LocalDecoder::Open(options.model, std::move(o)));
    size_t done = 0;
    const size_t all = golden_.prompts.size() + golden_.continuations.size();
    for (const GoldenPrompt& prompt : golden_.prompts) {
      progress.Show("prompts", done++, all);
      RETURN_IF_ERROR(RunPrompt(prompt, decoder.get()));
    }
    for (const GoldenContinuation& c : golden_.continuations) {
      progress.Show("prompts", done++, all);
      ASSIGN_OR_RETURN(const std::vector<SampleResult> got, decoder->Greedy(c.prompt, c.ids.size()));
      CompareContinuation(c, got);
    }
    return absl::OkStatus();
  }

  Verdict Finish() {
    std::stable_sort(verdict_.checks.begin(), verdict_.checks.end(),
                     [](const GoldenCheck& a, const GoldenCheck& b) { return Stage(a) < Stage(b); });
    return std::move(verdict_);
  }

 private:
  // Where in the computation a check lies.
  static std::pair<uint32_t, Kind> Stage(const GoldenCheck& check) {
    return {check.kind <= Kind::kRouterLogits ? check.layer : UINT32_MAX, check.kind};
  }

  uint32_t BlocksNeeded() const {
    size_t longest = 0;
    for (const GoldenPrompt& p : golden_.prompts) longest = std::max(longest, p.ids.size());
    for (const GoldenContinuation& c : golden_.continuations)
      longest = std::max(longest, c.prompt.size() + c.ids.size());
    return static_cast<uint32_t>(longest / kKvBlockTokens + 1);
  }

  absl::Status RunPrompt(const GoldenPrompt& prompt, LocalDecoder* decoder) {
    Trace trace;
    trace_ = &trace;
    const uint32_t sequence = decoder->AddSequence(prompt.ids.size());
    for (size_t i = 0; i < prompt.ids.size(); i += kChunk) {
      const auto part = std::span(prompt.ids).subspan(i, std::min(kChunk, prompt.ids.size() - i));
      RETURN_IF_ERROR(decoder->Step({Feed{sequence, {part.begin(), part.end()}}}).status());
    }
    decoder->Release(sequence);
    trace_ = nullptr;
    Compare(prompt, &trace);
    return absl::OkStatus();
  }

  GoldenCheck* Add(Kind kind, uint32_t layer, const std::string& prompt, double tolerance) {
    verdict_.checks.push_back(Started(kind, layer, prompt, tolerance));
    return &verdict_.checks.back();
  }

  void Compare(const GoldenPrompt& prompt, Trace* trace) {
    const GoldenTolerance& t = golden_.tolerance;
    const size_t width = prompt.ids.size() * spec_.hidden;
    if (!prompt.hidden.empty()) {
      for (uint32_t i = 0; i <= spec_.layers.size(); ++i) {
        CompareFloats(std::span(prompt.hidden).subspan(i * width, width), trace->hidden.at(i), spec_.hidden,
                      Add(Kind::kHidden, i, prompt.name, t.hidden));
      }
    }
    const size_t top_k = spec_.gate.top_k;
    for (const auto& [layer, expected] : prompt.routers) {
      GoldenRouter router = expected;
      std::vector<uint16_t>& ids = trace->router_ids.at(layer);
      std::vector<float>& weights = trace->router_weights.at(layer);
      if (!golden_.ordered_experts) {
        SortRows(top_k, &router.ids, &router.weights);
        SortRows(top_k, &ids, &weights);
      }
      CompareIds<int32_t, uint16_t>(router.ids, ids, top_k, Add(Kind::kRouterIds, layer, prompt.name, 0));
      CompareFloats(router.weights, weights, top_k,
                    Add(Kind::kRouterWeights, layer, prompt.name, t.router_weights));
      if (router.logits.empty()) continue;
      CompareFloats(router.logits, trace->router_logits.at(layer), spec_.gate.experts,
                    Add(Kind::kRouterLogits, layer, prompt.name, t.logits));
    }
    if (prompt.logits.empty()) return;
    CompareFloats(prompt.logits, trace->logits, spec_.vocab, Add(Kind::kLogits, 0, prompt.name, t.logits));
  }

  void CompareContinuation(const GoldenContinuation& c, const std::vector<SampleResult>& got) {
    std::vector<TokenId> ids;
    std::vector<float> logprobs;
    for (const SampleResult& r : got) {
      ids.push_back(r.token);
      logprobs.push_back(r.logprob);
    }
    CompareIds<TokenId, TokenId>(c.ids, ids, 1, Add(Kind::kGreedyIds, 0, c.name, 0));
    if (c.logprobs.empty()) return;
    // Beyond the first other token the texts differ.
    const auto end = std::mismatch(ids.begin(), ids.end(), c.ids.begin()).first;
    const size_t same = static_cast<size_t>(end - ids.begin());
    CompareFloats(std::span(c.logprobs).first(same), std::span(logprobs).first(same), 1,
                  Add(Kind::kLogprobs, 0, c.name, golden_.tolerance.logprobs));
  }

  const ModelSpec& spec_;
  const Golden& golden_;
  Trace* trace_ = nullptr;  // of the prompt under way
  Verdict verdict_;
};

}  // namespace

absl::StatusOr<Verdict> Verify(const VerifyOptions& options) {
  std::string file = options.golden;
  if (file.empty()) {
    ASSIGN_OR_RETURN(const ModelPlace place, FindModel(options.model));
    file = place.dir + "/golden.safetensors";
  }
  ASSIGN_OR_RETURN(const ModelSpec spec, ReadModelSpec(options.model));
  ASSIGN_OR_RETURN(Golden golden, ReadGolden(file, spec));
  const auto take = [](double given, double* value) {
    if (given > 0) *value = given;
  };
  take(options.tolerance.logits, &golden.tolerance.logits);
  take(options.tolerance.hidden, &golden.tolerance.hidden);
  take(options.tolerance.router_weights, &golden.tolerance.router_weights);
  take(options.tolerance.logprobs, &golden.tolerance.logprobs);
  Verifier verifier(spec, golden);
  RETURN_IF_ERROR(verifier.Run(options));
  Verdict verdict = verifier.Finish();
  verdict.golden = file;
  verdict.tolerance = golden.tolerance;
  verdict.tolerance_stated = golden.states_tolerance;
  return verdict;
}

const GoldenCheck* Verdict::first_miss() const {
  const auto it =
      std::find_if(checks.begin(), checks.end(), [](const GoldenCheck& c) { return c.miss.has_value(); });
  return it == checks.end() ? nullptr : &*it;
}

}  // namespace consilium
