#include "common/config/service_main.h"

#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "common/base/status.h"

namespace consilium {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// First error handed to RequestStop; the wait itself is sigwait on this process.
std::mutex stop_mutex;
absl::Status stop_reason;

void PrintFatal(std::string_view program, const absl::Status& status) {
  std::string text = Message(status);
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  std::fprintf(stderr, "%.*s: %s\n", static_cast<int>(program.size()), program.data(), text.c_str());
}

}  // namespace

int RunService(std::string_view program,
               const std::function<absl::StatusOr<std::function<void()>>()>& start) {
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  setenv("GRPC_VERBOSITY", "NONE",
         0);  // an error is one line, ours; set it to ERROR or DEBUG to see gRPC's own
  absl::StatusOr<std::function<void()>> stop = start();
  if (!stop.ok()) {
    PrintFatal(program, stop.status());
    return 1;
  }
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  std::signal(SIGTERM, SIG_DFL);  // a second one does not wait for the graceful stop
  std::signal(SIGINT, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  if (*stop) (*stop)();
  std::lock_guard<std::mutex> lock(stop_mutex);
  if (stop_reason.ok()) return 0;
  PrintFatal(program, stop_reason);
  return 1;
}

void RequestStop(const absl::Status& reason) {
  {
    std::lock_guard<std::mutex> lock(stop_mutex);
    if (stop_reason.ok()) stop_reason = reason;
  }
  kill(getpid(), SIGTERM);
}

absl::Status WritePortFile(const std::string& path, std::string_view listen, std::string_view admin) {
  if (path.empty()) return absl::OkStatus();
  std::string text;
  if (!listen.empty()) text += "listen " + std::string(listen) + "\n";
  if (!admin.empty()) text += "admin " + std::string(admin) + "\n";
  const std::string beside = path + ".tmp." + std::to_string(getpid());
  std::FILE* file = std::fopen(beside.c_str(), "w");
  bool ok = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file != nullptr) ok = std::fclose(file) == 0 && ok;
  if (!ok || std::rename(beside.c_str(), path.c_str()) != 0) {
    const int error = errno;
    std::remove(beside.c_str());
    return InvalidArgument("--port-file: cannot write " + path + ": " + std::strerror(error));
  }
  return absl::OkStatus();
}

}  // namespace consilium
