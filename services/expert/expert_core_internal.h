// The core's records. Included by expert_*.cc of the core only.
#pragma once
#include <optional>

#include "services/expert/expert_core.h"

namespace consilium {

// One CALL from arrival to answer. Linked into its lane's queue (while queued) and into its stream's list.
struct ExpertCore::Call {
  Stream* stream = nullptr;  // null: the stream closed while the call was in the running job
  WireFrame frame;
  frame::View view;  // spans into frame.buffer
  Lane lane = Lane::kDecode;
  MonoTime arrived = 0, deadline = 0;
  bool queued = false, cancelled = false;
  Call *queue_prev = nullptr, *queue_next = nullptr;
  Call *stream_prev = nullptr, *stream_next = nullptr;
  std::vector<frame::ResultFrame> results;  // capacity is kept
};

struct ExpertCore::Stream {
  ConnId conn = 0;
  Lane lane = Lane::kDecode;
  std::map<uint32_t, BindCode> models;
  std::map<uint16_t, BindCode> classes;
  uint64_t last_call = 0;
  Credit received, returned, announced;  // cumulative; received <= announced <= window + returned
  CallList calls;
  uint32_t open = 0;
  MonoTime quiet_since = 0;  // last frame sent, or the first open call
};

struct ExpertCore::Host {
  ExpertKey key;
  bool known = false;  // the model has it
  HostState state = HostState::kAbsent;
  ExpertHandle handle = 0;
  uint64_t bytes = 0;
  uint32_t calls = 0;  // open calls that use it
  bool drop = false;   // loading: drop when loaded; draining: drop when calls == 0
  MonoTime load_started = 0;
  std::vector<uint64_t> waiters;  // op ids
};

struct ExpertCore::Op {
  uint32_t remaining = 1;
  bool done = false, ok = true;
  std::string text;
};

struct ExpertCore::Run {
  uint32_t key = 0;  // layer << 16 | expert
  uint32_t order = 0;
  Call* call = nullptr;
  uint32_t first = 0, count = 0;
};

struct ExpertCore::Refusal {
  frame::RejectCode code = frame::RejectCode::kInternal;
  uint32_t arg = 0;
  std::string text;
};

// Calls f(expert, first_slot, n_slots) for each run of one expert in a call's sorted slot table.
template <class F>
void ForEachExpert(std::span<const frame::Slot> slots, F&& f) {
  for (uint32_t first = 0; first < slots.size();) {
    uint32_t end = first + 1;
    while (end < slots.size() && slots[end].expert == slots[first].expert) ++end;
    if constexpr (std::is_same_v<decltype(f(ExpertId{}, 0u, 0u)), bool>) {
      if (!f(ExpertId{slots[first].expert}, first, end - first)) return;
    } else {
      f(ExpertId{slots[first].expert}, first, end - first);
    }
    first = end;
  }
}

inline std::string Name(ExpertKey key) {
  return "layer " + std::to_string(key.layer.value) + " expert " + std::to_string(key.expert.value);
}

}  // namespace consilium
