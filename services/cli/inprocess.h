// `consilium up --inprocess`: the same cores, wired in this one process.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "services/cli/processes.h"
#include "services/cli/up_options.h"

namespace consilium {

struct InProcessHooks {
  // Called once all is ready, with the gateway's URL and one entry a role (all with this process's pid).
  // Prints the greeting, writes processes.json, and returns when a stop signal came; then RunInProcess stops
  // all and returns.
  std::function<void(const std::string& url, std::vector<ProcessInfo> processes)> serve;
};

// `options` is complete. Signals SIGTERM and SIGINT are blocked in the calling thread.
absl::Status RunInProcess(const UpOptions& options, const InProcessHooks& hooks);

}  // namespace consilium
