#include "common/net/grpc_frames.h"

#include <cstring>
#include <string>

#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium::grpc_net {
namespace {

// A BufferRef packed into the one pointer that a slice's release callback gets. BufferRef is a single counted
// pointer.
static_assert(sizeof(BufferRef) == sizeof(void*));

void* Pack(BufferRef ref) {
  alignas(BufferRef) unsigned char storage[sizeof(void*)];
  new (storage) BufferRef(std::move(ref));
  void* packed;
  std::memcpy(&packed, storage, sizeof(packed));
  return packed;
}

void Unpack(void* packed) {
  alignas(BufferRef) unsigned char storage[sizeof(void*)];
  std::memcpy(storage, &packed, sizeof(packed));
  std::launder(reinterpret_cast<BufferRef*>(storage))->~BufferRef();
}

grpc::Slice Borrow(const BufferRef& buffer, std::span<std::byte> part) {
  return grpc::Slice(part.data(), part.size(), &Unpack, Pack(buffer));
}

}  // namespace

grpc::ByteBuffer ToByteBuffer(WireFrame frame) {
  if (!frame.has_header) {
    const grpc::Slice whole = Borrow(frame.buffer, frame.buffer.bytes());
    return grpc::ByteBuffer(&whole, 1);
  }
  const grpc::Slice slices[2] = {grpc::Slice(frame.header.bytes, frame::kHeaderBytes),
                                 Borrow(frame.buffer, frame.buffer.bytes().subspan(frame::kHeaderBytes))};
  return grpc::ByteBuffer(slices, 2);
}

BufferRef ToBuffer(const grpc::ByteBuffer& bytes, BufferPool* pool) {
  BufferRef buffer = pool->Allocate(bytes.Length());
  std::vector<grpc::Slice> slices;
  CHECK(bytes.Dump(&slices).ok());
  std::byte* at = buffer.data();
  for (const grpc::Slice& s : slices) {
    std::memcpy(at, s.begin(), s.size());
    at += s.size();
  }
  return buffer;
}

grpc::ChannelArguments ClientArguments(Lane lane) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  args.SetInt(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, static_cast<int>(kFrameBytesMax + kFrameSlackBytes));
  args.SetInt(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, static_cast<int>(kFrameBytesMax + kFrameSlackBytes));
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, lane == Lane::kDecode ? 2 << 20 : 8 << 20);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 2'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return args;
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string& text = status.error_message();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      absl::string_view(text.data(), text.size()));
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), Message(status));
}

}  // namespace consilium::grpc_net
