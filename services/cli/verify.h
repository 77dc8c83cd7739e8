// `consilium verify`: a model against its golden file, layer by layer, in numerics class f32.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/cli/golden.h"

namespace consilium {

// One comparison of one prompt or continuation.
struct GoldenCheck {
  enum class Kind : uint8_t {
    kHidden,     // rows as they enter `layer`; layer == layers: before the final norm
    kRouterIds,  // exact
    kRouterWeights,
    kRouterLogits,
    kLogits,
    kGreedyIds,  // exact
    kLogprobs,
  };
  // The first token out of tolerance.
  struct Miss {
    Position position = 0;  // in the prompt; of continuations: in what follows it
    std::string expected, got;
  };
  Kind kind = Kind::kHidden;
  uint32_t layer = 0;  // of the hidden and router kinds
  std::string prompt;
  size_t values = 0;         // compared
  double largest = 0;        // difference; exact kinds: how many values differ
  Position largest_at = 0;   // its token
  double tolerance = 0;      // exact kinds: 0
  std::optional<Miss> miss;  // none: all values hold
};
std::string_view KindName(GoldenCheck::Kind kind);  // "hidden", "router_ids"

struct Verdict {
  // In the order of computation: hidden of layer 0; then of each layer router ids, weights, logits and the
  // hidden state that leaves it; then logits, continuations and their log-probabilities.
  std::vector<GoldenCheck> checks;
  std::string golden;  // the file
  GoldenTolerance tolerance;
  bool tolerance_stated = false;          // by the golden file
  const GoldenCheck* first_miss() const;  // null: everything holds
};
// "layer 1, prompt.1, position 4: hidden state leaving the layer: ...".
std::string MissText(const GoldenCheck& check);

struct VerifyOptions {
  std::string model;
  std::string golden;  // empty: golden.safetensors in the model's folder
  std::string ops = "auto";
  std::string state_dir;
  uint32_t threads = 0;
  GoldenTolerance tolerance{0, 0, 0, 0};  // 0: the golden file's
  bool json = false;
  bool progress = true;  // on stderr
};

// Runs every prompt of the golden file through the model. INVALID_ARGUMENT, NOT_FOUND: bad input.
absl::StatusOr<Verdict> Verify(const VerifyOptions& options);

// The command: prints a table (or JSON), then one sentence. 0: all hold, 1: something left its tolerance,
// 2: bad input.
int RunVerify(const VerifyOptions& options);

}  // namespace consilium
