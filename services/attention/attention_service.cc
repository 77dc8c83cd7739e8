#include "services/attention/attention_service.h"

#include <grpcpp/grpcpp.h>

#include <bit>
#include <chrono>
#include <mutex>
#include <set>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/config/options.h"
#include "common/log/log.h"
#include "consilium/attention/v1/attention.grpc.pb.h"

namespace consilium {
namespace {

namespace pb = ::consilium::attention::v1;

// Tokens that a gateway may leave unread before its stream is ended; about 40 B each.
constexpr int kUnreadTokensMax = 1 << 20;
// A submission: the longest context as token ids, history for each choice.
constexpr int kSubmitBytesMax = 64 << 20;

SessionSubmit FromProto(const pb::Submit& in) {
  SessionSubmit s;
  s.request = in.request();
  s.request_id = in.request_id();
  s.attempt = in.attempt();
  s.tenant = in.tenant();
  s.manifest = in.manifest();
  s.prompt.assign(in.prompt().begin(), in.prompt().end());
  for (const auto& h : in.history()) {
    s.history.emplace_back(h.choice(), std::vector<TokenId>(h.tokens().begin(), h.tokens().end()));
  }
  const pb::Sampling& o = in.sampling();
  s.sampling.seed = o.seed();
  s.sampling.temperature = o.temperature();
  s.sampling.top_p = o.top_p();
  s.sampling.top_k = o.top_k();
  s.sampling.min_p = o.min_p();
  s.sampling.presence_penalty = o.presence_penalty();
  s.sampling.frequency_penalty = o.frequency_penalty();
  s.sampling.repetition_penalty = o.repetition_penalty();
  for (const auto& b : o.logit_bias()) s.sampling.logit_bias.emplace_back(b.token(), b.bias());
  s.n = in.n();
  s.stop_ids.assign(in.stop_ids().begin(), in.stop_ids().end());
  s.max_tokens = in.max_tokens();
  s.min_tokens = in.min_tokens();
  s.budget_ms = in.budget_ms();
  s.priority = in.priority();
  s.cache_salt = in.cache_salt();
  s.prompt_logprobs = in.prompt_logprobs();
  s.top_logprobs = in.top_logprobs();
  return s;
}

// Appends, so that what a slow gateway has not read yet goes out as one message.
void Append(const SessionEvents& events, pb::FromAttention* out) {
  for (const SessionAccepted& a : events.accepted) {
    pb::Accepted* x = out->add_accepted();
    x->set_request(a.request);
    x->set_cached_tokens(a.cached_tokens);
  }
  for (const SessionToken& t : events.tokens) {
    pb::TokenEvent* x = out->add_tokens();
    x->set_request(t.request);
    x->set_choice(t.choice);
    x->set_position(t.position);
    x->set_token(t.token);
    x->set_logprob_bits(std::bit_cast<uint32_t>(t.logprob));
    for (const TokenLogprob& p : t.top) {
      pb::TopLogprob* top = x->add_top();
      top->set_token(p.id);
      top->set_logprob_bits(std::bit_cast<uint32_t>(p.logprob));
    }
  }
  for (const SessionFinish& f : events.finishes) {
    pb::Finish* x = out->add_finishes();
    x->set_request(f.request);
    x->set_choice(f.choice);
    x->set_reason(static_cast<pb::Finish::Reason>(f.reason));
  }
  for (const SessionError& e : events.errors) {
    pb::RequestError* x = out->add_errors();
    x->set_request(e.request);
    x->set_code(e.code);
    x->set_text(e.text);
    x->set_retry_after_ms(e.retry_after_ms);
  }
  pb::Load* load = out->mutable_load();
  load->set_running(events.load.running);
  load->set_waiting(events.load.waiting);
  load->set_kv_blocks_used(events.load.kv_blocks_used);
  load->set_kv_blocks_total(events.load.kv_blocks_total);
}

pb::FromAttention WelcomeMessage(const WorkerWelcome& w) {
  pb::FromAttention m;
  pb::Welcome* x = m.mutable_welcome();
  x->set_worker(w.worker);
  x->mutable_model()->set_id(w.model_id);
  x->mutable_model()->set_manifest(w.manifest);
  x->mutable_numerics()->set_name(w.class_name);
  x->mutable_numerics()->set_fingerprint(w.fingerprint);
  x->set_context_tokens(w.context_tokens);
  x->set_vocab(w.vocab);
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
    Append(events, &waiting_);
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
