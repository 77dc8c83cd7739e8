// The frame of a service's main: signals, fatal errors, the port file.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace consilium {

// Runs a service to its end and returns main's exit code. Blocks SIGTERM and SIGINT before `start` (so that
// threads made there never take them) and ignores SIGPIPE. `start` brings everything up and returns the
// callback that stops it gracefully; on an error one line goes to stderr and the result is 1. Then waits for
// a signal or RequestStop, calls the callback, and returns 0 (1 after RequestStop with an error). A second
// signal while stopping ends the process.
int RunService(std::string_view program, const std::function<absl::StatusOr<std::function<void()>>()>& start);

// From any thread: ends RunService's wait, as SIGTERM would. An error is printed as one line and makes the
// exit code 1.
void RequestStop(const absl::Status& reason);

// Tells the starter which ports were bound: lines "listen host:port" and "admin host:port" (an empty one is
// left out). The file appears whole or not at all (written beside, then renamed). Empty path: nothing to do.
absl::Status WritePortFile(const std::string& path, std::string_view listen, std::string_view admin);

}  // namespace consilium
