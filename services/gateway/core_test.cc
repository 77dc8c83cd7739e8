// The pure parts: stop strings, token streams, choices, worker choice.
#include <gtest/gtest.h>

#include <random>

#include "services/gateway/gateway_fixture.h"
#include "services/gateway/worker_choice.h"

namespace consilium::gateway {
namespace {

// Cuts `text` into random pieces.
std::vector<std::string> Pieces(const std::string& text, std::mt19937* random) {
  std::vector<std::string> out;
  for (size_t at = 0; at < text.size();) {
    const size_t n = 1 + (*random)() % 5;
    out.push_back(text.substr(at, n));
    at += n;
  }
  return out;
}

std::string Scan(const std::vector<std::string>& pieces, std::vector<std::string> stops, bool include,
                 bool* found) {
  StopScanner scanner(std::move(stops), include);
  std::string out;
  *found = false;
  for (const std::string& piece : pieces) {
    if ((*found = scanner.Feed(piece, &out))) return out;
  }
  scanner.Flush(&out);
  return out;
}

TEST(StopScanner, CutsBeforeTheStopAndKeepsItIfAsked) {
  bool found = false;
  EXPECT_EQ(Scan({"one tw", "o three"}, {"two"}, false, &found), "one ");
  EXPECT_TRUE(found);
  EXPECT_EQ(Scan({"one tw", "o three"}, {"two"}, true, &found), "one two");
  EXPECT_EQ(Scan({"one tw", "in"}, {"two"}, false, &found), "one twin");
  EXPECT_FALSE(found);
}

TEST(StopScanner, HoldsBackOnlyWhatMayBecomeAStop) {
  StopScanner scanner({"END"}, false);
  std::string out;
  scanner.Feed("abcE", &out);
  EXPECT_EQ(out, "abc");
  scanner.Feed("x", &out);
  EXPECT_EQ(out, "abcEx");
}

TEST(StopScanner, TheStopThatEndsFirstWins) {
  bool found = false;
  EXPECT_EQ(Scan({"xabc"}, {"abc", "b"}, true, &found), "xab");
  EXPECT_EQ(Scan({"xabc"}, {"bc", "abc"}, false, &found), "x");
}

TEST(StopScanner, GivesTheSameForAnySplit) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += static_cast<char>('a' + random() % 3);
    std::vector<std::string> stops;
    for (unsigned s = 0; s < 1 + random() % 3; ++s) {
      std::string stop;
      for (unsigned i = 0; i < 2 + random() % 4; ++i) stop += static_cast<char>('a' + random() % 3);
      stops.push_back(stop);
    }
    bool whole = false, split = false;
    const std::string expected = Scan({text}, stops, round % 2 == 0, &whole);
    ASSERT_EQ(Scan(Pieces(text, &random), stops, round % 2 == 0, &split), expected) << text;
    ASSERT_EQ(split, whole) << text;
  }
}

TEST(TokenStream, DropsAndComparesDuplicates) {
  SessionSubmit r;
  r.prompt = {1, 2, 3};
  r.top_logprobs = 2;
  TokenStream stream(3, 2);
  EXPECT_EQ(stream.Add(Event(r, 0, 3, 7)), Push::kNew);
  EXPECT_EQ(stream.Add(Event(r, 0, 4, 8)), Push::kNew);
  EXPECT_EQ(stream.Add(Event(r, 1, 3, 7)), Push::kNew);
  EXPECT_EQ(stream.Add(Event(r, 0, 3, 7)), Push::kDuplicate);
  EXPECT_EQ(stream.Add(Event(r, 0, 3, 9)), Push::kMismatch);
  SessionToken bits = Event(r, 0, 3, 7);
  bits.logprob = std::nextafter(bits.logprob, 0.0f);
  EXPECT_EQ(stream.Add(bits), Push::kMismatch);
  SessionToken top = Event(r, 0, 3, 7);
  top.top[1].id = 5;
  EXPECT_EQ(stream.Add(top), Push::kMismatch);
  EXPECT_EQ(stream.Add(Event(r, 0, 6, 9)), Push::kGap);
  EXPECT_EQ(stream.Add(Event(r, 2, 3, 9)), Push::kGap);
  EXPECT_EQ(stream.Add(Event(r, 0, 1, 2)), Push::kNew);  // prompt logprobs have places of their own
  EXPECT_EQ(stream.Add(Event(r, 0, 0, 1)), Push::kGap);
}

TEST(TokenStream, ResumesFromAllButTheLastToken) {
  SessionSubmit r;
  r.prompt = {1};
  TokenStream stream(1, 2);
  for (Position p = 1; p < 4; ++p) stream.Add(Event(r, 0, p, 10 + p));
  const auto history = stream.ResumeHistory();
  EXPECT_EQ(history[0].second, (std::vector<TokenId>{11, 12}));
  EXPECT_TRUE(history[1].second.empty());
}

// Any tokens with any stop strings: text and logprobs are those of the whole text.
TEST(Choice, CutsTextAndLogprobsAtTheStopForRandomTokens) {
  std::mt19937 random(3);
  SessionSubmit r;
  r.prompt = {1};
  r.top_logprobs = 0;
  for (int round = 0; round < 500; ++round) {
    std::vector<TokenId> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(3 + random() % (round % 3 == 0 ? 250 : 2000));
    const std::string text = *DemoTokenizer()->Decode(ids, true);
    ApiRequest request;
    request.top_logprobs = 0;
    const size_t at = random() % text.size();
    std::string stop = text.substr(at, 1 + random() % 4);
    if (!IsUtf8(stop)) continue;
    request.stop = {stop};
    Choice choice(request, DemoTokenizer());
    Delta all;
    bool stopped = false;
    for (uint32_t i = 0; i < ids.size() && !stopped; ++i) {
      stopped = choice.OnToken(Event(r, 0, 1 + i, ids[i]));
      Delta d = choice.Take();
      all.content += d.content;
      for (auto& t : d.tokens) all.tokens.push_back(t);
    }
    if (!stopped) {
      choice.OnFinish(FinishReason::kLength);
      Delta d = choice.Take();
      all.content += d.content;
      for (auto& t : d.tokens) all.tokens.push_back(t);
    }
    ASSERT_EQ(all.content, text.substr(0, text.find(stop))) << "round " << round;
    for (size_t i = 0; i < all.tokens.size(); ++i) {
      ASSERT_EQ(all.tokens[i].token, ids[i]);
      ASSERT_LE(all.tokens[i].text_begin, all.content.size());
    }
    ASSERT_EQ(choice.finish_reason(), "stop");
  }
}

TEST(WorkerChoice, PrefersTheSameWorkerForAPrefixAndSpreadsPrefixes) {
  std::vector<WorkerView> workers = {{"a", true, 0}, {"b", true, 0}, {"c", true, 0}};
  std::vector<int> hits(3);
  for (uint64_t prefix = 0; prefix < 300; ++prefix) {
    const auto first = ChooseWorker(workers, prefix);
    EXPECT_EQ(first, ChooseWorker(workers, prefix));
    ++hits[*first];
  }
  for (const int n : hits) EXPECT_GT(n, 50);
}

TEST(WorkerChoice, LeavesAnOverloadedOrIneligibleWorker) {
  std::vector<WorkerView> workers = {{"a", true, 0}, {"b", true, 0}};
  const size_t preferred = *ChooseWorker(workers, 1), other = 1 - preferred;
  workers[preferred].load = kAffinitySlack;
  EXPECT_EQ(ChooseWorker(workers, 1), preferred);
  workers[preferred].load = kAffinitySlack + 1;
  EXPECT_EQ(ChooseWorker(workers, 1), other);
  workers[other].eligible = false;
  EXPECT_EQ(ChooseWorker(workers, 1), preferred);
  workers[preferred].eligible = false;
  EXPECT_EQ(ChooseWorker(workers, 1), std::nullopt);
}

}  // namespace
}  // namespace consilium::gateway
