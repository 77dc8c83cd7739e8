#include "services/attention/kv_store.h"

#include <algorithm>
#include <bit>

#include "common/base/hash.h"
#include "common/base/status.h"

namespace consilium {
namespace {

constexpr uint32_t kPage = kKvBlockTokens;

uint64_t ChainHash(uint64_t parent, std::span<const TokenId> tokens) {
  const uint64_t h = Xxh3(std::as_bytes(tokens), parent);
  return h != 0 ? h : 1;  // 0 stands for "no parent"
}
uint64_t RootHash(std::string_view root) {
  return Xxh3(std::as_bytes(std::span<const char>(root.data(), root.size())));
}

}  // namespace

KvStore::KvStore(uint32_t blocks, bool prefix_cache, uint32_t state_slots)
    : prefix_cache_(prefix_cache),
      states_(state_slots),
      blocks_(blocks),
      idle_(blocks),
      buckets_(std::bit_ceil(std::max(1u, blocks)), kNil) {
  for (uint32_t b = blocks; b-- > 0;) free_.push_back(b);
}

KvStore::Roots::iterator KvStore::UseRoot(std::string_view root) {
  auto it = roots_.find(root);
  if (it == roots_.end()) {
    it = roots_.emplace(std::string(root), Root{}).first;
    it->second.node = next_node_++;
    it->second.hash = RootHash(root);
  }
  ++it->second.users;
  return it;
}

void KvStore::DropRoot(Roots::iterator root) {
  if (--root->second.users == 0) roots_.erase(root);
}

KvStore::Seq KvStore::NewSequence(Roots::iterator root) {
  Seq seq;
  if (!free_sequences_.empty()) {
    seq = free_sequences_.back();
    free_sequences_.pop_back();
  } else {
    seq = static_cast<Seq>(sequences_.size());
    sequences_.emplace_back();
  }
  Sequence& s = sequences_[seq];
  s.blocks.clear();
  s.chain.clear();
  s.root = root;
  s.open = true;
  return seq;
}

KvStore::Link KvStore::Tail(const Sequence& s) {
  return s.chain.empty() ? Link{s.root->second.hash, s.root->second.node, kNil} : s.chain.back();
}

uint32_t KvStore::FindChild(uint64_t hash, uint64_t parent_node, std::span<const TokenId> tokens) const {
  for (uint32_t b = Bucket(hash); b != kNil; b = blocks_[b].bucket_next) {
    const Block& block = blocks_[b];
    if (block.hash == hash && block.parent_node == parent_node &&
        std::equal(tokens.begin(), tokens.end(), block.tokens.begin())) {
      return b;
    }
  }
  return kNil;
}

KvStore::Seq KvStore::Open(std::string_view root, std::span<const TokenId> tokens, uint32_t match_tokens_max,
                           uint32_t* hit_tokens) {
  const Seq seq = NewSequence(UseRoot(root));
  Sequence& s = sequences_[seq];
  const size_t pages = std::min<size_t>(tokens.size(), match_tokens_max) / kPage;
  size_t usable = 0;
  for (size_t p = 0; prefix_cache_ && p < pages; ++p) {
    const auto page = tokens.subspan(p * kPage, kPage);
    const Link parent = Tail(s);
    const uint64_t hash = ChainHash(parent.hash, page);
    const uint32_t block = FindChild(hash, parent.node, page);
    if (block == kNil) break;
    s.chain.push_back({hash, blocks_[block].node, block});
    if (states_.total() == 0 || blocks_[block].state.has_value()) usable = s.chain.size();
  }
  s.chain.resize(usable);
  for (const Link& link : s.chain) {
    Ref(link.block);
    s.blocks.push_back(KvBlockId(link.block));
  }
  if (usable > 0) s.state = blocks_[s.chain.back().block].state;
  if (s.state) states_.Ref(*s.state);
  *hit_tokens = static_cast<uint32_t>(s.chain.size()) * kPage;
  return seq;
}

std::optional<KvStore::Seq> KvStore::Fork(Seq source, uint32_t tokens) {
  const uint32_t pages = tokens / kPage;
  CHECK_MSG(sequences_[source].open && pages <= sequences_[source].chain.size(),
            "fork beyond committed pages");
  std::optional<StateId> state;
  if (pages > 0) state = StateOf(sequences_[source], pages - 1);
  if (pages > 0 && states_.total() > 0 && !state) return std::nullopt;
  const Roots::iterator root = sequences_[source].root;
  ++root->second.users;
  const Seq seq = NewSequence(root);
  Sequence& s = sequences_[seq];
  const Sequence& from = sequences_[source];
  s.blocks.assign(from.blocks.begin(), from.blocks.begin() + pages);
  s.chain.assign(from.chain.begin(), from.chain.begin() + pages);
  for (KvBlockId block : s.blocks) Ref(block.value);
  s.state = state;
  if (state) states_.Ref(*state);
  return seq;
}

bool KvStore::Reserve(Seq seq, uint32_t tokens, std::vector<KvBlockId>* fresh) {
  Sequence& s = sequences_[seq];
  CHECK(s.open);
  const uint32_t pages = (tokens + kPage - 1) / kPage;
  if (pages <= s.blocks.size()) return true;
  if (pages - s.blocks.size() > available_blocks()) return false;
  while (s.blocks.size() < pages) {
    const uint32_t block = Allocate();
    CHECK(block != kNil);
    Ref(block);
    s.blocks.push_back(KvBlockId(block));
    fresh->push_back(KvBlockId(block));
  }
  return true;
}

bool KvStore::ClaimState(Seq seq) {
  Sequence& s = sequences_[seq];
  CHECK(s.open && !s.claimed);
  std::optional<KvBlockId> taken_from;
  s.claimed = states_.Allocate(&taken_from);
  if (taken_from) blocks_[taken_from->value].state.reset();
  return s.claimed.has_value();
}

void KvStore::Commit(Seq seq, std::span<const TokenId> tokens, bool keep_state) {
  Sequence& s = sequences_[seq];
  CHECK(s.open && tokens.size() <= s.blocks.size() * kPage);
  CHECK(s.claimed.has_value() == (states_.total() > 0));
  while ((s.chain.size() + 1) * kPage <= tokens.size()) {
    const uint32_t block = s.blocks[s.chain.size()].value;
    const auto page = tokens.subspan(s.chain.size() * kPage, kPage);
    const Link parent = Tail(s);
    const uint64_t hash = ChainHash(parent.hash, page);
    uint32_t known = kNil;
    if (prefix_cache_) {
      known = FindChild(hash, parent.node, page);
      if (known == kNil) {
        Register(block, hash, s.chain.empty() ? 0 : parent.hash, parent.node, page, s.root);
        known = block;
      }
    }
    s.chain.push_back(known != kNil ? Link{hash, blocks_[known].node, known}
                                    : Link{hash, next_node_++, block});
  }
  if (!s.claimed) return;
  LetGo(&s.state);
  s.state = std::exchange(s.claimed, std::nullopt);
  CHECK(!keep_state || s.chain.size() * kPage == tokens.size());
  if (keep_state) KeepState(&s);
}

std::optional<StateId> KvStore::StateOf(const Sequence& s, size_t page) const {
  const Link& link = s.chain[page];
  const bool own = s.blocks[page].value == link.block;
  if (!own && (!blocks_[link.block].cached || blocks_[link.block].node != link.node)) return std::nullopt;
  return blocks_[link.block].state;
}

// Equal content has equal states: the first one is kept.
void KvStore::KeepState(Sequence* s) {
  if (s->chain.empty()) return;
  const Link& link = s->chain.back();
  std::optional<StateId>& kept = blocks_[link.block].state;
  if (kept) return;
  kept = s->state;
  states_.Keep(*kept, KvBlockId(link.block));
}

void KvStore::DropState(uint32_t block) {
  if (!blocks_[block].state) return;
  states_.Drop(*blocks_[block].state);
  blocks_[block].state.reset();
}

void KvStore::LetGo(std::optional<StateId>* state) {
  if (state->has_value()) states_.Unref(**state);
  state->reset();
}

void KvStore::Truncate(Seq seq, uint32_t tokens) {
  Sequence& s = sequences_[seq];
  const size_t pages = std::max<size_t>((tokens + kPage - 1) / kPage, s.chain.size());
  while (s.blocks.size() > pages) {
    Unref(s.blocks.back().value);
    s.blocks.pop_back();
  }
  LetGo(&s.claimed);
}

void KvStore::Release(Seq seq) {
  Sequence& s = sequences_[seq];
  CHECK(s.open);
  LetGo(&s.state);
  LetGo(&s.claimed);
  // Last page first: the tail of a prefix is evicted before its head.
  for (size_t i = s.blocks.size(); i-- > 0;) Unref(s.blocks[i].value);
  s.blocks.clear();
  s.open = false;
  DropRoot(s.root);
  free_sequences_.push_back(seq);
}

uint32_t KvStore::sole_blocks(Seq seq) const {
  uint32_t n = 0;
  for (KvBlockId b : sequences_[seq].blocks) n += blocks_[b.value].refs == 1;
  return n;
}

uint32_t KvStore::sole_states(Seq seq) const {
  const Sequence& s = sequences_[seq];
  return (s.state && states_.sole(*s.state)) + (s.claimed && states_.sole(*s.claimed));
}

uint32_t KvStore::Allocate() {
  if (!free_.empty()) {
    const uint32_t block = free_.back();
    free_.pop_back();
    return block;
  }
  if (idle_.first() == kNil) return kNil;
  const uint32_t block = idle_.first();
  idle_.Remove(block);
  Forget(block);
  return block;
}

void KvStore::Ref(uint32_t block) {
  Block& b = blocks_[block];
  if (b.refs++ == 0 && b.cached) idle_.Remove(block);
}

void KvStore::Unref(uint32_t block) {
  Block& b = blocks_[block];
  CHECK(b.refs > 0);
  if (--b.refs > 0) return;
  if (b.cached) return idle_.Push(block);
  DropState(block);
  free_.push_back(block);
}

void KvStore::Register(uint32_t block, uint64_t hash, uint64_t parent_hash, uint64_t parent_node,
                       std::span<const TokenId> tokens, Roots::iterator root) {
  Block& b = blocks_[block];
  CHECK(!b.cached);
  b.cached = true;
  b.hash = hash;
  b.parent_hash = parent_hash;
  b.node = next_node_++;
  b.parent_node = parent_node;
  std::copy(tokens.begin(), tokens.end(), b.tokens.begin());
  b.bucket_next = std::exchange(Bucket(hash), block);
  ++cached_;
  b.keeps_root = parent_node == root->second.node;
  if (b.keeps_root) {
    ++root->second.users;
    b.root = root;
  }
}

void KvStore::Forget(uint32_t block) {
  Block& b = blocks_[block];
  uint32_t* link = &Bucket(b.hash);
  while (*link != block) link = &blocks_[*link].bucket_next;
  *link = std::exchange(b.bucket_next, kNil);
  b.cached = false;
  --cached_;
  DropState(block);
  if (std::exchange(b.keeps_root, false)) DropRoot(b.root);
}

std::optional<KvStore::Exported> KvStore::Export(uint64_t hash) const {
  for (uint32_t b = Bucket(hash); b != kNil; b = blocks_[b].bucket_next) {
    if (blocks_[b].hash == hash) return Exported{KvBlockId(b), blocks_[b].parent_hash, blocks_[b].tokens};
  }
  return std::nullopt;
}

std::optional<KvBlockId> KvStore::Import(std::string_view root, std::span<const TokenId> prefix) {
  if (!prefix_cache_ || states_.total() > 0 || prefix.empty() || prefix.size() % kPage != 0)
    return std::nullopt;
  uint32_t hit = 0;
  const Seq seq =
      Open(root, prefix, static_cast<uint32_t>(prefix.size()), &hit);  // holds the parents meanwhile
  std::optional<KvBlockId> result;
  if (hit + kPage == prefix.size()) {
    const Sequence& s = sequences_[seq];
    const uint32_t block = Allocate();
    if (block != kNil) {
      const auto page = prefix.subspan(hit, kPage);
      const Link parent = Tail(s);
      Register(block, ChainHash(parent.hash, page), hit == 0 ? 0 : parent.hash, parent.node, page, s.root);
      idle_.Push(block);
      result = KvBlockId(block);
    }
  }
  Release(seq);
  return result;
}

std::vector<uint64_t> KvStore::ChainHashes(std::string_view root, std::span<const TokenId> tokens) {
  std::vector<uint64_t> out;
  uint64_t hash = RootHash(root);
  for (size_t p = 0; (p + 1) * kPage <= tokens.size(); ++p) {
    hash = ChainHash(hash, tokens.subspan(p * kPage, kPage));
    out.push_back(hash);
  }
  return out;
}

std::string KvStore::Check() const {
  std::vector<uint32_t> refs(blocks_.size(), 0);
  for (const Sequence& s : sequences_) {
    if (!s.open && !s.blocks.empty()) return "a closed sequence holds pages";
    for (KvBlockId b : s.blocks) ++refs[b.value];
  }
  uint32_t idle = 0, cached = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (refs[b] != blocks_[b].refs) return "page " + std::to_string(b) + ": wrong reference count";
    cached += blocks_[b].cached;
    idle += blocks_[b].cached && refs[b] == 0;
  }
  std::vector<uint8_t> seen(blocks_.size(), 0);
  for (uint32_t b : free_) {
    if (seen[b]++ != 0 || refs[b] != 0 || blocks_[b].cached)
      return "page " + std::to_string(b) + ": free and in use";
  }
  uint32_t listed = 0;
  for (uint32_t b = idle_.first(); b != kNil; b = idle_.next(b)) {
    if (seen[b]++ != 0 || refs[b] != 0 || !blocks_[b].cached)
      return "page " + std::to_string(b) + ": wrongly idle";
    ++listed;
  }
  uint32_t indexed = 0;
  for (uint32_t first : buckets_) {
    for (uint32_t b = first; b != kNil; b = blocks_[b].bucket_next) indexed += blocks_[b].cached;
  }
  if (listed != idle || listed != idle_.size() || cached != cached_ || indexed != cached)
    return "wrong counts";
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if ((refs[b] == 0) != (seen[b] == 1)) return "page " + std::to_string(b) + " is lost";
  }
  return CheckStates();
}

std::string KvStore::CheckStates() const {
  std::vector<uint32_t> refs(states_.total(), 0), pages(states_.total(), StateStore::kNil);
  for (const Sequence& s : sequences_) {
    if (!s.open && (s.state || s.claimed)) return "a closed sequence holds a state";
    if (s.state) ++refs[s.state->value];
    if (s.claimed) ++refs[s.claimed->value];
  }
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (!blocks_[b].state) continue;
    if (blocks_[b].refs == 0 && !blocks_[b].cached)
      return "page " + std::to_string(b) + ": free, with a state";
    uint32_t& page = pages[blocks_[b].state->value];
    if (page != StateStore::kNil) return "two pages keep one state";
    page = static_cast<uint32_t>(b);
  }
  return states_.Check(refs, pages);
}

}  // namespace consilium
