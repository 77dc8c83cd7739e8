// The shell around ExpertCore: its strand, compute thread, loader thread, heartbeat timer and metrics.
// Transports (GrpcFrameServer, InprocListener) drive it as a FrameServer. Used by the service and by the
// one-process mode.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics/metrics.h"
#include "common/net/session.h"
#include "services/expert/expert_backend.h"
#include "services/expert/expert_core.h"

namespace consilium {

class ExpertShard final : public FrameServer {
 public:
  struct Config {
    ExpertCoreOptions core;
    uint64_t incarnation = 0;
    // Blocks; runs on loader threads, as many at a time as there are.
    std::function<absl::StatusOr<ExpertHandle>(ExpertKey)> load;
    uint32_t loader_threads = 1;  // each holds one expert's stored bytes beside the packed ones
    // Called on the strand; must not block. May be null.
    std::function<void(ExpertKey, HostState)> on_host_changed;
    std::function<void(const expert_action::OpDone&)> on_op_done;
  };
  // `metrics` may be null. All pointers outlive the shard; transports are stopped before it is destroyed.
  ExpertShard(Config config, ExpertBackend* backend, BufferPool* pool, Metrics* metrics);
  ~ExpertShard() override;

  void OnOpen(ConnId conn, std::shared_ptr<FrameLink> link, Lane lane, RouterHello hello) override;
  void OnBind(ConnId conn, RouterHello more) override;
  void OnFrame(ConnId conn, WireFrame frame) override;
  void OnClose(ConnId conn) override;

  // From the controller, thread-safe.
  void Command(expert_event::Command command);
  void set_shard_id(uint32_t shard_id);
  uint32_t shard_id() const;
  void set_epoch(Epoch epoch);

  // DRAIN to all streams, then waits until every queued call is answered, at most `timeout_ms`. True: the
  // queue is empty.
  bool Drain(uint32_t timeout_ms);

  // A consistent snapshot, thread-safe (kept by the strand).
  struct Stats {
    uint32_t experts_ready = 0, queued_rows = 0;
    uint64_t loaded_bytes = 0;
    uint64_t rows_done = 0;  // slots computed since start
    size_t streams = 0, calls_open = 0;
    bool draining = false;
  };
  Stats stats() const;
  std::vector<std::pair<ExpertKey, HostState>> experts() const;  // all but absent ones

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium
