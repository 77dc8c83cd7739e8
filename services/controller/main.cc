// consilium-controller: who holds what. See README.md.
#include <memory>

#include "common/base/status.h"
#include "common/config/options.h"
#include "common/config/service_main.h"
#include "common/log/log.h"
#include "common/metrics/admin_server.h"
#include "common/metrics/metrics.h"
#include "services/controller/controller_service.h"

namespace consilium {
namespace {

struct Flags {
  ControllerServiceOptions service{.listen = "127.0.0.1:7400", .state_dir = "", .core = {}};
  ServiceOptions common;
  std::string port_file;

  void AddTo(Options* options) {
    ControllerOptions& core = service.core;
    options->Add(&service.listen, "listen", "host:port for members and the CLI; port 0 takes a free one");
    options->Add(&service.state_dir, "state-dir",
                 "folder for the lease term and the known members; empty: nothing is kept, the term is "
                 "learnt from routers");
    options->Add(&core.replicas, "replicas", "copies of each expert, on distinct shards", 1, 64);
    options->Add(&core.lease_ms, "lease-ms", "a member without a report for so long is gone, ms", 300,
                 600000);
    options->Add(&core.expected_shards, "expected-shards",
                 "first plan as soon as so many shards are there; 0: after --settle-ms", 0, 4096);
    options->Add(&core.settle_ms, "settle-ms", "longest wait for the first plan after the first shard, ms", 0,
                 600000);
    options->Add(&core.rehost_grace_ms, "rehost-grace-ms",
                 "a lost shard's experts wait so long for its return before others load them, ms", 0,
                 3600000);
    options->Add(&port_file, "port-file", "file to write the bound addresses to; empty: none");
    common.AddTo(options);
  }
};

// What runs, in order of its end: the admin port first, then the service.
struct Running {
  Metrics metrics;
  std::unique_ptr<ControllerService> service;
  std::unique_ptr<AdminServer> admin;
};

absl::StatusOr<std::function<void()>> Start(const Flags& flags) {
  auto running = std::make_shared<Running>();  // shared: std::function must be copyable
  ASSIGN_OR_RETURN(running->service, ControllerService::Start(flags.service, &running->metrics));
  ControllerService* service = running->service.get();
  ASSIGN_OR_RETURN(running->admin, AdminServer::Start(
                                       flags.common.admin, &running->metrics,
                                       [] { return std::string(); },  // it serves while it lives
                                       [service] { service->UpdateMetrics(); }));
  RETURN_IF_ERROR(WritePortFile(flags.port_file, service->address(), running->admin->address()));
  log::Info("controller is up", {{"listen", service->address()}, {"admin", running->admin->address()}});
  return std::function<void()>([running] {
    log::Info("controller stops");
    running->admin.reset();
    running->service.reset();
  });
}

}  // namespace
}  // namespace consilium

int main(int argc, char** argv) {
  using namespace consilium;
  Options options("consilium-controller",
                  "Who holds what: membership, placement, epochs of a Consilium cluster.");
  Flags flags;
  flags.AddTo(&options);
  if (const std::optional<int> code = options.Parse(argc, argv)) return *code;
  flags.common.ConfigureLog("controller");
  return RunService("consilium-controller", [&] { return Start(flags); });
}
