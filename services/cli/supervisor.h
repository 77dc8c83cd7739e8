// Starts the processes of `consilium up`, waits until all are ready, restarts those that die, and stops them.
// One thread; waits on signals and time only.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "services/cli/processes.h"
#include "services/cli/up_options.h"

namespace consilium {

class Supervisor {
 public:
  // `options` must be complete (UpOptions::Complete). SIGTERM, SIGINT and SIGCHLD must be blocked.
  explicit Supervisor(const UpOptions& options);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Starts all and returns once all are ready. A process that ends before that is an error which shows its
  // last line. CANCELLED if a stop signal came.
  absl::Status Start();
  // Until a stop signal, or until the process `until` (0: none) has ended; then *until_status is its wait
  // status.
  void Run(pid_t until, int* until_status);
  // Gateway first, then the others: SIGTERM, and SIGKILL after a grace time or at a second stop signal.
  void Stop();

  std::string url() const;

 private:
  struct Child {
    ProcessInfo info;
    std::string log_path;
    std::string port_file;
    MonoTime started = 0;
    MonoTime restart_at = kNever;
    int64_t backoff_ms = 0;
  };

  absl::Status StartOne(Child* child);
  std::vector<std::string> Command(const Child& child) const;
  absl::Status StartAndAwait(const std::vector<Child*>& children);
  void LearnPorts(Child* child);
  void ProbeReady(Child* child);
  // Reaps children that ended. In the start phase (`failed` given) that is an error, later they are
  // restarted.
  void Reap(absl::Status* failed);
  void RestartDue();
  // Waits for a signal at most `timeout_ms`. True once a stop signal came.
  bool WaitSignal(int timeout_ms);
  void Publish();
  void EndGroup(const std::vector<Child*>& children, int64_t grace_ms);
  Child* Find(std::string_view role);

  const UpOptions options_;
  std::vector<Child> children_;
  std::string key_file_;
  pid_t watched_ = 0;
  int watched_status_ = 0;
  bool watched_ended_ = false;
  int stop_signals_ = 0;
};

}  // namespace consilium
