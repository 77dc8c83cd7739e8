#include "services/attention/attention_shell.h"

#include <atomic>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "common/base/status.h"
#include "common/exec/strand.h"
#include "common/log/log.h"
#include "services/attention/attention_metrics.h"

namespace consilium {
namespace {

// Events waiting for the strand: submissions are bounded by the core's queue, channel events by credits.
constexpr size_t kStrandEventsMax = size_t{1} << 20;
constexpr MonoTime kSecondUs = 1'000'000;

// A thread that runs closures in order. The core keeps at most two stages per flight in it.
class ComputeThread {
 public:
  ComputeThread() : thread_([this] { Loop(); }) {}
  ~ComputeThread() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  void Post(std::function<void()> work) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(work));
    }
    wake_.notify_one();
  }

 private:
  void Loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      std::swap(queue_, batch_);
      lock.unlock();
      for (std::function<void()>& work : batch_) work();
      batch_.clear();
      lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::function<void()>> queue_, batch_;  // swapped; capacity is kept
  bool stop_ = false;
  std::thread thread_;
};

struct OpenSessionEvent {
  SessionId session;
  std::shared_ptr<AttentionShell::SessionSink> sink;
};
using ShellEvent = std::variant<AttentionEvent, OpenSessionEvent, std::function<void()>>;

}  // namespace

struct AttentionShell::Impl : Strand<ShellEvent>::Handler {
  // One lane of one shard; posts to the strand.
  struct LaneSink final : ExpertChannel::Sink {
    LaneSink(Impl* i, ShardId s, Lane l) : impl(i), shard(s), lane(l) {}
    void OnUp(uint32_t, uint64_t incarnation, Credit credit) override {
      Post(attention_event::ChannelUp{shard, lane, incarnation, credit});
    }
    void OnResult(CallResult result) override {
      Post(attention_event::ChannelResult{shard, lane, std::move(result)});
    }
    void OnReject(CallReject reject) override {
      Post(attention_event::ChannelReject{shard, lane, std::move(reject)});
    }
    void OnCredit(Credit credit) override { Post(attention_event::ChannelCredit{shard, lane, credit}); }
    void OnHeartbeat(frame::Timing timing) override {
      Post(attention_event::ChannelHeartbeat{shard, lane, timing});
    }
    void OnDrain() override { Post(attention_event::ChannelDrain{shard, lane}); }
    void OnDown(absl::Status status) override {
      Post(attention_event::ChannelDown{shard, lane, std::move(status)});
    }
    void Post(AttentionEvent e) {
      if (!closed.load(std::memory_order_relaxed)) impl->Post(std::move(e));
    }
    Impl* const impl;
    const ShardId shard;
    const Lane lane;
    std::atomic<bool> closed{false};
  };
  struct OpenLane {
    std::string shard;  // name
    std::unique_ptr<LaneSink> sink;
    std::unique_ptr<ExpertChannel> channel;  // dies first
  };

  Impl(BufferPool* p, Metrics* m) : pool(p), registry(m), strand(this, kStrandEventsMax) {
    if (m != nullptr) metrics = std::make_unique<AttentionMetrics>(m);
  }

  void Post(ShellEvent e) { CHECK_MSG(strand.Post(std::move(e)), "the strand's queue is full"); }

  // ---- on the strand

  void HandleEvent(ShellEvent& event) override {
    if (auto* e = std::get_if<AttentionEvent>(&event)) {
      HandleCore(std::move(*e));
    } else if (auto* open = std::get_if<OpenSessionEvent>(&event)) {
      sessions[open->session] = std::move(open->sink);
    } else {
      std::get<std::function<void()>>(event)();
    }
  }

  void HandleCore(AttentionEvent e) {
    if (core == nullptr) return;  // stopped
    const bool placement = std::holds_alternative<attention_event::PlacementUpdate>(e);
    const auto* closed = std::get_if<attention_event::SessionClosed>(&e);
    const SessionId gone = closed != nullptr ? closed->session : 0;
    if (const auto* up = std::get_if<attention_event::ChannelUp>(&e)) LogUp(*up);
    std::vector<AttentionAction> now_out = std::move(actions);
    core->Handle(NowUs(), std::move(e), &now_out);
    for (AttentionAction& action : now_out) std::visit([this](auto& a) { Do(a); }, action);
    now_out.clear();
    actions = std::move(now_out);
    if (gone != 0) sessions.erase(gone);
    if (placement && hooks.on_placement) hooks.on_placement(Epoch{core->stats().epoch});
  }

  void LogUp(const attention_event::ChannelUp& up) {
    const auto lane = lanes.find({up.shard, up.lane});
    if (lane == lanes.end()) return;
    log::Info("shard stream is up", {{"shard", lane->second.shard},
                                     {"id", up.shard.value},
                                     {"lane", up.lane == Lane::kDecode ? "decode" : "bulk"},
                                     {"transport", lane->second.channel->transport()}});
  }

  // Open streams of each (shard, transport).
  AttentionMetrics::Streams OpenStreams() const {
    AttentionMetrics::Streams open;
    for (const auto& [key, lane] : lanes) {
      if (const char* transport = lane.channel->transport(); transport[0] != 0)
        ++open[{lane.shard, transport}];
    }
    return open;
  }

  void AfterBatch() override {
    if (core == nullptr) return;
    const MonoTime at = core->next_deadline();
    std::lock_guard lock(timer_mutex);
    live_requests = core->live_requests();
    if (live_requests == 0) idle_wake.notify_all();
    if (at < timer_at) timer_wake.notify_one();
    timer_at = at;
  }

  void Do(attention_action::RunStage& a) {
    backend->Run(a.job,
                 [this](StageOut out) { Post(AttentionEvent(attention_event::StageDone{std::move(out)})); });
  }
  void Do(attention_action::AbandonFlight& a) { backend->Abandon(a.flight); }
  void Do(attention_action::SendCall& a) {
    auto lane = lanes.find({a.shard, a.lane});
    const absl::Status s = lane == lanes.end()
                               ? Unavailable("no channel")
                               : lane->second.channel->Send(a.call, std::move(a.body), a.options);
    if (s.ok()) return;
    // The stream changed under the core; its news is on the way. The call is tried again.
    Post(AttentionEvent(attention_event::ChannelReject{
        a.shard, a.lane, {a.call, frame::RejectCode::kOverloaded, 0, ToString(s)}}));
  }
  void Do(attention_action::CancelCall& a) {
    if (auto lane = lanes.find({a.shard, a.lane}); lane != lanes.end()) lane->second.channel->Cancel(a.call);
  }
  void Do(attention_action::Emit& a) {
    if (auto it = sessions.find(a.session); it != sessions.end()) it->second->OnEvents(std::move(a.events));
  }
  void Do(attention_action::ConnectShard& a) {
    log::Info("connects to shard",
              {{"shard", a.shard.name}, {"id", a.shard.id.value}, {"address", a.shard.address}});
    for (Lane lane : {Lane::kDecode, Lane::kBulk}) {
      OpenLane& open = lanes[{a.shard.id, lane}];
      open.shard = a.shard.name;
      open.sink = std::make_unique<LaneSink>(this, a.shard.id, lane);
      open.channel = hooks.connect(a.shard, lane, open.sink.get());
    }
  }
  void Do(attention_action::DisconnectShard& a) {
    std::lock_guard lock(timer_mutex);
    for (Lane lane : {Lane::kDecode, Lane::kBulk}) {
      auto it = lanes.find({a.shard, lane});
      if (it == lanes.end()) continue;
      it->second.sink->closed.store(true);
      // A channel waits for its sink's callers to return, and one of them may be running this strand.
      closing.push_back(std::move(it->second));
      lanes.erase(it);
    }
    timer_wake.notify_one();
  }
  void Do(attention_action::Log& a) {
    static constexpr log::Level kLevels[] = {log::Level::kDebug, log::Level::kInfo, log::Level::kWarn};
    const log::Level level = kLevels[static_cast<size_t>(a.severity)];
    if (log::Enabled(level)) log::Write(level, a.text, {{"request_id", a.request_id}});
  }
  void Do(attention_action::Observe& a) {
    if (metrics != nullptr) metrics->Observe(a);
  }

  // ---- the timer thread: deadlines, once-a-second work, closing of channels

  void TimerLoop() {
    MonoTime second = NowUs() + kSecondUs;
    std::unique_lock lock(timer_mutex);
    while (!stopping) {
      const MonoTime at = std::min(timer_at, second);
      const MonoTime wait_us = at - NowUs();
      if (wait_us > 0 && closing.empty()) timer_wake.wait_for(lock, std::chrono::microseconds(wait_us));
      if (stopping) return;
      std::vector<OpenLane> dead = std::exchange(closing, {});
      const MonoTime now = NowUs();
      const bool due = timer_at <= now, tick = second <= now;
      if (due) timer_at = kNever;  // set again after the event
      if (tick) second = now + kSecondUs;
      lock.unlock();
      dead.clear();
      if (due) Post(AttentionEvent(attention_event::Timer{}));
      if (tick && hooks.on_second) {
        Post(std::function<void()>([this] {
          if (core != nullptr) hooks.on_second(core->stats());
        }));
      }
      lock.lock();
    }
  }

  // Runs `f` on the strand and waits for it. Not from the strand.
  void Sync(std::function<void()> f) {
    std::promise<void> done;
    Post(std::function<void()>([&] {
      f();
      done.set_value();
    }));
    done.get_future().wait();
  }

  BufferPool* const pool;
  Metrics* const registry;
  std::unique_ptr<AttentionMetrics> metrics;
  std::mutex metrics_mutex;  // one update at a time
  Hooks hooks;
  LayerBackend* backend = nullptr;
  AttentionConfig config;
  std::atomic<SessionId> next_session{1};

  Strand<ShellEvent> strand;
  // Owned by the strand.
  std::unique_ptr<AttentionCore> core;
  std::vector<AttentionAction> actions;
  std::map<SessionId, std::shared_ptr<SessionSink>> sessions;
  std::map<std::pair<ShardId, Lane>, OpenLane> lanes;

  std::mutex timer_mutex;  // guards all below up to the threads
  std::condition_variable timer_wake, idle_wake;
  size_t live_requests = 0;
  MonoTime timer_at = kNever;
  bool stopping = false;
  std::vector<OpenLane> closing;
  std::thread timer;
  std::unique_ptr<ComputeThread> compute = std::make_unique<ComputeThread>();
};

AttentionShell::AttentionShell(BufferPool* pool, Metrics* metrics)
    : impl_(std::make_unique<Impl>(pool, metrics)) {}
AttentionShell::~AttentionShell() { Stop(); }

std::function<void(std::function<void()>)> AttentionShell::run_compute() {
  return [impl = impl_.get()](std::function<void()> work) { impl->compute->Post(std::move(work)); };
}
std::function<void(std::function<void()>)> AttentionShell::post_done() {
  return [impl = impl_.get()](std::function<void()> done) { impl->Post(std::move(done)); };
}

void AttentionShell::Start(const AttentionConfig& config, LayerBackend* backend, Hooks hooks) {
  CHECK(impl_->backend == nullptr);
  impl_->config = config;
  impl_->backend = backend;
  impl_->hooks = std::move(hooks);
  impl_->Sync([this, &config] { impl_->core = std::make_unique<AttentionCore>(config, impl_->pool); });
  impl_->timer = std::thread([this] { impl_->TimerLoop(); });
}

void AttentionShell::Stop() {
  Impl& impl = *impl_;
  if (impl.compute == nullptr) return;
  if (impl.timer.joinable()) {
    {
      std::lock_guard lock(impl.timer_mutex);
      impl.stopping = true;
    }
    impl.timer_wake.notify_one();
    impl.timer.join();
  }
  // The core stops first: channels that go down tell it nothing more, stages that end start no others.
  std::map<std::pair<ShardId, Lane>, Impl::OpenLane> lanes;
  std::unique_ptr<AttentionCore> core;
  std::map<SessionId, std::shared_ptr<SessionSink>> sessions;
  impl.Sync([&] {
    core = std::move(impl.core);
    lanes = std::move(impl.lanes);
    sessions = std::move(impl.sessions);
    impl.lanes.clear();
    impl.sessions.clear();
  });
  lanes.clear();
  impl.closing.clear();
  impl.compute.reset();  // runs what was posted; stages read batches of the core, so it dies after them
  impl.Sync([] {});      // completions that were posted
}

SessionId AttentionShell::OpenSession(std::shared_ptr<SessionSink> sink) {
  const SessionId id = impl_->next_session.fetch_add(1);
  impl_->Post(OpenSessionEvent{id, std::move(sink)});
  return id;
}
void AttentionShell::Submit(SessionId session, SessionSubmit submit) {
  impl_->Post(AttentionEvent(attention_event::Submit{session, std::move(submit)}));
}
void AttentionShell::Cancel(SessionId session, uint64_t request, int32_t choice) {
  impl_->Post(AttentionEvent(attention_event::Cancel{session, request, choice}));
}
void AttentionShell::CloseSession(SessionId session) {
  impl_->Post(AttentionEvent(attention_event::SessionClosed{session}));
}
void AttentionShell::SetPlacement(std::shared_ptr<const PlacementView> view) {
  impl_->Post(AttentionEvent(attention_event::PlacementUpdate{std::move(view)}));
}

bool AttentionShell::Drain(uint32_t timeout_ms) {
  impl_->Post(AttentionEvent(attention_event::Drain{}));
  impl_->Sync([] {});
  std::unique_lock lock(impl_->timer_mutex);
  return impl_->idle_wake.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                                   [this] { return impl_->live_requests == 0; });
}

AttentionStats AttentionShell::stats() {
  AttentionStats s;
  impl_->Sync([&] {
    if (impl_->core != nullptr) s = impl_->core->stats();
  });
  return s;
}

void AttentionShell::UpdateMetrics() {
  if (impl_->metrics == nullptr) return;
  AttentionStats s;
  AttentionMetrics::Streams streams;
  impl_->Sync([&] {
    if (impl_->core != nullptr) s = impl_->core->stats();
    streams = impl_->OpenStreams();
  });
  std::lock_guard lock(impl_->metrics_mutex);
  impl_->metrics->Update(s, impl_->config.shape);
  impl_->metrics->SetStreams(streams);
}

}  // namespace consilium
