#include "services/attention/kv_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace consilium {
namespace {

std::vector<TokenId> Tokens(size_t n, TokenId first = 0) {
  std::vector<TokenId> t(n);
  for (size_t i = 0; i < n; ++i) t[i] = first + static_cast<TokenId>(i);
  return t;
}

// Opens, reserves and commits `tokens`.
KvStore::Seq Fill(KvStore* kv, const std::vector<TokenId>& tokens, std::string_view root = "r") {
  uint32_t hit = 0;
  std::vector<KvBlockId> fresh;
  const KvStore::Seq seq = kv->Open(root, tokens, static_cast<uint32_t>(tokens.size()), &hit);
  EXPECT_TRUE(kv->Reserve(seq, static_cast<uint32_t>(tokens.size()), &fresh));
  kv->Commit(seq, tokens);
  return seq;
}
uint32_t Hit(KvStore* kv, const std::vector<TokenId>& tokens, std::string_view root = "r") {
  uint32_t hit = 0;
  kv->Release(kv->Open(root, tokens, static_cast<uint32_t>(tokens.size()), &hit));
  return hit;
}

TEST(KvStore, FullPagesOfReleasedWorkAreFoundAgain) {
  KvStore kv(8, true);
  kv.Release(Fill(&kv, Tokens(40)));
  EXPECT_EQ(Hit(&kv, Tokens(40)), 32u);
  EXPECT_EQ(Hit(&kv, Tokens(31)), 16u);
  EXPECT_EQ(kv.available_blocks(), 8u);
  EXPECT_EQ(kv.Check(), "");
}

TEST(KvStore, AnotherRootOrFirstTokenFindsNothing) {
  KvStore kv(8, true);
  kv.Release(Fill(&kv, Tokens(32)));
  EXPECT_EQ(Hit(&kv, Tokens(32), "other salt"), 0u);
  EXPECT_EQ(Hit(&kv, Tokens(32, 1)), 0u);
  auto changed = Tokens(32);
  changed[0] = 99;  // the second page alone is equal
  EXPECT_EQ(Hit(&kv, changed), 0u);
}

TEST(KvStore, WithoutAPrefixCacheNothingIsFoundAndReleaseFreesAll) {
  KvStore kv(8, false);
  kv.Release(Fill(&kv, Tokens(32)));
  EXPECT_EQ(Hit(&kv, Tokens(32)), 0u);
  EXPECT_EQ(kv.cached_blocks(), 0u);
}

TEST(KvStore, ReserveIsAllOrNothing) {
  KvStore kv(3, true);
  const auto seq = Fill(&kv, Tokens(16));
  std::vector<KvBlockId> fresh;
  EXPECT_FALSE(kv.Reserve(seq, 49, &fresh));
  EXPECT_TRUE(fresh.empty());
  EXPECT_TRUE(kv.Reserve(seq, 48, &fresh));
  EXPECT_EQ(fresh.size(), 2u);
  EXPECT_EQ(kv.available_blocks(), 0u);
  kv.Truncate(seq, 17);
  EXPECT_EQ(kv.available_blocks(), 1u);
  EXPECT_EQ(kv.Check(), "");
}

TEST(KvStore, TheLeastRecentlyUsedPrefixIsEvictedTailFirst) {
  KvStore kv(4, true);
  kv.Release(Fill(&kv, Tokens(32)));
  kv.Release(Fill(&kv, Tokens(32, 1000)));
  EXPECT_EQ(Hit(&kv, Tokens(32)), 32u);  // touched: now the other is older
  const auto seq = Fill(&kv, Tokens(16, 5000));
  EXPECT_EQ(Hit(&kv, Tokens(32, 1000)), 16u);
  EXPECT_EQ(Hit(&kv, Tokens(32)), 32u);
  kv.Release(seq);
  EXPECT_EQ(kv.Check(), "");
}

TEST(KvStore, AForkSharesFullPagesOnlyAndNeverAPageItWouldWrite) {
  for (bool cache : {true, false}) {
    KvStore kv(8, cache);
    const auto a = Fill(&kv, Tokens(40));
    const auto b = *kv.Fork(a, 40);
    ASSERT_EQ(kv.blocks(b).size(), 2u);
    EXPECT_EQ(kv.blocks(b)[1], kv.blocks(a)[1]);
    std::vector<KvBlockId> fresh;
    ASSERT_TRUE(kv.Reserve(b, 40, &fresh));
    EXPECT_NE(kv.blocks(b)[2], kv.blocks(a)[2]);
    kv.Release(a);
    kv.Commit(b, Tokens(40));
    EXPECT_EQ(kv.Check(), "");
    kv.Release(b);
    EXPECT_EQ(kv.available_blocks(), 8u);
  }
}

TEST(KvStore, ExportedPagesCanBeImportedInOrder) {
  KvStore a(4, true), b(4, true);
  a.Release(Fill(&a, Tokens(32)));
  const auto hashes = KvStore::ChainHashes("r", Tokens(32));
  ASSERT_EQ(hashes.size(), 2u);
  ASSERT_TRUE(a.Export(hashes[1]).has_value());
  EXPECT_EQ(a.Export(hashes[1])->parent_hash, hashes[0]);
  EXPECT_FALSE(b.Import("r", Tokens(32)).has_value()) << "its parent is not here";
  EXPECT_TRUE(b.Import("r", Tokens(16)).has_value());
  EXPECT_FALSE(b.Import("r", Tokens(16)).has_value()) << "already here";
  EXPECT_TRUE(b.Import("r", Tokens(32)).has_value());
  EXPECT_EQ(Hit(&b, Tokens(32)), 32u);
  EXPECT_EQ(b.Check(), "");
}

// Random operations against a model that knows which content each page should have.
TEST(KvStore, RandomUseNeverLeaksOrHandsAPageToTwo) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    auto pick = [&](uint32_t n) { return static_cast<uint32_t>(rng() % n); };
    KvStore kv(12, seed % 3 != 0);
    struct Live {
      KvStore::Seq seq;
      std::vector<TokenId> tokens;
      uint32_t computed;
    };
    std::vector<Live> live;
    std::map<uint32_t, std::vector<TokenId>> content;  // page -> the whole prefix that it must end
    for (int step = 0; step < 300; ++step) {
      const uint32_t op = pick(10);
      if (op < 4 && live.size() < 6) {
        Live l;
        l.tokens = Tokens(1 + pick(60), pick(2) * 500);
        if (pick(3) == 0) l.tokens.back() = 7;
        uint32_t hit = 0;
        l.seq = kv.Open("r", l.tokens, static_cast<uint32_t>(l.tokens.size()) - 1, &hit);
        l.computed = hit;
        ASSERT_LT(hit, l.tokens.size());
        for (uint32_t p = 0; p < hit / kKvBlockTokens; ++p) {
          const std::vector<TokenId> prefix(l.tokens.begin(), l.tokens.begin() + (p + 1) * kKvBlockTokens);
          ASSERT_EQ(content[kv.blocks(l.seq)[p].value], prefix) << "a hit on other tokens";
        }
        live.push_back(l);
      } else if (op < 7 && !live.empty()) {
        Live& l = live[pick(static_cast<uint32_t>(live.size()))];
        const uint32_t to =
            std::min<uint32_t>(static_cast<uint32_t>(l.tokens.size()), l.computed + 1 + pick(20));
        std::vector<KvBlockId> fresh;
        const uint32_t before = kv.available_blocks();
        if (!kv.Reserve(l.seq, to, &fresh)) {
          ASSERT_EQ(kv.available_blocks(), before);
          continue;
        }
        for (KvBlockId f : fresh) content[f.value].clear();
        for (uint32_t p = l.computed; p < to; ++p) {
          const uint32_t page = kv.blocks(l.seq)[p / kKvBlockTokens].value;
          for (const Live& other : live) {
            if (other.seq == l.seq) continue;
            for (KvBlockId b : kv.blocks(other.seq))
              ASSERT_NE(b.value, page) << "written while another holds it";
          }
          content[page].assign(l.tokens.begin(), l.tokens.begin() + p + 1);
        }
        l.computed = to;
        kv.Commit(l.seq, std::span<const TokenId>(l.tokens).first(to));
      } else if (op == 7 && !live.empty() && live.size() < 6) {
        const Live& from = live[pick(static_cast<uint32_t>(live.size()))];
        const uint32_t shared = from.computed / kKvBlockTokens * kKvBlockTokens;
        live.push_back({*kv.Fork(from.seq, shared), from.tokens, shared});
      } else if (op == 8 && !live.empty()) {
        Live& l = live[pick(static_cast<uint32_t>(live.size()))];
        kv.Truncate(l.seq, l.computed);
      } else if (!live.empty()) {
        const size_t i = pick(static_cast<uint32_t>(live.size()));
        kv.Release(live[i].seq);
        live.erase(live.begin() + static_cast<ptrdiff_t>(i));
      }
      ASSERT_EQ(kv.Check(), "");
    }
    for (const Live& l : live) kv.Release(l.seq);
    ASSERT_EQ(kv.available_blocks(), 12u);
    ASSERT_EQ(kv.open_sequences(), 0u);
  }
}

}  // namespace
}  // namespace consilium
