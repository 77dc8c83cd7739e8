#include <string>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/net/session.h"
#include "consilium/expert/v1/expert.pb.h"

namespace consilium {
namespace {

namespace pb = ::consilium::expert::v1;

BufferRef EncodeHelloAs(frame::Kind kind, const RouterHello& hello, Lane lane, BufferPool* pool) {
  pb::Hello message;
  message.set_wire_min(frame::kVersion);
  message.set_wire_max(frame::kVersion);
  message.set_router_id(hello.router_id);
  message.set_incarnation(hello.incarnation);
  message.set_lane(static_cast<uint32_t>(lane));
  for (const RouterHello::Model& m : hello.models) {
    pb::ModelBinding* out = message.add_models();
    out->set_ix(m.ix);
    out->set_manifest(m.manifest);
    out->set_hidden(m.hidden);
    out->set_dtype_in(m.dtype_in);
    out->set_dtype_out(m.dtype_out);
  }
  for (const RouterHello::Class& c : hello.classes) {
    pb::ClassBinding* out = message.add_classes();
    out->set_ix(c.ix);
    out->mutable_numerics()->set_name(c.name);
    out->mutable_numerics()->set_fingerprint(c.fingerprint);
  }
  return frame::EncodePayload(kind, message.SerializeAsString(), pool);
}

void AddResult(pb::BindResult* out, uint32_t ix, BindCode code) {
  out->set_ix(ix);
  out->set_code(static_cast<pb::BindResult::Code>(code));
}

absl::Status CheckBounds(const pb::Hello& m) {
  if (m.wire_min() > frame::kVersion || m.wire_max() < frame::kVersion) {
    return FailedPrecondition("HELLO: wire versions " + std::to_string(m.wire_min()) + ".." +
                              std::to_string(m.wire_max()) + ", expected to include " +
                              std::to_string(frame::kVersion));
  }
  if (m.lane() >= kLanes)
    return InvalidArgument("HELLO: lane, expected 0 or 1, got " + std::to_string(m.lane()));
  const auto bound = static_cast<int>(kBindingsMax);
  if (m.models_size() > bound || m.classes_size() > bound || m.tenants_size() > bound) {
    return InvalidArgument("HELLO: more than " + std::to_string(bound) + " bindings");
  }
  return absl::OkStatus();
}

}  // namespace

BufferRef EncodeHello(const RouterHello& hello, Lane lane, BufferPool* pool) {
  return EncodeHelloAs(frame::Kind::kHello, hello, lane, pool);
}

BufferRef EncodeBind(const RouterHello& more, Lane lane, BufferPool* pool) {
  return EncodeHelloAs(frame::Kind::kBind, more, lane, pool);
}

BufferRef EncodeWelcome(const RouterHello& hello, const WelcomeInfo& info, BufferPool* pool) {
  CHECK(info.models.size() == hello.models.size() && info.classes.size() == hello.classes.size());
  pb::Welcome message;
  message.set_wire(info.wire);
  message.set_shard_id(info.shard_id);
  message.set_incarnation(info.incarnation);
  for (size_t i = 0; i < info.models.size(); ++i)
    AddResult(message.add_models(), hello.models[i].ix, info.models[i]);
  for (size_t i = 0; i < info.classes.size(); ++i) {
    AddResult(message.add_classes(), hello.classes[i].ix, info.classes[i]);
  }
  message.set_credit_rows(info.credit.rows);
  message.set_credit_bytes(info.credit.bytes);
  message.set_epoch(info.epoch.value);
  return frame::EncodePayload(frame::Kind::kWelcome, message.SerializeAsString(), pool);
}

absl::Status ParseHello(std::span<const std::byte> payload, RouterHello* hello, Lane* lane) {
  pb::Hello message;
  if (!message.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
    return InvalidArgument("HELLO: its payload is not a consilium.expert.v1.Hello");
  }
  RETURN_IF_ERROR(CheckBounds(message));
  hello->router_id = message.router_id();
  hello->incarnation = message.incarnation();
  *lane = static_cast<Lane>(message.lane());
  for (const pb::ModelBinding& m : message.models()) {
    if (m.dtype_in() > 255 || m.dtype_out() > 255) return InvalidArgument("HELLO: dtype above 255");
    hello->models.push_back({m.ix(), m.manifest(), m.hidden(), static_cast<uint8_t>(m.dtype_in()),
                             static_cast<uint8_t>(m.dtype_out())});
  }
  for (const pb::ClassBinding& c : message.classes()) {
    if (c.ix() > 65535)
      return InvalidArgument("HELLO: class index above 65535, got " + std::to_string(c.ix()));
    hello->classes.push_back(
        {static_cast<uint16_t>(c.ix()), c.numerics().name(), c.numerics().fingerprint()});
  }
  return absl::OkStatus();
}

absl::Status ParseWelcome(std::span<const std::byte> payload, WelcomeInfo* info) {
  pb::Welcome message;
  if (!message.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
    return InvalidArgument("WELCOME: its payload is not a consilium.expert.v1.Welcome");
  }
  info->wire = message.wire();
  info->shard_id = message.shard_id();
  info->incarnation = message.incarnation();
  for (const pb::BindResult& r : message.models()) info->models.push_back(static_cast<BindCode>(r.code()));
  for (const pb::BindResult& r : message.classes()) info->classes.push_back(static_cast<BindCode>(r.code()));
  info->credit = Credit{message.credit_rows(), message.credit_bytes()};
  info->epoch = Epoch{message.epoch()};
  return absl::OkStatus();
}

}  // namespace consilium
