// One TU holds all of Boost.Beast and Asio. Each worker has an io_context with one thread; a connection lives
// on one worker, so its reads, timers and writes need no lock. Handlers' threads reach it through `out_mu_`
// and Post.
#include <sys/resource.h>

#include <utility>  // before Asio: Boost 1.74 forgets it

#include "common/http/http_server.h"

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <unordered_set>

#include "common/base/status.h"

namespace consilium {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kReadAheadBytes = 16 << 10;  // kept of what a client sends while its answer is open
constexpr size_t kLingerBytesMax =
    64u << 20;  // read and dropped after an error answer, so that the client sees it
constexpr auto kLingerTime = std::chrono::seconds(2);
constexpr auto kAcceptRetry = std::chrono::milliseconds(50);  // after EMFILE and the like
constexpr uint32_t kRefusedMax = 256;  // connections beyond connections_max that still get a 503

bool EqualsNoCase(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto lower = [](unsigned char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; };
    if (lower(a[i]) != lower(b[i])) return false;
  }
  return true;
}

std::string Std(boost::beast::string_view s) { return std::string(s.data(), s.size()); }

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// False: a '%' without two hex digits, or a NUL.
bool PercentDecode(std::string_view in, std::string* out) {
  out->clear();
  for (size_t i = 0; i < in.size(); ++i) {
    if (in[i] != '%') {
      out->push_back(in[i]);
      continue;
    }
    if (i + 2 >= in.size()) return false;
    const int high = HexDigit(in[i + 1]), low = HexDigit(in[i + 2]);
    if (high < 0 || low < 0 || (high == 0 && low == 0)) return false;
    out->push_back(static_cast<char>(high * 16 + low));
    i += 2;
  }
  return true;
}

bool SplitTarget(std::string target, HttpRequest* request) {
  if (target.starts_with("http://")) {  // absolute form
    const size_t slash = target.find('/', 7);
    target = slash == std::string::npos ? "/" : target.substr(slash);
  }
  if (target == "*") {
    request->path = "*";
    return true;
  }
  if (target.empty() || target[0] != '/') return false;
  const size_t mark = target.find('?');
  if (mark != std::string::npos) request->query = target.substr(mark + 1);
  return PercentDecode(std::string_view(target).substr(0, mark), &request->path);
}

std::string HttpDate() {
  const std::time_t now = std::time(nullptr);
  std::tm tm{};
  gmtime_r(&now, &tm);
  char text[64];
  return std::string(text, std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm));
}

// Status line and headers, up to and with the empty line.
std::string Head(int status, const HttpHeaders& headers, std::string_view framing, bool keep_alive) {
  std::string out = "HTTP/1.1 " + std::to_string(status) + " ";
  out += Std(http::obsolete_reason(static_cast<http::status>(status)));
  out += "\r\nDate: " + HttpDate() + "\r\n";
  for (const auto& [name, value] : headers) {
    if ((name + value).find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos)
      continue;  // no injection
    out += name + ": " + value + "\r\n";
  }
  out += framing;
  out += keep_alive ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  return out;
}

class Connection;

// An io_context and its thread. Shared with the connections, since an answer may be held longer than the
// server lives.
struct Worker {
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> guard{io.get_executor()};
  std::thread thread;
  std::unordered_set<Connection*> connections;  // touched on the thread only
  std::atomic<bool> stopped{false};
};

// What all connections share.
struct Shared {
  HttpServerOptions options;
  HttpServer::Handler handler;
  std::atomic<bool> draining{false};
  std::mutex mu;
  std::condition_variable none_left;
  size_t open = 0;  // guarded by mu

  std::pair<std::string, std::string> ErrorBody(int status, std::string_view text) const {
    if (options.on_error) return options.on_error(status, text);
    return {"text/plain", std::string(text) + "\n"};
  }
};

// One request's answer. `mu_` orders callers; the connection is told under its own lock.
class Exchange final : public HttpResponder {
 public:
  Exchange(std::shared_ptr<Connection> connection, bool head, bool http10, bool keep_alive)
      : connection_(std::move(connection)), head_(head), http10_(http10), keep_alive_(keep_alive) {}
  ~Exchange() override;

  void Respond(int status, HttpHeaders headers, std::string body) override;
  void StartStream(int status, HttpHeaders headers) override;
  void Write(std::string chunk) override;
  void End() override;
  size_t pending_bytes() const override;
  bool closed() const override { return closed_.load(); }
  void OnClose(std::function<void()> callback) override;

  // On the server thread: the peer has gone.
  void PeerGone();

 private:
  enum class State { kOpen, kStreaming, kEnded };
  bool KeepAlive() const;

  const std::shared_ptr<Connection> connection_;
  const bool head_, http10_, keep_alive_;
  std::mutex mu_;
  State state_ = State::kOpen;
  std::function<void()> on_close_;
  std::atomic<bool> closed_{false};
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<Worker> worker, std::shared_ptr<Shared> shared)
      : worker_(std::move(worker)),
        shared_(std::move(shared)),
        socket_(std::move(socket)),
        timer_(worker_->io),
        write_timer_(worker_->io) {}

  void Start(bool refuse) {
    worker_->connections.insert(this);
    error_code ec;
    socket_.set_option(tcp::no_delay(true), ec);
    const auto endpoint = socket_.remote_endpoint(ec);
    if (!ec) peer_ = endpoint.address().to_string() + ":" + std::to_string(endpoint.port());
    if (refuse) {
      Fail(503, "too many connections");
    } else {
      ReadRequest();
    }
  }

  // Any thread. Appends to the output; `end`: the answer is complete; `close`: no keep-alive after it.
  void Enqueue(std::string bytes, bool end, bool close) {
    std::lock_guard lock(out_mu_);
    if (gone_) return;
    pending_.fetch_add(bytes.size());
    if (out_.empty()) {
      out_ = std::move(bytes);
    } else {
      out_ += bytes;
    }
    out_end_ = out_end_ || end;
    out_close_ = out_close_ || close;
    if (flush_posted_) return;
    flush_posted_ = true;
    asio::post(worker_->io, [self = shared_from_this()] { self->Flush(); });
  }
  // Any thread: an answer was dropped half way; the client must see that it is not whole.
  void Abort() {
    std::lock_guard lock(out_mu_);
    if (!gone_) asio::post(worker_->io, [self = shared_from_this()] { self->Close(); });
  }
  // Any thread: runs `f` on this connection's thread.
  void Post(std::function<void()> f) {
    if (!worker_->stopped.load()) asio::post(worker_->io, std::move(f));
  }
  size_t pending() const { return pending_.load(); }
  const Shared& shared() const { return *shared_; }

  // Server thread: closes if no request is under way.
  void CloseIfIdle() {
    if (!answering_ && !failing_ && buffer_.size() == 0 && !body_started_) Close();
  }

  void Close() {
    {
      std::lock_guard lock(out_mu_);
      if (gone_) return;
      gone_ = true;
      out_.clear();
    }
    error_code ec;
    timer_.cancel();
    write_timer_.cancel();
    socket_.close(ec);
    worker_->connections.erase(this);
    if (auto exchange = exchange_.lock()) exchange->PeerGone();
    std::lock_guard lock(shared_->mu);
    if (--shared_->open == 0) shared_->none_left.notify_all();
  }

 private:
  void Arm(uint32_t seconds) {
    timer_.expires_after(std::chrono::seconds(seconds));
    timer_.async_wait([self = weak_from_this()](error_code ec) {
      auto connection = self.lock();
      if (ec || !connection || connection->timer_.expiry() > std::chrono::steady_clock::now()) return;
      connection->OnReadTimeout();
    });
  }
  void OnReadTimeout() {
    if (answering_) return;
    if (failing_ || (buffer_.size() == 0 && !body_started_)) return Close();
    Fail(408, "the request did not arrive in time");
    error_code ec;
    socket_.cancel(ec);  // the read ends before the answer's write does
  }

  void ReadRequest() {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(shared_->options.header_bytes_max));
    parser_->body_limit(shared_->options.body_bytes_max);
    answering_ = false;
    body_started_ = false;
    // A whole request may lie in the buffer already; else the first byte ends the idle time.
    if (buffer_.size() != 0) return ReadHeader();
    Arm(shared_->options.idle_timeout_s);
    socket_.async_read_some(buffer_.prepare(kReadAheadBytes),
                            [self = shared_from_this()](error_code ec, size_t n) {
                              if (ec) return self->Close();
                              self->buffer_.commit(n);
                              self->ReadHeader();
                            });
  }

  void ReadHeader() {
    Arm(shared_->options.io_timeout_s);
    http::async_read_header(socket_, buffer_, *parser_, [self = shared_from_this()](error_code ec, size_t) {
      if (ec || self->failing_) return self->OnReadError(ec);
      self->body_started_ = true;
      if (!EqualsNoCase(Std(self->parser_->get()[http::field::expect]), "100-continue"))
        return self->ReadBody();
      asio::async_write(self->socket_, asio::buffer(std::string_view("HTTP/1.1 100 Continue\r\n\r\n")),
                        [self](error_code write_ec, size_t) {
                          if (write_ec) return self->Close();
                          self->ReadBody();
                        });
    });
  }

  void ReadBody() {
    http::async_read(socket_, buffer_, *parser_, [self = shared_from_this()](error_code ec, size_t) {
      if (ec || self->failing_) return self->OnReadError(ec);
      self->Dispatch();
    });
  }

  void OnReadError(error_code ec) {
    if (failing_) return;  // a time-out has answered
    if (ec == http::error::header_limit) return Fail(431, "the request's headers are too large");
    if (ec == http::error::body_limit)
      return Fail(413, "the request's body is larger than " +
                           std::to_string(shared_->options.body_bytes_max) + " bytes");
    const bool parse_error = ec.category() == make_error_code(http::error::bad_method).category();
    if (!parse_error || ec == http::error::end_of_stream || ec == http::error::partial_message)
      return Close();
    Fail(400, "malformed HTTP request: " + ec.message());
  }

  void Dispatch() {
    timer_.cancel();
    auto message = parser_->release();
    HttpRequest request;
    request.method = Std(message.method_string());
    const bool head = message.method() == http::verb::head, http10 = message.version() < 11;
    const bool keep_alive = message.keep_alive() && !http10;
    for (const auto& field : message)
      request.headers.emplace_back(Std(field.name_string()), Std(field.value()));
    request.peer = peer_;
    if (!SplitTarget(Std(message.target()), &request)) return Fail(400, "malformed request target");
    request.body = std::move(message.body());
    answering_ = true;
    auto exchange = std::make_shared<Exchange>(shared_from_this(), head, http10, keep_alive);
    exchange_ = exchange;
    if (!watching_) WatchPeer();
    shared_->handler(std::move(request), std::move(exchange));
  }

  // Reads on while the answer is open: the only way to see the peer go. What comes is kept for the next
  // request.
  void WatchPeer() {
    if (buffer_.size() >= kReadAheadBytes) return;  // a pipelining client: noticed at the next write instead
    watching_ = true;
    socket_.async_read_some(buffer_.prepare(kReadAheadBytes),
                            [self = shared_from_this()](error_code ec, size_t n) {
                              self->watching_ = false;
                              if (ec && ec != asio::error::operation_aborted) return self->Close();
                              self->buffer_.commit(n);
                              if (!self->socket_.is_open()) return;
                              if (self->failing_) return self->DropInput();
                              if (self->answering_) return self->WatchPeer();
                              self->NextRequest();
                            });
  }

  // The answer is sent. If the watch is still reading, it goes on when bytes come.
  void NextRequest() {
    if (!watching_) return ReadRequest();
    body_started_ = false;
    Arm(shared_->options.idle_timeout_s);
    error_code ec;
    if (buffer_.size() != 0) socket_.cancel(ec);  // a request waits already: end the watch
  }

  void Flush() {
    {
      std::lock_guard lock(out_mu_);
      if (gone_) return;
      inflight_.swap(out_);
      out_.clear();
      inflight_end_ = out_end_;
      inflight_close_ = out_close_;
      out_end_ = out_close_ = false;
      written_ = 0;
    }
    WriteSome();
  }

  void WriteSome() {
    if (written_ == inflight_.size()) return Flushed();
    write_timer_.expires_after(std::chrono::seconds(shared_->options.io_timeout_s));
    write_timer_.async_wait([self = weak_from_this()](error_code ec) {
      auto connection = self.lock();
      if (!ec && connection && connection->write_timer_.expiry() <= std::chrono::steady_clock::now())
        connection->Close();
    });
    socket_.async_write_some(asio::buffer(inflight_.data() + written_, inflight_.size() - written_),
                             [self = shared_from_this()](error_code ec, size_t n) {
                               if (ec) return self->Close();
                               self->pending_.fetch_sub(n);
                               self->written_ += n;
                               self->WriteSome();
                             });
  }

  void Flushed() {
    write_timer_.cancel();
    const bool end = inflight_end_, close = inflight_close_;
    inflight_.clear();
    bool more = false;
    {
      std::lock_guard lock(out_mu_);
      more = !out_.empty() || out_end_;
      flush_posted_ = more && !end;
    }
    if (end) {
      answering_ = false;
      exchange_.reset();
      if (failing_ || close) return Linger();
      if (shared_->draining.load() && buffer_.size() == 0) return Close();
      return NextRequest();
    }
    if (more) Flush();
  }

  // Answers an error of the protocol itself; the connection ends after it.
  void Fail(int status, std::string_view text) {
    failing_ = true;
    auto [type, body] = shared_->ErrorBody(status, text);
    const std::string framing = "Content-Length: " + std::to_string(body.size()) + "\r\n";
    HttpHeaders headers{{"Content-Type", type}};
    if (shared_->options.on_error) headers.emplace_back("x-request-id", RequestId());
    Enqueue(Head(status, headers, framing, false) + body, true, true);
  }

  // The client's own if it was read and is short and plain; else a new one: an error must be nameable.
  std::string RequestId() const {
    constexpr size_t kBytesMax = 128;
    const std::string_view plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/";
    const std::string given = parser_ ? Std(parser_->get()["x-request-id"]) : "";
    if (!given.empty() && given.size() <= kBytesMax && given.find_first_not_of(plain) == given.npos)
      return given;
    std::random_device random;
    char text[40];
    std::snprintf(text, sizeof text, "%08x%08x%08x%08x", random(), random(), random(), random());
    return text;
  }

  // Half-closes and drops what the client still sends: a plain close would reset the answer away.
  void Linger() {
    failing_ = true;
    error_code ec;
    socket_.shutdown(tcp::socket::shutdown_send, ec);
    if (ec) return Close();
    timer_.expires_after(kLingerTime);
    timer_.async_wait([self = shared_from_this()](error_code timer_ec) {
      if (!timer_ec) self->Close();
    });
    if (!watching_) DropInput();
  }
  void DropInput() {
    buffer_.consume(buffer_.size());
    socket_.async_read_some(buffer_.prepare(kReadAheadBytes),
                            [self = shared_from_this()](error_code ec, size_t n) {
                              self->dropped_ += n;
                              if (ec || self->dropped_ > kLingerBytesMax) return self->Close();
                              self->DropInput();
                            });
  }

  const std::shared_ptr<Worker> worker_;  // first: its io_context must outlive the socket and the timers
  const std::shared_ptr<Shared> shared_;
  tcp::socket socket_;
  asio::steady_timer timer_;        // reading and lingering
  asio::steady_timer write_timer_;  // progress of a write
  std::string peer_;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::weak_ptr<Exchange> exchange_;
  bool answering_ = false;     // a handler owns the answer
  bool body_started_ = false;  // the header is read
  bool watching_ = false;      // WatchPeer's read is under way
  bool failing_ = false;       // the last answer of this connection is on its way
  size_t dropped_ = 0;
  std::string inflight_;
  size_t written_ = 0;
  bool inflight_end_ = false, inflight_close_ = false;

  std::atomic<size_t> pending_{0};
  std::mutex out_mu_;  // guards what follows
  std::string out_;
  bool out_end_ = false, out_close_ = false;
  bool flush_posted_ = false;
  bool gone_ = false;
};

Exchange::~Exchange() {
  if (state_ == State::kOpen) {
    auto [type, body] = connection_->shared().ErrorBody(500, "the request was dropped");
    Respond(500, {{"Content-Type", type}}, std::move(body));
  } else if (state_ == State::kStreaming && !closed_) {
    connection_->Abort();
  }
}

bool Exchange::KeepAlive() const { return keep_alive_ && !connection_->shared().draining.load(); }

void Exchange::Respond(int status, HttpHeaders headers, std::string body) {
  std::function<void()> dropped;  // destroyed outside the lock
  std::lock_guard lock(mu_);
  if (state_ != State::kOpen) return;
  state_ = State::kEnded;
  dropped.swap(on_close_);
  const bool keep_alive = KeepAlive(), bodiless = status == 204 || status == 304;
  std::string framing = bodiless ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n";
  std::string bytes = Head(status, headers, framing, keep_alive);
  if (!head_ && !bodiless) bytes += body;
  connection_->Enqueue(std::move(bytes), true, !keep_alive);
}

void Exchange::StartStream(int status, HttpHeaders headers) {
  std::lock_guard lock(mu_);
  if (state_ != State::kOpen) return;
  state_ = State::kStreaming;
  connection_->Enqueue(Head(status, headers, http10_ ? "" : "Transfer-Encoding: chunked\r\n", KeepAlive()),
                       false, false);
}

void Exchange::Write(std::string chunk) {
  std::lock_guard lock(mu_);
  if (state_ != State::kStreaming || closed_ || head_ || chunk.empty()) return;
  if (http10_) return connection_->Enqueue(std::move(chunk), false, false);
  char size[24];
  const int n = std::snprintf(size, sizeof size, "%zx\r\n", chunk.size());
  std::string bytes;
  bytes.reserve(chunk.size() + static_cast<size_t>(n) + 2);
  bytes.append(size, static_cast<size_t>(n)).append(chunk).append("\r\n");
  connection_->Enqueue(std::move(bytes), false, false);
}

void Exchange::End() {
  std::function<void()> dropped;
  std::lock_guard lock(mu_);
  if (state_ != State::kStreaming) return;
  state_ = State::kEnded;
  dropped.swap(on_close_);
  connection_->Enqueue(head_ || http10_ ? "" : "0\r\n\r\n", true, !KeepAlive());
}

size_t Exchange::pending_bytes() const { return closed_ ? 0 : connection_->pending(); }

void Exchange::OnClose(std::function<void()> callback) {
  std::lock_guard lock(mu_);
  if (state_ == State::kEnded) return;
  if (closed_) {
    connection_->Post(std::move(callback));
  } else {
    on_close_ = std::move(callback);
  }
}

void Exchange::PeerGone() {
  std::function<void()> callback;
  {
    std::lock_guard lock(mu_);
    closed_ = true;
    callback.swap(on_close_);
  }
  if (callback) callback();
}

class Server final : public HttpServer {
 public:
  Server(HttpServerOptions options, Handler handler)
      : shared_(std::make_shared<Shared>()), acceptor_(accept_io_) {
    shared_->options = std::move(options);
    shared_->handler = std::move(handler);
  }
  ~Server() override {
    StopAccepting();
    CloseAll();
    for (auto& worker : workers_) worker->guard.reset();
    for (auto& worker : workers_) {
      worker->thread.join();
      worker->stopped = true;
    }
  }

  absl::Status Listen() {
    const HttpServerOptions& o = shared_->options;
    const std::string where = o.host + ":" + std::to_string(o.port);
    const auto fail = [&](const error_code& e) {
      return Unavailable("cannot listen on " + where + ": " + e.message());
    };
    error_code ec;
    tcp::resolver resolver(accept_io_);
    const auto found = resolver.resolve(o.host, std::to_string(o.port), tcp::resolver::passive, ec);
    if (ec || found.empty()) return fail(ec);
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), ec);
    if (ec) return fail(ec);
    acceptor_.set_option(asio::socket_base::reuse_address(true), ec);
    acceptor_.bind(endpoint, ec);
    if (ec) return fail(ec);
    acceptor_.listen(4096, ec);
    if (ec) return fail(ec);
    port_ = acceptor_.local_endpoint(ec).port();
    for (uint32_t i = 0; i < std::max(1u, o.threads); ++i) {
      workers_.push_back(std::make_shared<Worker>());
      workers_.back()->thread = std::thread([worker = workers_.back()] { worker->io.run(); });
    }
    Accept();
    accept_thread_ = std::thread([this] { accept_io_.run(); });
    return absl::OkStatus();
  }

  uint16_t port() const override { return port_; }
  size_t open_connections() const override {
    std::lock_guard lock(shared_->mu);
    return shared_->open;
  }
  void Shutdown(uint32_t grace_ms) override {
    StopAccepting();
    shared_->draining = true;
    ForEach([](Connection* c) { c->CloseIfIdle(); });
    {
      std::unique_lock lock(shared_->mu);
      shared_->none_left.wait_for(lock, std::chrono::milliseconds(grace_ms),
                                  [&] { return shared_->open == 0; });
    }
    CloseAll();
  }

 private:
  void Accept() {
    auto worker = workers_[next_++ % workers_.size()];
    acceptor_.async_accept(worker->io, [this, worker](error_code ec, tcp::socket socket) {
      if (ec == asio::error::operation_aborted || !acceptor_.is_open()) return;
      if (ec) {  // out of descriptors: go on when some are free again
        retry_.expires_after(kAcceptRetry);
        retry_.async_wait([this](error_code timer_ec) {
          if (!timer_ec) Accept();
        });
        return;
      }
      Admit(std::move(socket), worker);
      Accept();
    });
  }
  void Admit(tcp::socket socket, const std::shared_ptr<Worker>& worker) {
    const uint32_t max = shared_->options.connections_max;
    bool refuse = false;
    {
      std::lock_guard lock(shared_->mu);
      if (shared_->open >= size_t{max} + kRefusedMax) return;  // closes it
      refuse = shared_->open >= max;
      ++shared_->open;
    }
    auto connection = std::make_shared<Connection>(std::move(socket), worker, shared_);
    asio::post(worker->io, [connection, refuse] { connection->Start(refuse); });
  }
  void StopAccepting() {
    if (!accept_thread_.joinable()) return;
    asio::post(accept_io_, [this] {
      error_code ec;
      acceptor_.close(ec);
      retry_.cancel();
    });
    accept_thread_.join();
  }
  template <class F>
  void ForEach(F f) {
    for (auto& worker : workers_) {
      asio::post(worker->io, [raw = worker.get(), f] {
        std::vector<std::shared_ptr<Connection>> all;  // f may take them out of the set
        for (Connection* c : raw->connections) all.push_back(c->shared_from_this());
        for (auto& c : all) f(c.get());
      });
    }
  }
  void CloseAll() {
    ForEach([](Connection* c) { c->Close(); });
  }

  const std::shared_ptr<Shared> shared_;  // shared with connections, which may outlive the server
  asio::io_context accept_io_{1};
  tcp::acceptor acceptor_;
  asio::steady_timer retry_{accept_io_};
  std::thread accept_thread_;
  std::vector<std::shared_ptr<Worker>> workers_;
  size_t next_ = 0;
  uint16_t port_ = 0;
};

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (EqualsNoCase(key, name)) return value;
  }
  return "";
}

namespace {

// A connection is a file: the soft limit of a shell (often 1024) must not be the server's.
void RaiseFileLimit() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur == files.rlim_max) return;
  files.rlim_cur = files.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &files);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options, Handler handler) {
  RaiseFileLimit();
  auto server = std::make_unique<Server>(std::move(options), std::move(handler));
  RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace consilium
