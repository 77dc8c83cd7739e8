// Question: how fast is the arithmetic of a whole model alone, without scheduler, frames or network? One step
// of the demo model: every row is another sequence with `context` tokens behind it at first and 100 more at
// the end. Items are tokens. A step reads each chosen weight once and all keys and values of its rows: 3.4 KB
// a token of context and row, so that 16 rows at 300 tokens read as many bytes of KV (17 MB) as the whole
// model has.
#include <benchmark/benchmark.h>

#include "common/base/hash.h"
#include "common/base/status.h"
#include "services/cli/local_decoder.h"

namespace consilium {
namespace {

void Decode(benchmark::State& state) {
  LocalDecoderOptions options;
  options.threads = static_cast<uint32_t>(state.range(1));
  options.kv_blocks = 4096;
  options.keep_logits = false;
  const auto d = LocalDecoder::Open(std::string(CONSILIUM_SOURCE_DIR) + "/models/demo", options).value();
  const uint32_t rows = static_cast<uint32_t>(state.range(0)),
                 context = static_cast<uint32_t>(state.range(2));
  std::vector<Feed> feeds(rows);
  for (uint32_t r = 0; r < rows; ++r) {
    feeds[r].sequence = d->AddSequence();
    feeds[r].sample_all = false;
    for (uint32_t i = 0; i < context; ++i)
      feeds[r].tokens.push_back(static_cast<TokenId>(Mix(r, i) % d->spec().vocab));
    CHECK(d->Step({feeds[r]}).ok());
    feeds[r].tokens = {static_cast<TokenId>(r)};
  }
  for (auto _ : state) {
    const auto next = d->Step(feeds).value();
    for (uint32_t r = 0; r < rows; ++r) feeds[r].tokens[0] = next[r];
  }
  state.SetItemsProcessed(state.iterations() * rows);
}
BENCHMARK(Decode)
    ->ArgsProduct({{1, 16}, {1, 2}, {16, 300}})
    ->ArgNames({"rows", "threads", "context"})
    ->Iterations(100)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

void Prefill(benchmark::State& state) {
  LocalDecoderOptions options;
  options.threads = static_cast<uint32_t>(state.range(1));
  options.kv_blocks = 4096;
  options.keep_logits = false;
  const auto d = LocalDecoder::Open(std::string(CONSILIUM_SOURCE_DIR) + "/models/demo", options).value();
  std::vector<TokenId> tokens;
  for (uint32_t i = 0; i < static_cast<uint32_t>(state.range(0)); ++i)
    tokens.push_back(static_cast<TokenId>(Mix(7, i) % d->spec().vocab));
  for (auto _ : state) CHECK(d->Step({Feed{d->AddSequence(), tokens, false}}).ok());
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(Prefill)
    ->ArgsProduct({{512}, {1, 2}})
    ->ArgNames({"tokens", "threads"})
    ->Iterations(20)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace consilium
