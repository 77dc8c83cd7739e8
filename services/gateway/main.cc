// consilium-gateway: wires options, model, router, gRPC and HTTP.
#include <filesystem>
#include <fstream>
#include <random>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/config/options.h"
#include "common/config/service_main.h"
#include "common/log/log.h"
#include "common/metrics/admin_server.h"
#include "services/gateway/gateway.h"
#include "services/gateway/worker_directory.h"

namespace consilium::gateway {
namespace {

std::string Joined(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

struct Flags {
  std::string name = "gateway-0", listen = "127.0.0.1:8000", controller, model, model_name, api_key_file,
              port_file, cors_origin;
  ParserNames parsers;
  std::vector<std::string> attention, api_keys;
  uint32_t threads = 2, shutdown_grace_ms = 10000, body_bytes_max = kHttpBodyBytesMax,
           connections_max = 20000;
  uint32_t stream_pending_bytes_max = 1 << 20;
  RouterOptions router;
  ServiceOptions service;

  void AddTo(Options* o) {
    o->Add(&name, "name", "name of this gateway in the cluster");
    o->Add(&listen, "listen", "host:port of the API; port 0: any");
    o->Add(&controller, "controller", "host:port of the controller, which knows the attention workers");
    o->Add(&attention, "attention",
           "host:port of an attention worker, dialled without a controller; repeatable");
    o->Add(&model, "model", "Hugging Face folder: tokenizer, chat template, generation config");
    o->Add(&model_name, "model-name", "the model's id at the API; empty: the folder's name");
    o->Add(&parsers.tools, "tool-parser", "format of the model's tool calls: " + Joined(ToolParserNames()));
    o->Add(&parsers.reasoning, "reasoning-parser",
           "format of the model's reasoning: " + Joined(ReasoningParserNames()));
    o->Add(&threads, "threads", "threads for HTTP", 1, 256);
    o->Add(&api_keys, "api-key", "a key clients must send; repeatable; none: no authentication");
    o->Add(&api_key_file, "api-key-file", "file with one key a line; lines with # are comments");
    o->Add(&cors_origin, "cors-origin", "value of Access-Control-Allow-Origin; empty: no CORS headers");
    o->Add(&port_file, "port-file", "write the bound addresses there");
    o->Add(&router.admission_wait_ms, "admission-wait-ms",
           "ms a request waits for a first worker before it gets 503", 0, 600000);
    o->Add(&router.resume_wait_ms, "resume-wait-ms",
           "ms a request waits for another worker after a loss before it gets 503", 0, 600000);
    o->Add(&router.request_timeout_ms, "request-timeout-ms", "ms a request may take as a whole", 1, 86400000);
    o->Add(&router.requests_max, "requests-max", "requests under way at once; beyond: 429", 1, 1000000);
    o->Add(&stream_pending_bytes_max, "stream-pending-bytes-max",
           "bytes a client may leave unread before its stream is cut", 4096, 1u << 30);
    o->Add(&body_bytes_max, "body-bytes-max", "bytes of a request's body; beyond: 413", 1024, 1u << 30);
    o->Add(&connections_max, "connections-max", "open connections; beyond: 503", 1, 1000000);
    o->Add(&shutdown_grace_ms, "shutdown-grace-ms", "ms open answers may take to end at SIGTERM", 0, 600000);
    o->Required("model");
    service.AddTo(o);
  }
};

absl::Status ReadKeyFile(const std::string& path, std::vector<std::string>* keys) {
  std::ifstream in(path);
  if (!in) return NotFound("--api-key-file: cannot read " + path);
  const size_t before = keys->size();
  for (std::string line; std::getline(in, line);) {
    line.erase(line.find_last_not_of(" \t\r") + 1);
    line.erase(0, line.find_first_not_of(" \t"));
    if (!line.empty() && line[0] != '#') keys->push_back(line);
  }
  if (keys->size() == before) return InvalidArgument("--api-key-file: " + path + " holds no key");
  return absl::OkStatus();
}

uint64_t Entropy() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// Members in the order they are made; the destructor ends them the other way round.
struct Process {
  Metrics metrics;
  std::unique_ptr<Gateway> gateway;
  std::unique_ptr<WorkerDirectory> directory;
  std::unique_ptr<AdminServer> admin;
  std::unique_ptr<HttpServer> http;
};

absl::StatusOr<std::shared_ptr<Process>> Start(Flags flags) {
  HostPort listen;
  if (!ParseHostPort(flags.listen, &listen))
    return InvalidArgument("--listen: expected host:port, got " + flags.listen);
  if (flags.controller.empty() && flags.attention.empty())
    return InvalidArgument("--controller or --attention is needed: where are the attention workers?");
  for (const std::string& key : flags.api_keys) {
    if (key.empty()) return InvalidArgument("--api-key: a key must not be empty");
  }
  if (!flags.api_key_file.empty()) RETURN_IF_ERROR(ReadKeyFile(flags.api_key_file, &flags.api_keys));
  std::filesystem::path dir = std::filesystem::path(flags.model).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();
  ASSIGN_OR_RETURN(
      ModelInfo model,
      LoadModelInfo(flags.model, flags.model_name.empty() ? dir.filename().string() : flags.model_name,
                    flags.parsers));
  model.created = static_cast<int64_t>(std::time(nullptr));

  auto process = std::make_shared<Process>();
  GatewayOptions options;
  options.api_keys = flags.api_keys;
  options.cors_origin = flags.cors_origin;
  options.seed_source = Entropy();
  options.router = flags.router;
  options.router.stream_pending_bytes_max = flags.stream_pending_bytes_max;
  process->gateway = std::make_unique<Gateway>(std::move(model), std::move(options), &process->metrics);
  Gateway* gateway = process->gateway.get();
  process->directory = std::make_unique<WorkerDirectory>(
      DirectoryOptions{flags.name, flags.controller, flags.attention}, gateway->router());
  ASSIGN_OR_RETURN(process->admin, AdminServer::Start(flags.service.admin, &process->metrics,
                                                      [gateway] { return gateway->NotReady(); }));
  HttpServerOptions http;
  http.host = listen.host;
  http.port = listen.port;
  http.threads = flags.threads;
  http.body_bytes_max = flags.body_bytes_max;
  http.header_bytes_max = kHttpHeaderBytesMax;
  http.connections_max = flags.connections_max;
  http.on_error = Gateway::HttpError;
  ASSIGN_OR_RETURN(
      process->http,
      HttpServer::Start(http, [gateway](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        gateway->Handle(std::move(request), std::move(responder));
      }));
  const std::string address = listen.host + ":" + std::to_string(process->http->port());
  RETURN_IF_ERROR(WritePortFile(flags.port_file, address, process->admin->address()));
  log::Info("listening",
            {{"address", address}, {"admin", process->admin->address()}, {"model", flags.model}});
  return process;
}

int Main(int argc, char** argv) {
  Flags flags;
  Options options("consilium-gateway", "OpenAI-compatible HTTP API in front of the attention workers");
  flags.AddTo(&options);
  if (const auto code = options.Parse(argc, argv)) return *code;
  flags.service.ConfigureLog("gateway");
  return RunService("consilium-gateway", [&]() -> absl::StatusOr<std::function<void()>> {
    ASSIGN_OR_RETURN(std::shared_ptr<Process> process, Start(flags));
    return std::function<void()>([process, grace = flags.shutdown_grace_ms] {
      process->gateway->router()->Drain();
      process->http->Shutdown(grace);
    });
  });
}

}  // namespace
}  // namespace consilium::gateway

int main(int argc, char** argv) { return consilium::gateway::Main(argc, argv); }
