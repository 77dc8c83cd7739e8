#include "common/metrics/admin_server.h"

#include <utility>

#include "common/base/status.h"
#include "common/config/options.h"
#include "common/http/http_server.h"

namespace consilium {
namespace {

const HttpHeaders kPlain = {{"Content-Type", "text/plain; charset=utf-8"}};
const HttpHeaders kExposition = {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"}};

}  // namespace

AdminServer::AdminServer() = default;
AdminServer::~AdminServer() = default;

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const std::string& host_port,
                                                                Metrics* metrics,
                                                                std::function<std::string()> ready,
                                                                std::function<void()> before_scrape) {
  HostPort bind;
  if (!ParseHostPort(host_port, &bind)) {
    return InvalidArgument("--admin: expected host:port, got \"" + host_port + "\"");
  }
  auto admin = std::unique_ptr<AdminServer>(new AdminServer);
  HttpServerOptions options;
  options.host = bind.host;
  options.port = bind.port;
  options.threads = 1;
  options.connections_max = 64;
  const auto handler = [metrics, ready = std::move(ready), before_scrape = std::move(before_scrape)](
                           HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.method != "GET" && request.method != "HEAD") {
      responder->Respond(405, {{"Content-Type", "text/plain; charset=utf-8"}, {"Allow", "GET, HEAD"}},
                         "GET only\n");
    } else if (request.path == "/healthz") {
      responder->Respond(200, kPlain, "ok\n");
    } else if (request.path == "/readyz") {
      const std::string reason = ready ? ready() : "";
      reason.empty() ? responder->Respond(200, kPlain, "ready\n")
                     : responder->Respond(503, kPlain, reason + "\n");
    } else if (request.path == "/metrics") {
      if (before_scrape) before_scrape();
      responder->Respond(200, kExposition, metrics->Text());
    } else {
      responder->Respond(404, kPlain, "expected /healthz, /readyz or /metrics\n");
    }
  };
  ASSIGN_OR_RETURN(admin->server_, HttpServer::Start(std::move(options), handler));
  admin->host_ = bind.host;
  return admin;
}

std::string AdminServer::address() const {
  const bool v6 = host_.find(':') != std::string::npos;
  return (v6 ? "[" + host_ + "]" : host_) + ":" + std::to_string(server_->port());
}

}  // namespace consilium
