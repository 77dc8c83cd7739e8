// The gRPC door of an attention worker: one Session stream per gateway. No gRPC type shows here.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/session/session.h"
#include "services/attention/attention_shell.h"

namespace consilium {

class AttentionService {
 public:
  // Listens on host:port (port 0: any) and opens a session of `shell` for each stream. `welcome` is the first
  // message of each. UNAVAILABLE: the port cannot be bound.
  static absl::StatusOr<std::unique_ptr<AttentionService>> Start(const std::string& listen,
                                                                 const WorkerWelcome& welcome,
                                                                 AttentionShell* shell);
  virtual ~AttentionService() = default;    // ends all streams
  virtual std::string address() const = 0;  // host:port really bound
};

}  // namespace consilium
