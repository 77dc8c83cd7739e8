// Between controller.proto and plain data. Included only by the two gRPC units (grpc_control_client.cc and
// the controller's service).
#pragma once
#include "common/net/control_messages.h"
#include "consilium/controller/v1/controller.pb.h"

namespace consilium::control {

namespace pb = ::consilium::controller::v1;

void ToProto(const ShardReport& from, pb::ShardReport* to);
void ToProto(const ShardCommand& from, pb::ShardCommand* to);
void ToProto(const RouterReport& from, pb::RouterReport* to);
void ToProto(const PlacementUpdate& from, pb::PlacementUpdate* to);
void ToProto(const GatewayReport& from, pb::GatewayReport* to);
void ToProto(const ClusterView& from, pb::ClusterView* to);

// Ids beyond 16 bits (layers, experts) are left out: no model has them.
ShardReport FromProto(const pb::ShardReport& from);
ShardCommand FromProto(const pb::ShardCommand& from);
RouterReport FromProto(const pb::RouterReport& from);
PlacementUpdate FromProto(const pb::PlacementUpdate& from);
GatewayReport FromProto(const pb::GatewayReport& from);
ClusterView FromProto(const pb::ClusterView& from);

}  // namespace consilium::control
