#include <cstdlib>

#include "common/config/options.h"
#include "common/config/service_main.h"
#include "services/expert/expert_service.h"

int main(int argc, char** argv) {
  using namespace consilium;
  setenv("GRPC_VERBOSITY", "NONE", 0);  // errors are reported by us, in one line
  ExpertServiceOptions service;
  Options options("consilium-expert",
                  "An expert shard: holds experts of a MoE model and computes them for routers.");
  service.AddTo(&options);
  if (const auto code = options.Parse(argc, argv)) return *code;
  service.service.ConfigureLog(service.name);
  return RunService("consilium-expert", [&]() -> absl::StatusOr<std::function<void()>> {
    auto started = ExpertService::Start(service);
    if (!started.ok()) return started.status();
    std::shared_ptr<ExpertService> running = std::move(*started);  // std::function must be copyable
    return std::function<void()>([running] { running->Stop(); });
  });
}
