// The gateway's role: submits requests with mixed options, cancels some, resumes the streams of lost workers
// from the tokens it has, and checks every token against an undisturbed run.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/reference.h"
#include "tests/sim/sim_worker.h"

namespace consilium::sim {

class SimClient {
 public:
  SimClient(SimClock* clock, Network* net, SimModel* model, std::vector<SimWorker*> workers,
            std::function<void(const std::string&)> violation);
  void Start();
  // A random request now. `must_succeed`: no fault is left that could excuse an error.
  void SubmitRandom(bool must_succeed);
  void CutSomeSession();
  bool all_ended() const { return live_ == 0; }
  size_t requests() const { return requests_.size(); }
  uint32_t resumed() const { return resumed_; }
  uint32_t failed() const { return failed_; }
  uint64_t tokens() const { return tokens_; }
  std::string Open() const;  // what has not ended, for messages

 private:
  struct Request {
    SessionSubmit submit;
    Answer want;
    std::map<uint32_t, std::vector<TokenBits>> have;
    std::map<uint32_t, FinishReason> finished;  // over all attempts
    std::map<uint32_t, FinishReason> attempt_finished;
    size_t worker = kNobody;
    bool cancelled = false, ended = false, must_succeed = false;
  };
  struct Link {
    SimWorker* worker = nullptr;
    StreamRef stream;  // null: not connected
    SessionId session = 0;
    uint64_t serial = 0;
  };
  static constexpr size_t kNobody = ~size_t{0};
  SessionSubmit RandomSubmit();
  void Connect(size_t worker);
  void Place(uint64_t id);  // on a worker, or later
  void OnDown(size_t worker);
  void OnEvents(size_t worker, const SessionEvents& events);
  void OnToken(const SessionToken& token);
  void OnFinish(const SessionFinish& finish);
  void OnError(const SessionError& error);
  void End(Request* r);
  void Cancel(uint64_t id);
  Request* Find(uint64_t id, const char* what);

  SimClock* const clock_;
  Network* const net_;
  SimModel* const model_;
  const std::function<void(const std::string&)> violation_;
  std::vector<Link> links_;
  uint64_t next_serial_ = 1;
  std::map<uint64_t, Request> requests_;
  size_t live_ = 0;
  uint32_t resumed_ = 0, failed_ = 0;
  uint64_t tokens_ = 0;
};

}  // namespace consilium::sim
