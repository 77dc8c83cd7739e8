// The controller's shell: gRPC streams of members, the strand that runs the core, the state file. No gRPC in
// this header.
//
// Threads: gRPC's callback threads only move messages; one strand thread owns the core. Of each member at
// most one received report waits for the strand; writes to a member are queued up to kControlWritesMax, then
// its stream is ended.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics/metrics.h"
#include "services/controller/controller_core.h"

namespace consilium {

struct ControllerServiceOptions {
  std::string listen = "127.0.0.1:0";  // host:port
  std::string state_dir;               // term and known members; "": nothing is kept
  ControllerOptions core;              // term and known_members come from state_dir
};

class ControllerService {
 public:
  // UNAVAILABLE names the address that could not be bound, INVALID_ARGUMENT a state directory that cannot be
  // used.
  static absl::StatusOr<std::unique_ptr<ControllerService>> Start(const ControllerServiceOptions& options,
                                                                  Metrics* metrics);
  virtual ~ControllerService() = default;   // ends all streams; members keep what they know
  virtual std::string address() const = 0;  // host:port really bound
  virtual void UpdateMetrics() = 0;         // before a scrape
};

// The state file of a controller: "term N" and one "member ROLE NAME" a line. Written beside and renamed.
struct ControllerState {
  uint32_t term = 0;
  std::vector<std::string> members;
};
// A missing file is an empty state. INVALID_ARGUMENT: unreadable, with file, line, expected and got.
absl::StatusOr<ControllerState> ReadControllerState(const std::string& dir);
absl::Status WriteControllerState(const std::string& dir, const ControllerState& state);

}  // namespace consilium
