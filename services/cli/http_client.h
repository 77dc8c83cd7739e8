// A small blocking HTTP/1.1 client for the command line: one connection, kept open between calls. Boost.Beast
// is seen by http_client.cc alone.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace consilium {

struct HttpUrl {
  std::string host;
  std::string port;  // "80" if not given
  std::string path;  // "/" if not given
};
// http:// only. INVALID_ARGUMENT says what was expected.
absl::StatusOr<HttpUrl> ParseUrl(std::string_view url);

struct HttpAnswer {
  int status = 0;
  std::string body;  // what was not given to the stream callback
};

class HttpClient {
 public:
  // `timeout_ms` bounds each wait (connect, send, next bytes), not the whole call.
  HttpClient(HttpUrl base, std::vector<std::pair<std::string, std::string>> headers, int timeout_ms);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // UNAVAILABLE with host, port and reason if there is no answer.
  absl::StatusOr<HttpAnswer> Call(std::string_view method, std::string_view path, std::string_view body);
  // A 200 answer's body goes to `on_bytes` as it comes; false ends the call (and the connection).
  absl::StatusOr<HttpAnswer> Stream(std::string_view path, std::string_view body,
                                    const std::function<bool(std::string_view)>& on_bytes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

absl::StatusOr<HttpAnswer> HttpGet(const std::string& url, int timeout_ms);

// Cuts a server-sent event stream into the texts after "data: ".
class SseReader {
 public:
  // Calls `on_data` for each complete event in the bytes so far; stops early when it returns false.
  bool Feed(std::string_view bytes, const std::function<bool(std::string_view)>& on_data);

 private:
  std::string line_;
};

}  // namespace consilium
