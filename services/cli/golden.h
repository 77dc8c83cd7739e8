// Golden files: what another implementation computed with the same weights. Two layouts, both safetensors of
// F32 and I32 with a .json of the same name beside it:
//   prompt.P.{ids,logits,greedy_ids,greedy_logprobs}, .hidden, .router.L.{logits,ids,weights}
//   (tests/golden/README.md), tolerances in the .json;
//   prompt_P.{ids,logits,experts,weights}, continuations in the .json (models/demo/README.md).
// A tensor that is not there is not compared.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/model/model_spec.h"

namespace consilium {

// Of one MoE layer over the T tokens of a prompt. Empty: not in the file.
struct GoldenRouter {
  std::vector<float> logits;   // [T, E]
  std::vector<int32_t> ids;    // [T, k]
  std::vector<float> weights;  // [T, k], as ids
};

struct GoldenPrompt {
  std::string name;  // "prompt.1"
  std::vector<TokenId> ids;
  std::vector<float> logits;                 // [T, V]
  std::vector<float> hidden;                 // [layers + 1, T, H], before the final norm; empty: none
  std::map<uint32_t, GoldenRouter> routers;  // by layer
};

struct GoldenContinuation {
  std::string name;
  std::vector<TokenId> prompt, ids;
  std::vector<float> logprobs;  // as ids; empty: none
};

// Largest differences allowed; ids are exact. The defaults are the least that golden files of this project
// ask for (ten times the noise between f32 and f64, at least 1e-4).
struct GoldenTolerance {
  double logits = 1e-4, hidden = 1e-4, router_weights = 1e-4, logprobs = 1e-4;
};

struct Golden {
  std::vector<GoldenPrompt> prompts;
  std::vector<GoldenContinuation> continuations;
  bool ordered_experts = true;  // ids are best first; else in no stated order
  GoldenTolerance tolerance;
  bool states_tolerance = false;  // by the .json
};

// INVALID_ARGUMENT: a tensor does not fit the model (which, expected, got), a token or length beyond it, or
// nothing to compare; NOT_FOUND: no such file.
absl::StatusOr<Golden> ReadGolden(const std::string& file, const ModelSpec& spec);

}  // namespace consilium
