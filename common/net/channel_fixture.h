// Test helpers for channels: a sink that records, and a shard that answers as told.
#pragma once
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/net/session.h"

namespace consilium {

// Records what it hears; WaitFor waits until a condition on it holds (or 20 s passed: false).
class RecordingSink final : public ExpertChannel::Sink {
 public:
  struct Result {
    uint64_t call = 0;
    bool last = true;
    std::vector<uint64_t> values;
  };
  struct Heard {
    int ups = 0, downs = 0, drains = 0, heartbeats = 0;
    uint32_t shard_id = 0;
    uint64_t incarnation = 0;
    Credit credit;
    absl::Status down;
    std::vector<Result> results;
    std::vector<CallReject> rejects;
    std::vector<std::string> order;  // "up", "result 3", ...
  };

  bool WaitFor(const std::function<bool(const Heard&)>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return condition(heard_); });
  }
  Heard heard() {
    std::lock_guard lock(mutex_);
    return heard_;
  }

  void OnUp(uint32_t shard_id, uint64_t incarnation, Credit credit) override {
    Note("up", [&](Heard& h) {
      ++h.ups;
      h.shard_id = shard_id;
      h.incarnation = incarnation;
      h.credit = credit;
    });
  }
  void OnResult(CallResult result) override {
    Note("result " + std::to_string(result.call.value), [&](Heard& h) {
      Result r{result.call.value, result.last, {}};
      r.values.resize(result.payload_bytes / 8);
      std::memcpy(r.values.data(), result.payload, r.values.size() * 8);
      h.results.push_back(std::move(r));
    });
  }
  void OnReject(CallReject reject) override {
    Note("reject " + std::to_string(reject.call.value),
         [&](Heard& h) { h.rejects.push_back(std::move(reject)); });
  }
  void OnCredit(Credit credit) override {
    Note("credit", [&](Heard& h) { h.credit = credit; });
  }
  void OnHeartbeat(frame::Timing) override {
    Note("heartbeat", [](Heard& h) { ++h.heartbeats; });
  }
  void OnDrain() override {
    Note("drain", [](Heard& h) { ++h.drains; });
  }
  void OnDown(absl::Status status) override {
    Note("down", [&](Heard& h) {
      ++h.downs;
      h.down = status;
    });
  }

 private:
  template <class F>
  void Note(std::string what, F&& f) {
    std::lock_guard lock(mutex_);
    f(heard_);
    heard_.order.push_back(std::move(what));
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  Heard heard_;
};

// A shard of one u64 a row: answers each CALL at once with its rows per slot, or as `on_call` says.
class ScriptedShard final : public FrameServer {
 public:
  using OnCall = std::function<void(ScriptedShard*, FrameLink*, const frame::View&)>;

  explicit ScriptedShard(BufferPool* pool) : pool_(pool) {}

  void Script(OnCall on_call) {
    std::lock_guard lock(mutex_);
    on_call_ = std::move(on_call);
  }
  void set_welcome(std::function<void(WelcomeInfo*)> edit) {
    std::lock_guard lock(mutex_);
    edit_welcome_ = std::move(edit);
  }

  void OnOpen(ConnId conn, std::shared_ptr<FrameLink> link, Lane lane, RouterHello hello) override {
    WelcomeInfo info;
    {
      std::lock_guard lock(mutex_);
      links_[conn] = link;
      lanes.push_back(lane);
      hellos.push_back(hello);
      info.shard_id = 5;
      info.incarnation = 77;
      info.models.assign(hello.models.size(), BindCode::kOk);
      info.classes.assign(hello.classes.size(), BindCode::kOk);
      info.credit = Credit{100, 1 << 20};
      if (edit_welcome_) edit_welcome_(&info);
      changed_.notify_all();
    }
    link->Write(WireFrame{EncodeWelcome(hello, info, pool_), false, {}});
  }
  void OnBind(ConnId, RouterHello more) override {
    std::lock_guard lock(mutex_);
    binds.push_back(std::move(more));
  }
  void OnFrame(ConnId conn, WireFrame frame) override {
    frame::View view;
    const absl::Status decoded = frame::Decode(frame, &view);
    std::shared_ptr<FrameLink> link;
    OnCall on_call;
    {
      std::lock_guard lock(mutex_);
      link = links_[conn];
      on_call = on_call_;
      (view.header.kind == frame::Kind::kCancel ? cancels : calls).push_back(view.header.call.value);
      changed_.notify_all();
    }
    if (!decoded.ok()) return link->Close(decoded);
    if (view.header.kind != frame::Kind::kCall) return;
    if (on_call)
      on_call(this, link.get(), view);
    else
      Answer(link.get(), view);
  }
  void OnClose(ConnId conn) override {
    std::lock_guard lock(mutex_);
    links_.erase(conn);
    ++closed;
    changed_.notify_all();
  }

  // The right answer, `slots` of it (all by default).
  void Answer(FrameLink* link, const frame::View& call, std::optional<frame::Range> slots = std::nullopt,
              bool last = true, bool corrupt = false) {
    const frame::Range range = slots.value_or(frame::Range{0, call.header.n_slots});
    frame::ResultFrame result = frame::BeginResult(call.header, range, pool_);
    for (uint32_t i = 0; i < range.n_slots; ++i) {
      std::memcpy(result.payload + i * 8, call.payload.data() + call.slots[range.first_slot + i].row * 8, 8);
    }
    const std::vector<uint32_t> shares(call.segments.size(), 1);
    frame::FinishResult(&result, call.header, frame::Timing{}, shares, last);
    if (corrupt) result.payload[0] ^= std::byte{1};
    link->Write(WireFrame{std::move(result.buffer), false, {}});
  }
  void Write(FrameLink* link, BufferRef frame) { link->Write(WireFrame{std::move(frame), false, {}}); }
  void WriteAll(const std::function<BufferRef()>& frame) {
    std::vector<std::shared_ptr<FrameLink>> all;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [conn, link] : links_) all.push_back(link);
    }
    for (const auto& link : all) link->Write(WireFrame{frame(), false, {}});
  }
  bool WaitFor(const std::function<bool(const ScriptedShard&)>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return condition(*this); });
  }
  BufferPool* pool() { return pool_; }

  // Read inside WaitFor or when nothing moves.
  std::vector<uint64_t> calls, cancels;
  std::vector<Lane> lanes;
  std::vector<RouterHello> hellos, binds;
  int closed = 0;

 private:
  BufferPool* const pool_;
  std::mutex mutex_;
  std::condition_variable changed_;
  OnCall on_call_;
  std::function<void(WelcomeInfo*)> edit_welcome_;
  std::map<ConnId, std::shared_ptr<FrameLink>> links_;
};

inline RouterHello MakeHello() {
  RouterHello h;
  h.router_id = "router-1";
  h.incarnation = 0xABCDEF0123456789ull;
  h.models = {{0, std::string(32, 'm'), 1, 5, 5}};
  h.classes = {{0, "hash", 0x1122334455667788ull}};
  return h;
}

// A body of one row per value, each for experts 0 and 1.
inline std::shared_ptr<const CallBody> MakeBody(BufferPool* pool, const std::vector<uint64_t>& values,
                                                bool payload_sum = true) {
  std::vector<frame::Slot> slots;
  std::vector<uint32_t> rows;
  for (uint16_t e = 0; e < 2; ++e) {
    for (uint16_t r = 0; r < values.size(); ++r) slots.push_back({e, r, static_cast<uint8_t>(e), 0, 0});
  }
  for (uint32_t r = 0; r < values.size(); ++r) rows.push_back(r);
  const frame::Segment segment{0, 0, static_cast<uint16_t>(values.size()), 0, 0, 0, 9};
  CallBody::Plan plan;
  plan.layer = LayerId{3};
  plan.dtype_in = plan.dtype_out = frame::DtypeCode::kU64;
  plan.hidden = 1;
  plan.segments = {&segment, 1};
  plan.slots = slots;
  plan.source_rows = rows;
  plan.source = reinterpret_cast<const std::byte*>(values.data());
  plan.payload_sum = payload_sum;
  return CallBody::Build(plan, pool);
}

}  // namespace consilium
