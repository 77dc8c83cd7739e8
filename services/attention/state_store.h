// Slots of recurrent states: who holds which. A state is a value, like a full page: what the recurrent layers
// of a model keep after the first n tokens of a sequence. One flight writes it, nothing ever changes it.
// Sequences hold references; a page may keep the state after its last token besides. A state that only a page
// keeps is idle: its slot goes to whoever needs one, least recently used first. Ids only; the bytes are the
// backend's.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "services/attention/idle_list.h"

namespace consilium {

class StateStore {
 public:
  explicit StateStore(uint32_t slots);

  // A slot with one reference. nullopt: every slot is referenced. *taken_from: the page that kept what was in
  // it, if one did.
  std::optional<StateId> Allocate(std::optional<KvBlockId>* taken_from);
  void Ref(StateId state);
  void Unref(StateId state);
  // `page` keeps a state that no page keeps yet; Drop ends that.
  void Keep(StateId state, KvBlockId page);
  void Drop(StateId state);

  bool sole(StateId state) const { return slots_[state.value].refs == 1; }
  uint32_t total() const { return static_cast<uint32_t>(slots_.size()); }
  // Free or idle.
  uint32_t available() const { return static_cast<uint32_t>(free_.size()) + idle_.size(); }
  uint32_t idle() const { return idle_.size(); }
  // "" or what is inconsistent with these references and keepers (kNil: none); for tests.
  static constexpr uint32_t kNil = IdleList::kNil;
  std::string Check(const std::vector<uint32_t>& refs, const std::vector<uint32_t>& pages) const;

 private:
  struct Slot {
    uint32_t refs = 0;
    uint32_t page = kNil;
  };
  void Settle(uint32_t slot);

  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  IdleList idle_;
};

}  // namespace consilium
