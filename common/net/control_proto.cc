#include "common/net/control_proto.h"

namespace consilium::control {
namespace {

bool Fits(uint32_t layer, uint32_t expert) { return layer <= 0xFFFF && expert <= 0xFFFF; }
LayerId Layer(uint32_t value) { return LayerId{static_cast<uint16_t>(value)}; }
ExpertId Expert(uint32_t value) { return ExpertId{static_cast<uint16_t>(value)}; }

// ShardReport and RouterReport name these fields alike.
template <class Proto>
void IdentityTo(const MemberIdentity& from, Proto* to) {
  to->set_name(from.name);
  to->set_incarnation(from.incarnation);
  to->mutable_endpoint()->set_address(from.address);
  to->mutable_endpoint()->set_admin(from.admin);
  to->mutable_model()->set_id(from.model_id);
  to->mutable_model()->set_manifest(from.manifest);
  to->mutable_numerics()->set_name(from.class_name);
  to->mutable_numerics()->set_fingerprint(from.fingerprint);
}

template <class Proto>
MemberIdentity IdentityFrom(const Proto& from) {
  return {.name = from.name(),
          .incarnation = from.incarnation(),
          .address = from.endpoint().address(),
          .admin = from.endpoint().admin(),
          .model_id = from.model().id(),
          .manifest = from.model().manifest(),
          .class_name = from.numerics().name(),
          .fingerprint = from.numerics().fingerprint()};
}

}  // namespace

void ToProto(const ShardReport& from, pb::ShardReport* to) {
  IdentityTo(from.who, to);
  to->set_capacity_bytes(from.capacity_bytes);
  to->set_full(from.full);
  to->set_load(from.load_rows_per_s);
  to->set_last_shard_id(from.last_shard_id);
  for (const MoeLayer& layer : from.layers) {
    auto* out = to->add_layers();
    out->set_layer(layer.layer.value);
    out->set_experts(layer.experts);
    out->set_expert_bytes(layer.expert_bytes);
  }
  for (const HostedExpert& hosted : from.experts) {
    auto* out = to->add_experts();
    out->set_layer(hosted.layer.value);
    out->set_expert(hosted.expert.value);
    out->set_state(static_cast<::consilium::expert::v1::HostedExpert::State>(hosted.state));
  }
  for (const OpResult& result : from.results) {
    auto* out = to->add_results();
    out->set_op_id(result.op_id);
    out->set_ok(result.ok);
    out->set_text(result.text);
  }
}

ShardReport FromProto(const pb::ShardReport& from) {
  ShardReport to;
  to.who = IdentityFrom(from);
  to.capacity_bytes = from.capacity_bytes();
  to.full = from.full();
  to.load_rows_per_s = from.load();
  to.last_shard_id = from.last_shard_id();
  for (const auto& layer : from.layers()) {
    if (Fits(layer.layer(), 0))
      to.layers.push_back({Layer(layer.layer()), layer.experts(), layer.expert_bytes()});
  }
  for (const auto& hosted : from.experts()) {
    if (!Fits(hosted.layer(), hosted.expert())) continue;
    to.experts.push_back(
        {Layer(hosted.layer()), Expert(hosted.expert()), static_cast<HostedState>(hosted.state())});
  }
  for (const auto& result : from.results())
    to.results.push_back({result.op_id(), result.ok(), result.text()});
  return to;
}

void ToProto(const ShardCommand& from, pb::ShardCommand* to) {
  to->set_shard_id(from.shard_id.value);
  to->set_epoch(from.epoch.value);
  to->set_op_id(from.op_id);
  to->set_kind(static_cast<pb::ShardCommand::Kind>(from.kind));
  to->set_lease_ms(from.lease_ms);
  to->set_refused(from.refused);
  for (const ExpertKey& key : from.experts) {
    auto* out = to->add_experts();
    out->set_layer(key.layer.value);
    out->set_expert(key.expert.value);
  }
}

ShardCommand FromProto(const pb::ShardCommand& from) {
  ShardCommand to;
  to.shard_id = ShardId{from.shard_id()};
  to.epoch = Epoch{from.epoch()};
  to.op_id = from.op_id();
  to.kind = static_cast<CommandKind>(from.kind());
  to.lease_ms = from.lease_ms();
  to.refused = from.refused();
  for (const auto& key : from.experts()) {
    if (Fits(key.layer(), key.expert())) to.experts.push_back({Layer(key.layer()), Expert(key.expert())});
  }
  return to;
}

void ToProto(const RouterReport& from, pb::RouterReport* to) {
  IdentityTo(from.who, to);
  to->set_acked_epoch(from.acked_epoch.value);
  to->set_ready(from.ready);
  to->set_draining(from.draining);
  for (const ExpertLoad& load : from.loads) {
    auto* out = to->add_loads();
    out->set_layer(load.layer.value);
    out->set_expert(load.expert.value);
    out->set_rows_per_s(load.rows_per_s);
  }
}

RouterReport FromProto(const pb::RouterReport& from) {
  RouterReport to;
  to.who = IdentityFrom(from);
  to.acked_epoch = Epoch{from.acked_epoch()};
  to.ready = from.ready();
  to.draining = from.draining();
  for (const auto& load : from.loads()) {
    if (!Fits(load.layer(), load.expert())) continue;
    to.loads.push_back({Layer(load.layer()), Expert(load.expert()), load.rows_per_s()});
  }
  return to;
}

void ToProto(const PlacementUpdate& from, pb::PlacementUpdate* to) {
  to->set_epoch(from.epoch.value);
  to->set_base_epoch(from.base_epoch.value);
  to->set_layer_bound(from.layers);
  to->set_expert_bound(from.experts);
  to->set_lease_ms(from.lease_ms);
  to->set_refused(from.refused);
  for (const ShardInfo& shard : from.shards) {
    auto* out = to->add_shards();
    out->set_shard_id(shard.id.value);
    out->set_name(shard.name);
    out->set_address(shard.address);
    out->set_incarnation(shard.incarnation);
  }
  for (const ShardId gone : from.gone_shards) to->add_gone_shards(gone.value);
  for (const ExpertReplicas& entry : from.replicas) {
    auto* out = to->add_experts();
    out->set_layer(entry.layer.value);
    out->set_expert(entry.expert.value);
    for (const ShardId id : entry.shards) out->add_shards(id.value);
  }
}

PlacementUpdate FromProto(const pb::PlacementUpdate& from) {
  PlacementUpdate to;
  to.epoch = Epoch{from.epoch()};
  to.base_epoch = Epoch{from.base_epoch()};
  to.layers = from.layer_bound();
  to.experts = from.expert_bound();
  to.lease_ms = from.lease_ms();
  to.refused = from.refused();
  for (const auto& shard : from.shards()) {
    to.shards.push_back({ShardId{shard.shard_id()}, shard.name(), shard.address(), shard.incarnation()});
  }
  for (const uint32_t gone : from.gone_shards()) to.gone_shards.push_back(ShardId{gone});
  for (const auto& entry : from.experts()) {
    if (!Fits(entry.layer(), entry.expert())) continue;
    ExpertReplicas replicas{Layer(entry.layer()), Expert(entry.expert()), {}};
    for (const uint32_t id : entry.shards()) replicas.shards.push_back(ShardId{id});
    to.replicas.push_back(std::move(replicas));
  }
  return to;
}

void ToProto(const GatewayReport& from, pb::GatewayReport* to) {
  to->set_name(from.name);
  to->set_incarnation(from.incarnation);
}

GatewayReport FromProto(const pb::GatewayReport& from) { return {from.name(), from.incarnation()}; }

void ToProto(const ClusterView& from, pb::ClusterView* to) {
  to->set_covered(from.covered);
  for (const AttentionWorker& worker : from.workers) {
    auto* out = to->add_workers();
    out->set_name(worker.name);
    out->set_address(worker.address);
    out->mutable_model()->set_id(worker.model_id);
    out->mutable_model()->set_manifest(worker.manifest);
    out->mutable_numerics()->set_name(worker.class_name);
    out->mutable_numerics()->set_fingerprint(worker.fingerprint);
    out->set_ready(worker.ready);
    out->set_draining(worker.draining);
  }
}

ClusterView FromProto(const pb::ClusterView& from) {
  ClusterView to;
  to.covered = from.covered();
  for (const auto& worker : from.workers()) {
    to.workers.push_back({worker.name(), worker.address(), worker.model().id(), worker.model().manifest(),
                          worker.numerics().name(), worker.numerics().fingerprint(), worker.ready(),
                          worker.draining()});
  }
  return to;
}

}  // namespace consilium::control
