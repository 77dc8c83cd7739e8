#include "services/cli/up.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "common/base/status.h"
#include "common/log/log.h"
#include "services/cli/inprocess.h"
#include "services/cli/processes.h"
#include "services/cli/spawn.h"
#include "services/cli/supervisor.h"

namespace consilium {
namespace {

int Fail(const absl::Status& status) {
  std::string text = Message(status);
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  std::fprintf(stderr, "consilium up: %s\n", text.c_str());
  return 1;
}

void BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, s);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

// Two `up` with one state folder would overwrite each other's files. The lock ends with the process.
absl::Status LockStateDir(const std::string& state_dir) {
  std::error_code error;
  std::filesystem::create_directories(state_dir, error);
  const std::string path = state_dir + "/lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return InvalidArgument("--state-dir: cannot write " + path + ": " + std::strerror(errno));
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return FailedPrecondition("--state-dir: " + state_dir +
                              " is in use by another `consilium up`; name another folder");
  }
  return absl::OkStatus();
}

void Greet(const UpOptions& options, const std::string& url) {
  const std::string key = options.api_keys.empty() ? "" : " -H 'Authorization: Bearer <key>'";
  std::printf(
      "\nconsilium is ready: model %s, %u attention worker%s, %u expert shard%s\n"
      "  API      %s/v1\n"
      "  curl     curl -N %s/v1/chat/completions%s -H 'Content-Type: application/json' -d "
      "'{\"model\":\"%s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}]}'\n"
      "  chat     %s/consilium chat --url %s\n"
      "  ps       %s/consilium ps --state-dir %s\n"
      "  logs     %s/logs\n"
      "  stop     Ctrl-C\n",
      options.model_name.c_str(), options.attention, options.attention == 1 ? "" : "s", options.experts,
      options.experts == 1 ? "" : "s", url.c_str(), url.c_str(), key.c_str(), options.model_name.c_str(),
      ProgramFolder().c_str(), url.c_str(), ProgramFolder().c_str(), options.state_dir.c_str(),
      options.state_dir.c_str());
  std::fflush(stdout);
}

// Asks through the API, as any client would, in a process of its own.
absl::StatusOr<pid_t> StartQuestion(const UpOptions& options, const std::string& url) {
  std::printf("\n> %s\n", options.ask.c_str());
  std::fflush(stdout);
  std::vector<std::string> argv = {
      ProgramFolder() + "/consilium", "chat", "--url", url, "--temperature", "0", "--message", options.ask};
  if (!options.api_keys.empty()) argv.insert(argv.end(), {"--api-key", options.api_keys.front()});
  return Spawn(argv, "");
}

int RunProcesses(const UpOptions& options) {
  Supervisor supervisor(options);
  absl::Status started = supervisor.Start();
  if (!started.ok()) {
    supervisor.Stop();
    return absl::IsCancelled(started) ? 0 : Fail(started);
  }
  int answer_status = 0;
  if (!options.ask.empty()) {
    const auto question = StartQuestion(options, supervisor.url());
    if (!question.ok()) return Fail(question.status());
    answer_status = -1;
    supervisor.Run(*question, &answer_status);
    const bool answered = answer_status != -1 && WIFEXITED(answer_status) && WEXITSTATUS(answer_status) == 0;
    if (options.once || answer_status == -1) {
      supervisor.Stop();
      std::printf("\nstopped\n");
      return answered ? 0 : 1;
    }
  }
  Greet(options, supervisor.url());
  int unused = 0;
  supervisor.Run(0, &unused);
  std::printf("\nstopping\n");
  std::fflush(stdout);
  supervisor.Stop();
  return 0;
}

int RunInOneProcess(const UpOptions& options) {
  const std::string log_file = options.state_dir + "/logs/inprocess.log";
  std::error_code error;
  std::filesystem::create_directories(options.state_dir + "/logs", error);
  if (!log::WriteTo(log_file)) {
    return Fail(InvalidArgument("--state-dir: cannot write " + log_file + ": " + std::strerror(errno)));
  }
  int code = 0;
  InProcessHooks hooks;
  hooks.serve = [&](const std::string& url, std::vector<ProcessInfo> processes) {
    ProcessTable table;
    table.up_pid = getpid();
    table.url = url;
    table.model = options.model_name;
    table.processes = std::move(processes);
    if (const absl::Status written = WriteProcesses(options.state_dir, table); !written.ok()) {
      log::Warn(Message(written));
    }
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, s);
    if (!options.ask.empty()) {
      const auto question = StartQuestion(options, url);
      int signal = 0;
      int status = 1;
      while (question.ok() && sigwait(&set, &signal) == 0 && signal == SIGCHLD) {
        if (waitpid(*question, &status, WNOHANG) == *question) break;
      }
      if (options.once || signal != SIGCHLD) {
        code = status == 0 ? 0 : 1;
        return;
      }
    }
    Greet(options, url);
    for (int signal = SIGCHLD; signal == SIGCHLD;) sigwait(&set, &signal);
  };
  const absl::Status ran = RunInProcess(options, hooks);
  return ran.ok() ? code : Fail(ran);
}

}  // namespace

int RunUp(UpOptions options) {
  options.Complete();
  log::Configure("up", options.log_level == "debug" ? log::Level::kDebug : log::Level::kInfo,
                 options.log_format == "json" ? log::Format::kJson : log::Format::kText);
  BlockSignals();
  if (options.once && options.ask.empty())
    return Fail(InvalidArgument("--once: expected --ask TEXT with it, got none"));
  if (options.replicas > options.experts) {
    return Fail(InvalidArgument("--replicas: expected at most --experts (" + std::to_string(options.experts) +
                                "), got " + std::to_string(options.replicas)));
  }
  std::error_code error;
  if (!std::filesystem::is_directory(options.model, error) && !options.model.ends_with(".gguf")) {
    return Fail(NotFound("--model: expected a model folder or a .gguf file, got \"" + options.model +
                         "\", which is none"));
  }
  if (const absl::Status locked = LockStateDir(options.state_dir); !locked.ok()) return Fail(locked);
  if (!options.inprocess) return RunProcesses(options);
  return RunInOneProcess(options);
}

}  // namespace consilium
