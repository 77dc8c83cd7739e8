// Carries generations to attention workers and their tokens back to the clients: chooses workers, resumes
// streams whose worker was lost, waits, times out, cancels. Thread-safe.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/http/http_server.h"
#include "services/gateway/attention_client.h"
#include "services/gateway/deadline_timer.h"
#include "services/gateway/gateway_metrics.h"
#include "services/gateway/generation.h"

namespace consilium::gateway {

struct RouterOptions {
  uint32_t admission_wait_ms = 5000;                  // for a first worker; then 503
  uint32_t resume_wait_ms = 30000;                    // for another worker after a loss; then 503
  uint32_t request_timeout_ms = 600000;               // whole request
  size_t stream_pending_bytes_max = size_t{1} << 20;  // unread by the client; then the stream is cut
  uint32_t requests_max = 10000;                      // under way at once; then 429
};

class StreamRouter {
 public:
  StreamRouter(RouterOptions options, const ModelInfo& model, GatewayMetrics* metrics);
  // Ends all sessions with workers. Open requests get a 503.
  ~StreamRouter();

  // Workers are known by a key (their address). Adding one that exists does nothing.
  void AddWorker(const std::string& key, std::unique_ptr<AttentionClient> client);
  void RemoveWorker(const std::string& key);  // waits for its callbacks; its requests are resumed elsewhere
  void SetDraining(const std::string& key, bool draining);  // takes no new submissions
  std::vector<std::string> workers() const;
  size_t ready_workers() const;             // with an open session, not draining
  bool IsUp(const std::string& key) const;  // its session is open
  ParseLimits limits() const;

  struct Start {
    std::unique_ptr<Generation> generation;
    std::shared_ptr<HttpResponder> responder;  // shared with the server
    HttpHeaders headers;                       // of every answer to it
    std::string request_id, endpoint;
  };
  // nullopt: under way; else the error to answer (too many requests). The responder is answered in every
  // other case.
  std::optional<ApiError> Run(Start start);
  // New requests are refused with 503 from now on.
  void Drain() { draining_ = true; }
  size_t open_requests() const;

 private:
  struct Worker;
  struct Session;
  using SessionPtr = std::shared_ptr<Session>;  // held by the table, timers and callbacks under way
  struct Place {
    SessionPtr session;
    size_t part = 0;
  };

  // Called with the session's lock held.
  void Submit(const SessionPtr& session, size_t part);
  void Wait(const SessionPtr& session, size_t part);
  void Retry(const SessionPtr& session, size_t part, uint32_t delay_ms);
  void Fail(const SessionPtr& session, const ApiError& error);
  void Flush(const SessionPtr& session);
  void End(const SessionPtr& session, int status);
  void Release(Session* session, size_t part, bool cancel);
  void HandleToken(const SessionPtr& session, size_t part, const SessionToken& event);
  void HandleError(const SessionPtr& session, size_t part, const SessionError& event);
  void ObserveToken(Session* session, size_t part, uint32_t choice);

  bool AnotherMayTake(const SessionPtr& session, size_t part);
  std::shared_ptr<Worker> Choose(const SessionPtr& session, size_t part);
  void OnWelcome(Worker* worker, const WorkerWelcome& info);
  void OnStep(Worker* worker, SessionEvents step);
  void OnDown(Worker* worker, const absl::Status& why);
  void OnClientGone(const SessionPtr& session);
  std::vector<std::pair<uint64_t, Place>> TakeRequests(Worker* worker);
  void Resume(Worker* worker, const std::vector<std::pair<uint64_t, Place>>& lost, uint64_t epoch);
  void WakeWaiting();

  const RouterOptions options_;
  GatewayMetrics* const metrics_;
  std::atomic<bool> draining_{false};
  std::atomic<uint64_t> last_request_{0};

  // Order of locks: a session's, then mu_. Clients are called with a session's lock held, never with mu_.
  mutable std::mutex mu_;
  ParseLimits limits_;
  std::map<std::string, std::shared_ptr<Worker>> workers_;  // shared with submissions under way
  std::unordered_map<uint64_t, Place> requests_;            // submissions under way or waiting
  std::set<uint64_t> waiting_;                              // submissions without a worker
  size_t sessions_ = 0;
  DeadlineTimer timer_;
};

}  // namespace consilium::gateway
