// Question: what does our dispatch path add to a transport's floor? One decode-sized call at a time, there
// and back on this host: channel -> server -> ExpertShard (a backend that copies rows) -> sink, over gRPC on
// loopback and over the local socket, against a bare echo of a message of the same size over each: a gRPC
// stream (completion queues on both sides, the caller waits on its own queue), a Unix stream socket (epoll on
// both sides, one send and one receive a message). Bound: the echo. Counters: bytes of the payload one way.
// Compare Dispatch/T/x with Echo/T/x of the same run, and the two T.
#include <benchmark/benchmark.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <thread>

#include "common/net/expert_dialer.h"
#include "common/net/grpc_server.h"
#include "common/net/local_server.h"
#include "services/expert/shard_fixture.h"

namespace consilium {
namespace {

class CopyBackend final : public ExpertBackend {
 public:
  explicit CopyBackend(uint32_t row_bytes) : row_bytes_(row_bytes) {}
  uint32_t row_bytes_in() const override { return row_bytes_; }
  uint32_t row_bytes_out() const override { return row_bytes_; }
  absl::StatusOr<ExpertHandle> Load(const ExpertEntry&, ModelStore*) override { return 1; }
  void Drop(ExpertHandle) override {}
  uint64_t loaded_bytes() const override { return 0; }
  void Run(const GroupedFfnJob& job, std::function<void(FfnDone)> done) override {
    for (const ExpertRow& row : job.rows) std::memcpy(row.out, row.in, row_bytes_);
    done(FfnDone{absl::OkStatus(), 1});
  }

 private:
  const uint32_t row_bytes_;
};

struct Sink final : ExpertChannel::Sink {
  std::atomic<bool> up{false};
  std::atomic<uint64_t> answered{0};
  void OnUp(uint32_t, uint64_t, Credit) override {
    up = true;
    up.notify_all();
  }
  void OnResult(CallResult) override {
    answered += 1;
    answered.notify_all();
  }
  void OnReject(CallReject) override { std::abort(); }
  void OnCredit(Credit) override {}
  void OnHeartbeat(frame::Timing) override {}
  void OnDrain() override {}
  void OnDown(absl::Status) override {}
};

// Arguments: rows, bytes of a row.
void Dispatch(benchmark::State& state, bool local) {
  const auto n_rows = static_cast<uint32_t>(state.range(0)),
             row_bytes = static_cast<uint32_t>(state.range(1));
  BufferPool pool;
  CopyBackend backend(row_bytes);
  ExpertCoreOptions options = CoreFixture::Options();
  options.hidden = row_bytes / 8;
  HashShard shard(&pool, options, &backend);
  auto server = GrpcFrameServer::Start("127.0.0.1:0", 1, shard.shard.get(), &pool, nullptr);
  CHECK(server.ok());
  const auto local_server = LocalServer::Start((*server)->address(), shard.shard.get(), &pool);
  CHECK(local_server.ok());
  ExpertDialer dialer(local, &pool);
  Sink sink;
  RouterHello hello = CoreFixture::Hello();
  hello.models[0].hidden = options.hidden;
  const auto channel = dialer.Connect((*server)->address(), Lane::kDecode, hello, &sink);
  sink.up.wait(false);
  CHECK(channel->transport() == std::string(local ? "local" : "grpc"));

  const std::vector<std::byte> source(size_t{n_rows} * row_bytes);
  std::vector<uint32_t> rows;
  std::vector<frame::Slot> slots;
  for (uint16_t r = 0; r < n_rows; ++r) {
    rows.push_back(r);
    slots.push_back({static_cast<uint16_t>(r % 8), r, 0, 0, 0});
  }
  const frame::Segment segment{0, 0, static_cast<uint16_t>(n_rows), 0, 0, 0, 0};
  CallBody::Plan plan;
  plan.layer = LayerId{1};
  plan.dtype_in = plan.dtype_out = frame::DtypeCode::kU64;
  plan.hidden = options.hidden;
  plan.segments = {&segment, 1};
  plan.slots = slots;
  plan.source_rows = rows;
  plan.source = source.data();
  uint64_t call = 0;
  for (auto _ : state) {
    CHECK(channel->Send(CallId{++call}, CallBody::Build(plan, &pool), CallOptions{Epoch{}, 60'000'000, 0})
              .ok());
    for (uint64_t n = sink.answered; n < call; n = sink.answered) sink.answered.wait(n);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * n_rows * row_bytes));
}

// One stream that sends back what it gets.
class EchoServer {
 public:
  EchoServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterAsyncGenericService(&service_);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    thread_ = std::thread([this] { Serve(); });
  }
  ~EchoServer() {
    server_->Shutdown(std::chrono::system_clock::now());
    queue_->Shutdown();
    thread_.join();
  }
  int port() const { return port_; }

 private:
  enum Step : intptr_t { kAccept = 1, kRead, kWrite };
  void Serve() {
    service_.RequestCall(&context_, &stream_, queue_.get(), queue_.get(), reinterpret_cast<void*>(kAccept));
    void* tag = nullptr;
    bool ok = false;
    while (queue_->Next(&tag, &ok)) {
      if (!ok) continue;
      if (reinterpret_cast<intptr_t>(tag) == kRead)
        stream_.Write(bytes_, reinterpret_cast<void*>(kWrite));
      else
        stream_.Read(&bytes_, reinterpret_cast<void*>(kRead));
    }
  }
  int port_ = 0;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_{&context_};
  grpc::ByteBuffer bytes_;
  std::thread thread_;
};

// The payload and what a frame has around it.
size_t EchoBytes(const benchmark::State& state) {
  return 192 + static_cast<size_t>(state.range(0) * state.range(1));
}

void EchoGrpc(benchmark::State& state) {
  const size_t bytes = EchoBytes(state);
  EchoServer server;
  auto channel =
      grpc::CreateChannel("127.0.0.1:" + std::to_string(server.port()), grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  const auto next = [&] {
    void* tag = nullptr;
    bool ok = false;
    CHECK(queue.Next(&tag, &ok) && ok);
  };
  auto stream = stub.PrepareCall(&context, "/echo/Echo", &queue);
  stream->StartCall(nullptr);
  next();
  const std::string payload(bytes, 'x');
  grpc::ByteBuffer back;
  for (auto _ : state) {
    const grpc::Slice slice(payload.data(), payload.size(), grpc::Slice::STATIC_SLICE);
    stream->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    stream->Read(&back, nullptr);
    next();
    next();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * state.range(0) * state.range(1));
  context.TryCancel();
  queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
  }
}

// One end of a stream socket.
class EchoSocket {
 public:
  EchoSocket(int fd, size_t bytes) : fd_(fd), epoll_(epoll_create1(0)), buffer_(bytes) {
    epoll_event event{};
    event.events = EPOLLIN;
    CHECK(epoll_ >= 0 && epoll_ctl(epoll_, EPOLL_CTL_ADD, fd_, &event) == 0);
  }
  ~EchoSocket() {
    close(epoll_);
    close(fd_);
  }
  void Send() { CHECK(send(fd_, buffer_.data(), buffer_.size(), MSG_NOSIGNAL) == Size()); }
  // False: the other end was closed.
  bool Receive() {
    for (ssize_t got = 0; got < Size();) {
      epoll_event event{};
      if (epoll_wait(epoll_, &event, 1, -1) != 1) continue;
      const ssize_t n = recv(fd_, buffer_.data() + got, buffer_.size() - static_cast<size_t>(got), 0);
      if (n <= 0) return false;
      got += n;
    }
    return true;
  }
  void Stop() { shutdown(fd_, SHUT_RDWR); }

 private:
  ssize_t Size() const { return static_cast<ssize_t>(buffer_.size()); }
  const int fd_, epoll_;
  std::vector<std::byte> buffer_;
};

void EchoLocal(benchmark::State& state) {
  const size_t bytes = EchoBytes(state);
  std::array<int, 2> ends{};
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
  EchoSocket here(ends[0], bytes), there(ends[1], bytes);
  std::thread echo([&] {
    while (there.Receive()) there.Send();
  });
  for (auto _ : state) {
    here.Send();
    CHECK(here.Receive());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * state.range(0) * state.range(1));
  here.Stop();
  echo.join();
}

void Shapes(benchmark::internal::Benchmark* b) { b->Args({4, 1024})->Args({1, 14336})->UseRealTime(); }
BENCHMARK(EchoGrpc)->Name("Echo/grpc")->Apply(Shapes);
BENCHMARK(EchoLocal)->Name("Echo/local")->Apply(Shapes);
BENCHMARK_CAPTURE(Dispatch, grpc, false)->Apply(Shapes);
BENCHMARK_CAPTURE(Dispatch, local, true)->Apply(Shapes);

}  // namespace
}  // namespace consilium
