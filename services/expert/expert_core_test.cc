#include "services/expert/expert_core.h"

#include <gtest/gtest.h>

#include "services/expert/core_fixture.h"
#include "services/expert/job_choice.h"

namespace consilium {
namespace {

using frame::Kind;
using frame::RejectCode;

TEST(ExpertCore, WelcomesARouterOfItsModelAndClass) {
  CoreFixture f;
  f.Open(1);
  ASSERT_EQ(f.welcomes.size(), 1u);
  EXPECT_EQ(f.welcomes[0].models, std::vector{BindCode::kOk});
  EXPECT_EQ(f.welcomes[0].classes, std::vector{BindCode::kOk});
  EXPECT_EQ(f.credit[1].rows, kLaneCreditRows);
}

TEST(ExpertCore, RefusesAnotherFingerprintAndAnUnknownModel) {
  CoreFixture f;
  RouterHello hello = CoreFixture::Hello();
  hello.classes[0].fingerprint = 8;
  hello.models.push_back({1, std::string(32, 'x'), 1, 5, 5});
  f.Open(1, Lane::kDecode, hello);
  EXPECT_EQ(f.welcomes[0].classes, std::vector{BindCode::kClassMismatch});
  EXPECT_EQ(f.welcomes[0].models, (std::vector{BindCode::kOk, BindCode::kUnknownModel}));
  f.Call(1, 1, 1, {{5, {0}}});
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].code, RejectCode::kClassMismatch);
}

TEST(ExpertCore, ACallIsAnsweredWithItsSlotsInTableOrder) {
  CoreFixture f;
  f.Open(1);
  const std::vector<CoreFixture::Row> rows = {{11, {3, 1}}, {12, {1, 2}}};
  f.Call(1, 1, 2, rows);
  f.FinishJob();
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].kind, Kind::kResult);
  EXPECT_TRUE(f.answers[0].last);
  EXPECT_EQ(f.answers[0].values, CoreFixture::Expected(*f.Body(2, rows), rows));
  EXPECT_TRUE(f.core->idle());
}

TEST(ExpertCore, SlotsOfOneExpertFromManyFramesFormOneGroup) {
  CoreFixture f;
  f.Open(1);
  f.Open(2);
  f.Call(1, 1, 1, {{1, {0}}});  // starts a job at once
  f.Call(1, 2, 1, {{2, {4, 5}}});
  f.Call(2, 1, 1, {{3, {4}}});
  f.Call(2, 2, 2, {{4, {4}}});  // another layer: another expert
  f.FinishJob();
  ASSERT_TRUE(f.job.has_value());
  ASSERT_EQ(f.job->groups.size(), 3u);
  EXPECT_EQ(f.job->groups[0].count, 2u);
  EXPECT_EQ(f.job->groups[1].count, 1u);
  EXPECT_EQ(f.job->groups[2].count, 1u);
  f.FinishJob();
  EXPECT_EQ(f.jobs, 2);
  EXPECT_EQ(f.answers.size(), 4u);
}

TEST(ExpertCore, ArrivalsGatherWhileAJobRunsAndNeverWaitWhenIdle) {
  CoreFixture f;
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  EXPECT_EQ(f.jobs, 1);
  for (uint64_t id = 2; id < 10; ++id) f.Call(1, id, 1, {{id, {0}}});
  EXPECT_EQ(f.jobs, 1);
  f.FinishJob();
  EXPECT_EQ(f.jobs, 2);
  EXPECT_EQ(f.job->rows.size(), 8u);
  f.FinishJob();
  EXPECT_EQ(f.answers.back().timing.batch_rows, 8u);
}

TEST(ExpertCore, DecodeGoesBeforeBulkAndFirstInFirstOut) {
  ExpertCoreOptions options = CoreFixture::Options();
  options.job_slots_max = 1;
  CoreFixture f(options);
  f.Open(1, Lane::kBulk);
  f.Open(2, Lane::kDecode);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Call(1, 2, 1, {{2, {0}}});
  f.Call(2, 7, 1, {{3, {0}}});
  f.Call(2, 8, 1, {{4, {0}}});
  f.FinishAllJobs();
  std::vector<uint64_t> order;
  for (const auto& a : f.answers) order.push_back(a.call);
  EXPECT_EQ(order, (std::vector<uint64_t>{1, 7, 8, 2}));
}

TEST(JobChoice, ABulkCallThatWaitedTooLongGoesFirst) {
  const JobLimits limits{10, 1000};
  const LaneHead decode{false, 1, 5000}, bulk{false, 1, 4001};
  EXPECT_EQ(NextLane(5000, decode, bulk, 0, limits), Lane::kDecode);
  EXPECT_EQ(NextLane(5001, decode, bulk, 0, limits), Lane::kBulk);
}

TEST(JobChoice, TakesAtLeastOneCallThenNoneBeyondTheBound) {
  const JobLimits limits{10, 1000};
  const LaneHead none, big{false, 100, 0}, small{false, 4, 0};
  EXPECT_EQ(NextLane(0, big, none, 0, limits), Lane::kDecode);
  EXPECT_EQ(NextLane(0, big, none, 1, limits), std::nullopt);
  EXPECT_EQ(NextLane(0, big, small, 6, limits), Lane::kBulk);
  EXPECT_EQ(NextLane(0, big, small, 7, limits), std::nullopt);
  EXPECT_EQ(NextLane(0, none, none, 0, limits), std::nullopt);
}

TEST(ExpertCore, RejectsExpertsThatAreNotHostedOrLoadingOrDraining) {
  CoreFixture f(CoreFixture::Options(), false);
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  EXPECT_EQ(f.answers.back().code, RejectCode::kNotHosted);
  f.Command(expert_event::Command::Kind::kLoad, 9, {CoreFixture::Key(1, 0)});
  f.Call(1, 2, 1, {{1, {0}}});
  EXPECT_EQ(f.answers.back().code, RejectCode::kLoading);
  f.FinishLoads();
  f.Call(1, 3, 1, {{1, {0}}});
  f.Command(expert_event::Command::Kind::kDrop, 10, {CoreFixture::Key(1, 0)});
  f.Call(1, 4, 1, {{1, {0}}});
  EXPECT_EQ(f.answers.back().code, RejectCode::kDraining);
  f.FinishJob();
  EXPECT_EQ(f.answers.back().kind, Kind::kResult);
  f.Call(1, 5, 1, {{1, {0}}});
  EXPECT_EQ(f.answers.back().code, RejectCode::kNotHosted);
  f.Call(1, 6, 99, {{1, {0}}});  // a layer the model does not have
  EXPECT_EQ(f.answers.back().code, RejectCode::kNotHosted);
}

TEST(ExpertCore, ExpiresCallsPastTheirBudgetBeforeService) {
  CoreFixture f;
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Call(1, 2, 1, {{2, {0}}}, 500);
  f.Call(1, 3, 1, {{3, {0}}}, 501);
  f.now += 500;
  f.FinishAllJobs();
  ASSERT_EQ(f.answers.size(), 3u);
  EXPECT_EQ(f.answers[1].call, 2u);
  EXPECT_EQ(f.answers[1].code, RejectCode::kExpired);
  EXPECT_EQ(f.answers[2].kind, Kind::kResult);
}

TEST(ExpertCore, CreditIsCumulativeAndComesBackWhenRowsLeaveTheQueue) {
  ExpertCoreOptions options = CoreFixture::Options();
  options.credit_rows = 8;
  CoreFixture f(options);
  f.Open(1);
  EXPECT_EQ(f.credit[1].rows, 8u);
  f.Call(1, 1, 1, {{1, {0}}, {2, {0}}});
  EXPECT_EQ(f.credit[1].rows, 10u);  // taken into the job at once: announced before its result
  f.Call(1, 2, 1, {{3, {0}}, {4, {0}}});
  EXPECT_EQ(f.credit[1].rows, 10u);  // still in the queue
  f.FinishJob();
  EXPECT_EQ(f.credit[1].rows, 12u);
  f.FinishJob();
  EXPECT_EQ(f.credit[1].rows, 12u);
}

TEST(ExpertCore, RejectsRowsBeyondTheCredit) {
  ExpertCoreOptions options = CoreFixture::Options();
  options.credit_rows = 2;
  CoreFixture f(options);
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}, {2, {0}}});  // leaves the queue: 2 more
  f.Call(1, 2, 1, {{1, {0}}, {2, {0}}});
  f.Call(1, 3, 1, {{1, {0}}});
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].call, 3u);
  EXPECT_EQ(f.answers[0].code, RejectCode::kOverCredit);
}

TEST(ExpertCore, ACancelledCallIsNotAnsweredAndGivesItsCreditBack) {
  ExpertCoreOptions options = CoreFixture::Options();
  options.credit_rows = 4;
  CoreFixture f(options);
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Call(1, 2, 1, {{2, {0}}});
  f.Cancel(1, 2);  // in the queue
  f.Cancel(1, 1);  // in the running job
  f.Cancel(1, 77);
  EXPECT_EQ(f.core->queued_rows(), 0u);
  f.FinishJob();
  EXPECT_TRUE(f.answers.empty());
  EXPECT_TRUE(f.core->idle());
  EXPECT_EQ(f.credit[1].rows, 6u);
}

TEST(ExpertCore, AClosedStreamDropsItsCallsAndTheJobGoesOn) {
  CoreFixture f;
  f.Open(1);
  f.Open(2);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Call(1, 2, 1, {{2, {0}}});
  f.Call(2, 1, 1, {{3, {0}}});
  f.Do(expert_event::ConnClosed{1});
  f.FinishAllJobs();
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].conn, 2u);
  EXPECT_TRUE(f.core->idle());
  EXPECT_EQ(f.core->streams(), 1u);
}

TEST(ExpertCore, ADuplicatedFrameIsAnsweredOnce) {
  CoreFixture f;
  f.Open(1);
  f.Call(1, 5, 1, {{1, {0}}});
  f.Call(1, 5, 1, {{1, {0}}});
  f.Call(1, 4, 1, {{1, {0}}});
  f.FinishAllJobs();
  EXPECT_EQ(f.answers.size(), 1u);
}

TEST(ExpertCore, AFailedJobRejectsItsCallsAsInternal) {
  CoreFixture f;
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.job.reset();
  f.Do(expert_event::JobDone{absl::InternalError("device lost"), 1});
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].code, RejectCode::kInternal);
  EXPECT_EQ(f.answers[0].text, "device lost");
}

TEST(ExpertCore, ACorruptPayloadIsRejectedAndTheStreamLives) {
  CoreFixture f;
  f.Open(1);
  auto body = f.Body(1, {{1, {0}}});
  WireFrame wire = body->Frame(CallId{1}, Epoch{}, 1000, 0);
  wire.buffer.bytes().back() ^= std::byte{1};
  f.Do(expert_event::FrameIn{1, wire});
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].code, RejectCode::kCorrupt);
  EXPECT_TRUE(f.closes.empty());
}

TEST(ExpertCore, ACorruptHeaderClosesTheStreamSinceItsCallIdCannotBeTrusted) {
  CoreFixture f;
  f.Open(1);
  WireFrame wire = f.Body(1, {{1, {0}}})->Frame(CallId{1}, Epoch{}, 1000, 0);
  wire.header.bytes[8] ^= std::byte{1};
  f.Do(expert_event::FrameIn{1, wire});
  EXPECT_TRUE(f.answers.empty());
  ASSERT_EQ(f.closes.size(), 1u);
  EXPECT_EQ(f.closes[0].why.code(), absl::StatusCode::kDataLoss);
}

TEST(ExpertCore, BudgetZeroIsABadFrame) {
  CoreFixture f;
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}}, 0);
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].code, RejectCode::kBadFrame);
}

TEST(ExpertCore, RejectsWhenTheWholeQueueIsFull) {
  ExpertCoreOptions options = CoreFixture::Options();
  options.queued_rows_max = 2;
  CoreFixture f(options);
  f.Open(1);
  f.Call(1, 1, 1, {{1, {0}}});
  f.Call(1, 2, 1, {{1, {0}}, {2, {0}}});
  f.Call(1, 3, 1, {{1, {0}}});
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].code, RejectCode::kOverloaded);
}

TEST(ExpertCore, ServiceTimeIsChargedToSegmentsByTheirSlots) {
  CoreFixture f;
  f.Open(1);
  const std::vector<CoreFixture::Row> rows = {{1, {0, 1, 2}}, {2, {1}}};
  f.Do(expert_event::FrameIn{1, f.Body(1, rows, false)->Frame(CallId{1}, Epoch{}, 1000, 0)});
  f.FinishJob(80);
  EXPECT_EQ(f.answers[0].share_us, (std::vector<uint32_t>{60, 20}));
  EXPECT_EQ(f.answers[0].timing.service_us, 80u);
}

TEST(ExpertCore, BeatsOnlyWhileCallsAreOpenAndShowsProgress) {
  CoreFixture f;
  f.Open(1);
  EXPECT_EQ(f.core->next_deadline(), kNever);
  f.Call(1, 1, 1, {{1, {0}}});
  EXPECT_EQ(f.core->next_deadline(), f.now + kHeartbeatUs);
  f.now += kHeartbeatUs;
  f.Do(expert_event::Tick{});
  ASSERT_EQ(f.answers.size(), 1u);
  EXPECT_EQ(f.answers[0].kind, Kind::kHeartbeat);
  EXPECT_EQ(f.answers[0].timing.progress, 0u);
  f.FinishJob();
  EXPECT_EQ(f.answers[1].timing.progress, 1u);
  EXPECT_EQ(f.core->next_deadline(), kNever);
}

TEST(ExpertCore, AResultAboveTheFrameCapComesInSeveralFrames) {
  ExpertCoreOptions options = CoreFixture::Options();
  options.hidden = 4096;  // 32 KiB a row: 31 slots a frame
  CoreFixture f(options);
  RouterHello hello = CoreFixture::Hello();
  hello.models[0].hidden = 4096;
  f.Open(1, Lane::kDecode, hello);
  std::vector<uint64_t> source(4096, 3);
  std::vector<frame::Slot> slots;
  std::vector<uint32_t> index(10, 0);
  for (uint16_t e = 0; e < 8; ++e) {
    for (uint16_t r = 0; r < 10; ++r) slots.push_back({e, r, static_cast<uint8_t>(e), 0, 0});
  }
  const frame::Segment segment{0, 0, 10, 0, 0, 0, 1};
  CallBody::Plan plan;
  plan.layer = LayerId{1};
  plan.dtype_in = plan.dtype_out = frame::DtypeCode::kU64;
  plan.hidden = 4096;
  plan.segments = {&segment, 1};
  plan.slots = slots;
  plan.source_rows = index;
  plan.source = reinterpret_cast<const std::byte*>(source.data());
  f.Do(expert_event::FrameIn{1, CallBody::Build(plan, &f.pool)->Frame(CallId{1}, Epoch{}, 1000, 0)});
  ASSERT_TRUE(f.job.has_value());
  for (const ExpertRow& row : f.job->rows) std::memset(row.out, 9, 4096 * 8);
  f.job.reset();
  f.Do(expert_event::JobDone{absl::OkStatus(), 5});
  ASSERT_EQ(f.answers.size(), 3u);
  EXPECT_FALSE(f.answers[0].last);
  EXPECT_FALSE(f.answers[1].last);
  EXPECT_TRUE(f.answers[2].last);
  size_t values = 0;
  for (const auto& a : f.answers) values += a.values.size();
  EXPECT_EQ(values, 80u * 4096);
}

}  // namespace
}  // namespace consilium
