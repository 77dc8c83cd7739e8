// The HTTP side: endpoints, keys, error shapes. Generations are handed to the StreamRouter.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "common/base/hash.h"
#include "common/http/http_server.h"
#include "services/gateway/stream_router.h"

namespace consilium::gateway {

struct GatewayOptions {
  std::vector<std::string> api_keys;  // empty: no authentication
  std::string cors_origin;            // empty: no CORS headers
  uint64_t seed_source = 0;           // of request ids and of seeds for requests without one
  RouterOptions router;
};

class Gateway {
 public:
  Gateway(ModelInfo model, GatewayOptions options, Metrics* metrics);
  // The HTTP server must be gone before.
  ~Gateway();
  // Thread-safe, does not block: HttpServer's handler.
  void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder);
  // For HttpServerOptions::on_error.
  static std::pair<std::string, std::string> HttpError(int status, std::string_view text);

  StreamRouter* router() { return &router_; }
  std::string NotReady() const;  // "" when a worker is ready

 private:
  struct Call;
  bool Authorized(const HttpRequest& request) const;
  HttpHeaders CommonHeaders(const std::string& request_id) const;
  std::string RequestId(const HttpRequest& request);
  uint64_t Random();
  void Route(Call* call);
  void Generate(Call* call, Endpoint endpoint);
  void Reply(Call* call, int status, std::string body) const;
  void ReplyError(Call* call, const ApiError& error) const;

  const ModelInfo model_;
  const GatewayOptions options_;
  std::vector<Digest> keys_;  // SHA-256 of each key
  mutable GatewayMetrics metrics_;
  std::atomic<uint64_t> random_counter_{0};
  StreamRouter router_;
};

}  // namespace consilium::gateway
