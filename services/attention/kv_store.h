// Pages of the KV arena: who holds which, and which prefixes they contain. Ids only; the bytes are the
// backend's. A full page's content is a pure function of (root, all tokens up to its end), where the root
// names manifest, class and salt. Full pages of finished work stay as a prefix cache until their page is
// needed (least recently used first). Identity is checked by content, page by page: a 64-bit hash only finds
// candidates.
//
// Of a model with recurrent layers a sequence also has a state after its last computed token, and a page may
// keep the state after its last token (state_store.h). There a prefix can be continued only where a state is:
// hits and forks reach no deeper.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "common/base/limits.h"
#include "services/attention/idle_list.h"
#include "services/attention/state_store.h"

namespace consilium {

using KvTokens = std::array<TokenId, kKvBlockTokens>;

class KvStore {
 public:
  using Seq = uint32_t;  // an open sequence
  // state_slots 0: the model keeps no states.
  KvStore(uint32_t blocks, bool prefix_cache, uint32_t state_slots = 0);

  // A sequence that begins with the cached full pages of `tokens`, at most match_tokens_max tokens of them,
  // and the state behind them. *hit_tokens: how many were found.
  Seq Open(std::string_view root, std::span<const TokenId> tokens, uint32_t match_tokens_max,
           uint32_t* hit_tokens);
  // Shares the full pages of the first `tokens` tokens; they must be committed. The rest (a partial page) is
  // the new sequence's to compute: pages are never written by two. nullopt: no state is kept there.
  std::optional<Seq> Fork(Seq source, uint32_t tokens);
  // Pages for the first `tokens` tokens, all or nothing (false). New ones are appended to *fresh: zero them
  // before use.
  bool Reserve(Seq seq, uint32_t tokens, std::vector<KvBlockId>* fresh);
  // A slot for the state that the next flight leaves; false: none can be had.
  bool ClaimState(Seq seq);
  // The KV of tokens[0, n) is complete: full pages can be found from now on. `tokens` starts at position 0.
  // The claimed state is the sequence's; keep_state: its last page, which is full, keeps it too.
  void Commit(Seq seq, std::span<const TokenId> tokens, bool keep_state = false);
  // Gives back pages beyond the first `tokens` tokens and the claimed state. Never cuts below what is
  // committed.
  void Truncate(Seq seq, uint32_t tokens);
  void Release(Seq seq);

  std::span<const KvBlockId> blocks(Seq seq) const { return sequences_[seq].blocks; }
  // Pages that only this sequence holds: what its release would free at least.
  uint32_t sole_blocks(Seq seq) const;
  uint32_t total_blocks() const { return static_cast<uint32_t>(blocks_.size()); }
  // Free or cached without a holder.
  uint32_t available_blocks() const { return static_cast<uint32_t>(free_.size()) + idle_.size(); }
  uint32_t cached_blocks() const { return cached_; }
  // After the committed tokens (nullopt: none yet), and the claimed one.
  std::optional<StateId> state(Seq seq) const { return sequences_[seq].state; }
  std::optional<StateId> claimed_state(Seq seq) const { return sequences_[seq].claimed; }
  // States that its release would make available.
  uint32_t sole_states(Seq seq) const;
  const StateStore& states() const { return states_; }
  size_t open_sequences() const { return sequences_.size() - free_sequences_.size(); }

  // The seam for failover and prefix sharing: pages by chain hash.
  struct Exported {
    KvBlockId block;
    uint64_t parent_hash = 0;  // 0: first page of its root
    KvTokens tokens;
  };
  std::optional<Exported> Export(uint64_t hash) const;
  // A page for the imported bytes of the last page of `prefix` (whole pages): cached, not held, so the caller
  // fills it before anything else happens. nullopt: already here, an earlier page is not, no page is free, or
  // the model keeps states: a page alone continues nothing there.
  std::optional<KvBlockId> Import(std::string_view root, std::span<const TokenId> prefix);
  // Chain hash of each full page of `tokens`.
  static std::vector<uint64_t> ChainHashes(std::string_view root, std::span<const TokenId> tokens);
  // "" or what is inconsistent; for tests.
  std::string Check() const;

 private:
  static constexpr uint32_t kNil = IdleList::kNil;
  struct Root {
    uint64_t node = 0, hash = 0;
    uint32_t users = 0;  // open sequences and first pages
  };
  using Roots = std::map<std::string, Root, std::less<>>;
  struct Block {
    uint32_t refs = 0;
    bool cached = false;
    uint64_t hash = 0, parent_hash = 0;
    uint64_t node = 0, parent_node = 0;  // identity of this cached content, never reused
    KvTokens tokens{};
    uint32_t bucket_next = kNil;   // in its hash bucket, if cached
    bool keeps_root = false;       // the cached first page of a root keeps its identity alive
    std::optional<StateId> state;  // after its last token
    Roots::iterator root;
  };
  struct Link {
    uint64_t hash = 0, node = 0;
    uint32_t block = kNil;  // that the cache knows this content by, or the sequence's own
  };
  struct Sequence {
    std::vector<KvBlockId> blocks;
    std::vector<Link> chain;  // of each committed page
    std::optional<StateId> state, claimed;
    Roots::iterator root;
    bool open = false;
  };
  // blocks() is handed out as a span: moving a Sequence must not move its pages.
  static_assert(std::is_nothrow_move_constructible_v<Sequence>);

  Seq NewSequence(Roots::iterator root);
  static Link Tail(const Sequence& s);  // of the last committed page, or the root
  Roots::iterator UseRoot(std::string_view root);
  void DropRoot(Roots::iterator root);
  uint32_t FindChild(uint64_t hash, uint64_t parent_node, std::span<const TokenId> tokens) const;
  uint32_t& Bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  uint32_t Bucket(uint64_t hash) const { return buckets_[hash & (buckets_.size() - 1)]; }
  uint32_t Allocate();  // kNil: none
  void Ref(uint32_t block);
  void Unref(uint32_t block);
  void Register(uint32_t block, uint64_t hash, uint64_t parent_hash, uint64_t parent_node,
                std::span<const TokenId> tokens, Roots::iterator root);
  void Forget(uint32_t block);
  // The state kept by the page of a link; nullopt: none, or the page is another's by now.
  std::optional<StateId> StateOf(const Sequence& s, size_t page) const;
  void KeepState(Sequence* s);
  void DropState(uint32_t block);
  void LetGo(std::optional<StateId>* state);
  std::string CheckStates() const;

  const bool prefix_cache_;
  StateStore states_;
  std::vector<Block> blocks_;
  std::vector<uint32_t> free_;
  IdleList idle_;  // cached without a holder
  uint32_t cached_ = 0;
  std::vector<uint32_t> buckets_;  // a power of two: first cached block of each chain hash modulo it
  Roots roots_;
  uint64_t next_node_ = 1;
  std::vector<Sequence> sequences_;
  std::vector<Seq> free_sequences_;
};

}  // namespace consilium
