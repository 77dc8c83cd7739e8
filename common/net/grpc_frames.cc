#include "common/net/grpc_frames.h"

#include <grpcpp/support/proto_buffer_reader.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/base/limits.h"
#include "common/base/status.h"

namespace consilium::grpc_net {
namespace {

// Far above what a closed transport needs to die.
constexpr std::chrono::seconds kReturnTimeMax{30};

}  // namespace

LentFrames::~LentFrames() {
  std::unique_lock lock(mutex_);
  CHECK_MSG(all_back_.wait_for(lock, kReturnTimeMax, [this] { return idle_.size() == loans_.size(); }),
            std::to_string(loans_.size() - idle_.size()) + " frames were not given back by gRPC");
}

grpc::Slice LentFrames::Lend(BufferRef buffer, std::span<std::byte> part) {
  Loan* loan = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      loan = &loans_.emplace_back();
      loan->lender = this;
    } else {
      loan = idle_.back();
      idle_.pop_back();
    }
  }
  loan->buffer = std::move(buffer);
  return grpc::Slice(part.data(), part.size(), &LentFrames::Return, loan);
}

void LentFrames::Return(void* held) {
  Loan* loan = static_cast<Loan*>(held);
  LentFrames* lender = loan->lender;
  loan->buffer = BufferRef();  // before it counts as returned
  std::lock_guard lock(lender->mutex_);
  lender->idle_.push_back(loan);
  if (lender->idle_.size() == lender->loans_.size()) lender->all_back_.notify_all();
}

grpc::ByteBuffer LentFrames::ToByteBuffer(WireFrame frame) {
  const std::span<std::byte> bytes = frame.buffer.bytes();
  if (!frame.has_header) {
    const grpc::Slice whole = Lend(std::move(frame.buffer), bytes);
    return grpc::ByteBuffer(&whole, 1);
  }
  const grpc::Slice slices[2] = {grpc::Slice(frame.header.bytes, frame::kHeaderBytes),
                                 Lend(std::move(frame.buffer), bytes.subspan(frame::kHeaderBytes))};
  return grpc::ByteBuffer(slices, 2);
}

BufferRef ToBuffer(grpc::ByteBuffer* bytes, BufferPool* pool) {
  BufferRef buffer = pool->Allocate(bytes->Length());
  grpc::ProtoBufferReader reader(bytes);  // walks the slices in place
  CHECK(reader.status().ok());
  std::byte* at = buffer.data();
  const void* part = nullptr;
  for (int size = 0; reader.Next(&part, &size); at += size) std::memcpy(at, part, static_cast<size_t>(size));
  CHECK(at == buffer.data() + buffer.size());
  return buffer;
}

void PollApart() {
  static const int done = setenv("GRPC_POLL_STRATEGY", "poll", 0);
  CHECK(done == 0);
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
  // Also the time that one attempt to connect may take, the HTTP/2 handshake on a busy machine included.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
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
