#include "services/gateway/worker_directory.h"

#include <algorithm>
#include <map>
#include <random>

#include "common/base/status.h"
#include "common/log/log.h"
#include "common/net/control_client.h"
#include "services/gateway/grpc_attention_client.h"
#include "services/gateway/stream_router.h"

namespace consilium::gateway {

struct WorkerDirectory::Impl final : GatewayAttachment::Sink {
  Impl(DirectoryOptions o, StreamRouter* r) : options(std::move(o)), router(r) {
    for (const std::string& address : options.attention)
      router->AddWorker(address, MakeGrpcAttentionClient(address));
    if (options.controller.empty()) return;
    ControlClientOptions control;
    control.controller = options.controller;
    std::random_device random;
    attachment = AttachGateway(control, options.gateway_name, (uint64_t{random()} << 32) | random(), this);
  }

  void OnUp() override { log::Info("controller attached", {{"controller", options.controller}}); }
  void OnDown(const absl::Status& status) override {
    log::Warn("controller lost; the last view stays",
              {{"controller", options.controller}, {"why", ToString(status)}});
  }
  void OnCluster(const control::ClusterView& view) override {
    std::map<std::string, bool> wanted;  // address -> takes no new requests
    for (const control::AttentionWorker& w : view.workers) wanted[w.address] = w.draining || !w.ready;
    for (const std::string& address : options.attention) wanted.try_emplace(address, false);
    const std::vector<std::string> known = router->workers();
    for (const std::string& address : known) {
      // A worker that is gone for good is let go with the first view after its session broke.
      if (!wanted.contains(address) && !router->IsUp(address)) router->RemoveWorker(address);
    }
    for (const auto& [address, closed] : wanted) {
      if (std::find(known.begin(), known.end(), address) == known.end()) {
        router->AddWorker(address, MakeGrpcAttentionClient(address));
      }
      router->SetDraining(address, closed);
    }
  }

  const DirectoryOptions options;
  StreamRouter* const router;
  std::unique_ptr<GatewayAttachment> attachment;  // last: ends the callbacks first
};

WorkerDirectory::WorkerDirectory(DirectoryOptions options, StreamRouter* router)
    : impl_(std::make_unique<Impl>(std::move(options), router)) {}
WorkerDirectory::~WorkerDirectory() = default;

}  // namespace consilium::gateway
