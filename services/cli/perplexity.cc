#include "services/cli/perplexity.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/model_files.h"
#include "common/text/text.h"
#include "services/cli/local_decoder.h"
#include "services/cli/progress.h"

namespace consilium {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kTextBytesMax = size_t{1} << 30;
constexpr size_t kChunk = 512;  // rows of a flight

struct Stream {
  std::vector<TokenId> before, tokens;
  std::vector<uint32_t> bytes;  // of each token's text; special tokens: 0
};

// What the tokenizer puts before a text of its own accord.
absl::StatusOr<std::vector<TokenId>> TokensBefore(const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(const auto plain, tokenizer.Encode("a", false));
  ASSIGN_OR_RETURN(const auto whole, tokenizer.Encode("a", true));
  const auto at = std::search(whole.begin(), whole.end(), plain.begin(), plain.end());
  if (at == whole.end()) return InvalidArgument("tokenizer: special tokens change the text between them");
  return std::vector<TokenId>(whole.begin(), at);
}

absl::StatusOr<Stream> ReadStream(const PerplexityOptions& options) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(options.text, kTextBytesMax));
  if (!IsUtf8(text)) return InvalidArgument(options.text + ": expected UTF-8 text");
  ASSIGN_OR_RETURN(const ModelTexts texts, ReadModelTexts(options.model));
  if (!texts.tokenizer) {
    return InvalidArgument(options.model + ": tokenizer.json is missing; a text cannot be scored without");
  }
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::FromJson(*texts.tokenizer));
  Stream stream;
  ASSIGN_OR_RETURN(stream.before, TokensBefore(*tokenizer));
  ASSIGN_OR_RETURN(stream.tokens, tokenizer->Encode(text, false));
  if (options.tokens_max != 0 && stream.tokens.size() > options.tokens_max)
    stream.tokens.resize(options.tokens_max);
  if (stream.tokens.size() < 2) {
    return InvalidArgument(options.text + ": expected at least 2 tokens, got " +
                           std::to_string(stream.tokens.size()));
  }
  for (const TokenId id : stream.tokens) {
    const size_t bytes = tokenizer->IsSpecial(id) ? 0 : tokenizer->TokenBytes(id).size();
    stream.bytes.push_back(static_cast<uint32_t>(bytes));
  }
  return stream;
}

// Window and stride, checked.
absl::Status ChooseWindows(const PerplexityOptions& options, const ModelSpec& spec, size_t before,
                           PerplexityResult* result) {
  result->context = options.context != 0 ? options.context : std::min(spec.context, kWindowDefaultMax);
  const uint32_t least = static_cast<uint32_t>(before) + 1;
  if (result->context > spec.context || result->context < least) {
    return InvalidArgument("--context: expected " + std::to_string(least) + ".." +
                           std::to_string(spec.context) + " tokens for this model, got " +
                           std::to_string(result->context));
  }
  const uint32_t room = result->context - static_cast<uint32_t>(before);
  result->stride = options.stride != 0 ? options.stride : room;
  if (result->stride > room) {
    return InvalidArgument("--stride: expected at most the " + std::to_string(room) +
                           " tokens that a window holds, got " + std::to_string(result->stride));
  }
  return absl::OkStatus();
}

// Log-probabilities of the tokens that the window scores, appended to `out`.
absl::Status ScoreWindow(const Stream& stream, const TextWindow& window, LocalDecoder* decoder,
                         std::vector<float>* out) {
  std::vector<TokenId> input = stream.before;
  input.insert(input.end(), stream.tokens.begin() + static_cast<long>(window.begin),
               stream.tokens.begin() + static_cast<long>(window.end));
  // Row i predicts stream token begin + i + 1 - before.
  const size_t from = window.first + stream.before.size() - window.begin - 1;
  const size_t rows = window.last_after + stream.before.size() - window.begin - 1;
  const uint32_t sequence = decoder->AddSequence(input.size());
  for (size_t at = 0; at < rows; at += kChunk) {
    const size_t count = std::min(kChunk, rows - at);
    Feed feed;
    feed.sequence = sequence;
    feed.tokens.assign(input.begin() + static_cast<long>(at), input.begin() + static_cast<long>(at + count));
    feed.targets.assign(count, 0);
    feed.score_from = std::min(count, from > at ? from - at : 0);
    for (size_t i = feed.score_from; i < count; ++i)
      feed.targets[i] = stream.tokens[window.begin + at + i + 1 - stream.before.size()];
    ASSIGN_OR_RETURN(const std::vector<SampleResult> results, decoder->StepResults(std::move(feed)));
    for (const SampleResult& r : results) out->push_back(r.logprob);
  }
  decoder->Release(sequence);
  return absl::OkStatus();
}

absl::StatusOr<TextScore> Score(const PerplexityOptions& options, const NumericsFlags& numerics,
                                const Stream& stream, const std::vector<TextWindow>& windows,
                                const PerplexityResult& sizes) {
  Progress progress(options.progress);
  LocalDecoderOptions o;
  o.ops = options.ops;
  o.state_dir = options.state_dir;
  o.numerics = numerics;
  o.threads = options.threads;
  o.kv_blocks = (sizes.context + kKvBlockTokens - 1) / kKvBlockTokens;
  o.keep_logits = false;
  o.progress = [&](size_t loaded, size_t all) { progress.Show("loading experts", loaded, all); };
  ASSIGN_OR_RETURN(const auto decoder, LocalDecoder::Open(options.model, std::move(o)));
  TextScore score;
  score.class_name = decoder->numerics().name();
  score.expert_bytes = decoder->expert_bytes();
  score.quant_error = decoder->quant_error();
  const MonoTime begin = NowUs();
  for (const TextWindow& window : windows) {
    progress.Show(score.class_name + ", tokens", score.logprobs.size(), sizes.tokens);
    RETURN_IF_ERROR(ScoreWindow(stream, window, decoder.get(), &score.logprobs));
  }
  score.seconds = static_cast<double>(NowUs() - begin) / 1e6;
  double sum = 0;
  for (const float logprob : score.logprobs) sum -= logprob;
  score.loss = sum / static_cast<double>(score.logprobs.size());
  score.perplexity = std::exp(score.loss);
  score.bits_per_byte = sum / std::log(2.0) / static_cast<double>(sizes.bytes);
  return score;
}

Json ToJson(const TextScore& s) {
  Json j;
  j["class"] = s.class_name;
  j["loss"] = s.loss;
  j["perplexity"] = s.perplexity;
  j["bits_per_byte"] = s.bits_per_byte;
  j["seconds"] = s.seconds;
  j["expert_bytes"] = s.expert_bytes;
  if (s.quant_error.reference > 0) j["weights_relative_error"] = s.quant_error.relative();
  return j;
}

std::string ToJson(const PerplexityOptions& options, const PerplexityResult& r) {
  Json out;
  out["model"] = options.model;
  out["text"] = options.text;
  out["context"] = r.context;
  out["stride"] = r.stride;
  out["windows"] = r.windows;
  out["tokens"] = r.tokens;
  out["bytes"] = r.bytes;
  out["score"] = ToJson(r.score);
  if (r.f32) {
    out["f32"] = ToJson(*r.f32);
    out["quality_loss_percent"] = r.quality_loss_percent;
    out["mean_logprob_difference"] = r.mean_difference;
  }
  return out.dump(2) + "\n";
}

void Print(const PerplexityOptions& options, const PerplexityResult& r) {
  std::printf("%s: %zu tokens, %zu bytes scored in %zu windows of %u tokens, stride %u\n",
              options.text.c_str(), r.tokens, r.bytes, r.windows, r.context, r.stride);
  std::printf("%-12s %8s %12s %14s %14s %10s\n", "class", "loss", "perplexity", "bits per byte",
              "expert bytes", "tokens/s");
  const auto row = [&](const TextScore& s) {
    std::printf("%-12s %8.4f %12.4f %14.4f %14llu %10.0f\n", s.class_name.c_str(), s.loss, s.perplexity,
                s.bits_per_byte, static_cast<unsigned long long>(s.expert_bytes),
                static_cast<double>(r.tokens) / std::max(s.seconds, 1e-6));
  };
  row(r.score);
  if (r.f32) row(*r.f32);
  if (r.score.quant_error.reference > 0)
    std::printf("weights quantised at load: relative error %.3g\n", r.score.quant_error.relative());
  if (r.f32) {
    std::printf(
        "loss of quality against f32: %.3f %% of perplexity; log-probabilities differ by %.3g on average\n",
        r.quality_loss_percent, r.mean_difference);
  }
}

}  // namespace

std::vector<TextWindow> PlanWindows(size_t tokens, size_t before, size_t context, size_t stride) {
  CHECK(context > before && stride >= 1 && stride <= context - before);
  std::vector<TextWindow> windows;
  size_t next = before == 0 ? 1 : 0;
  for (size_t begin = 0; next < tokens; begin += stride) {
    TextWindow w;
    w.begin = begin;
    w.end = std::min(tokens, begin + context - before);
    w.first = next;
    w.last_after = next = std::min(tokens, w.end + 1);
    windows.push_back(w);
  }
  return windows;
}

absl::StatusOr<PerplexityResult> MeasurePerplexity(const PerplexityOptions& options) {
  ASSIGN_OR_RETURN(const ModelSpec spec, ReadModelSpec(options.model));
  ASSIGN_OR_RETURN(const Stream stream, ReadStream(options));
  PerplexityResult result;
  RETURN_IF_ERROR(ChooseWindows(options, spec, stream.before.size(), &result));
  const auto windows = PlanWindows(stream.tokens.size(), stream.before.size(), result.context, result.stride);
  result.windows = windows.size();
  result.tokens = stream.tokens.size() - windows[0].first;
  for (size_t i = windows[0].first; i < stream.tokens.size(); ++i) result.bytes += stream.bytes[i];
  ASSIGN_OR_RETURN(result.score, Score(options, options.numerics, stream, windows, result));
  if (!options.against_f32) return result;
  ASSIGN_OR_RETURN(result.f32, Score(options, NumericsFlags{}, stream, windows, result));
  result.quality_loss_percent = 100 * (result.score.perplexity / result.f32->perplexity - 1);
  for (size_t i = 0; i < result.tokens; ++i)
    result.mean_difference +=
        std::abs(static_cast<double>(result.score.logprobs[i]) - result.f32->logprobs[i]);
  result.mean_difference /= static_cast<double>(result.tokens);
  return result;
}

int RunPerplexity(const PerplexityOptions& options) {
  const absl::StatusOr<PerplexityResult> result = MeasurePerplexity(options);
  if (!result.ok()) {
    std::fprintf(stderr, "consilium perplexity: %s\n", Message(result.status()).c_str());
    return 1;
  }
  if (options.json) {
    std::fputs(ToJson(options, *result).c_str(), stdout);
  } else {
    Print(options, *result);
  }
  return 0;
}

}  // namespace consilium
