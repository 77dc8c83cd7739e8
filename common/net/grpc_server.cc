#include "common/net/grpc_server.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <set>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/net/grpc_frames.h"
#include "consilium/expert/v1/expert.grpc.pb.h"

namespace consilium {
namespace {

namespace pb = ::consilium::expert::v1;
using grpc_net::MemberTag;

constexpr char kDescribeMethod[] = "/consilium.expert.v1.ExpertShard/Describe";

grpc::ByteBuffer Serialize(const ShardDescription& d) {
  pb::ShardDescription out;
  out.set_shard_id(d.shard_id);
  out.set_name(d.name);
  out.set_version(d.version);
  out.mutable_numerics()->set_name(d.class_name);
  out.mutable_numerics()->set_fingerprint(d.fingerprint);
  for (const ShardDescription::Expert& e : d.experts) {
    pb::HostedExpert* hosted = out.add_experts();
    hosted->set_layer(e.layer);
    hosted->set_expert(e.expert);
    hosted->set_state(static_cast<pb::HostedExpert::State>(e.state));
  }
  const grpc::Slice bytes(out.SerializeAsString());
  return grpc::ByteBuffer(&bytes, 1);
}

class ServerStream;

// Streams that are not finished yet.
class StreamSet {
 public:
  void Add(const std::shared_ptr<ServerStream>& stream) {
    std::lock_guard lock(mutex_);
    streams_[stream.get()] = stream;
  }
  void Remove(ServerStream* stream) {
    std::lock_guard lock(mutex_);
    streams_.erase(stream);
    if (streams_.empty()) empty_.notify_all();
  }
  std::vector<std::shared_ptr<ServerStream>> All() {
    std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<ServerStream>> all;
    for (const auto& [key, weak] : streams_) {
      if (auto stream = weak.lock()) all.push_back(std::move(stream));
    }
    return all;
  }
  // Runs `accept` unless the server stops; after Stop there are no more accepts.
  template <class F>
  void UnlessStopping(F&& accept) {
    std::lock_guard lock(accept_mutex_);
    if (!stopping_) accept();
  }
  void Stop() {
    std::lock_guard lock(accept_mutex_);
    stopping_ = true;
  }
  bool WaitEmpty(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return empty_.wait_for(lock, time, [this] { return streams_.empty(); });
  }

 private:
  std::mutex accept_mutex_;
  bool stopping_ = false;
  std::mutex mutex_;
  std::condition_variable empty_;
  std::map<ServerStream*, std::weak_ptr<ServerStream>> streams_;
};

class ServerStream final : public FrameLink, public std::enable_shared_from_this<ServerStream> {
 public:
  struct Shared {
    grpc::AsyncGenericService* service;
    grpc::ServerCompletionQueue* queue;
    FrameServer* server;
    BufferPool* pool;
    grpc_net::LentFrames* lent;
    StreamSet* streams;
    const std::function<ShardDescription()>* describe;
  };
  explicit ServerStream(const Shared& shared) : shared_(shared), stream_(&context_) {}

  // Waits for the next call of a client.
  static void Accept(const Shared& shared) {
    auto stream = std::make_shared<ServerStream>(shared);
    shared.streams->UnlessStopping([&] {
      shared.service->RequestCall(&stream->context_, &stream->stream_, shared.queue, shared.queue,
                                  stream->accept_tag_.Arm());
    });
  }

  void Write(WireFrame frame) override {
    std::lock_guard lock(mutex_);
    if (closing_) return;
    if (queue_.size() >= kLinkQueueFramesMax) {
      context_.TryCancel();
      return;
    }
    if (writing_) {
      queue_.Push(std::move(frame));
      return;
    }
    writing_ = true;
    stream_.Write(shared_.lent->ToByteBuffer(std::move(frame)), write_tag_.Arm());
  }

  void Close(const absl::Status& why) override {
    std::lock_guard lock(mutex_);
    CloseLocked(why);
  }

  void Break() { context_.TryCancel(); }

 private:
  void Accepted(bool ok) {
    if (!ok) return;  // the server stops
    Accept(shared_);
    shared_.streams->Add(shared_from_this());
    describes_ = context_.method() == kDescribeMethod;
    if (!describes_ && context_.method() != grpc_net::kExchangeMethod) {
      Close(Unimplemented("no method " + context_.method()));
      return;
    }
    if (!describes_)
      session_ =
          std::make_unique<ServerSession>(shared_.server->NextConn(), shared_from_this(), shared_.server);
    reading_ = true;
    stream_.Read(&incoming_, read_tag_.Arm());
  }

  void HaveRead(bool ok) {
    if (describes_) return Describe(ok);
    absl::Status status = Unavailable("the router ended the stream");
    if (ok) status = session_->OnFrame(WireFrame{grpc_net::ToBuffer(&incoming_, shared_.pool), false, {}});
    if (status.ok()) {
      stream_.Read(&incoming_, read_tag_.Arm());
      return;
    }
    session_->OnLinkDown();
    std::lock_guard lock(mutex_);
    CloseLocked(ok ? status : absl::OkStatus());
    reading_ = false;
    if (finished_) shared_.streams->Remove(this);
  }

  // A unary call: the request was read (it is empty) or the client is gone.
  void Describe(bool ok) {
    std::lock_guard lock(mutex_);
    if (ok && !closing_) {
      writing_ = true;
      stream_.Write(Serialize((*shared_.describe)()), write_tag_.Arm());
    }
    CloseLocked(absl::OkStatus());
    reading_ = false;
    if (finished_) shared_.streams->Remove(this);
  }

  void Written(bool ok) {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) queue_.Clear();
    if (!queue_.empty()) {
      writing_ = true;
      WireFrame frame = queue_.Pop();
      grpc::WriteOptions options;
      if (!queue_.empty()) options.set_buffer_hint();  // the next one follows at once
      stream_.Write(shared_.lent->ToByteBuffer(std::move(frame)), options, write_tag_.Arm());
    } else if (closing_) {
      FinishLocked();
    }
  }

  // What was written is sent before the end.
  void CloseLocked(const absl::Status& why) {
    if (std::exchange(closing_, true)) return;
    why_ = why;
    if (!writing_) FinishLocked();
  }

  void FinishLocked() { stream_.Finish(grpc_net::ToGrpc(why_), finish_tag_.Arm()); }

  // The stream is gone when nothing of it can start an operation any more.
  void Finished(bool) {
    std::lock_guard lock(mutex_);
    finished_ = true;
    if (!reading_) shared_.streams->Remove(this);
  }

  const Shared shared_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_;
  grpc::ByteBuffer incoming_;
  bool describes_ = false;  // else an Exchange stream
  std::unique_ptr<ServerSession> session_;
  MemberTag<ServerStream> accept_tag_{this, &ServerStream::Accepted};
  MemberTag<ServerStream> read_tag_{this, &ServerStream::HaveRead};
  MemberTag<ServerStream> write_tag_{this, &ServerStream::Written};
  MemberTag<ServerStream> finish_tag_{this, &ServerStream::Finished};

  std::mutex mutex_;
  bool writing_ = false, closing_ = false, reading_ = false, finished_ = false;
  absl::Status why_;
  FrameQueue queue_;
};

void SetServerArguments(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(kFrameBytesMax + kFrameSlackBytes));
  builder->SetMaxSendMessageSize(static_cast<int>(kFrameBytesMax + kFrameSlackBytes));
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a busy port is an error
  builder->AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 8 << 20);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
}

}  // namespace

struct GrpcFrameServer::Impl {
  explicit Impl(std::function<ShardDescription()> d) : describe(std::move(d)) {}

  grpc_net::LentFrames lent;  // dies last
  const std::function<ShardDescription()> describe;
  grpc::AsyncGenericService generic;
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues;
  std::vector<std::thread> threads;
  StreamSet streams;
  std::unique_ptr<grpc::Server> server;
  std::string host;
  int port = 0;
};

GrpcFrameServer::GrpcFrameServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<GrpcFrameServer>> GrpcFrameServer::Start(
    const std::string& address, uint32_t threads, FrameServer* server, BufferPool* pool,
    std::function<ShardDescription()> describe) {
  grpc_net::PollApart();
  auto impl = std::make_unique<Impl>(std::move(describe));
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos)
    return InvalidArgument("listen address, expected host:port, got " + address);
  impl->host = address.substr(0, colon);
  grpc::ServerBuilder builder;
  SetServerArguments(&builder);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &impl->port);
  builder.RegisterAsyncGenericService(&impl->generic);
  for (uint32_t i = 0; i < std::max(1u, threads); ++i) impl->queues.push_back(builder.AddCompletionQueue());
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || impl->port == 0) {
    return Unavailable("cannot listen on " + address + ": the port is busy or not ours");
  }
  for (auto& queue : impl->queues) {
    ServerStream::Accept(
        {&impl->generic, queue.get(), server, pool, &impl->lent, &impl->streams, &impl->describe});
    impl->threads.emplace_back([q = queue.get()] { grpc_net::ServeQueue(q); });
  }
  return std::unique_ptr<GrpcFrameServer>(new GrpcFrameServer(std::move(impl)));
}

GrpcFrameServer::~GrpcFrameServer() {
  for (const auto& stream : impl_->streams.All()) stream->Close(Unavailable("the shard stops"));
  impl_->streams.WaitEmpty(std::chrono::milliseconds(1000));
  impl_->streams.Stop();
  impl_->server->Shutdown(std::chrono::system_clock::now());  // breaks what is left
  CHECK_MSG(impl_->streams.WaitEmpty(std::chrono::seconds(30)), "a stream did not end");
  for (auto& queue : impl_->queues) queue->Shutdown();
  for (std::thread& t : impl_->threads) t.join();
}

std::string GrpcFrameServer::address() const { return impl_->host + ":" + std::to_string(impl_->port); }
int GrpcFrameServer::port() const { return impl_->port; }

void GrpcFrameServer::BreakStreams() {
  for (const auto& stream : impl_->streams.All()) stream->Break();
}

absl::StatusOr<ShardDescription> DescribeShard(const std::string& address, uint32_t timeout_ms) {
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                           grpc_net::ClientArguments(Lane::kDecode));
  auto stub = pb::ExpertShard::NewStub(channel);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms));
  pb::ShardDescription reply;
  const grpc::Status status = stub->Describe(&context, pb::DescribeRequest(), &reply);
  if (!status.ok()) return Annotate(grpc_net::FromGrpc(status), "shard at " + address);
  ShardDescription d;
  d.shard_id = reply.shard_id();
  d.name = reply.name();
  d.version = reply.version();
  d.class_name = reply.numerics().name();
  d.fingerprint = reply.numerics().fingerprint();
  for (const pb::HostedExpert& e : reply.experts()) {
    d.experts.push_back({static_cast<uint16_t>(e.layer()), static_cast<uint16_t>(e.expert()),
                         static_cast<uint8_t>(e.state())});
  }
  return d;
}

}  // namespace consilium
