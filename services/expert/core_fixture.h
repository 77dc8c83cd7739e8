// A small language for tests of the expert core: a shard of the hash class with 3 layers x 8 experts, its
// clock and its backend in the test's hands.
#pragma once
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "common/net/session.h"
#include "common/testing/hash_backend.h"
#include "services/expert/expert_core.h"

namespace consilium {

struct CoreFixture {
  struct Answer {
    ConnId conn = 0;
    uint64_t call = 0;
    frame::Kind kind = frame::Kind::kResult;
    frame::RejectCode code = frame::RejectCode::kInternal;
    bool last = true;
    std::vector<uint64_t> values;  // of a RESULT, in slot order
    frame::Timing timing;
    std::vector<uint32_t> share_us;
    uint32_t arg = 0;
    std::string text;
  };

  static ExpertCoreOptions Options() {
    ExpertCoreOptions o;
    o.manifest = std::string(32, 'm');
    o.hidden = 1;
    o.dtype_in = o.dtype_out = frame::DtypeCode::kU64;
    o.class_name = "hash";
    o.fingerprint = 7;
    o.layers = 3;
    o.experts = 8;
    for (uint16_t l = 0; l < 3; ++l) {
      for (uint16_t e = 0; e < 8; ++e) o.expert_bytes[{LayerId{l}, ExpertId{e}}] = 100;
    }
    return o;
  }
  static RouterHello Hello() {
    RouterHello h;
    h.router_id = "router";
    h.incarnation = 1;
    h.models = {{0, std::string(32, 'm'), 1, 5, 5}};
    h.classes = {{0, "hash", 7}};
    return h;
  }
  static ExpertKey Key(uint16_t layer, uint16_t expert) { return {LayerId{layer}, ExpertId{expert}}; }

  explicit CoreFixture(ExpertCoreOptions options = Options(), bool load_all = true)
      : core(std::make_unique<ExpertCore>(std::move(options), &pool)) {
    if (!load_all) return;
    std::vector<ExpertKey> all;
    for (uint16_t l = 0; l < 3; ++l) {
      for (uint16_t e = 0; e < 8; ++e) all.push_back(Key(l, e));
    }
    Command(expert_event::Command::Kind::kLoad, 1, all);
    FinishLoads();
  }

  // Hands an event to the core and reads its actions.
  void Do(ExpertEvent event) {
    std::vector<ExpertAction> actions;
    core->Handle(now, std::move(event), &actions);
    for (ExpertAction& a : actions) Read(a);
  }
  void Open(ConnId conn, Lane lane = Lane::kDecode, RouterHello hello = Hello()) {
    Do(expert_event::ConnOpened{conn, lane, std::move(hello)});
  }
  void Command(expert_event::Command::Kind kind, uint64_t op, std::vector<ExpertKey> keys) {
    Do(expert_event::Command{kind, op, std::move(keys)});
  }
  void FinishLoads() {
    for (const ExpertKey key : std::exchange(loads, {})) FinishLoad(key);
  }
  void FinishLoad(ExpertKey key) {
    ExpertEntry entry;
    entry.layer = key.layer;
    entry.expert = key.expert;
    auto handle = backend.Load(entry, nullptr);
    Do(expert_event::LoadDone{key, absl::OkStatus(), *handle});
  }

  struct Row {
    uint64_t x;
    std::vector<uint16_t> experts;
  };
  std::shared_ptr<const CallBody> Body(uint16_t layer, const std::vector<Row>& rows,
                                       bool one_segment = true) {
    return BodyIn(&pool, layer, rows, one_segment);
  }
  static std::shared_ptr<const CallBody> BodyIn(BufferPool* pool, uint16_t layer,
                                                const std::vector<Row>& rows, bool one_segment = true) {
    std::vector<frame::Slot> slots;
    std::vector<frame::Segment> segments;
    std::vector<uint64_t> source;
    std::vector<uint32_t> index;
    for (uint16_t r = 0; r < rows.size(); ++r) {
      source.push_back(rows[r].x);
      index.push_back(r);
      for (uint8_t k = 0; k < rows[r].experts.size(); ++k) slots.push_back({rows[r].experts[k], r, k, 0, 0});
      if (!one_segment) segments.push_back({0, r, 1, 0, 0, 0, r});
    }
    if (one_segment) segments.push_back({0, 0, static_cast<uint16_t>(rows.size()), 0, 0, 0, 1});
    std::sort(slots.begin(), slots.end(), [](const frame::Slot& a, const frame::Slot& b) {
      return a.expert != b.expert ? a.expert < b.expert : a.row < b.row;
    });
    CallBody::Plan plan;
    plan.layer = LayerId{layer};
    plan.dtype_in = plan.dtype_out = frame::DtypeCode::kU64;
    plan.hidden = 1;
    plan.segments = segments;
    plan.slots = slots;
    plan.source_rows = index;
    plan.source = reinterpret_cast<const std::byte*>(source.data());
    return CallBody::Build(plan, pool);
  }
  // The results a right shard gives for the body, in slot-table order.
  static std::vector<uint64_t> Expected(const CallBody& body, const std::vector<Row>& rows) {
    std::vector<uint64_t> out;
    for (const frame::Slot& s : body.slots())
      out.push_back(HashExpert(body.layer(), ExpertId{s.expert}, rows[s.row].x));
    return out;
  }
  void Call(ConnId conn, uint64_t id, uint16_t layer, const std::vector<Row>& rows,
            uint32_t budget_us = 1'000'000) {
    Do(expert_event::FrameIn{conn, Body(layer, rows)->Frame(CallId{id}, Epoch{}, budget_us, 0)});
  }
  void Cancel(ConnId conn, uint64_t id) {
    Do(expert_event::FrameIn{conn, WireFrame{frame::EncodeCancel(CallId{id}, &pool), false, {}}});
  }
  // Computes the running job.
  void FinishJob(uint32_t compute_us = 10) {
    ASSERT_TRUE(job.has_value());
    const GroupedFfnJob run = *std::exchange(job, std::nullopt);
    absl::Status status;
    backend.Run(run, [&](FfnDone done) { status = done.status; });
    Do(expert_event::JobDone{status, compute_us});
  }
  void FinishAllJobs() {
    while (job.has_value()) FinishJob();
  }

  void Read(ExpertAction& action) {
    if (auto* send = std::get_if<expert_action::Send>(&action)) ReadFrame(*send);
    if (auto* run = std::get_if<expert_action::RunJob>(&action)) {
      EXPECT_FALSE(job.has_value()) << "two jobs at once";
      job = run->job;
      ++jobs;
    }
    if (auto* load = std::get_if<expert_action::Load>(&action)) loads.push_back(load->key);
    if (auto* drop = std::get_if<expert_action::Drop>(&action)) backend.Drop(drop->handle), ++drops;
    if (auto* op = std::get_if<expert_action::OpDone>(&action)) ops.push_back(*op);
    if (auto* changed = std::get_if<expert_action::HostChanged>(&action))
      states[changed->key].push_back(changed->state);
    if (auto* close = std::get_if<expert_action::Close>(&action)) closes.push_back(*close);
    if (auto* welcome = std::get_if<expert_action::Welcome>(&action)) {
      credit[welcome->conn] = welcome->credit;
      welcomes.push_back(*welcome);
    }
  }
  void ReadFrame(const expert_action::Send& send) {
    frame::View view;
    ASSERT_TRUE(frame::Decode(send.frame.bytes(), &view).ok()) << frame::Decode(send.frame.bytes(), &view);
    if (view.header.kind == frame::Kind::kCredit) {
      EXPECT_GE(view.credit_rows, credit[send.conn].rows);
      credit[send.conn] = Credit{view.credit_rows, view.credit_bytes};
      ++credit_frames;
      return;
    }
    Answer a;
    a.conn = send.conn;
    a.call = view.header.call.value;
    a.kind = view.header.kind;
    a.code = view.reject_code;
    a.arg = view.reject_arg;
    a.text = std::string(view.reject_text);
    a.timing = view.timing;
    a.last = (view.header.flags & frame::kLast) != 0;
    a.share_us.assign(view.share_us.begin(), view.share_us.end());
    const auto* values = reinterpret_cast<const uint64_t*>(view.payload.data());
    if (a.kind == frame::Kind::kResult) a.values.assign(values, values + view.payload.size() / 8);
    answers.push_back(std::move(a));
  }

  BufferPool pool;
  HashExpertBackend backend;
  MonoTime now = 1000;
  std::unique_ptr<ExpertCore> core;
  std::optional<GroupedFfnJob> job;
  int jobs = 0, drops = 0, credit_frames = 0;
  std::vector<ExpertKey> loads;
  std::vector<Answer> answers;
  std::vector<expert_action::OpDone> ops;
  std::vector<expert_action::Close> closes;
  std::vector<expert_action::Welcome> welcomes;
  std::map<ExpertKey, std::vector<HostState>> states;
  std::map<ConnId, Credit> credit;
};

}  // namespace consilium
