#include "services/attention/attention_service.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <mutex>
#include <set>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/config/options.h"
#include "common/log/log.h"
#include "common/session/session_proto.h"
#include "consilium/attention/v1/attention.grpc.pb.h"

namespace consilium {
namespace {

namespace pb = ::consilium::attention::v1;

// Tokens that a gateway may leave unread before its stream is ended; about 40 B each.
constexpr int kUnreadTokensMax = 1 << 20;
// A submission: the longest context as token ids, history for each choice.
constexpr int kSubmitBytesMax = 64 << 20;

pb::FromAttention WelcomeMessage(const WorkerWelcome& welcome) {
  pb::FromAttention m;
  ToProto(welcome, m.mutable_welcome());
  return m;
}

class Session;

class ServiceImpl final : public pb::Attention::CallbackService, public AttentionService {
 public:
  ServiceImpl(const WorkerWelcome& welcome, AttentionShell* shell)
      : welcome_(WelcomeMessage(welcome)), shell_(shell) {}
  ~ServiceImpl() override;
  absl::Status Listen(const std::string& listen);
  std::string address() const override { return address_; }

  grpc::ServerBidiReactor<pb::ToAttention, pb::FromAttention>* Session(
      grpc::CallbackServerContext* context) override;

  const pb::FromAttention& welcome() const { return welcome_; }
  AttentionShell* shell() const { return shell_; }

 private:
  const pb::FromAttention welcome_;
  AttentionShell* const shell_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

// One gateway's stream. Owned by itself (gRPC) until OnDone, and by the shell as a sink.
class Session final : public grpc::ServerBidiReactor<pb::ToAttention, pb::FromAttention>,
                      public AttentionShell::SessionSink,
                      public std::enable_shared_from_this<Session> {
 public:
  Session(ServiceImpl* service, std::string peer) : service_(service), peer_(std::move(peer)) {}

  void Begin(std::shared_ptr<Session> self) {
    self_ = std::move(self);
    log::Info("gateway connected", {{"peer", peer_}});
    id_ = service_->shell()->OpenSession(shared_from_this());
    {
      std::lock_guard lock(mutex_);
      writing_ = true;
      out_ = service_->welcome();
      StartWrite(&out_);
    }
    StartRead(&in_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      service_->shell()->CloseSession(id_);
      End(grpc::Status::OK);
      return;
    }
    if (in_.has_submit()) service_->shell()->Submit(id_, FromProto(in_.submit()));
    if (in_.has_cancel()) service_->shell()->Cancel(id_, in_.cancel().request(), in_.cancel().choice());
    StartRead(&in_);
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok)
      waiting_any_ = false;  // the read side ends the stream
    else
      MaybeWrite();
    MaybeFinish();
  }
  void OnDone() override {
    log::Info("gateway gone", {{"peer", peer_}});
    std::shared_ptr<Session> last = std::move(self_);
  }

  // On the strand.
  void OnEvents(SessionEvents events) override {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    AppendProto(events, &waiting_);
    waiting_any_ = true;
    if (waiting_.tokens_size() > kUnreadTokensMax) {
      ended_ = true;
      status_ = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the gateway does not read its tokens");
      MaybeFinish();
      return;
    }
    MaybeWrite();
  }

 private:
  void MaybeWrite() {
    if (writing_ || !waiting_any_ || ended_) return;
    std::swap(out_, waiting_);
    waiting_.Clear();
    waiting_any_ = false;
    writing_ = true;
    StartWrite(&out_);
  }
  void End(const grpc::Status& status) {
    std::lock_guard lock(mutex_);
    if (!ended_) status_ = status;
    ended_ = true;
    MaybeFinish();
  }
  void MaybeFinish() {
    if (!ended_ || writing_ || finished_) return;
    finished_ = true;
    Finish(status_);
  }

  ServiceImpl* const service_;
  const std::string peer_;
  SessionId id_ = 0;
  pb::ToAttention in_;
  std::shared_ptr<Session> self_;

  std::mutex mutex_;  // guards all below
  pb::FromAttention out_, waiting_;
  bool waiting_any_ = false, writing_ = false, ended_ = false, finished_ = false;
  grpc::Status status_;
};

grpc::ServerBidiReactor<pb::ToAttention, pb::FromAttention>* ServiceImpl::Session(
    grpc::CallbackServerContext* context) {
  auto session = std::make_shared<consilium::Session>(this, context->peer());
  consilium::Session* reactor = session.get();
  reactor->Begin(std::move(session));
  return reactor;
}

absl::Status ServiceImpl::Listen(const std::string& listen) {
  HostPort at;
  if (!ParseHostPort(listen, &at))
    return InvalidArgument("--listen: expected host:port, got \"" + listen + "\"");
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a busy port is an error
  builder.SetMaxReceiveMessageSize(kSubmitBytesMax);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  int port = 0;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0)
    return Unavailable("cannot listen on " + listen + ": is the port busy?");
  address_ =
      (at.host.find(':') == std::string::npos ? at.host : "[" + at.host + "]") + ":" + std::to_string(port);
  return absl::OkStatus();
}

ServiceImpl::~ServiceImpl() {
  // Cancels the streams that are open: their reads fail, which ends them.
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionService>> AttentionService::Start(const std::string& listen,
                                                                          const WorkerWelcome& welcome,
                                                                          AttentionShell* shell) {
  auto service = std::make_unique<ServiceImpl>(welcome, shell);
  RETURN_IF_ERROR(service->Listen(listen));
  return std::unique_ptr<AttentionService>(std::move(service));
}

}  // namespace consilium
