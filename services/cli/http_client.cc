#include "services/cli/http_client.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/version.hpp>
#include <chrono>
#include <limits>
#include <utility>  // Boost 1.74 needs it before its own headers

#include "common/base/status.h"

namespace consilium {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

}  // namespace

absl::StatusOr<HttpUrl> ParseUrl(std::string_view url) {
  const auto bad = [&] {
    return InvalidArgument("expected a URL http://host[:port][/path], got \"" + std::string(url) + "\"");
  };
  constexpr std::string_view kScheme = "http://";
  if (url.substr(0, kScheme.size()) != kScheme) return bad();
  std::string_view rest = url.substr(kScheme.size());
  const size_t slash = rest.find('/');
  HttpUrl out;
  out.path = slash == std::string_view::npos ? "/" : std::string(rest.substr(slash));
  std::string_view authority = rest.substr(0, slash);
  size_t colon = authority.rfind(':');
  if (!authority.empty() && authority.front() == '[') {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad();
    out.host = std::string(authority.substr(1, close - 1));
    if (colon < close) colon = std::string_view::npos;
  } else {
    out.host = std::string(authority.substr(0, colon));
  }
  out.port = colon == std::string_view::npos ? "80" : std::string(authority.substr(colon + 1));
  const bool digits = !out.port.empty() && out.port.size() <= 5 &&
                      out.port.find_first_not_of("0123456789") == std::string::npos;
  if (out.host.empty() || !digits) return bad();
  return out;
}

struct HttpClient::Impl {
  HttpUrl base;
  std::vector<std::pair<std::string, std::string>> headers;
  std::chrono::milliseconds timeout;
  net::io_context io;
  beast::tcp_stream stream{io};
  beast::flat_buffer buffer;
  bool open = false;

  // Runs one asynchronous step to its end, so that the stream's timeout works (it does not on blocking
  // calls).
  template <class Start>
  error_code Await(Start start) {
    error_code result = net::error::operation_aborted;
    stream.expires_after(timeout);
    start([&result](error_code error, auto&&...) { result = error; });
    io.restart();
    io.run();
    return result;
  }

  absl::Status Failed(const char* what, const error_code& error) {
    Close();
    return Unavailable(std::string(what) + " http://" + base.host + ":" + base.port + ": " + error.message());
  }

  void Close() {
    error_code ignored;
    stream.socket().close(ignored);
    buffer.clear();
    open = false;
  }

  absl::Status Connect() {
    if (open) return absl::OkStatus();
    net::ip::tcp::resolver resolver(io);
    error_code error;
    const auto found = resolver.resolve(base.host, base.port, error);
    if (error) return Failed("cannot resolve", error);
    error = Await([&](auto done) {
      stream.async_connect(found, [done](error_code e, const net::ip::tcp::endpoint&) mutable { done(e); });
    });
    if (error) return Failed("cannot connect to", error);
    stream.socket().set_option(net::ip::tcp::no_delay(true), error);
    open = true;
    return absl::OkStatus();
  }

  http::request<http::string_body> Request(std::string_view method, std::string_view path,
                                           std::string_view body) {
    http::request<http::string_body> request;
    request.method_string(beast::string_view(method.data(), method.size()));
    request.target(beast::string_view(path.data(), path.size()));
    request.version(11);
    request.set(http::field::host, base.host + ":" + base.port);
    request.set(http::field::user_agent, "consilium/" CONSILIUM_VERSION);
    for (const auto& [name, value] : headers) request.set(name, value);
    if (!body.empty()) {
      request.set(http::field::content_type, "application/json");
      request.body() = std::string(body);
    }
    request.prepare_payload();
    return request;
  }

  absl::StatusOr<HttpAnswer> Exchange(http::request<http::string_body> request,
                                      const std::function<bool(std::string_view)>* on_bytes);
};

absl::StatusOr<HttpAnswer> HttpClient::Impl::Exchange(http::request<http::string_body> request,
                                                      const std::function<bool(std::string_view)>* on_bytes) {
  http::response_parser<http::string_body> parser;
  for (int attempt = 0;; ++attempt) {
    const bool reused = open;
    RETURN_IF_ERROR(Connect());
    error_code error = Await([&](auto done) { http::async_write(stream, request, done); });
    if (!error) {
      parser.body_limit(std::numeric_limits<uint64_t>::max());  // none means 0 in Boost 1.74
      error = Await([&](auto done) { http::async_read_header(stream, buffer, parser, done); });
    }
    if (!error) break;
    // A kept connection may have been closed by the server meanwhile: once more on a new one.
    const absl::Status failed = Failed("no answer from", error);
    if (!reused || attempt > 0 || error == beast::error::timeout) return failed;
  }
  HttpAnswer answer;
  answer.status = parser.get().result_int();
  const bool streaming = on_bytes != nullptr && answer.status == 200;
  while (!parser.is_done()) {
    const error_code error = Await([&](auto done) { http::async_read_some(stream, buffer, parser, done); });
    if (error) return Failed("the answer broke off from", error);
    std::string part;
    part.swap(parser.get().body());
    if (!streaming) {
      answer.body += part;
    } else if (!part.empty() && !(*on_bytes)(part)) {
      Close();
      return answer;
    }
  }
  if (std::string& rest = parser.get().body(); !rest.empty()) {
    if (streaming) {
      (*on_bytes)(rest);
    } else {
      answer.body += rest;
    }
  }
  if (!parser.keep_alive()) Close();
  return answer;
}

HttpClient::HttpClient(HttpUrl base, std::vector<std::pair<std::string, std::string>> headers, int timeout_ms)
    : impl_(new Impl) {
  impl_->base = std::move(base);
  impl_->headers = std::move(headers);
  impl_->timeout = std::chrono::milliseconds(timeout_ms);
}

HttpClient::~HttpClient() = default;

absl::StatusOr<HttpAnswer> HttpClient::Call(std::string_view method, std::string_view path,
                                            std::string_view body) {
  return impl_->Exchange(impl_->Request(method, path, body), nullptr);
}

absl::StatusOr<HttpAnswer> HttpClient::Stream(std::string_view path, std::string_view body,
                                              const std::function<bool(std::string_view)>& on_bytes) {
  return impl_->Exchange(impl_->Request("POST", path, body), &on_bytes);
}

absl::StatusOr<HttpAnswer> HttpGet(const std::string& url, int timeout_ms) {
  ASSIGN_OR_RETURN(const HttpUrl parsed, ParseUrl(url));
  return HttpClient(parsed, {}, timeout_ms).Call("GET", parsed.path, "");
}

bool SseReader::Feed(std::string_view bytes, const std::function<bool(std::string_view)>& on_data) {
  for (const char c : bytes) {
    if (c != '\n') {
      line_ += c;
      continue;
    }
    if (!line_.empty() && line_.back() == '\r') line_.pop_back();
    constexpr std::string_view kData = "data:";
    if (std::string_view(line_).substr(0, kData.size()) == kData) {
      std::string_view data = std::string_view(line_).substr(kData.size());
      if (!data.empty() && data.front() == ' ') data.remove_prefix(1);
      if (!on_data(data)) return false;
    }
    line_.clear();
  }
  return true;
}

}  // namespace consilium
