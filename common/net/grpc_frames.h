// What client and server of the gRPC transport share. Private to net_grpc: includes gRPC.
#pragma once
#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/status.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/net/expert_channel.h"
#include "common/net/frame.h"
#include "common/net/frame_queue.h"

namespace consilium::grpc_net {

inline constexpr char kExchangeMethod[] = "/consilium.expert.v1.ExpertShard/Exchange";

// What lies in a completion queue.
class Tag {
 public:
  virtual ~Tag() = default;
  virtual void Done(bool ok) = 0;
};

// A tag that calls a member of `T` and keeps it alive meanwhile. Armed at most once at a time.
template <class T>
class MemberTag final : public Tag {
 public:
  MemberTag(T* owner, void (T::*done)(bool)) : owner_(owner), done_(done) {}
  void* Arm() {
    keep_ = owner_->shared_from_this();
    return this;
  }
  void Done(bool ok) override {
    const std::shared_ptr<T> keep = std::move(keep_);
    (owner_->*done_)(ok);
  }

 private:
  T* const owner_;
  void (T::* const done_)(bool);
  std::shared_ptr<T> keep_;
};

// Pooled memory that gRPC reads in place. A transport may hold slices after its streams, channel and
// completion queues are gone (it dies on a thread of gRPC's own), so whoever lends them waits here before the
// pool may die. Thread-safe; no allocation in steady state.
class LentFrames {
 public:
  LentFrames() = default;
  LentFrames(const LentFrames&) = delete;
  LentFrames& operator=(const LentFrames&) = delete;
  // Waits until gRPC gave everything back: destroy it after what wrote the frames.
  ~LentFrames();

  // Slices over the frame's memory, returned when gRPC is done with them.
  grpc::ByteBuffer ToByteBuffer(WireFrame frame);

 private:
  struct Loan {
    LentFrames* lender = nullptr;
    BufferRef buffer;
  };
  grpc::Slice Lend(BufferRef buffer, std::span<std::byte> part);
  static void Return(void* loan);

  std::mutex mutex_;
  std::condition_variable all_back_;
  std::deque<Loan> loans_;  // addresses are stable; grows to the most ever lent at a time
  std::vector<Loan*> idle_;
};

// Into an aligned pooled buffer.
BufferRef ToBuffer(grpc::ByteBuffer* bytes, BufferPool* pool);

// Each completion queue polls its own sockets. gRPC's default engine has one epoll set for the process: any
// thread that polls (of the control plane, of other streams) takes the events of all and hands them over, a
// wake-up of about 20 us in front of every frame. Sockets are few here, so that poll(2) costs nothing. Works
// if called before the first use of gRPC in the process; GRPC_POLL_STRATEGY in the environment goes first.
void PollApart();

// Channel arguments of WIRE.md. Lane only concerns the client: a connection per lane.
grpc::ChannelArguments ClientArguments(Lane lane);
absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

// Serves one completion queue until it is shut down and empty.
inline void ServeQueue(grpc::CompletionQueue* queue) {
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) static_cast<Tag*>(tag)->Done(ok);
}

}  // namespace consilium::grpc_net
