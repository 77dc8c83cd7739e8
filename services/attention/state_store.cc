#include "services/attention/state_store.h"

#include "common/base/status.h"

namespace consilium {

StateStore::StateStore(uint32_t slots) : slots_(slots), idle_(slots) {
  free_.reserve(slots);
  for (uint32_t s = slots; s-- > 0;) free_.push_back(s);
}

std::optional<StateId> StateStore::Allocate(std::optional<KvBlockId>* taken_from) {
  taken_from->reset();
  uint32_t slot = idle_.first();
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else if (slot != kNil) {
    idle_.Remove(slot);
    *taken_from = KvBlockId(slots_[slot].page);
    slots_[slot].page = kNil;
  } else {
    return std::nullopt;
  }
  slots_[slot].refs = 1;
  return StateId(slot);
}

void StateStore::Ref(StateId state) {
  Slot& s = slots_[state.value];
  CHECK(s.refs > 0 || s.page != kNil);
  if (s.refs++ == 0) idle_.Remove(state.value);
}

void StateStore::Unref(StateId state) {
  CHECK(slots_[state.value].refs > 0);
  if (--slots_[state.value].refs == 0) Settle(state.value);
}

void StateStore::Keep(StateId state, KvBlockId page) {
  Slot& s = slots_[state.value];
  CHECK(s.refs > 0 && s.page == kNil);
  s.page = page.value;
}

void StateStore::Drop(StateId state) {
  Slot& s = slots_[state.value];
  CHECK(s.page != kNil);
  s.page = kNil;
  if (s.refs > 0) return;
  idle_.Remove(state.value);
  Settle(state.value);
}

// Where a slot without references belongs.
void StateStore::Settle(uint32_t slot) {
  if (slots_[slot].page != kNil)
    idle_.Push(slot);
  else
    free_.push_back(slot);
}

std::string StateStore::Check(const std::vector<uint32_t>& refs, const std::vector<uint32_t>& pages) const {
  const auto name = [](size_t slot) { return "state " + std::to_string(slot) + ": "; };
  std::vector<uint8_t> seen(slots_.size(), 0);
  uint32_t listed = 0;
  for (uint32_t s : free_) {
    if (seen[s]++ != 0 || refs[s] != 0 || pages[s] != kNil) return name(s) + "free and in use";
  }
  for (uint32_t s = idle_.first(); s != kNil; s = idle_.next(s), ++listed) {
    if (seen[s]++ != 0 || refs[s] != 0 || pages[s] == kNil) return name(s) + "wrongly idle";
  }
  if (listed != idle_.size()) return "wrong count of idle states";
  for (size_t s = 0; s < slots_.size(); ++s) {
    if (slots_[s].refs != refs[s]) return name(s) + "wrong reference count";
    if (slots_[s].page != pages[s]) return name(s) + "wrong page";
    if ((refs[s] == 0) != (seen[s] == 1)) return name(s) + "lost";
  }
  return "";
}

}  // namespace consilium
