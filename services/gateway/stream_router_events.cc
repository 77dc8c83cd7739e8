// StreamRouter: what comes from the workers.
#include <algorithm>

#include "common/base/status.h"
#include "common/log/log.h"
#include "services/gateway/stream_router_internal.h"

namespace consilium::gateway {

void StreamRouter::OnWelcome(Worker* worker, const WorkerWelcome& info) {
  {
    std::lock_guard lock(mu_);
    worker->info = info;
    worker->up = true;
    ++worker->epoch;
    worker->load = {};
    if (info.context_tokens > 0) limits_.context_tokens = info.context_tokens;
    if (info.vocab > 0) limits_.vocab = info.vocab;
  }
  log::Info("worker ready", {{"worker", info.worker},
                             {"address", worker->key},
                             {"model", info.model_id},
                             {"fingerprint", Fingerprint(info)},
                             {"context_tokens", info.context_tokens}});
  metrics_->workers_ready.Set(static_cast<double>(ready_workers()));
  WakeWaiting();
}

void StreamRouter::OnDown(Worker* worker, const absl::Status& why) {
  uint64_t epoch = 0;
  bool was_up = false;
  {
    std::lock_guard lock(mu_);
    was_up = worker->up;
    worker->up = false;
    epoch = worker->epoch;
  }
  const auto lost = TakeRequests(worker);
  if (was_up || !lost.empty())
    log::Warn("worker lost", {{"worker", worker->key}, {"why", ToString(why)}, {"requests", lost.size()}});
  metrics_->workers_ready.Set(static_cast<double>(ready_workers()));
  Resume(worker, lost, epoch);
}

std::vector<std::pair<uint64_t, StreamRouter::Place>> StreamRouter::TakeRequests(Worker* worker) {
  std::vector<std::pair<uint64_t, Place>> out;
  std::lock_guard lock(mu_);
  for (const uint64_t id : worker->requests) {
    const auto it = requests_.find(id);
    if (it != requests_.end()) out.emplace_back(id, it->second);
  }
  worker->requests.clear();
  return out;
}

void StreamRouter::Resume(Worker* worker, const std::vector<std::pair<uint64_t, Place>>& lost,
                          uint64_t epoch) {
  for (const auto& [id, place] : lost) {
    std::lock_guard lock(place.session->mu);
    Session::Part& p = place.session->parts[place.part];
    if (place.session->ended || p.over || p.worker.get() != worker || p.epoch != epoch) continue;
    p.worker = nullptr;
    ++p.attempt;
    Submit(place.session, place.part);
  }
}

void StreamRouter::WakeWaiting() {
  std::vector<Place> places;
  {
    std::lock_guard lock(mu_);
    for (const uint64_t id : waiting_) {
      const auto it = requests_.find(id);
      if (it != requests_.end()) places.push_back(it->second);
    }
  }
  for (const Place& place : places) {
    std::lock_guard lock(place.session->mu);
    Submit(place.session, place.part);
  }
}

void StreamRouter::OnStep(Worker* worker, SessionEvents step) {
  // Finds all sessions under one lock, then handles each event under its session's.
  std::vector<Place> accepted, tokens, finishes, errors;
  {
    std::lock_guard lock(mu_);
    worker->load = step.load;
    const auto find = [&](const auto& events, std::vector<Place>* out) {
      for (const auto& e : events) {
        const auto it = requests_.find(e.request);
        out->push_back(it == requests_.end() ? Place{} : it->second);
      }
    };
    find(step.accepted, &accepted);
    find(step.tokens, &tokens);
    find(step.finishes, &finishes);
    find(step.errors, &errors);
  }
  std::vector<SessionPtr> touched;
  const auto each = [&](const auto& events, const std::vector<Place>& places, auto handle) {
    for (size_t i = 0; i < events.size(); ++i) {
      const SessionPtr& session = places[i].session;
      if (session == nullptr) continue;  // ended here; the worker has not heard it yet
      std::lock_guard lock(session->mu);
      if (session->ended || session->parts[places[i].part].over) continue;
      if (!session->dirty) touched.push_back(session);
      session->dirty = true;
      handle(session, places[i].part, events[i]);
    }
  };
  each(step.accepted, accepted, [](const SessionPtr& s, size_t part, const SessionAccepted& e) {
    s->parts[part].full.clear();
    s->generation().OnAccepted(part, e.cached_tokens);
  });
  each(step.tokens, tokens,
       [&](const SessionPtr& s, size_t part, const SessionToken& e) { HandleToken(s, part, e); });
  each(step.finishes, finishes, [&](const SessionPtr& s, size_t part, const SessionFinish& e) {
    if (e.reason == FinishReason::kCancelled) return;  // this side asked for it
    s->generation().OnFinish(part, e);
    if (s->generation().part_done(part)) Release(s.get(), part, false);
  });
  each(step.errors, errors,
       [&](const SessionPtr& s, size_t part, const SessionError& e) { HandleError(s, part, e); });
  for (const SessionPtr& session : touched) {
    std::lock_guard lock(session->mu);
    Flush(session);
  }
}

void StreamRouter::HandleToken(const SessionPtr& session, size_t part, const SessionToken& event) {
  Session::Part& p = session->parts[part];
  bool cancel = false;
  switch (session->generation().OnToken(part, event, &cancel)) {
    case Push::kNew:
      break;
    case Push::kDuplicate:
      metrics_->duplicate_tokens.Increment();
      return;
    case Push::kMismatch:
      metrics_->exactness_violations.Increment();
      log::Error("exactness violated: a token computed again differs",
                 {{"request_id", session->start.request_id},
                  {"choice", event.choice},
                  {"position", event.position},
                  {"token", event.token},
                  {"attempt", p.attempt},
                  {"worker", p.worker ? p.worker->key : ""}});
      return Fail(session,
                  ServerError(500, "The same computation gave different results.", "exactness_violation"));
    case Push::kGap:
      log::Error("a token came out of order", {{"request_id", session->start.request_id},
                                               {"choice", event.choice},
                                               {"position", event.position}});
      return Fail(session, ServerError(500, "The worker sent tokens out of order."));
  }
  p.wait_until = 0;  // progress: a later loss may wait anew
  if (p.timer) timer_.Cancel(*p.timer);
  p.timer.reset();
  ObserveToken(session.get(), part, event.choice);
  if (!cancel) return;
  if (session->generation().part_done(part)) return Release(session.get(), part, true);
  if (p.worker) p.worker->Cancel(p.id, event.choice);
}

void StreamRouter::ObserveToken(Session* session, size_t part, uint32_t choice) {
  std::vector<MonoTime>& last = session->parts[part].last_token;
  if (choice >= last.size()) last.resize(choice + 1);
  const MonoTime now = NowUs();
  if (session->first_token == 0) {
    session->first_token = now;
    metrics_->ObserveFirstToken(static_cast<double>(now - session->arrived) / 1e6);
  }
  if (last[choice] != 0) metrics_->ObserveNextToken(static_cast<double>(now - last[choice]) / 1e6);
  last[choice] = now;
}

void StreamRouter::HandleError(const SessionPtr& session, size_t part, const SessionError& event) {
  Session::Part& p = session->parts[part];
  const bool busy = event.code == absl::StatusCode::kResourceExhausted;
  if (p.worker) {
    std::lock_guard lock(mu_);
    p.worker->requests.erase(p.id);
    if (busy) p.full.insert(p.worker->key);
  }
  const bool gone = event.code == absl::StatusCode::kUnavailable || event.code == absl::StatusCode::kAborted;
  if (gone || (busy && session->generation().any_output())) {
    log::Warn("submission given back by the worker",
              {{"request_id", session->start.request_id}, {"why", event.text}});
    p.full.clear();  // it waits anyway
    return Retry(session, part, std::max(event.retry_after_ms, kRetryDelayMs));
  }
  if (busy && AnotherMayTake(session, part)) {
    log::Debug("worker full; the next one is asked", {{"request_id", session->start.request_id}});
    p.worker = nullptr;
    return Submit(session, part);
  }
  ApiError error;
  switch (event.code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      error.message = event.text;
      break;
    case absl::StatusCode::kResourceExhausted:
      error = ServerError(429, event.text, "rate_limit_exceeded");
      error.retry_after_s = std::max(1u, (event.retry_after_ms + 999) / 1000);
      break;
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kCancelled:
      error = ServerError(503, event.text);
      break;
    default:
      error = ServerError(500, event.text);
      break;
  }
  Fail(session, error);
}

}  // namespace consilium::gateway
