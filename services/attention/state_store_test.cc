#include "services/attention/state_store.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "services/attention/kv_store.h"

namespace consilium {
namespace {

std::vector<TokenId> Tokens(size_t n, TokenId first = 0) {
  std::vector<TokenId> t(n);
  for (size_t i = 0; i < n; ++i) t[i] = first + static_cast<TokenId>(i);
  return t;
}

// Computes tokens[0, n) as one flight; `keep` as in Commit.
void Compute(KvStore* kv, KvStore::Seq seq, const std::vector<TokenId>& tokens, size_t n, bool keep = false) {
  std::vector<KvBlockId> fresh;
  ASSERT_TRUE(kv->Reserve(seq, static_cast<uint32_t>(n), &fresh));
  ASSERT_TRUE(kv->ClaimState(seq));
  kv->Commit(seq, std::span<const TokenId>(tokens).first(n), keep);
}
KvStore::Seq Open(KvStore* kv, const std::vector<TokenId>& tokens, uint32_t* hit) {
  return kv->Open("r", tokens, static_cast<uint32_t>(tokens.size()), hit);
}
uint32_t Hit(KvStore* kv, const std::vector<TokenId>& tokens) {
  uint32_t hit = 0;
  kv->Release(Open(kv, tokens, &hit));
  return hit;
}

TEST(StateStore, IdleStatesGoLeastRecentlyUsedFirstAndHeldOnesNever) {
  StateStore s(3);
  std::optional<KvBlockId> from;
  const StateId a = *s.Allocate(&from), b = *s.Allocate(&from), c = *s.Allocate(&from);
  EXPECT_EQ(s.Allocate(&from), std::nullopt);
  s.Keep(a, KvBlockId(10));
  s.Keep(b, KvBlockId(11));
  s.Keep(c, KvBlockId(12));
  s.Unref(b);
  s.Unref(a);
  s.Ref(b);
  s.Unref(b);  // used again: later than a
  EXPECT_EQ(s.available(), 2u);
  EXPECT_EQ(*s.Allocate(&from), a);
  EXPECT_EQ(from, KvBlockId(10));
  EXPECT_EQ(*s.Allocate(&from), b);
  EXPECT_EQ(from, KvBlockId(11));
  EXPECT_EQ(s.Allocate(&from), std::nullopt) << "c is held";
  s.Drop(c);
  s.Unref(c);
  EXPECT_EQ(*s.Allocate(&from), c);
  EXPECT_EQ(from, std::nullopt);
}

TEST(KvStoreStates, AFlightReadsOneStateAndLeavesAnother) {
  KvStore kv(8, true, 4);
  uint32_t hit = 0;
  const auto tokens = Tokens(40);
  const KvStore::Seq seq = Open(&kv, tokens, &hit);
  EXPECT_EQ(kv.state(seq), std::nullopt);
  Compute(&kv, seq, tokens, 20);
  const StateId before = *kv.state(seq);
  std::vector<KvBlockId> fresh;
  ASSERT_TRUE(kv.Reserve(seq, 40, &fresh));
  ASSERT_TRUE(kv.ClaimState(seq));
  EXPECT_NE(*kv.claimed_state(seq), before);
  EXPECT_EQ(kv.sole_states(seq), 2u);
  kv.Truncate(seq, 20);  // the flight was abandoned
  EXPECT_EQ(kv.claimed_state(seq), std::nullopt);
  EXPECT_EQ(*kv.state(seq), before);
  Compute(&kv, seq, tokens, 40);
  EXPECT_NE(*kv.state(seq), before);
  EXPECT_EQ(kv.states().available(), 3u);
  EXPECT_EQ(kv.Check(), "");
  kv.Release(seq);
  EXPECT_EQ(kv.states().available(), 4u);
}

TEST(KvStoreStates, HitsAreAsDeepAsAState) {
  KvStore kv(16, true, 8);
  uint32_t hit = 0;
  const auto tokens = Tokens(80);
  const KvStore::Seq seq = Open(&kv, tokens, &hit);
  Compute(&kv, seq, tokens, 32, true);
  const StateId kept = *kv.state(seq);
  Compute(&kv, seq, tokens, 70);
  kv.Release(seq);
  const KvStore::Seq again = Open(&kv, tokens, &hit);
  EXPECT_EQ(hit, 32u);
  EXPECT_EQ(kv.blocks(again).size(), 2u);
  EXPECT_EQ(*kv.state(again), kept);
  kv.Release(again);
  EXPECT_EQ(Hit(&kv, Tokens(31)), 0u);
  EXPECT_EQ(kv.Check(), "");
}

TEST(KvStoreStates, AStateGoesWithItsPageAndWhenSlotsRunShort) {
  KvStore kv(4, true, 3);
  uint32_t hit = 0;
  const auto first = Tokens(16), second = Tokens(16, 100), third = Tokens(64, 200);
  for (const auto& tokens : {first, second}) {
    const KvStore::Seq seq = Open(&kv, tokens, &hit);
    Compute(&kv, seq, tokens, 16, true);
    kv.Release(seq);
  }
  EXPECT_EQ(kv.states().idle(), 2u);
  const KvStore::Seq seq = Open(&kv, third, &hit);
  Compute(&kv, seq, third, 16, false);
  Compute(&kv, seq, third, 32, false);  // the oldest kept state made room
  EXPECT_EQ(Hit(&kv, first), 0u);
  EXPECT_EQ(Hit(&kv, second), 16u);
  Compute(&kv, seq, third, 64);  // all four pages
  EXPECT_EQ(kv.states().idle(), 0u);
  EXPECT_EQ(Hit(&kv, second), 0u);
  EXPECT_EQ(kv.Check(), "");
  kv.Release(seq);
  EXPECT_EQ(kv.states().available(), 3u);
}

TEST(KvStoreStates, AForkBeginsFromTheStateAtItsPointOrIsRefused) {
  for (bool cache : {true, false}) {
    KvStore kv(16, cache, 4);
    uint32_t hit = 0;
    const auto tokens = Tokens(40);
    const KvStore::Seq seq = Open(&kv, tokens, &hit);
    Compute(&kv, seq, tokens, 32, true);
    const StateId kept = *kv.state(seq);
    Compute(&kv, seq, tokens, 40);
    EXPECT_EQ(kv.Fork(seq, 16), std::nullopt) << "no state there";
    const auto fork = kv.Fork(seq, 32), start = kv.Fork(seq, 0);
    ASSERT_TRUE(fork && start);
    EXPECT_EQ(*kv.state(*fork), kept);
    EXPECT_EQ(kv.state(*start), std::nullopt);
    EXPECT_EQ(kv.Check(), "");
    for (KvStore::Seq s : {seq, *fork, *start}) kv.Release(s);
    EXPECT_EQ(kv.states().available(), 4u);
    EXPECT_EQ(kv.states().idle(), cache ? 1u : 0u) << "pages that are not cached keep nothing";
  }
}

TEST(KvStoreStates, APageIsNotImportedWithoutItsState) {
  KvStore kv(4, true, 2);
  EXPECT_EQ(kv.Import("r", Tokens(16)), std::nullopt);
}

// What each state was written for must be what each reader takes it for.
TEST(KvStoreStates, RandomHistoriesReadTheStateOfTheirOwnTokens) {
  uint64_t hits = 0, forks = 0;
  for (uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    auto pick = [&](uint32_t n) { return static_cast<uint32_t>(rng() % n); };
    KvStore kv(14, seed % 3 != 0, 2 + pick(8));
    struct Live {
      KvStore::Seq seq;
      std::vector<TokenId> tokens;
      uint32_t computed;
    };
    std::vector<Live> live;
    std::map<uint32_t, std::vector<TokenId>> content;  // state -> the tokens it stands for
    const auto check = [&](const Live& l) {
      ASSERT_EQ(kv.state(l.seq).has_value(), l.computed > 0);
      if (l.computed == 0) return;
      ASSERT_EQ(content[kv.state(l.seq)->value],
                std::vector<TokenId>(l.tokens.begin(), l.tokens.begin() + l.computed));
    };
    for (int step = 0; step < 300; ++step) {
      const uint32_t op = pick(10);
      if (op < 3 && live.size() < 6) {
        Live l;
        l.tokens = Tokens(1 + pick(60), pick(2) * 500);
        uint32_t hit = 0;
        l.seq = kv.Open("r", l.tokens, static_cast<uint32_t>(l.tokens.size()) - 1, &hit);
        l.computed = hit;
        hits += hit;
        live.push_back(l);
      } else if (op < 7 && !live.empty()) {
        Live& l = live[pick(static_cast<uint32_t>(live.size()))];
        const uint32_t to =
            std::min<uint32_t>(static_cast<uint32_t>(l.tokens.size()), l.computed + 1 + pick(20));
        if (to == l.computed) continue;
        std::vector<KvBlockId> fresh;
        if (!kv.Reserve(l.seq, to, &fresh)) continue;
        if (!kv.ClaimState(l.seq)) {
          ASSERT_EQ(kv.states().available(), 0u);
          continue;
        }
        for (const Live& other : live) ASSERT_NE(kv.state(other.seq), kv.claimed_state(l.seq));
        content[kv.claimed_state(l.seq)->value].assign(l.tokens.begin(), l.tokens.begin() + to);
        if (pick(5) == 0) {
          kv.Truncate(l.seq, l.computed);
          continue;
        }
        l.computed = to;
        kv.Commit(l.seq, std::span<const TokenId>(l.tokens).first(to),
                  to % kKvBlockTokens == 0 && pick(2) == 0);
      } else if (op == 7 && !live.empty() && live.size() < 6) {
        const Live from = live[pick(static_cast<uint32_t>(live.size()))];
        const uint32_t shared = pick(from.computed / kKvBlockTokens + 1) * kKvBlockTokens;
        const auto fork = kv.Fork(from.seq, shared);
        if (fork) live.push_back({*fork, from.tokens, shared});
        forks += fork && shared > 0;
      } else if (op >= 8 && !live.empty()) {
        const size_t i = pick(static_cast<uint32_t>(live.size()));
        kv.Release(live[i].seq);
        live.erase(live.begin() + static_cast<ptrdiff_t>(i));
      }
      ASSERT_EQ(kv.Check(), "");
      for (const Live& l : live) check(l);
    }
    for (const Live& l : live) kv.Release(l.seq);
    ASSERT_EQ(kv.states().available(), kv.states().total());
    ASSERT_EQ(kv.Check(), "");
  }
  EXPECT_GT(hits, 0u);
  EXPECT_GT(forks, 0u);
}

}  // namespace
}  // namespace consilium
