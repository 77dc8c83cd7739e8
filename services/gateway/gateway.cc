#include "services/gateway/gateway.h"

#include <ctime>

#include "common/base/status.h"
#include "common/log/log.h"
#include "services/gateway/json_out.h"

namespace consilium::gateway {
namespace {

constexpr size_t kRequestIdMax = 128;

Digest KeyDigest(std::string_view key) {
  Sha256 sha;
  sha.Update(key);
  return sha.Finish();
}

// Time does not depend on where the two differ.
bool EqualDigests(const Digest& a, const Digest& b) {
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(a[i] ^ b[i]);
  return difference == 0;
}

std::string Hex64(uint64_t x) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
  return text;
}

ApiError Error(int status, std::string message, std::string code = "") {
  ApiError error;
  error.status = status;
  error.message = std::move(message);
  error.code = std::move(code);
  return error;
}

// The method a path takes; nullptr: no such path.
const char* MethodOf(const std::string& path) {
  if (path == "/v1/chat/completions" || path == "/v1/completions" || path == "/tokenize" ||
      path == "/detokenize")
    return "POST";
  if (path == "/v1/models" || path == "/health" || path == "/version" || path.starts_with("/v1/models/"))
    return "GET";
  return nullptr;
}

}  // namespace

struct Gateway::Call {
  HttpRequest request;
  std::shared_ptr<HttpResponder> responder;  // shared with the server
  std::string request_id, endpoint = "other";
  MonoTime arrived = NowUs();
};

Gateway::Gateway(ModelInfo model, GatewayOptions options, Metrics* metrics)
    : model_(std::move(model)),
      options_(std::move(options)),
      metrics_(metrics, model_.name),
      router_(options_.router, model_, &metrics_) {
  for (const std::string& key : options_.api_keys) keys_.push_back(KeyDigest(key));
}
Gateway::~Gateway() = default;

std::string Gateway::NotReady() const {
  return router_.ready_workers() > 0 ? "" : "no attention worker is ready";
}

uint64_t Gateway::Random() { return Mix(options_.seed_source, random_counter_.fetch_add(1)); }

std::pair<std::string, std::string> Gateway::HttpError(int status, std::string_view text) {
  ApiError error = Error(status, std::string(text));
  if (status >= 500) error.type = "server_error";
  return {"application/json", ErrorJson(error)};
}

bool Gateway::Authorized(const HttpRequest& request) const {
  if (keys_.empty()) return true;
  std::string_view header = request.header("authorization");
  constexpr std::string_view kBearer = "Bearer ";
  if (!header.starts_with(kBearer)) return false;
  const Digest given = KeyDigest(header.substr(kBearer.size()));
  bool found = false;
  for (const Digest& key : keys_) found |= EqualDigests(given, key);
  return found;
}

std::string Gateway::RequestId(const HttpRequest& request) {
  const std::string_view given = request.header("x-request-id");
  const bool good = !given.empty() && given.size() <= kRequestIdMax &&
                    given.find_first_not_of(
                        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/") == given.npos;
  return good ? std::string(given) : Hex64(Random()) + Hex64(Random());
}

HttpHeaders Gateway::CommonHeaders(const std::string& request_id) const {
  HttpHeaders headers{{"x-request-id", request_id}};
  if (!options_.cors_origin.empty()) {
    headers.emplace_back("Access-Control-Allow-Origin", options_.cors_origin);
    headers.emplace_back("Access-Control-Expose-Headers", "x-request-id, retry-after");
    headers.emplace_back("Vary", "Origin");
  }
  return headers;
}

void Gateway::Reply(Call* call, int status, std::string body) const {
  HttpHeaders headers = CommonHeaders(call->request_id);
  if (!body.empty()) headers.emplace_back("Content-Type", "application/json");
  call->responder->Respond(status, std::move(headers), std::move(body));
  metrics_.CountRequest(call->endpoint, status);
  log::Debug("answered", {{"request_id", call->request_id},
                          {"path", call->request.path},
                          {"status", status},
                          {"total_us", NowUs() - call->arrived}});
}

void Gateway::ReplyError(Call* call, const ApiError& error) const {
  HttpHeaders headers = CommonHeaders(call->request_id);
  headers.emplace_back("Content-Type", "application/json");
  if (error.retry_after_s > 0) headers.emplace_back("Retry-After", std::to_string(error.retry_after_s));
  if (error.status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (const char* allow = MethodOf(call->request.path); error.status == 405 && allow != nullptr)
    headers.emplace_back("Allow", allow);
  call->responder->Respond(error.status, std::move(headers), ErrorJson(error));
  metrics_.CountRequest(call->endpoint, error.status);
  log::Info("refused", {{"request_id", call->request_id},
                        {"path", call->request.path},
                        {"status", error.status},
                        {"error", error.message},
                        {"peer", call->request.peer}});
}

void Gateway::Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  Call call{std::move(request), std::move(responder), "", "other", NowUs()};
  call.request_id = RequestId(call.request);
  if (call.request.path == "/v1/chat/completions") call.endpoint = "chat";
  if (call.request.path == "/v1/completions") call.endpoint = "completions";
  try {
    Route(&call);
  } catch (const std::exception& e) {  // a library's exception on odd input: the process must live
    ReplyError(&call, Error(400, std::string("The request could not be processed: ") + e.what()));
  }
}

void Gateway::Route(Call* call) {
  const HttpRequest& request = call->request;
  const std::string& path = request.path;
  if (request.method == "OPTIONS" && !options_.cors_origin.empty()) {
    HttpHeaders headers = CommonHeaders(call->request_id);
    headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    headers.emplace_back("Access-Control-Allow-Headers", "authorization, content-type, x-request-id");
    headers.emplace_back("Access-Control-Max-Age", "86400");
    return call->responder->Respond(204, std::move(headers), "");
  }
  const char* method = MethodOf(path);
  if (method == nullptr)
    return ReplyError(call,
                      Error(404, "Unknown request URL: " + request.method + " " + path + ".", "unknown_url"));
  const bool get_as_head = request.method == "HEAD" && std::string_view(method) == "GET";
  if (request.method != method && !get_as_head)
    return ReplyError(call, Error(405,
                                  "Not allowed to " + request.method + " on " + path +
                                      ". (HINT: Perhaps you meant to make a " + method + " request.)",
                                  "method_not_supported"));
  if (path == "/health") return Reply(call, NotReady().empty() ? 200 : 503, "");
  if (path == "/version") return Reply(call, 200, "{\"version\":\"" CONSILIUM_VERSION "\"}");
  if (!Authorized(request)) {
    return ReplyError(call, Error(401,
                                  request.header("authorization").empty()
                                      ? "You didn't provide an API key. Provide it in an Authorization "
                                        "header: 'Authorization: Bearer KEY'."
                                      : "Incorrect API key provided.",
                                  "invalid_api_key"));
  }
  const ParseLimits limits = router_.limits();
  if (path == "/v1/models")
    return Reply(call, 200,
                 "{\"object\":\"list\",\"data\":[" + ModelJson(model_, limits.context_tokens) + "]}");
  if (path.starts_with("/v1/models/")) {
    const std::string id = path.substr(std::string_view("/v1/models/").size());
    if (id == model_.name) return Reply(call, 200, ModelJson(model_, limits.context_tokens));
    ApiError error = Error(404, "The model '" + id + "' does not exist", "model_not_found");
    error.param = "model";
    return ReplyError(call, error);
  }
  if (path == "/v1/chat/completions") return Generate(call, Endpoint::kChat);
  if (path == "/v1/completions") return Generate(call, Endpoint::kCompletions);
  std::string out;
  const auto error = path == "/tokenize" ? Tokenize(request.body, model_, limits, &out)
                                         : Detokenize(request.body, model_, limits, &out);
  if (error) return ReplyError(call, *error);
  Reply(call, 200, std::move(out));
}

void Gateway::Generate(Call* call, Endpoint endpoint) {
  const ParseLimits limits = router_.limits();
  if (limits.context_tokens == 0) {  // config.json does not say it, and no worker has yet
    return ReplyError(
        call, ServerError(503, "No worker is ready for the model. Please try again later.", "no_worker"));
  }
  ApiRequest request;
  const auto error = endpoint == Endpoint::kChat
                         ? ParseChat(call->request.body, model_, limits, &request)
                         : ParseCompletions(call->request.body, model_, limits, &request);
  if (error) return ReplyError(call, *error);
  for (const std::string& name : request.ignored)
    log::Debug("unknown field ignored", {{"request_id", call->request_id}, {"field", name}});
  const uint64_t seed = request.seed ? *request.seed : Random();
  Identity identity{Hex64(Random()) + Hex64(Random()).substr(0, 8), static_cast<int64_t>(std::time(nullptr)),
                    model_.name, ""};
  StreamRouter::Start start;
  start.generation = std::make_unique<Generation>(std::move(request), model_.tokenizer, std::move(identity),
                                                  seed, limits.context_tokens);
  start.responder = call->responder;
  start.headers = CommonHeaders(call->request_id);
  start.request_id = call->request_id;
  start.endpoint = call->endpoint;
  if (const auto refused = router_.Run(std::move(start))) ReplyError(call, *refused);
}

}  // namespace consilium::gateway
