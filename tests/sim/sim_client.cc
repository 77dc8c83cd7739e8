#include "tests/sim/sim_client.h"

#include "absl/status/status.h"

namespace consilium::sim {
namespace {

std::string Str(uint64_t v) { return std::to_string(v); }

}  // namespace

SimClient::SimClient(SimClock* clock, Network* net, SimModel* model, std::vector<SimWorker*> workers,
                     std::function<void(const std::string&)> violation)
    : clock_(clock), net_(net), model_(model), violation_(std::move(violation)) {
  for (SimWorker* w : workers) links_.push_back({w, nullptr, 0, 0});
}

void SimClient::Start() {
  for (size_t w = 0; w < links_.size(); ++w) Connect(w);
}

void SimClient::Connect(size_t worker) {
  Link& link = links_[worker];
  if (!link.worker->alive()) {
    clock_->In(50000, "gateway redial", worker, [this, worker] { Connect(worker); });
    return;
  }
  link.stream = net_->Open("gateway-" + link.worker->name());
  link.serial = next_serial_++;
  link.stream->down[0] = [this, worker, serial = link.serial](const absl::Status&) {
    if (links_[worker].serial == serial) OnDown(worker);
  };
  link.session =
      link.worker->OpenSession(link.stream, [this, worker, serial = link.serial](const SessionEvents& e) {
        if (links_[worker].serial == serial) OnEvents(worker, e);
      });
}

void SimClient::OnDown(size_t worker) {
  links_[worker].stream = nullptr;
  links_[worker].serial = 0;
  clock_->In(50000, "gateway redial", worker, [this, worker] { Connect(worker); });
  for (auto& [id, r] : requests_) {
    if (r.ended || r.worker != worker) continue;
    r.worker = kNobody;
    if (r.cancelled) {
      End(&r);  // its work went with the stream
    } else {
      ++resumed_;
      Place(id);
    }
  }
}

SessionSubmit SimClient::RandomSubmit() {
  SimClock& c = *clock_;
  const uint32_t vocab = model_->shape().vocab;
  SessionSubmit s;
  s.request = requests_.size() + 1;
  s.request_id = "r" + Str(s.request);
  s.manifest = model_->manifest;
  // A few common beginnings, so that prefixes are found.
  const uint32_t base = static_cast<uint32_t>(c.Pick(3));
  const size_t common = c.Pick(45), own = 1 + c.Pick(25);
  for (size_t i = 0; i < common; ++i) s.prompt.push_back(static_cast<TokenId>((base * 37 + i * 11) % vocab));
  for (size_t i = 0; i < own; ++i) s.prompt.push_back(static_cast<TokenId>(c.Pick(vocab)));
  s.max_tokens = static_cast<uint32_t>(c.Chance(8) ? 0 : 1 + c.Pick(40));
  s.n = c.Chance(25) ? static_cast<uint32_t>(2 + c.Pick(2)) : 1;
  s.sampling.seed = c.rng();
  s.sampling.temperature = c.Chance(40) ? 0 : 1;
  if (c.Chance(20)) s.sampling.presence_penalty = 0.5;
  if (c.Chance(20)) s.sampling.repetition_penalty = 1.2;
  s.top_logprobs = c.Chance(30) ? static_cast<int32_t>(c.Pick(4)) : -1;
  s.prompt_logprobs = c.Chance(10);
  if (c.Chance(30)) s.stop_ids = {static_cast<TokenId>(c.Pick(vocab)), static_cast<TokenId>(c.Pick(vocab))};
  if (c.Chance(15)) s.min_tokens = static_cast<uint32_t>(c.Pick(8));
  if (c.Chance(20)) s.cache_salt = "salt";
  if (c.Chance(3)) s.prompt[c.Pick(s.prompt.size())] = vocab;  // a bad one
  return s;
}

void SimClient::SubmitRandom(bool must_succeed) {
  Request r;
  r.submit = RandomSubmit();
  r.want = RunAlone(model_, r.submit);
  r.must_succeed = must_succeed;
  // Some would rather have an error than wait.
  if (!must_succeed && clock_->Chance(10))
    r.submit.budget_ms = static_cast<uint32_t>(20 + clock_->Pick(2000));
  const uint64_t id = r.submit.request;
  requests_.emplace(id, std::move(r));
  ++live_;
  Place(id);
  if (!must_succeed && clock_->Chance(12)) {
    clock_->In(static_cast<MonoTime>(clock_->Pick(40000)), "user cancels", id, [this, id] { Cancel(id); });
  }
}

void SimClient::Place(uint64_t id) {
  Request& r = requests_.at(id);
  if (r.ended || r.worker != kNobody) return;
  std::vector<size_t> up;
  for (size_t w = 0; w < links_.size(); ++w) {
    if (links_[w].stream != nullptr) up.push_back(w);
  }
  if (up.empty()) {
    clock_->In(20000, "place again", id, [this, id] { Place(id); });
    return;
  }
  r.worker = up[clock_->Pick(up.size())];
  SessionSubmit submit = r.submit;
  submit.attempt = r.submit.attempt++;
  for (const auto& [choice, tokens] : r.have) {
    submit.history.push_back({choice, {}});
    for (const TokenBits& t : tokens) submit.history.back().second.push_back(t.token);
  }
  r.attempt_finished.clear();
  Link& link = links_[r.worker];
  net_->Send(link.stream, 1, "submit", id,
             [worker = link.worker, session = link.session, submit = std::move(submit)] {
               worker->Submit(session, submit);
             });
}

void SimClient::Cancel(uint64_t id) {
  Request& r = requests_.at(id);
  if (r.ended) return;
  r.cancelled = true;
  if (r.worker == kNobody) return End(&r);
  Link& link = links_[r.worker];
  net_->Send(link.stream, 1, "cancel", id,
             [worker = link.worker, session = link.session, id] { worker->Cancel(session, id); });
}

void SimClient::CutSomeSession() {
  Link& link = links_[clock_->Pick(links_.size())];
  if (link.stream != nullptr) net_->Break(link.stream);
}

void SimClient::End(Request* r) {
  r->ended = true;
  --live_;
}

SimClient::Request* SimClient::Find(uint64_t id, const char* what) {
  auto it = requests_.find(id);
  if (it == requests_.end()) {
    violation_(std::string(what) + " of unknown request " + Str(id));
    return nullptr;
  }
  if (it->second.ended) {
    violation_(std::string(what) + " of request " + Str(id) + " after its end");
    return nullptr;
  }
  return &it->second;
}

void SimClient::OnEvents(size_t, const SessionEvents& events) {
  for (const SessionToken& t : events.tokens) OnToken(t);
  for (const SessionFinish& f : events.finishes) OnFinish(f);
  for (const SessionError& e : events.errors) OnError(e);
}

void SimClient::OnToken(const SessionToken& t) {
  Request* r = Find(t.request, "token");
  if (r == nullptr) return;
  const TokenBits got = BitsOf(t);
  const std::string where =
      "request " + Str(t.request) + " choice " + Str(t.choice) + " position " + Str(t.position);
  if (t.position < r->submit.prompt.size()) {
    if (auto it = r->want.prompt.find(t.position); it == r->want.prompt.end() || it->second != got) {
      violation_(where + ": wrong prompt logprob");
    }
    return;
  }
  clock_->Note("token", Mix(t.request, got.token));
  const size_t index = t.position - r->submit.prompt.size();
  auto& have = r->have[t.choice];
  if (index > have.size()) return violation_(where + ": a gap, have " + Str(have.size()) + " tokens");
  const auto& want = r->want.tokens[t.choice];
  if (index >= want.size()) return violation_(where + ": a token too many, expected " + Str(want.size()));
  if (want[index] != got) {
    return violation_(where + ": expected token " + Str(want[index].token) + ", got " + Str(got.token) +
                      (want[index].token == got.token ? " with other logprob bits" : ""));
  }
  if (index == have.size()) {
    have.push_back(got);
    ++tokens_;
  }
}

void SimClient::OnFinish(const SessionFinish& f) {
  Request* r = Find(f.request, "finish");
  if (r == nullptr) return;
  const std::string where = "request " + Str(f.request) + " choice " + Str(f.choice);
  if (!r->attempt_finished.emplace(f.choice, f.reason).second) return violation_(where + " finished twice");
  if (f.reason == FinishReason::kCancelled) {
    if (!r->cancelled) violation_(where + ": cancelled by nobody");
  } else if (r->have[f.choice].size() != r->want.tokens[f.choice].size()) {
    violation_(where + ": finished with " + Str(r->have[f.choice].size()) + " tokens, expected " +
               Str(r->want.tokens[f.choice].size()));
  } else if (f.reason != r->want.finishes[f.choice]) {
    violation_(where + ": finish reason " + Str(static_cast<uint64_t>(f.reason)) + ", expected " +
               Str(static_cast<uint64_t>(r->want.finishes[f.choice])));
  }
  if (r->attempt_finished.size() == r->submit.n) End(r);
}

void SimClient::OnError(const SessionError& e) {
  Request* r = Find(e.request, "error");
  if (r == nullptr) return;
  const absl::StatusCode code = e.code;
  const bool expected = r->want.error_code != 0 && static_cast<uint32_t>(code) == r->want.error_code;
  const bool clean = code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kResourceExhausted ||
                     (code == absl::StatusCode::kDeadlineExceeded && r->submit.budget_ms > 0);
  if (!expected && (!clean || r->must_succeed)) {
    violation_("request " + Str(e.request) + " failed with code " + Str(static_cast<uint32_t>(code)) + ": " +
               e.text);
  }
  if (!expected) ++failed_;
  End(r);
}

std::string SimClient::Open() const {
  std::string out;
  for (const auto& [id, r] : requests_) {
    if (r.ended) continue;
    out += " request " + Str(id) +
           (r.worker == kNobody ? " (no worker)" : " on " + links_[r.worker].worker->name());
    for (const auto& [choice, tokens] : r.have) out += " " + Str(choice) + ":" + Str(tokens.size());
  }
  return out;
}

}  // namespace consilium::sim
