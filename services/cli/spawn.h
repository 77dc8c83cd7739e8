// Child processes: start, log file, end.
#pragma once
#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

// Folder of the running program, where its sister binaries lie.
std::string ProgramFolder();

// Starts argv[0] in its own process group (a terminal's Ctrl-C does not reach it) with /dev/null as input and
// both outputs appended to `log_path` (empty: inherited). It is killed when the calling thread's process
// dies.
absl::StatusOr<pid_t> Spawn(const std::vector<std::string>& argv, const std::string& log_path);

// "exit code 1" or "signal 9 (Killed)".
std::string DescribeExit(int wait_status);

// Last non-empty line of a file, or "".
std::string LastLine(const std::string& path);

// OK if a listener could bind there now; else UNAVAILABLE naming the address and the reason.
absl::Status CheckPortFree(const std::string& host, uint16_t port);

}  // namespace consilium
