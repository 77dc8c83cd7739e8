// One fixed frame of every kind: golden files, mutation tests and the fuzzer's first corpus are made of them.
#pragma once
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/net/session.h"

namespace consilium {

// One contiguous copy of a frame in two pieces.
inline BufferRef Join(const WireFrame& frame, BufferPool* pool) {
  BufferRef out = pool->Allocate(frame.size());
  std::memcpy(out.data(), frame.head().data(), frame::kHeaderBytes);
  std::memcpy(out.data() + frame::kHeaderBytes, frame.rest().data(), frame.rest().size());
  return out;
}

inline std::shared_ptr<const CallBody> SampleBody(BufferPool* pool, bool payload_sum = true) {
  static const float source[3][4] = {{1, 2, 3, 4}, {-1, 0.5, 0, 8}, {9, 9, 9, 9}};
  static const uint32_t rows[2] = {0, 1};
  static const frame::Segment segments[2] = {{7, 0, 1, 0, 0, 0, 0xA1}, {8, 1, 1, 1, 0, 0, 0xA2}};
  static const frame::Slot slots[3] = {{2, 0, 0, 0, 0}, {2, 1, 1, 0, 0}, {5, 0, 1, 0, 0}};
  CallBody::Plan plan;
  plan.model = ModelIx{3};
  plan.layer = LayerId{4};
  plan.class_ix = 1;
  plan.hidden = 4;
  plan.segments = segments;
  plan.slots = slots;
  plan.source_rows = rows;
  plan.source = reinterpret_cast<const std::byte*>(source);
  plan.payload_sum = payload_sum;
  return CallBody::Build(plan, pool);
}

inline frame::Timing SampleTiming() {
  frame::Timing t;
  t.queue_us = 11;
  t.service_us = 22;
  t.queued_rows = 33;
  t.batch_rows = 44;
  t.mem_free_pct = 55;
  t.throttle = 1;
  t.state = 0;
  t.progress = 66;
  return t;
}

inline BufferRef SampleResult(BufferPool* pool) {
  const WireFrame call = SampleBody(pool)->Frame(CallId{42}, Epoch::Make(1, 9), 5000, frame::kRetry);
  frame::View view;
  if (!frame::Decode(call, &view).ok()) return BufferRef();
  frame::ResultFrame result = frame::BeginResult(view.header, {0, 3}, pool);
  for (int i = 0; i < 12; ++i) {
    const float value = static_cast<float>(i) * 0.25f;
    std::memcpy(result.payload + i * 4, &value, 4);
  }
  const uint32_t shares[2] = {15, 7};
  frame::FinishResult(&result, view.header, SampleTiming(), shares, true);
  return result.buffer;
}

inline std::vector<std::pair<std::string, BufferRef>> SampleFrames(BufferPool* pool) {
  std::vector<std::pair<std::string, BufferRef>> frames;
  RouterHello hello;
  hello.router_id = "router-1";
  hello.incarnation = 0x0102030405060708ull;
  hello.models = {{3, std::string(32, 'm'), 4, 2, 2}};
  hello.classes = {{1, "f32", 0x1122334455667788ull}};
  WelcomeInfo welcome;
  welcome.shard_id = 6;
  welcome.incarnation = 7;
  welcome.models = {BindCode::kOk};
  welcome.classes = {BindCode::kClassMismatch};
  welcome.credit = Credit{16384, 268435456};
  welcome.epoch = Epoch::Make(1, 9);
  const auto body = SampleBody(pool);
  frames.emplace_back("hello", EncodeHello(hello, Lane::kBulk, pool));
  frames.emplace_back("welcome", EncodeWelcome(hello, welcome, pool));
  frames.emplace_back("bind", EncodeBind(hello, Lane::kBulk, pool));
  frames.emplace_back("call", Join(body->Frame(CallId{42}, Epoch::Make(1, 9), 5000, frame::kRetry), pool));
  frames.emplace_back("call_no_sum", Join(SampleBody(pool, false)->Frame(CallId{43}, Epoch{}, 1, 0), pool));
  frames.emplace_back("result", SampleResult(pool));
  frames.emplace_back("reject",
                      frame::EncodeReject(CallId{42}, Epoch::Make(1, 9), frame::RejectCode::kLoading, 1500,
                                          "layer 4 expert 2 is loading", pool));
  frames.emplace_back("cancel", frame::EncodeCancel(CallId{42}, pool));
  frames.emplace_back("credit", frame::EncodeCredit(20480, 300000000, pool));
  frames.emplace_back("heartbeat", frame::EncodeHeartbeat(SampleTiming(), pool));
  frames.emplace_back("drain", frame::EncodeBare(frame::Kind::kDrain, pool));
  frames.emplace_back("bye", frame::EncodeBare(frame::Kind::kBye, pool));
  return frames;
}

}  // namespace consilium
