// The admin port of a service: GET /healthz (200 while the process lives), /readyz (200, or 503 and the
// reason), /metrics (Prometheus text).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics/metrics.h"

namespace consilium {

class HttpServer;

class AdminServer {
 public:
  // `ready` returns "" when ready, else why not. Called from a server thread. `before_scrape` (may be null)
  // sets gauges.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(const std::string& host_port, Metrics* metrics,
                                                            std::function<std::string()> ready,
                                                            std::function<void()> before_scrape = nullptr);
  ~AdminServer();
  std::string address() const;  // host:port really bound

 private:
  AdminServer();
  std::string host_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace consilium
