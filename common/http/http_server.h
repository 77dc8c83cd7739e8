// An HTTP/1.1 server: keep-alive, pipelining off, thousands of open streams on few threads. Handlers get a
// whole request and answer whole or as a stream of chunks, from any thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // without query, percent-decoded
  std::string query;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::string peer;
  // First header of that name (any case), or "".
  std::string_view header(std::string_view name) const;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// Answers one request. Thread-safe; methods never block. Exactly one of Respond, or StartStream..End.
// Dropping it unanswered sends a 500.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void Respond(int status, HttpHeaders headers, std::string body) = 0;
  virtual void StartStream(int status, HttpHeaders headers) = 0;  // Transfer-Encoding: chunked
  virtual void Write(std::string chunk) = 0;                      // ignored once the peer is gone
  virtual void End() = 0;
  // Bytes written but not yet taken by the kernel: a slow reader. The caller bounds it.
  virtual size_t pending_bytes() const = 0;
  virtual bool closed() const = 0;
  // Called at most once, from a server thread, when the peer goes away before the answer is complete.
  virtual void OnClose(std::function<void()> callback) = 0;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  uint32_t threads = 1;
  size_t body_bytes_max = size_t{16} << 20;  // beyond: 413 from `on_error`
  size_t header_bytes_max = size_t{64} << 10;
  uint32_t connections_max = 20000;
  uint32_t idle_timeout_s = 75;  // keep-alive without a request
  uint32_t io_timeout_s = 60;    // a request not yet whole: 408; no progress of a write: closed
  // Body of an error the server answers itself (400 malformed, 408, 413, 431, 503); default: text/plain.
  std::function<std::pair<std::string /*content type*/, std::string /*body*/>(int status,
                                                                              std::string_view text)>
      on_error;
};

class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest, std::shared_ptr<HttpResponder>)>;
  // Handlers run on server threads and must not block. UNAVAILABLE with host, port and reason if it cannot
  // bind.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options, Handler handler);
  virtual ~HttpServer() = default;  // closes at once
  virtual uint16_t port() const = 0;
  // Stops accepting, lets open answers end until `grace_ms`, then closes.
  virtual void Shutdown(uint32_t grace_ms) = 0;
  virtual size_t open_connections() const = 0;
};

}  // namespace consilium
