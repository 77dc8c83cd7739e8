// The processes of one `consilium up`, as kept in <state-dir>/processes.json.
#pragma once
#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace consilium {

struct ProcessInfo {
  std::string role;  // gateway, attention, expert or controller
  std::string name;
  pid_t pid = 0;
  std::string address;             // host:port it serves on
  std::string admin;               // host:port of /healthz, /readyz, /metrics
  std::string state = "starting";  // starting, ready or down
};

struct ProcessTable {
  pid_t up_pid = 0;
  std::string url;  // http://host:port of the gateway
  std::string model;
  std::vector<ProcessInfo> processes;
};

// Where `up` keeps logs and processes.json unless told: $XDG_STATE_HOME/consilium, else ./state.
std::string DefaultStateDir();

// Written beside and renamed, so a reader never sees half a file.
absl::Status WriteProcesses(const std::string& state_dir, const ProcessTable& table);
// NOT_FOUND if no `up` ran there.
absl::StatusOr<ProcessTable> ReadProcesses(const std::string& state_dir);

// Asks the system and /readyz anew and sets each state. `timeout_ms` is per process.
void ProbeStates(ProcessTable* table, int timeout_ms);

// The list that `ps --json` prints: role, name, pid, address, state.
std::string ProcessesJson(const std::vector<ProcessInfo>& processes);
std::string ProcessesText(const std::vector<ProcessInfo>& processes);

}  // namespace consilium
