// The gateway's side of one attention worker: submissions one way, each step's tokens of all streams the
// other way, in the vocabulary of common/session. Implementations: gRPC (grpc_attention_client) and
// in-process (services/cli).
#pragma once
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "common/session/session.h"

namespace consilium::gateway {

// Called by the client one at a time, never from within Start, Submit or Cancel, and never after the client's
// destructor. OnWelcome opens a session, OnDown ends it: all its requests are lost. Then the client dials
// again by itself.
class AttentionSink {
 public:
  virtual ~AttentionSink() = default;
  virtual void OnWelcome(const WorkerWelcome& info) = 0;
  virtual void OnStep(SessionEvents step) = 0;
  virtual void OnDown(const absl::Status& why) = 0;
};

// Thread-safe; never blocks.
class AttentionClient {
 public:
  virtual ~AttentionClient() = default;  // ends the session; waits for a callback under way
  virtual void Start(AttentionSink* sink) = 0;
  // UNAVAILABLE: no session is open. After OK the request ends with finishes of all choices, an error, or
  // OnDown.
  virtual absl::Status Submit(const SessionSubmit& request) = 0;
  virtual void Cancel(uint64_t request, std::optional<uint32_t> choice) = 0;  // nullopt: all choices
};

}  // namespace consilium::gateway
