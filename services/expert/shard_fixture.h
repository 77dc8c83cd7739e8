// A running ExpertShard of the hash class with all experts of 3 layers x 8 loaded, for tests and benchmarks.
#pragma once
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "common/base/status.h"
#include "common/testing/hash_backend.h"
#include "services/expert/core_fixture.h"
#include "services/expert/expert_shard.h"

namespace consilium {

struct HashShard {
  // `backend` null: HashExpertBackend.
  explicit HashShard(BufferPool* pool, ExpertCoreOptions options = CoreFixture::Options(),
                     ExpertBackend* backend = nullptr, Metrics* metrics = nullptr) {
    ExpertShard::Config config;
    ExpertBackend* used = backend != nullptr ? backend : &hash;
    expert_event::Command command;
    command.op_id = 1;
    for (const auto& [key, bytes] : options.expert_bytes) command.experts.push_back(key);
    config.core = std::move(options);
    config.incarnation = 99;
    config.load = [used](ExpertKey key) {
      ExpertEntry entry;
      entry.layer = key.layer;
      entry.expert = key.expert;
      return used->Load(entry, nullptr);
    };
    config.on_op_done = [this](const expert_action::OpDone& done) {
      std::lock_guard lock(mutex);
      loaded = done.ok;
      changed.notify_all();
    };
    shard = std::make_unique<ExpertShard>(std::move(config), used, pool, metrics);
    shard->Command(std::move(command));
    std::unique_lock lock(mutex);
    CHECK(changed.wait_for(lock, std::chrono::seconds(20), [this] { return loaded; }));
  }

  HashExpertBackend hash;
  std::mutex mutex;
  std::condition_variable changed;
  bool loaded = false;
  std::unique_ptr<ExpertShard> shard;
};

}  // namespace consilium
