#include "tests/sim/sim_world.h"

#include <algorithm>
#include <memory>

#include "common/base/limits.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_controller.h"
#include "tests/sim/sim_shard.h"
#include "tests/sim/sim_worker.h"

namespace consilium::sim {
namespace {

constexpr MonoTime kMs = 1000;
constexpr MonoTime kWarmUpUs = 500 * kMs;       // attach, first plan, loads
constexpr MonoTime kFaultyUs = 3000 * kMs;      // faults come in this time
constexpr MonoTime kRecoverUs = 12'000 * kMs;   // leases, grace times and retries after the last fault
constexpr MonoTime kLivenessUs = 60'000 * kMs;  // then everything must have ended
constexpr uint64_t kStepsMax = 3'000'000;

class World {
 public:
  World(uint64_t seed, SimModel* model, BufferPool* pool, const SimOptions& options)
      : options_(options),
        model_(model),
        pool_(pool),
        clock_(seed, options.print),
        net_(&clock_),
        controller_(&clock_, &net_, Controller()) {
    const uint32_t shards = 1 + Small(3), workers = 1 + Small(2);
    const uint32_t credit_rows = 128u << clock_.Pick(3);
    for (uint32_t s = 0; s < shards; ++s) {
      shards_.push_back(std::make_unique<SimShard>("shard" + std::to_string(s), &clock_, &net_, model, pool_,
                                                   &controller_, credit_rows));
    }
    AttentionConfig config = Attention();
    SimWorker::Wiring wiring;
    wiring.clock = &clock_;
    wiring.net = &net_;
    wiring.model = model;
    wiring.pool = pool_;
    wiring.controller = &controller_;
    wiring.find_shard = [this](const std::string& address) { return FindShard(address); };
    wiring.violation = [this](const std::string& text) { Violation(text); };
    wiring.duplicate_percent = options.faults ? 2 : 0;
    std::vector<SimWorker*> all;
    for (uint32_t w = 0; w < workers; ++w) {
      workers_.push_back(std::make_unique<SimWorker>("worker" + std::to_string(w), wiring, config));
      all.push_back(workers_.back().get());
    }
    client_ = std::make_unique<SimClient>(&clock_, &net_, model, all, wiring.violation);
  }

  SimResult Run() {
    controller_.Start();
    for (auto& s : shards_) s->Start();
    for (auto& w : workers_) w->Start();
    client_->Start();
    // Requests come in bursts, so that batches fill and pages run out; faults mostly hit bursts.
    const uint64_t bursts = 1 + clock_.Pick(4);
    auto moment = [&](MonoTime spread_us) {
      const MonoTime burst = static_cast<MonoTime>(clock_.Pick(bursts)) * (kFaultyUs / 4);
      return kWarmUpUs + burst + static_cast<MonoTime>(clock_.Pick(static_cast<uint64_t>(spread_us)));
    };
    for (uint32_t i = 0; i < options_.requests; ++i) {
      clock_.At(moment(20 * kMs), "user", i, [this] { client_->SubmitRandom(!options_.faults); });
    }
    if (options_.faults) {
      const uint64_t faults = 1 + clock_.Pick(10);
      for (uint64_t f = 0; f < faults; ++f) {
        clock_.At(moment(clock_.Chance(75) ? 60 * kMs : kFaultyUs / 4), "fault", f, [this] { Fault(); });
      }
    }
    const MonoTime calm = kWarmUpUs + kFaultyUs + (options_.faults ? kRecoverUs : 0);
    clock_.At(calm - kRecoverUs / 2, "calm", 0, [this] { net_.ClearSlow(); });
    for (uint32_t i = 0; i < options_.probes; ++i) {
      clock_.At(calm + static_cast<MonoTime>(i) * 3 * kMs, "probe", i,
                [this] { client_->SubmitRandom(true); });
    }
    const size_t expected = options_.requests + options_.probes;
    while (violations_.empty() && !(client_->requests() == expected && client_->all_ended())) {
      if (!clock_.Step()) Violation("nothing left to happen, open:" + client_->Open());
      if (clock_.now() > calm + kLivenessUs)
        Violation("not ended a minute after the last fault:" + client_->Open());
      if (clock_.steps() > kStepsMax) Violation("too many steps, open:" + client_->Open());
    }
    // What is on its way arrives; credits and cancels settle.
    const MonoTime rest = clock_.now() + 500 * kMs;
    while (violations_.empty() && clock_.now() < rest && clock_.Step()) {
    }
    CheckRest();
    return Result();
  }

 private:
  // [0, n), by chance often the largest.
  uint32_t Small(uint32_t n) { return static_cast<uint32_t>(clock_.Pick(n)); }

  ControllerOptions Controller() {
    ControllerOptions o;
    o.replicas = 1 + static_cast<uint32_t>(clock_.Pick(2));
    o.settle_ms = 200;
    o.quiet_ms = 50;
    o.lease_ms = 3000;
    o.rehost_grace_ms = 1000;
    o.ack_timeout_ms = 1000;
    o.op_timeout_ms = 1000;
    return o;
  }
  AttentionConfig Attention() {
    AttentionConfig c;
    c.shape = model_->shape();
    c.shape.kv_blocks = 12 + Small(30);  // the longest request takes 6 or 7
    if (c.shape.state_slots > 0) {
      c.shape.state_slots = kStateSlotsMin + Small(14);
      c.state_snapshot_tokens = kKvBlockTokens << clock_.Pick(3);
    }
    c.manifest = model_->manifest;
    c.class_name = model_->class_name;
    c.fingerprint = model_->fingerprint;
    c.flights = 1 + Small(4);
    c.flight_rows_max = 8u << clock_.Pick(4);
    const uint32_t chunks[] = {1, 7, 16, 0};
    c.prefill_chunk = chunks[clock_.Pick(4)];
    c.prefix_cache = !clock_.Chance(25);
    c.waiting_requests_max = options_.faults && clock_.Chance(20) ? 5 : 100;  // more than there are probes
    return c;
  }

  SimShard* FindShard(const std::string& address) {
    for (auto& s : shards_) {
      if (s->name() == address && s->alive()) return s.get();
    }
    return nullptr;
  }
  template <class P>
  void Restart(P* process, MonoTime down_us) {
    if (!process->alive()) return;
    clock_.Say("crash");
    process->Kill();
    clock_.In(down_us, "restart", 0, [process] { process->Start(); });
  }

  void Fault() {
    ++faults_;
    const MonoTime down_us = static_cast<MonoTime>(1 + clock_.Pick(1500)) * kMs;
    switch (clock_.Pick(7)) {
      case 0:
        return Restart(shards_[clock_.Pick(shards_.size())].get(), down_us);
      case 1:
        return Restart(workers_[clock_.Pick(workers_.size())].get(), down_us);
      case 2:
        return Restart(&controller_, down_us);
      case 3:
        return client_->CutSomeSession();
      case 4:
        return CutControl();
      case 5: {
        SimWorker* w = workers_[clock_.Pick(workers_.size())].get();
        SimShard* s = shards_[clock_.Pick(shards_.size())].get();
        net_.SetSlow(w->name() + "-" + s->name(), 100);
        return;
      }
      default: {
        SimWorker* w = workers_[clock_.Pick(workers_.size())].get();
        if (w->alive()) w->CutSomeShard();
      }
    }
  }
  void CutControl() {
    if (clock_.Chance(50))
      controller_.Cut(shards_[clock_.Pick(shards_.size())].get());
    else
      controller_.Cut(workers_[clock_.Pick(workers_.size())].get());
  }

  void Violation(const std::string& text) {
    if (violations_.size() < 5) violations_.push_back("at " + std::to_string(clock_.now()) + " us: " + text);
  }

  void CheckRest() {
    if (!violations_.empty()) return;
    for (auto& w : workers_) {
      if (!w->alive()) continue;
      const std::string leak = w->core()->Leaks();
      if (!leak.empty()) Violation(w->name() + " leaks: " + leak);
    }
    for (auto& s : shards_) {
      if (!s->alive()) continue;
      if (s->core()->calls_open() != 0) Violation(s->name() + " has open calls");
      if (s->core()->queued_rows() != 0) Violation(s->name() + " has queued rows");
    }
  }

  SimResult Result() {
    SimResult r;
    r.requests = static_cast<uint32_t>(client_->requests());
    r.failed = client_->failed();
    r.resumed = client_->resumed();
    r.tokens = client_->tokens();
    r.faults = faults_;
    r.steps = clock_.steps();
    for (auto& w : workers_) {
      if (w->alive()) w->Kill();
      r.preemptions += w->total().preemptions;
      r.resends += w->total().resends;
      r.prefix_hits += w->total().prefix_hits;
    }
    r.trace = clock_.trace();
    r.violations = violations_;
    return r;
  }

  const SimOptions options_;
  SimModel* const model_;
  BufferPool* const pool_;
  SimClock clock_;
  Network net_;
  SimController controller_;
  std::vector<std::unique_ptr<SimShard>> shards_;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::unique_ptr<SimClient> client_;
  std::vector<std::string> violations_;
  uint32_t faults_ = 0;
};

}  // namespace

SimResult RunSeed(uint64_t seed, SimModel* model, const SimOptions& options) {
  BufferPool pool;
  SimResult result;
  {
    World world(seed, model, &pool, options);
    result = world.Run();
  }
  if (result.violations.empty() && pool.live_buffers() != 0) {
    result.violations.push_back(std::to_string(pool.live_buffers()) + " buffers outlive the cluster");
  }
  return result;
}

}  // namespace consilium::sim
