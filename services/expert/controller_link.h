// A shard's tie to the controller: commands come in, host states, results and load go out.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "common/net/control_client.h"
#include "services/expert/expert_shard.h"

namespace consilium {

class ControllerLink final : public ShardAttachment::Sink {
 public:
  ControllerLink() = default;

  // Dials the controller. `shard` outlives Detach.
  void Attach(const ControlClientOptions& options, const control::MemberIdentity& who,
              std::vector<control::MoeLayer> layers, uint64_t capacity_bytes, ExpertShard* shard);
  void Detach();

  // Hooks of ExpertShard::Config; before Attach and after Detach they do nothing.
  void HostChanged(ExpertKey key, HostState state);
  void OpDone(const expert_action::OpDone& done);
  void SetLoad(double rows_per_s);

  bool attached() const;  // a shard id was given

  void OnUp() override;
  void OnDown(const absl::Status& status) override;
  void OnShardId(ShardId id) override;
  void OnCommand(const control::ShardCommand& command) override;

 private:
  mutable std::mutex mutex_;
  std::unique_ptr<ShardAttachment> attachment_;
  ExpertShard* shard_ = nullptr;
  ShardId id_;
};

}  // namespace consilium
