// Shared by the two files of StreamRouter only.
#pragma once
#include <optional>
#include <shared_mutex>
#include <span>

#include "common/base/hash.h"
#include "common/base/status.h"
#include "services/gateway/stream_router.h"

namespace consilium::gateway {

constexpr uint32_t kRetryDelayMs = 50;  // after a worker refused a submission it may take later
constexpr MonoTime kMs = 1000;

// system_fingerprint: class, fingerprint, first 12 hex digits of the manifest.
inline std::string Fingerprint(const WorkerWelcome& info) {
  std::string manifest;
  for (const char c : info.manifest.substr(0, 6)) {
    const auto byte = static_cast<uint8_t>(c);
    manifest += Hex(std::span(&byte, 1));
  }
  char bits[20];
  std::snprintf(bits, sizeof bits, "%016llx", static_cast<unsigned long long>(info.fingerprint));
  return info.class_name + "-" + bits + "-" + manifest;
}

struct StreamRouter::Worker final : AttentionSink {
  Worker(StreamRouter* r, std::string k, std::unique_ptr<AttentionClient> c)
      : router(r), key(std::move(k)), client(std::move(c)) {}
  void OnWelcome(const WorkerWelcome& i) override { router->OnWelcome(this, i); }
  void OnStep(SessionEvents step) override { router->OnStep(this, std::move(step)); }
  void OnDown(const absl::Status& why) override { router->OnDown(this, why); }

  absl::Status Submit(const SessionSubmit& request) {
    std::shared_lock lock(client_mu);
    return client == nullptr ? Unavailable("the worker was removed") : client->Submit(request);
  }
  void Cancel(uint64_t request, std::optional<uint32_t> choice) {
    std::shared_lock lock(client_mu);
    if (client != nullptr) client->Cancel(request, choice);
  }
  // The caller destroys it, with no lock held: that waits for callbacks.
  std::unique_ptr<AttentionClient> TakeClient() {
    std::unique_lock lock(client_mu);
    return std::move(client);
  }

  StreamRouter* const router;
  const std::string key;
  std::shared_mutex client_mu;  // innermost; held for as long as a call into the client takes
  std::unique_ptr<AttentionClient> client;
  // Guarded by the router's mu_.
  WorkerWelcome info;
  bool up = false, draining = false;
  uint64_t epoch = 0;  // counts sessions
  WorkerLoad load;
  std::set<uint64_t> requests;
};

struct StreamRouter::Session {
  struct Part {
    uint64_t id = 0;
    std::shared_ptr<Worker> worker;  // null: waiting; shared with the router's table
    uint64_t epoch = 0;
    uint32_t attempt = 0;
    bool over = false;
    MonoTime wait_until = 0;  // 0: not waiting
    std::optional<DeadlineTimer::Id> timer;
    std::vector<MonoTime> last_token;  // by choice
    std::set<std::string> full;        // workers that had no room for it; forgotten once one takes it
  };
  std::mutex mu;
  Start start;
  std::string identity;  // manifest and class it is pinned to; empty before the first submission
  std::vector<Part> parts;
  bool streaming = false, ended = false, dirty = false;
  MonoTime arrived = 0, deadline = 0, first_token = 0;
  DeadlineTimer::Id timer{};
  Generation& generation() { return *start.generation; }
};

}  // namespace consilium::gateway
