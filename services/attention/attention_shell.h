// The shell around AttentionCore without any transport: its strand, compute thread, timer, channels and
// metrics. Used by the service (gRPC sessions and channels) and by the one-process mode (direct sinks,
// InprocChannel).
//
// Order of use: make the shell; make the backend with run_compute() and post_done(); Start; set a placement;
// open sessions. The strand has no thread of its own: whoever posts runs it, so nothing here computes or
// blocks.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/metrics/metrics.h"
#include "common/net/expert_channel.h"
#include "common/tensor/buffer_pool.h"
#include "services/attention/attention_core.h"

namespace consilium {

class AttentionShell {
 public:
  // One gateway stream. Called on the strand: must not block nor call the shell.
  class SessionSink {
   public:
    virtual ~SessionSink() = default;
    virtual void OnEvents(SessionEvents events) = 0;
  };
  // Opens a channel; called on the strand. The sink outlives the channel.
  using ChannelFactory = std::function<std::unique_ptr<ExpertChannel>(const PlacementShard& shard, Lane lane,
                                                                      ExpertChannel::Sink* sink)>;
  struct Hooks {
    ChannelFactory connect;
    std::function<void(Epoch)> on_placement;               // calls are routed by this epoch now; may be null
    std::function<void(const AttentionStats&)> on_second;  // about once a second, on the strand; may be null
  };

  // `metrics` may be null. Both outlive the shell.
  AttentionShell(BufferPool* pool, Metrics* metrics);
  // Stops threads and closes channels. Sessions must be closed, the backend may die afterwards.
  ~AttentionShell();
  AttentionShell(const AttentionShell&) = delete;
  AttentionShell& operator=(const AttentionShell&) = delete;

  // For the backend's options.
  std::function<void(std::function<void()>)> run_compute();
  std::function<void(std::function<void()>)> post_done();

  // `backend` outlives the shell's threads: call Stop before it dies.
  void Start(const AttentionConfig& config, LayerBackend* backend, Hooks hooks);
  void Stop();

  // Thread-safe from here on.
  SessionId OpenSession(std::shared_ptr<SessionSink> sink);
  void Submit(SessionId session, SessionSubmit submit);
  void Cancel(SessionId session, uint64_t request, int32_t choice);
  void CloseSession(SessionId session);  // its requests end; the sink is let go
  void SetPlacement(std::shared_ptr<const PlacementView> view);
  // No new requests; waits until those here have ended, at most timeout_ms. True: none is left.
  bool Drain(uint32_t timeout_ms);
  AttentionStats stats();
  void UpdateMetrics();  // before a scrape

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium
