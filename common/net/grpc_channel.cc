#include "common/net/grpc_channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <atomic>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/net/grpc_frames.h"

namespace consilium {

using grpc_net::MemberTag;

struct GrpcIo::Impl {
  struct Queue {
    grpc::CompletionQueue queue;
    std::thread thread{[this] { grpc_net::ServeQueue(&queue); }};
  };
  grpc_net::LentFrames lent;  // dies after the queues
  std::vector<std::unique_ptr<Queue>> queues;
  std::atomic<uint32_t> next{0};

  grpc::CompletionQueue* Pick() { return &queues[next++ % queues.size()]->queue; }
};

GrpcIo::GrpcIo(uint32_t threads) : impl_(std::make_unique<Impl>()) {
  grpc_net::PollApart();
  for (uint32_t i = 0; i < std::max(1u, threads); ++i)
    impl_->queues.push_back(std::make_unique<Impl::Queue>());
}

GrpcIo::~GrpcIo() {
  for (auto& q : impl_->queues) q->queue.Shutdown();
  for (auto& q : impl_->queues) q->thread.join();
}

namespace {

// One attempt: from StartCall to Finish. Its tags keep it alive.
class ClientStream final : public FrameLink, public std::enable_shared_from_this<ClientStream> {
 public:
  // `on_finished` is called once, as the last thing.
  ClientStream(ChannelSession* session, BufferPool* pool, grpc_net::LentFrames* lent,
               std::function<void(absl::Status)> on_finished)
      : session_(session), pool_(pool), lent_(lent), on_finished_(std::move(on_finished)) {}

  // A connection that cannot be made ends the stream at once: whoever dials decides what is tried next.
  void Start(const std::string& address, Lane lane, grpc::CompletionQueue* queue) {
    channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                         grpc_net::ClientArguments(lane));
    stream_ = grpc::GenericStub(channel_).PrepareCall(&context_, grpc_net::kExchangeMethod, queue);
    stream_->StartCall(start_tag_.Arm());
  }

  void Write(WireFrame frame) override {
    std::lock_guard lock(mutex_);
    if (dead_) return;
    if (queue_.size() >= kLinkQueueFramesMax) {
      dead_ = true;
      why_ = ResourceExhausted("more than " + std::to_string(kLinkQueueFramesMax) +
                               " frames wait to be written");
      context_.TryCancel();
      return;
    }
    if (writing_) {
      queue_.Push(std::move(frame));
      return;
    }
    writing_ = true;
    stream_->Write(lent_->ToByteBuffer(std::move(frame)), write_tag_.Arm());
  }

  void Close(const absl::Status& why) override {
    std::lock_guard lock(mutex_);
    if (!dead_) why_ = why;
    dead_ = true;
    queue_.Clear();
    context_.TryCancel();
  }

 private:
  void Started(bool ok) {
    if (!ok) return Finish();
    session_->OnLinkUp(shared_from_this());
    stream_->Read(&incoming_, read_tag_.Arm());
  }

  void HaveRead(bool ok) {
    if (!ok) return Finish();
    absl::Status status = session_->OnFrame(WireFrame{grpc_net::ToBuffer(&incoming_, pool_), false, {}});
    if (!status.ok()) Close(status);
    stream_->Read(&incoming_, read_tag_.Arm());
  }

  void Written(bool ok) {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) dead_ = true;
    if (dead_) queue_.Clear();
    if (queue_.empty()) return;
    writing_ = true;
    WireFrame frame = queue_.Pop();
    grpc::WriteOptions options;
    if (!queue_.empty()) options.set_buffer_hint();  // the next one follows at once
    stream_->Write(lent_->ToByteBuffer(std::move(frame)), options, write_tag_.Arm());
  }

  void Finish() { stream_->Finish(&status_, finish_tag_.Arm()); }

  void Finished(bool) {
    absl::Status why;
    {
      std::lock_guard lock(mutex_);
      dead_ = true;
      queue_.Clear();
      why = why_.ok() ? grpc_net::FromGrpc(status_) : why_;
    }
    if (why.ok()) why = Unavailable("the shard ended the stream");
    on_finished_(std::move(why));
  }

  ChannelSession* const session_;
  BufferPool* const pool_;
  grpc_net::LentFrames* const lent_;
  const std::function<void(absl::Status)> on_finished_;
  std::shared_ptr<grpc::Channel> channel_;  // of this stream alone
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer incoming_;
  grpc::Status status_;
  MemberTag<ClientStream> start_tag_{this, &ClientStream::Started};
  MemberTag<ClientStream> read_tag_{this, &ClientStream::HaveRead};
  MemberTag<ClientStream> write_tag_{this, &ClientStream::Written};
  MemberTag<ClientStream> finish_tag_{this, &ClientStream::Finished};

  std::mutex mutex_;
  bool writing_ = false, dead_ = false;
  absl::Status why_;
  FrameQueue queue_;
};

}  // namespace

GrpcOpener::GrpcOpener(std::string address, Lane lane, GrpcIo* io, BufferPool* pool)
    : address_(std::move(address)), lane_(lane), io_(io), pool_(pool) {}

absl::StatusOr<std::shared_ptr<FrameLink>> GrpcOpener::Open(ChannelSession* session,
                                                            std::function<void(absl::Status)> ended) {
  auto stream = std::make_shared<ClientStream>(session, pool_, &io_->impl()->lent, std::move(ended));
  stream->Start(address_, lane_, io_->impl()->Pick());
  return std::shared_ptr<FrameLink>(std::move(stream));
}

}  // namespace consilium
