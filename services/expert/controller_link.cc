#include "services/expert/controller_link.h"

#include "common/base/status.h"
#include "common/log/log.h"

namespace consilium {

void ControllerLink::Attach(const ControlClientOptions& options, const control::MemberIdentity& who,
                            std::vector<control::MoeLayer> layers, uint64_t capacity_bytes,
                            ExpertShard* shard) {
  std::lock_guard lock(mutex_);
  shard_ = shard;
  attachment_ = AttachShard(options, who, std::move(layers), capacity_bytes, this);
}

void ControllerLink::Detach() {
  std::unique_ptr<ShardAttachment> gone;
  {
    std::lock_guard lock(mutex_);
    gone = std::move(attachment_);
  }
  gone.reset();  // without the lock: its thread may be in a sink method
}

void ControllerLink::HostChanged(ExpertKey key, HostState state) {
  std::lock_guard lock(mutex_);
  if (attachment_ == nullptr) return;
  attachment_->Report({{key.layer, key.expert, static_cast<control::HostedState>(state)}}, {});
}

void ControllerLink::OpDone(const expert_action::OpDone& done) {
  std::lock_guard lock(mutex_);
  if (attachment_ != nullptr) attachment_->Report({}, {{done.op_id, done.ok, done.text}});
}

void ControllerLink::SetLoad(double rows_per_s) {
  std::lock_guard lock(mutex_);
  if (attachment_ != nullptr) attachment_->SetLoad(rows_per_s);
}

bool ControllerLink::attached() const {
  std::lock_guard lock(mutex_);
  return id_ != ShardId{};
}

void ControllerLink::OnUp() { log::Info("controller connected"); }
void ControllerLink::OnDown(const absl::Status& status) {
  log::Warn("controller lost; serving what is loaded", {{"why", ToString(status)}});
}

void ControllerLink::OnShardId(ShardId id) {
  ExpertShard* shard = nullptr;
  {
    std::lock_guard lock(mutex_);
    id_ = id;
    shard = shard_;
  }
  log::Info("shard id", {{"shard_id", id.value}});
  shard->set_shard_id(id.value);
}

void ControllerLink::OnCommand(const control::ShardCommand& command) {
  ExpertShard* shard = nullptr;
  {
    std::lock_guard lock(mutex_);
    shard = shard_;
  }
  shard->set_epoch(command.epoch);
  expert_event::Command event;
  switch (command.kind) {
    case control::CommandKind::kNone:
      return;
    case control::CommandKind::kLoad:
      event.kind = expert_event::Command::Kind::kLoad;
      break;
    case control::CommandKind::kDrop:
      event.kind = expert_event::Command::Kind::kDrop;
      break;
    case control::CommandKind::kDrain:
      event.kind = expert_event::Command::Kind::kDrain;
      break;
  }
  event.op_id = command.op_id;
  for (const control::ExpertKey& key : command.experts) event.experts.push_back({key.layer, key.expert});
  log::Info(
      "command of the controller",
      {{"kind", static_cast<int>(command.kind)}, {"op", command.op_id}, {"experts", command.experts.size()}});
  shard->Command(std::move(event));
}

}  // namespace consilium
