// `consilium perplexity`: how well a model, in a numerics class, predicts a text.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/model/numerics_choice.h"
#include "kernels/api/weights.h"

namespace consilium {

// The text is one stream of tokens, read in windows that begin anew: window w holds the tokens from
// w * stride on. Where the tokenizer puts special tokens before a text (BOS), every window begins with them
// and they count as context. Each token is scored once, in the first window that predicts it; the very first
// of the text is scored only behind a BOS.
struct TextWindow {
  size_t begin = 0, end = 0;         // stream tokens it reads
  size_t first = 0, last_after = 0;  // stream tokens it scores: [first, last_after)
};
// `tokens` of the text, `before` tokens put before each window; context > before, 1 <= stride <= context -
// before.
std::vector<TextWindow> PlanWindows(size_t tokens, size_t before, size_t context, size_t stride);

struct PerplexityOptions {
  std::string model, text;  // text: a UTF-8 file; special tokens written in it count as such
  NumericsFlags numerics;
  bool against_f32 = false;  // also class f32 with weights as stored
  uint32_t context = 0;      // tokens of a window; 0: the model's, at most kWindowDefaultMax
  uint32_t stride = 0;       // 0: windows without overlap
  uint32_t tokens_max = 0;   // of the text, from its start; 0: all
  std::string ops = "auto";
  std::string state_dir;
  uint32_t threads = 0;
  bool json = false;
  bool progress = true;  // on stderr
};
inline constexpr uint32_t kWindowDefaultMax = 4096;

// How one class did.
struct TextScore {
  std::string class_name;       // NumericsChoice::name()
  std::vector<float> logprobs;  // of the scored tokens, in order
  double loss = 0;              // mean of -logprob, natural logarithm
  double perplexity = 0;        // exp(loss)
  double bits_per_byte = 0;     // over the text of the scored tokens, special ones without bytes
  double seconds = 0;           // of computing, without loading
  uint64_t expert_bytes = 0;    // in memory
  kernels::QuantError quant_error;
};

struct PerplexityResult {
  uint32_t context = 0, stride = 0;
  size_t windows = 0, tokens = 0, bytes = 0;  // tokens and bytes scored
  TextScore score;
  std::optional<TextScore> f32;  // PerplexityOptions::against_f32
  // With f32: how much larger the perplexity is, in percent (negative: smaller), and the mean of
  // |logprob - logprob in f32|.
  double quality_loss_percent = 0, mean_difference = 0;
};

// INVALID_ARGUMENT: what does not fit (window beyond the context, text of under two tokens, not UTF-8).
absl::StatusOr<PerplexityResult> MeasurePerplexity(const PerplexityOptions& options);

// The command. 0, or 1 after one line on stderr.
int RunPerplexity(const PerplexityOptions& options);

}  // namespace consilium
