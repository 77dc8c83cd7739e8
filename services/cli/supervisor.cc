#include "services/cli/supervisor.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "common/base/status.h"
#include "common/log/log.h"
#include "services/cli/http_client.h"
#include "services/cli/spawn.h"

namespace consilium {
namespace {

constexpr int kTickMs = 50;
constexpr int kProbeTimeoutMs = 300;
constexpr int64_t kBackoffFirstMs = 100;
constexpr int64_t kBackoffMaxMs = 2000;
constexpr MonoTime kSteadyUs = 10'000'000;  // after this long a restart begins with the first back-off again
constexpr int64_t kGatewayGraceMs = 5000;
constexpr int64_t kGraceMs = 5000;

}  // namespace

Supervisor::Supervisor(const UpOptions& options) : options_(options) {
  const auto add = [this](const char* role, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      Child child;
      child.info.role = role;
      child.info.name = std::string(role) + "-" + std::to_string(i);
      child.log_path = options_.state_dir + "/logs/" + child.info.name + ".log";
      child.port_file = options_.state_dir + "/run/" + child.info.name + ".ports";
      children_.push_back(std::move(child));
    }
  };
  add("controller", 1);
  add("expert", options_.experts);
  add("attention", options_.attention);
  add("gateway", 1);
}

Supervisor::~Supervisor() {
  Stop();
  if (!key_file_.empty()) std::remove(key_file_.c_str());
}

Supervisor::Child* Supervisor::Find(std::string_view role) {
  for (Child& child : children_) {
    if (child.info.role == role) return &child;
  }
  return nullptr;
}

std::string Supervisor::url() const { return "http://" + children_.back().info.address; }

std::vector<std::string> Supervisor::Command(const Child& child) const {
  const ProcessInfo& info = child.info;
  const auto text = [](uint64_t n) { return std::to_string(n); };
  std::string listen = info.address.empty() ? "127.0.0.1:0" : info.address;
  if (info.role == "gateway" && info.address.empty()) listen = options_.host + ":" + text(options_.port);
  std::vector<std::string> argv = {ProgramFolder() + "/consilium-" + info.role,
                                   "--listen",
                                   listen,
                                   "--admin",
                                   info.admin.empty() ? "127.0.0.1:0" : info.admin,
                                   "--port-file",
                                   child.port_file,
                                   "--log-level",
                                   options_.log_level,
                                   "--log-format",
                                   options_.log_format};
  const auto push = [&argv](std::initializer_list<std::string> more) { argv.insert(argv.end(), more); };
  if (info.role == "controller") {
    push({"--state-dir", options_.state_dir + "/" + info.name, "--replicas", text(options_.replicas),
          "--lease-ms", text(options_.lease_ms), "--expected-shards", text(options_.experts)});
    return argv;
  }
  push({"--name", info.name, "--controller", children_.front().info.address, "--model", options_.model});
  if (info.role == "gateway") {
    push({"--model-name", options_.model_name, "--tool-parser", options_.tool_parser, "--reasoning-parser",
          options_.reasoning_parser});
    if (!key_file_.empty()) push({"--api-key-file", key_file_});
    return argv;
  }
  // One folder: who starts first hashes the model for all.
  push({"--state-dir", options_.state_dir + "/model", "--threads", text(options_.threads), "--ops",
        options_.ops, "--numerics", options_.numerics.numerics, "--weights-as", options_.numerics.weights_as,
        "--local-transport", options_.local_transport});
  if (info.role == "expert") {
    push({"--capacity-mb", text(options_.capacity_mb)});
  } else {
    push({"--kv-mb", text(options_.kv_mb), "--prefill-chunk", text(options_.prefill_chunk),
          "--max-flight-rows", text(options_.max_flight_rows), "--flights", text(options_.flights),
          options_.prefix_cache ? "--prefix-cache" : "--no-prefix-cache"});
  }
  return argv;
}

absl::Status Supervisor::StartOne(Child* child) {
  std::remove(child->port_file.c_str());
  child->restart_at = kNever;
  child->started = NowUs();
  child->info.state = "starting";
  ASSIGN_OR_RETURN(child->info.pid, Spawn(Command(*child), child->log_path));
  return absl::OkStatus();
}

void Supervisor::LearnPorts(Child* child) {
  std::ifstream file(child->port_file);
  for (std::string key, value; file >> key >> value;) {
    if (key == "listen") child->info.address = value;
    if (key == "admin") child->info.admin = value;
  }
}

void Supervisor::ProbeReady(Child* child) {
  if (child->info.pid == 0 || child->info.state == "ready") return;
  // The file is written anew at each start, so an old process's ports are never taken for the new one's.
  if (access(child->port_file.c_str(), R_OK) != 0) return;
  LearnPorts(child);
  if (child->info.admin.empty()) return;
  const auto answer = HttpGet("http://" + child->info.admin + "/readyz", kProbeTimeoutMs);
  if (!answer.ok() || answer->status != 200) return;
  child->info.state = "ready";
  Publish();
}

void Supervisor::Publish() {
  ProcessTable table;
  table.up_pid = getpid();
  table.url = url();
  table.model = options_.model_name;
  for (const Child& child : children_) table.processes.push_back(child.info);
  const absl::Status written = WriteProcesses(options_.state_dir, table);
  if (!written.ok()) log::Warn(Message(written));
}

bool Supervisor::WaitSignal(int timeout_ms) {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, s);
  timespec timeout{timeout_ms / 1000, static_cast<long>(timeout_ms % 1000) * 1000000};
  const int got = sigtimedwait(&set, nullptr, &timeout);
  if (got == SIGTERM || got == SIGINT) ++stop_signals_;
  return stop_signals_ > 0;
}

void Supervisor::Reap(absl::Status* failed) {
  int status = 0;
  if (watched_ != 0 && waitpid(watched_, &status, WNOHANG) == watched_) {
    watched_status_ = status;
    watched_ended_ = true;
    watched_ = 0;
  }
  for (Child& child : children_) {
    if (child.info.pid == 0 || waitpid(child.info.pid, &status, WNOHANG) != child.info.pid) continue;
    const pid_t pid = child.info.pid;
    child.info.pid = 0;
    child.info.state = "down";
    if (failed != nullptr) {
      const std::string last = LastLine(child.log_path);
      *failed = Unavailable(child.info.name + " ended at start with " + DescribeExit(status) +
                            (last.empty() ? "" : ": " + last) + " (log: " + child.log_path + ")");
      continue;
    }
    const bool steady = NowUs() - child.started > kSteadyUs;
    child.backoff_ms =
        child.backoff_ms == 0 || steady ? kBackoffFirstMs : std::min(child.backoff_ms * 2, kBackoffMaxMs);
    child.restart_at = NowUs() + child.backoff_ms * 1000;
    log::Warn("a process ended; it will be started again", {{"name", child.info.name},
                                                            {"pid", pid},
                                                            {"ended_by", DescribeExit(status)},
                                                            {"in_ms", child.backoff_ms}});
    Publish();
  }
}

void Supervisor::RestartDue() {
  for (Child& child : children_) {
    if (child.restart_at > NowUs()) continue;
    const absl::Status started = StartOne(&child);
    if (!started.ok()) {
      log::Error("cannot start a process again", {{"name", child.info.name}, {"error", Message(started)}});
      child.restart_at = NowUs() + kBackoffMaxMs * 1000;
    }
    Publish();
  }
}

absl::Status Supervisor::StartAndAwait(const std::vector<Child*>& children) {
  for (Child* child : children) RETURN_IF_ERROR(StartOne(child));
  Publish();
  return absl::OkStatus();
}

absl::Status Supervisor::Start() {
  namespace fs = std::filesystem;
  for (const char* sub : {"/logs", "/run"}) {
    std::error_code error;
    fs::create_directories(options_.state_dir + sub, error);
    if (error)
      return InvalidArgument("--state-dir: cannot make " + options_.state_dir + sub + ": " + error.message());
  }
  if (options_.port != 0) RETURN_IF_ERROR(CheckPortFree(options_.host, static_cast<uint16_t>(options_.port)));
  if (!options_.api_keys.empty()) {  // a file, since anyone may read a command line
    key_file_ = options_.state_dir + "/run/api_keys";
    std::remove(key_file_.c_str());
    const int fd = open(key_file_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    std::string text;
    for (const std::string& key : options_.api_keys) text += key + "\n";
    const bool ok = fd >= 0 && write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    if (fd >= 0) close(fd);
    if (!ok) return InvalidArgument("--state-dir: cannot write " + key_file_);
  }
  for (Child& child : children_) {  // logs of the last run are kept once
    std::error_code ignored;
    fs::rename(child.log_path, child.log_path + ".1", ignored);
  }

  const MonoTime begin = NowUs();
  std::vector<Child*> first = {&children_.front()};
  std::vector<Child*> rest;
  for (size_t i = 1; i < children_.size(); ++i) rest.push_back(&children_[i]);
  RETURN_IF_ERROR(StartAndAwait(first));
  bool rest_started = false;
  size_t shown = 0;
  for (;;) {
    if (WaitSignal(kTickMs)) return Cancelled("stopped while starting");
    absl::Status failed;
    Reap(&failed);
    RETURN_IF_ERROR(failed);
    size_t ready = 0;
    for (Child& child : children_) {
      const bool before = child.info.state == "ready";
      ProbeReady(&child);
      const bool now = child.info.state == "ready";
      ready += now;
      if (now && !before) {
        std::printf("[%zu/%zu] %-12s ready on %s (%.1f s)\n", ++shown, children_.size(),
                    child.info.name.c_str(), child.info.address.c_str(),
                    static_cast<double>(NowUs() - begin) * 1e-6);
        std::fflush(stdout);
      }
    }
    if (!rest_started && !children_.front().info.address.empty()) {
      rest_started = true;
      RETURN_IF_ERROR(StartAndAwait(rest));
    }
    if (ready == children_.size()) return absl::OkStatus();
    if (NowUs() - begin > MonoTime{options_.start_timeout_s} * 1'000'000) {
      std::string waiting;
      for (const Child& child : children_) {
        if (child.info.state != "ready") waiting += (waiting.empty() ? "" : ", ") + child.info.name;
      }
      return DeadlineExceeded("not ready after " + std::to_string(options_.start_timeout_s) +
                              " s: " + waiting + "; see " + options_.state_dir + "/logs");
    }
  }
}

void Supervisor::Run(pid_t until, int* until_status) {
  watched_ = until;
  watched_ended_ = false;
  for (;;) {
    bool settled = true;
    MonoTime next = NowUs() + 1'000'000;
    for (const Child& child : children_) {
      settled = settled && child.info.state == "ready";
      next = std::min(next, child.restart_at);
    }
    const int64_t wait_ms = settled ? 1000 : std::clamp<int64_t>((next - NowUs()) / 1000, 1, kTickMs);
    if (WaitSignal(static_cast<int>(wait_ms))) return;
    Reap(nullptr);
    if (watched_ended_) {
      *until_status = watched_status_;
      return;
    }
    RestartDue();
    for (Child& child : children_) {
      const bool before = child.info.state == "ready";
      ProbeReady(&child);
      if (!before && child.info.state == "ready") {
        log::Info("a process is ready again", {{"name", child.info.name}, {"pid", child.info.pid}});
      }
    }
  }
}

void Supervisor::EndGroup(const std::vector<Child*>& children, int64_t grace_ms) {
  for (Child* child : children) {
    if (child->info.pid == 0) continue;
    kill(child->info.pid, SIGTERM);
    kill(child->info.pid, SIGCONT);  // a stopped one must see it, too
  }
  const MonoTime deadline = NowUs() + grace_ms * 1000;
  const int signals_before = stop_signals_;
  bool killed = false;
  for (;;) {
    bool alive = false;
    for (Child* child : children) {
      int status = 0;
      if (child->info.pid != 0 &&
          waitpid(child->info.pid, &status, killed ? 0 : WNOHANG) == child->info.pid) {
        child->info.pid = 0;
        child->info.state = "down";
      }
      alive = alive || child->info.pid != 0;
    }
    if (!alive) return;
    WaitSignal(kTickMs);
    if (!killed && (NowUs() > deadline || stop_signals_ > signals_before)) {
      killed = true;
      for (Child* child : children) {
        if (child->info.pid == 0) continue;
        log::Warn("a process did not end in time and is killed",
                  {{"name", child->info.name}, {"grace_ms", grace_ms}});
        kill(child->info.pid, SIGKILL);
      }
    }
  }
}

void Supervisor::Stop() {
  std::vector<Child*> gateways;
  std::vector<Child*> others;
  bool any = false;
  for (Child& child : children_) {
    child.restart_at = kNever;
    any = any || child.info.pid != 0;
    (child.info.role == "gateway" ? gateways : others).push_back(&child);
  }
  if (!any) return;
  if (watched_ != 0) kill(watched_, SIGTERM);
  EndGroup(gateways, kGatewayGraceMs);
  EndGroup(others, kGraceMs);
  Publish();
}

}  // namespace consilium
