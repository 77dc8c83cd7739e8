#include "services/expert/expert_shard.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "common/base/status.h"
#include "common/exec/strand.h"
#include "common/log/log.h"
#include "services/expert/expert_metrics.h"

namespace consilium {
namespace {

struct ShellEvent {
  ExpertEvent event;
  std::shared_ptr<FrameLink> link;  // of ConnOpened
};

// Drain commands of the shell itself; controllers count up from small numbers.
constexpr uint64_t kDrainOp = ~uint64_t{0};

// What a run of loads has done, in the log: every two seconds while it goes on, and at its end if it took as
// long.
class LoadProgress {
 public:
  void Wanted(uint64_t bytes) {
    if (pending_ == 0) {
      began_ = NowUs();
      next_report_ = began_ + kReportUs;
      done_ = total_ = experts_ = 0;
    }
    total_ += bytes;
    ++pending_;
  }
  void Done(uint64_t bytes) {
    done_ += bytes;
    ++experts_;
    const MonoTime now = NowUs();
    const double seconds = std::max<double>(1e-6, static_cast<double>(now - began_) / 1e6);
    const double rate = static_cast<double>(done_) / seconds;
    if (--pending_ == 0 && now - began_ >= kReportUs) {
      log::Info("experts loaded",
                {{"experts", experts_}, {"bytes", done_}, {"seconds", seconds}, {"bytes_per_second", rate}});
    } else if (pending_ > 0 && now >= next_report_) {
      next_report_ = now + kReportUs;
      log::Info("loading experts",
                {{"experts_done", experts_},
                 {"bytes_done", done_},
                 {"bytes", total_},
                 {"bytes_per_second", rate},
                 {"seconds_left", static_cast<double>(total_ - done_) / std::max(1.0, rate)}});
    }
  }

 private:
  static constexpr MonoTime kReportUs = 2'000'000;
  uint64_t total_ = 0, done_ = 0, experts_ = 0, pending_ = 0;
  MonoTime began_ = 0, next_report_ = 0;
};

}  // namespace

struct ExpertShard::Impl final : Strand<ShellEvent>::Handler {
  Impl(Config config_in, ExpertBackend* backend_in, BufferPool* pool_in, Metrics* metrics_in)
      : config(std::move(config_in)),
        backend(backend_in),
        pool(pool_in),
        metrics(metrics_in == nullptr
                    ? nullptr
                    : std::make_unique<ExpertMetrics>(metrics_in, config.core.layers, config.core.experts)),
        core(config.core, pool, metrics.get()),
        strand(this, kShardEventsMax) {
    compute_thread = std::thread([this] { ComputeLoop(); });
    for (uint32_t i = 0; i < std::max(1u, config.loader_threads); ++i)
      loader_threads.emplace_back([this] { LoaderLoop(); });
    timer_thread = std::thread([this] { TimerLoop(); });
  }

  ~Impl() override {
    {
      std::unique_lock lock(mutex);
      stopping = true;
      wake_compute.notify_all();
      wake_loader.notify_all();
      wake_timer.notify_all();
      job_idle.wait(lock, [this] { return jobs_outstanding == 0; });
    }
    compute_thread.join();
    for (std::thread& t : loader_threads) t.join();
    timer_thread.join();
  }

  void Post(ExpertEvent event, std::shared_ptr<FrameLink> link = nullptr) {
    if (!strand.Post(ShellEvent{std::move(event), std::move(link)})) {
      log::Error("event queue of the shard is full, an event is lost",
                 {{"limit", uint64_t{kShardEventsMax}}});
    }
  }

  // Strand.
  void HandleEvent(ShellEvent& e) override {
    if (auto* opened = std::get_if<expert_event::ConnOpened>(&e.event))
      links[opened->conn] = std::move(e.link);
    const auto* closed = std::get_if<expert_event::ConnClosed>(&e.event);
    const ConnId gone = closed == nullptr ? 0 : closed->conn;
    core.Handle(NowUs(), std::move(e.event), &actions);
    for (ExpertAction& action : actions) std::visit([this](auto& a) { Do(a); }, action);
    actions.clear();
    if (gone != 0) links.erase(gone);
  }

  void AfterBatch() override {
    next_deadline.store(core.next_deadline(), std::memory_order_relaxed);
    if (metrics != nullptr) metrics->Set(core);
    std::lock_guard lock(snapshot_mutex);
    snapshot.experts_ready = core.experts_ready();
    snapshot.queued_rows = core.queued_rows();
    snapshot.loaded_bytes = core.loaded_bytes();
    snapshot.rows_done = rows_done;
    snapshot.streams = core.streams();
    snapshot.calls_open = core.calls_open();
    if (core.draining() || snapshot.draining) drained.notify_all();
    snapshot.draining = core.draining();
  }

  FrameLink* Link(ConnId conn) {
    const auto it = links.find(conn);
    return it == links.end() ? nullptr : it->second.get();
  }

  void Do(expert_action::Welcome& a) {
    WelcomeInfo info;
    info.shard_id = shard_id.load();
    info.epoch = Epoch{epoch.load()};
    info.incarnation = config.incarnation;
    info.models = std::move(a.models);
    info.classes = std::move(a.classes);
    info.credit = a.credit;
    log::Info("router connected", {{"router", a.hello.router_id}, {"conn", a.conn}});
    if (FrameLink* link = Link(a.conn)) link->Write(WireFrame{EncodeWelcome(a.hello, info, pool), false, {}});
  }
  void Do(expert_action::Send& a) {
    if (FrameLink* link = Link(a.conn)) link->Write(WireFrame{std::move(a.frame), false, {}});
  }
  void Do(expert_action::Close& a) {
    log::Warn("closing a router's stream", {{"conn", a.conn}, {"why", ToString(a.why)}});
    if (FrameLink* link = Link(a.conn)) link->Close(a.why);
  }
  void Do(expert_action::RunJob& a) {
    rows_done += a.job.rows.size();
    {
      std::lock_guard lock(mutex);
      if (stopping) return;
      job = a.job;
      ++jobs_outstanding;
    }
    wake_compute.notify_one();  // without the lock, or it would wake to wait for that
  }
  void Do(expert_action::Load& a) {
    std::lock_guard lock(mutex);
    loads.push_back(a.key);
    progress.Wanted(BytesOf(a.key));
    wake_loader.notify_one();
  }
  void Do(expert_action::Drop& a) { backend->Drop(a.handle); }
  void Do(expert_action::HostChanged& a) {
    {
      std::lock_guard lock(snapshot_mutex);
      if (a.state == HostState::kAbsent)
        hosted.erase(a.key);
      else
        hosted[a.key] = a.state;
    }
    if (config.on_host_changed) config.on_host_changed(a.key, a.state);
  }
  void Do(expert_action::OpDone& a) {
    if (!a.ok) log::Warn("operation failed", {{"op", a.op_id}, {"why", a.text}});
    if (config.on_op_done && a.op_id != kDrainOp) config.on_op_done(a);
  }

  void ComputeLoop() {
    std::unique_lock lock(mutex);
    while (true) {
      wake_compute.wait(lock, [this] { return job.has_value() || stopping; });
      if (!job.has_value()) return;
      const GroupedFfnJob now = *std::exchange(job, std::nullopt);
      lock.unlock();
      backend->Run(now, [this](FfnDone done) { JobEnded(done); });
      lock.lock();
    }
  }

  // On the backend's thread. The strand may start the next job before Post returns.
  void JobEnded(const FfnDone& done) {
    Post(expert_event::JobDone{done.status, done.compute_us});
    std::lock_guard lock(mutex);
    if (--jobs_outstanding == 0) job_idle.notify_all();
  }

  uint64_t BytesOf(ExpertKey key) const {
    const auto it = config.core.expert_bytes.find(key);
    return it == config.core.expert_bytes.end() ? 0 : it->second;
  }

  void LoaderLoop() {
    std::unique_lock lock(mutex);
    while (true) {
      wake_loader.wait(lock, [this] { return !loads.empty() || stopping; });
      if (stopping) return;
      const ExpertKey key = loads.front();
      loads.pop_front();
      lock.unlock();
      absl::StatusOr<ExpertHandle> handle = config.load(key);
      lock.lock();
      progress.Done(BytesOf(key));
      lock.unlock();
      Post(expert_event::LoadDone{key, handle.status(), handle.ok() ? *handle : 0});
      lock.lock();
    }
  }

  // Heartbeats need no precision: looks twice per interval, and only posts when one is due.
  void TimerLoop() {
    const auto interval = std::chrono::microseconds(config.core.heartbeat_us / 2);
    std::unique_lock lock(mutex);
    while (!wake_timer.wait_for(lock, interval, [this] { return stopping; })) {
      if (NowUs() < next_deadline.load(std::memory_order_relaxed)) continue;
      lock.unlock();
      Post(expert_event::Tick{});
      lock.lock();
    }
  }

  const Config config;
  ExpertBackend* const backend;
  BufferPool* const pool;
  const std::unique_ptr<ExpertMetrics> metrics;
  std::atomic<uint32_t> shard_id{0};
  std::atomic<uint64_t> epoch{0};
  std::atomic<MonoTime> next_deadline{kNever};

  // Strand only.
  ExpertCore core;
  std::vector<ExpertAction> actions;
  std::map<ConnId, std::shared_ptr<FrameLink>> links;
  uint64_t rows_done = 0;
  Strand<ShellEvent> strand;

  std::mutex mutex;  // compute, loader and timer threads
  std::condition_variable wake_compute, wake_loader, wake_timer, job_idle;
  std::optional<GroupedFfnJob> job;
  int jobs_outstanding = 0;  // 2 for a moment, when the strand starts the next one within Post
  LoadProgress progress;
  std::deque<ExpertKey> loads;  // at most the experts of the model
  bool stopping = false;

  std::mutex snapshot_mutex;
  std::condition_variable drained;
  Stats snapshot;
  std::map<ExpertKey, HostState> hosted;

  std::thread compute_thread, timer_thread;
  std::vector<std::thread> loader_threads;
};

ExpertShard::ExpertShard(Config config, ExpertBackend* backend, BufferPool* pool, Metrics* metrics)
    : impl_(std::make_unique<Impl>(std::move(config), backend, pool, metrics)) {}
ExpertShard::~ExpertShard() = default;

void ExpertShard::OnOpen(ConnId conn, std::shared_ptr<FrameLink> link, Lane lane, RouterHello hello) {
  impl_->Post(expert_event::ConnOpened{conn, lane, std::move(hello)}, std::move(link));
}
void ExpertShard::OnBind(ConnId conn, RouterHello more) {
  impl_->Post(expert_event::Bound{conn, std::move(more)});
}
void ExpertShard::OnFrame(ConnId conn, WireFrame frame) {
  impl_->Post(expert_event::FrameIn{conn, std::move(frame)});
}
void ExpertShard::OnClose(ConnId conn) { impl_->Post(expert_event::ConnClosed{conn}); }

void ExpertShard::Command(expert_event::Command command) { impl_->Post(std::move(command)); }
void ExpertShard::set_shard_id(uint32_t shard_id) { impl_->shard_id = shard_id; }
uint32_t ExpertShard::shard_id() const { return impl_->shard_id; }
void ExpertShard::set_epoch(Epoch epoch) { impl_->epoch = epoch.value; }

bool ExpertShard::Drain(uint32_t timeout_ms) {
  impl_->Post(expert_event::Command{expert_event::Command::Kind::kDrain, kDrainOp, {}});
  std::unique_lock lock(impl_->snapshot_mutex);
  return impl_->drained.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                                 [&] { return impl_->snapshot.draining && impl_->snapshot.calls_open == 0; });
}

ExpertShard::Stats ExpertShard::stats() const {
  std::lock_guard lock(impl_->snapshot_mutex);
  return impl_->snapshot;
}

std::vector<std::pair<ExpertKey, HostState>> ExpertShard::experts() const {
  std::lock_guard lock(impl_->snapshot_mutex);
  return {impl_->hosted.begin(), impl_->hosted.end()};
}

}  // namespace consilium
