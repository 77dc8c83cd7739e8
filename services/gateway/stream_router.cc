#include "services/gateway/stream_router.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/log/log.h"
#include "services/gateway/stream_router_internal.h"
#include "services/gateway/worker_choice.h"

namespace consilium::gateway {
StreamRouter::StreamRouter(RouterOptions options, const ModelInfo& model, GatewayMetrics* metrics)
    : options_(options),
      metrics_(metrics),
      limits_{model.context_tokens, static_cast<uint32_t>(model.tokenizer->vocab_size())} {}

StreamRouter::~StreamRouter() {
  draining_ = true;
  timer_.Stop();
  for (const std::string& key : workers()) RemoveWorker(key);
  std::vector<SessionPtr> open;
  {
    std::lock_guard lock(mu_);
    for (auto& [id, place] : requests_) open.push_back(place.session);
  }
  for (const SessionPtr& session : open) {
    std::lock_guard lock(session->mu);
    Fail(session, ServerError(503, "The server is shutting down."));
  }
}

void StreamRouter::AddWorker(const std::string& key, std::unique_ptr<AttentionClient> client) {
  std::shared_ptr<Worker> worker;
  {
    std::lock_guard lock(mu_);
    if (workers_.contains(key)) return;
    worker = std::make_shared<Worker>(this, key, std::move(client));
    workers_[key] = worker;
  }
  worker->client->Start(worker.get());
}

void StreamRouter::RemoveWorker(const std::string& key) {
  std::shared_ptr<Worker> worker;
  uint64_t epoch = 0;
  {
    std::lock_guard lock(mu_);
    const auto it = workers_.find(key);
    if (it == workers_.end()) return;
    worker = it->second;
    workers_.erase(it);
    worker->up = false;
    epoch = worker->epoch;
  }
  worker->TakeClient().reset();  // no callback of it runs any more
  Resume(worker.get(), TakeRequests(worker.get()), epoch);
}

void StreamRouter::SetDraining(const std::string& key, bool draining) {
  {
    std::lock_guard lock(mu_);
    const auto it = workers_.find(key);
    if (it == workers_.end() || it->second->draining == draining) return;
    it->second->draining = draining;
  }
  metrics_->workers_ready.Set(static_cast<double>(ready_workers()));
  if (!draining) WakeWaiting();
}

std::vector<std::string> StreamRouter::workers() const {
  std::lock_guard lock(mu_);
  std::vector<std::string> out;
  for (const auto& [key, worker] : workers_) out.push_back(key);
  return out;
}
size_t StreamRouter::ready_workers() const {
  std::lock_guard lock(mu_);
  return static_cast<size_t>(std::count_if(
      workers_.begin(), workers_.end(), [](const auto& w) { return w.second->up && !w.second->draining; }));
}
bool StreamRouter::IsUp(const std::string& key) const {
  std::lock_guard lock(mu_);
  const auto it = workers_.find(key);
  return it != workers_.end() && it->second->up;
}
ParseLimits StreamRouter::limits() const {
  std::lock_guard lock(mu_);
  return limits_;
}
size_t StreamRouter::open_requests() const {
  std::lock_guard lock(mu_);
  return sessions_;
}

std::optional<ApiError> StreamRouter::Run(Start start) {
  if (draining_) return ServerError(503, "The server is shutting down.");
  auto session = std::make_shared<Session>();
  session->start = std::move(start);
  session->arrived = NowUs();
  session->deadline = session->arrived + options_.request_timeout_ms * kMs;
  session->parts.resize(session->generation().submissions());
  {
    std::lock_guard lock(mu_);
    if (sessions_ >= options_.requests_max)
      return ServerError(429, "Too many requests are under way.", "rate_limit_exceeded");
    ++sessions_;
    metrics_->open_streams.Set(static_cast<double>(sessions_));
    for (size_t p = 0; p < session->parts.size(); ++p) {
      session->parts[p].id = ++last_request_;
      requests_[session->parts[p].id] = {session, p};
    }
  }
  const std::weak_ptr<Session> weak = session;
  std::lock_guard lock(session->mu);
  session->timer = timer_.At(session->deadline, [this, weak] {
    if (auto s = weak.lock()) {
      std::lock_guard session_lock(s->mu);
      Fail(s, ServerError(
                  503, "The request took longer than " + std::to_string(options_.request_timeout_ms) + " ms.",
                  "timeout"));
    }
  });
  session->start.responder->OnClose([this, weak] {
    if (auto s = weak.lock()) OnClientGone(s);
  });
  for (size_t p = 0; p < session->parts.size() && !session->ended; ++p) Submit(session, p);
  return std::nullopt;
}

// Picks a worker and books the submission there; or books it as waiting, in the same step, so that no wake-up
// is lost.
std::shared_ptr<StreamRouter::Worker> StreamRouter::Choose(const SessionPtr& session, size_t part) {
  Session::Part& p = session->parts[part];
  std::lock_guard lock(mu_);
  std::vector<WorkerView> views;
  std::vector<std::shared_ptr<Worker>> workers;
  for (const auto& [key, w] : workers_) {
    const bool fits = session->identity.empty() || session->identity == Fingerprint(w->info);
    views.push_back({w->info.worker, w->up && !w->draining && fits && !p.full.contains(key),
                     static_cast<uint32_t>(w->requests.size()) + w->load.waiting});
    workers.push_back(w);
  }
  const auto choice = ChooseWorker(views, session->generation().PrefixHash(part));
  if (!choice) {
    waiting_.insert(p.id);
    metrics_->waiting_requests.Set(static_cast<double>(waiting_.size()));
    return nullptr;
  }
  const std::shared_ptr<Worker>& worker = workers[*choice];
  worker->requests.insert(p.id);
  waiting_.erase(p.id);
  metrics_->waiting_requests.Set(static_cast<double>(waiting_.size()));
  p.worker = worker;
  p.epoch = worker->epoch;
  if (session->identity.empty()) {
    session->identity = Fingerprint(worker->info);
    session->generation().set_fingerprint(session->identity);
  }
  return worker;
}

// A worker is ready that has not yet refused it.
bool StreamRouter::AnotherMayTake(const SessionPtr& session, size_t part) {
  std::lock_guard lock(mu_);
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& entry) {
    const auto& [key, w] = entry;
    return w->up && !w->draining && session->identity == Fingerprint(w->info) &&
           !session->parts[part].full.contains(key);
  });
}

void StreamRouter::Submit(const SessionPtr& session, size_t part) {
  Session::Part& p = session->parts[part];
  if (session->ended || p.over || p.worker != nullptr) return;
  for (;;) {
    const std::shared_ptr<Worker> worker = Choose(session, part);
    if (worker == nullptr) return Wait(session, part);
    SessionSubmit request = session->generation().MakeSubmit(part, p.attempt);
    request.request = p.id;
    request.request_id = session->start.request_id;
    {
      std::lock_guard lock(mu_);
      request.manifest = worker->info.manifest;
    }
    const MonoTime left = session->deadline - NowUs();
    if (left <= 0) return;  // the timer is about to end it
    request.budget_ms = static_cast<uint32_t>(left / kMs + 1);
    const absl::Status status = worker->Submit(request);
    if (status.ok()) {
      if (p.attempt > 0) {
        metrics_->resumes.Increment();
        for (const uint32_t c : session->generation().FinishedChoices(part)) worker->Cancel(p.id, c);
      }
      log::Debug("submitted", {{"request_id", session->start.request_id},
                               {"worker", worker->key},
                               {"attempt", p.attempt},
                               {"submission", p.id}});
      return;
    }
    std::lock_guard lock(mu_);  // its session has just broken: the next welcome opens it again
    worker->requests.erase(p.id);
    if (worker->epoch == p.epoch) worker->up = false;
    p.worker = nullptr;
  }
}

// No worker can take it now. One timer ends the wait; a welcome may do so before.
void StreamRouter::Wait(const SessionPtr& session, size_t part) {
  Session::Part& p = session->parts[part];
  if (p.wait_until == 0)
    p.wait_until = NowUs() + (p.attempt == 0 ? options_.admission_wait_ms : options_.resume_wait_ms) * kMs;
  if (p.timer) return;
  const std::weak_ptr<Session> weak = session;
  p.timer = timer_.At(p.wait_until, [this, weak, part] {
    auto s = weak.lock();
    if (!s) return;
    std::lock_guard lock(s->mu);
    s->parts[part].timer.reset();
    if (s->parts[part].worker == nullptr && !s->parts[part].over)
      Fail(s, ServerError(503, "No worker is ready for the model. Please try again later.", "no_worker"));
  });
}

// The worker could not go on with it but another, or the same one later, can.
void StreamRouter::Retry(const SessionPtr& session, size_t part, uint32_t delay_ms) {
  Session::Part& p = session->parts[part];
  p.worker = nullptr;
  ++p.attempt;
  if (p.wait_until == 0) p.wait_until = NowUs() + options_.resume_wait_ms * kMs;
  if (NowUs() >= p.wait_until)
    return Fail(session, ServerError(503, "No worker could go on with the request.", "no_worker"));
  const std::weak_ptr<Session> weak = session;
  timer_.At(NowUs() + delay_ms * kMs, [this, weak, part] {
    auto s = weak.lock();
    if (!s) return;
    std::lock_guard lock(s->mu);
    Submit(s, part);
  });
}

// Takes a submission out of all tables; `cancel`: tells the worker.
void StreamRouter::Release(Session* session, size_t part, bool cancel) {
  Session::Part& p = session->parts[part];
  if (p.over) return;
  p.over = true;
  if (p.timer) timer_.Cancel(*p.timer);
  p.timer.reset();
  bool alive = false;
  {
    std::lock_guard lock(mu_);
    requests_.erase(p.id);
    waiting_.erase(p.id);
    metrics_->waiting_requests.Set(static_cast<double>(waiting_.size()));
    if (p.worker) {
      alive = p.worker->requests.erase(p.id) > 0 && p.worker->up && p.worker->epoch == p.epoch;
    }
  }
  if (alive && cancel) p.worker->Cancel(p.id, std::nullopt);
  p.worker = nullptr;
}

void StreamRouter::End(const SessionPtr& session, int status) {
  if (session->ended) return;
  session->ended = true;
  for (size_t p = 0; p < session->parts.size(); ++p) Release(session.get(), p, true);
  timer_.Cancel(session->timer);
  {
    std::lock_guard lock(mu_);
    --sessions_;
    metrics_->open_streams.Set(static_cast<double>(sessions_));
  }
  const Usage usage = session->generation().usage();
  const MonoTime now = NowUs();
  metrics_->CountRequest(session->start.endpoint, status);
  metrics_->ObserveRequest(static_cast<double>(now - session->arrived) / 1e6);
  metrics_->CountTokens(usage.prompt, usage.completion, usage.cached);
  log::Info(
      "request",
      {{"request_id", session->start.request_id},
       {"endpoint", session->start.endpoint},
       {"status", status},
       {"prompt_tokens", usage.prompt},
       {"generated_tokens", usage.completion},
       {"cached_tokens", usage.cached},
       {"seed", session->generation().seed()},
       {"ttft_ms", session->first_token == 0 ? int64_t{-1} : (session->first_token - session->arrived) / kMs},
       {"total_ms", (now - session->arrived) / kMs}});
  session->start.responder.reset();
}

void StreamRouter::Fail(const SessionPtr& session, const ApiError& error) {
  if (session->ended) return;
  HttpResponder& responder = *session->start.responder;
  if (session->streaming) {
    responder.Write("data: " + ErrorJson(error) + "\n\n");
    responder.End();
  } else {
    HttpHeaders headers = session->start.headers;
    headers.emplace_back("Content-Type", "application/json");
    if (error.retry_after_s > 0) headers.emplace_back("Retry-After", std::to_string(error.retry_after_s));
    responder.Respond(error.status, std::move(headers), ErrorJson(error));
  }
  log::Warn("request failed",
            {{"request_id", session->start.request_id}, {"status", error.status}, {"error", error.message}});
  End(session, error.status);
}

void StreamRouter::OnClientGone(const SessionPtr& session) {
  std::lock_guard lock(session->mu);
  if (session->ended) return;
  metrics_->disconnects.Increment();
  End(session, 499);
}

// Sends what a step made certain, in one write.
void StreamRouter::Flush(const SessionPtr& session) {
  session->dirty = false;
  if (session->ended) return;
  Generation& generation = session->generation();
  HttpResponder& responder = *session->start.responder;
  const bool done = generation.done();
  if (generation.stream()) {
    std::string events = generation.TakeEvents();
    if (!session->streaming && (done || !events.empty())) {
      session->streaming = true;
      HttpHeaders headers = session->start.headers;
      headers.emplace_back("Content-Type", "text/event-stream; charset=utf-8");
      headers.emplace_back("Cache-Control", "no-cache");
      headers.emplace_back("X-Accel-Buffering", "no");
      responder.StartStream(200, std::move(headers));
    }
    if (!events.empty()) responder.Write(std::move(events));
    if (done) {
      responder.End();
    } else if (responder.pending_bytes() > options_.stream_pending_bytes_max) {
      metrics_->slow_readers.Increment();
      log::Warn("stream cut: the client does not read",
                {{"request_id", session->start.request_id}, {"pending_bytes", responder.pending_bytes()}});
      return End(session, 499);  // dropping the responder cuts the connection
    }
  } else if (done) {
    HttpHeaders headers = session->start.headers;
    headers.emplace_back("Content-Type", "application/json");
    responder.Respond(200, std::move(headers), generation.Response());
  }
  if (!done) return;
  for (const std::string_view reason : generation.finish_reasons())
    metrics_->CountSuccess(std::string(reason));
  End(session, 200);
}

}  // namespace consilium::gateway
