// Forming jobs, running them, answering their calls.
#include <algorithm>

#include "common/base/status.h"
#include "services/expert/expert_core.h"
#include "services/expert/expert_core_internal.h"
#include "services/expert/job_choice.h"

namespace consilium {
namespace {

constexpr uint32_t kUint32Max = 0xFFFFFFFFu;

uint32_t Saturate(int64_t us) { return static_cast<uint32_t>(std::clamp<int64_t>(us, 0, kUint32Max)); }

}  // namespace

void ExpertCore::StartJob(Actions* out) {
  if (job_running_) return;
  TakeCalls(out);
  if (job_calls_.empty()) return;
  GroupRows();
  job_running_ = true;
  job_started_ = now_;
  observer_->OnJobStart(static_cast<uint32_t>(job_calls_.size()), job_slots_, groups_, group_keys_);
  out->emplace_back(expert_action::RunJob{GroupedFfnJob{groups_, rows_}});
}

// Moves calls from the queues into job_calls_; calls past their deadline are rejected instead.
void ExpertCore::TakeCalls(Actions* out) {
  const auto head = [this](Lane lane) {
    const Call* call = lanes_[static_cast<size_t>(lane)].head;
    return call == nullptr ? LaneHead{} : LaneHead{false, call->view.header.n_slots, call->arrived};
  };
  const JobLimits limits{options_.job_slots_max, options_.bulk_wait_max_us};
  job_slots_ = 0;
  while (const std::optional<Lane> lane =
             NextLane(now_, head(Lane::kDecode), head(Lane::kBulk), job_slots_, limits)) {
    Call* call = lanes_[static_cast<size_t>(*lane)].head;
    Stream* stream = call->stream;
    Unqueue(call);
    if (now_ >= call->deadline) {
      Reject(stream, call->view.header, frame::RejectCode::kExpired, Saturate(now_ - call->arrived),
             "the call's budget ended in the queue", out);
      Forget(call);
    } else {
      job_slots_ += call->view.header.n_slots;
      job_calls_.push_back(call);
    }
    AnnounceCredit(stream, out);
  }
}

void ExpertCore::PrepareResults(Call* call) {
  const frame::Header& h = call->view.header;
  const uint32_t each = frame::SlotsPerResult(h);
  for (uint32_t first = 0; first < h.n_slots; first += each) {
    const frame::Range slots{first, std::min(each, h.n_slots - first)};
    call->results.push_back(frame::BeginResult(h, slots, pool_));
  }
}

// rows_ ordered by (layer, expert), within that by arrival of the call: groups_ are its runs.
void ExpertCore::GroupRows() {
  runs_.clear();
  groups_.clear();
  group_keys_.clear();
  rows_.clear();
  for (Call* call : job_calls_) {
    PrepareResults(call);
    const uint32_t layer = call->view.header.layer.value;
    ForEachExpert(call->view.slots, [&](ExpertId expert, uint32_t first, uint32_t count) {
      runs_.push_back(
          Run{layer << 16 | expert.value, static_cast<uint32_t>(runs_.size()), call, first, count});
    });
  }
  std::sort(runs_.begin(), runs_.end(),
            [](const Run& a, const Run& b) { return a.key != b.key ? a.key < b.key : a.order < b.order; });
  const size_t in_bytes = frame::RowBytes(options_.dtype_in, options_.hidden);
  const size_t out_bytes = frame::RowBytes(options_.dtype_out, options_.hidden);
  uint32_t last_key = 0;
  for (const Run& run : runs_) {
    if (groups_.empty() || run.key != last_key) {
      const ExpertKey key{LayerId{static_cast<uint16_t>(run.key >> 16)},
                          ExpertId{static_cast<uint16_t>(run.key)}};
      groups_.push_back(ExpertGroup{FindHost(key)->handle, static_cast<uint32_t>(rows_.size()), 0});
      group_keys_.push_back(key);
      last_key = run.key;
    }
    groups_.back().count += run.count;
    const uint32_t each = run.call->results.front().slots.n_slots;
    for (uint32_t i = run.first; i < run.first + run.count; ++i) {
      const std::byte* in = run.call->view.payload.data() + run.call->view.slots[i].row * in_bytes;
      std::byte* to = run.call->results[i / each].payload + (i % each) * out_bytes;
      rows_.push_back(ExpertRow{in, to});
    }
  }
}

void ExpertCore::On(expert_event::JobDone& e, Actions* out) {
  CHECK_MSG(job_running_, "JobDone without a job");
  job_running_ = false;
  ++progress_;
  observer_->OnJobDone(e.compute_us, e.status.ok());
  for (Call* call : job_calls_) {
    if (call->stream != nullptr && !call->cancelled) {
      if (e.status.ok()) {
        FinishCall(call, e.compute_us, out);
      } else {
        Reject(call->stream, call->view.header, frame::RejectCode::kInternal, 0, Message(e.status), out);
      }
    }
    Forget(call);
  }
  job_calls_.clear();
}

// Sends the call's result frames. Each segment is charged its slots' share of the job's time.
void ExpertCore::FinishCall(Call* call, uint32_t compute_us, Actions* out) {
  const frame::View& view = call->view;
  shares_.assign(view.segments.size(), 0);
  for (const frame::Slot& slot : view.slots) {
    const auto after =
        std::upper_bound(view.segments.begin(), view.segments.end(), slot.row,
                         [](uint16_t row, const frame::Segment& s) { return row < s.first_row; });
    ++shares_[static_cast<size_t>(after - view.segments.begin()) - 1];
  }
  for (uint32_t& share : shares_) share = static_cast<uint32_t>(uint64_t{share} * compute_us / job_slots_);
  frame::Timing timing = TimingNow();
  timing.queue_us = Saturate(job_started_ - call->arrived);
  timing.service_us = compute_us;
  timing.batch_rows = job_slots_;
  size_t bytes = 0;
  for (size_t i = 0; i < call->results.size(); ++i) {
    frame::ResultFrame& result = call->results[i];
    frame::FinishResult(&result, view.header, timing, shares_, i + 1 == call->results.size());
    bytes += result.buffer.size();
    Send(call->stream, std::move(result.buffer), out);
  }
  observer_->OnResult(timing.queue_us, view.header.n_slots, bytes);
}

frame::Timing ExpertCore::TimingNow() const {
  frame::Timing timing;
  timing.queued_rows = queued_rows_;
  timing.batch_rows = job_running_ ? job_slots_ : 0;
  if (job_running_) timing.service_us = Saturate(now_ - job_started_);
  if (options_.capacity_bytes > 0) {
    const uint64_t used = std::min(loaded_bytes_, options_.capacity_bytes);
    timing.mem_free_pct = static_cast<uint8_t>(100 - used * 100 / options_.capacity_bytes);
  } else {
    timing.mem_free_pct = 100;
  }
  timing.state = draining_ ? 1 : 0;
  timing.progress = progress_;
  return timing;
}

}  // namespace consilium
