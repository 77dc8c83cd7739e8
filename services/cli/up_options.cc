#include "services/cli/up_options.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "services/cli/processes.h"
#include "services/cli/spawn.h"

namespace consilium {

void UpOptions::AddTo(Options* o) {
  o->Add(&model, "model",
         "Hugging Face folder of the model, or a .gguf file; empty: models/demo of this checkout");
  o->Add(&model_name, "model-name", "name of the model in the API; empty: the folder's name");
  o->Add(&attention, "attention", "attention workers", 1u, 64u);
  o->Add(&experts, "experts", "expert shards; 0: 3, or 1 with --inprocess", 0u, 256u);
  o->Add(&replicas, "replicas", "copies of each expert, on different shards", 1u, 64u);
  o->Add(&tool_parser, "tool-parser", "format of the model's tool calls; names: consilium-gateway --help");
  o->Add(&reasoning_parser, "reasoning-parser",
         "format of the model's reasoning; auto: by its chat template");
  o->Add(&host, "host", "address of the HTTP API; all else stays on loopback");
  o->Add(&port, "port", "port of the HTTP API; 0: any free port", 0u, 65535u);
  o->Add(&state_dir, "state-dir", "logs and processes.json; empty: $XDG_STATE_HOME/consilium, else ./state");
  o->Add(&threads, "threads", "kernel threads a process; 0: cores / compute processes", 0u, 1024u);
  numerics.AddTo(o);
  o->AddChoice(&ops, "ops", "kernels; all give the same bits", {"auto", "scalar", "avx2", "avx512"});
  o->Add(&api_keys, "api-key", "key that a client must send; repeat for several; none: open");
  o->Add(&inprocess, "inprocess", "all services in this one process");
  o->Add(&kv_mb, "kv-mb", "MiB of KV cache an attention worker", 1u, 1u << 20);
  o->Add(&capacity_mb, "capacity-mb", "MiB of experts a shard may hold", 1u, 1u << 24);
  o->Add(&prefill_chunk, "prefill-chunk", "prompt tokens of one request a step takes; 0: as many as fit", 0u,
         2048u);
  o->Add(&max_flight_rows, "max-flight-rows", "rows of one micro-batch", 1u, 2048u);
  o->Add(&flights, "flights", "micro-batches at a time", 1u, 4u);
  o->Add(&prefix_cache, "prefix-cache", "reuse KV blocks of equal prompt beginnings");
  o->Add(&lease_ms, "lease-ms", "ms without a heartbeat until the controller drops a member", 300u, 600000u);
  o->AddChoice(&local_transport, "local-transport",
               "between workers and shards, auto: a local socket, which costs less than gRPC; off: gRPC",
               {"auto", "off"});
  o->Add(&start_timeout_s, "start-timeout-s", "seconds until all must be ready", 1u, 86400u);
  o->Add(&ask, "ask", "once ready, ask this and print the answer");
  o->Add(&once, "once", "stop after the answer to --ask");
  o->AddChoice(&log_level, "log-level", "least severe lines to log", {"debug", "info", "warn", "error"});
  o->AddChoice(&log_format, "log-format", "log lines as text or JSON", {"text", "json"});
}

void UpOptions::Complete() {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (model.empty()) {
    model = "models/demo";
    if (!fs::exists(model, ignored)) model = ProgramFolder() + "/../../models/demo";
  }
  model = fs::absolute(model, ignored).lexically_normal();
  while (model.size() > 1 && model.back() == '/') model.pop_back();
  if (model_name.empty())
    model_name = model.ends_with(".gguf") ? fs::path(model).stem() : fs::path(model).filename();
  if (state_dir.empty()) state_dir = DefaultStateDir();
  state_dir = fs::absolute(state_dir, ignored).lexically_normal();
  if (experts == 0) experts = std::max(replicas, inprocess ? 1u : 3u);
  if (threads == 0) {
    cpu_set_t set;
    const long cores =
        sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    const uint32_t processes = inprocess ? 1 : attention + experts;
    threads = std::max(1u, static_cast<uint32_t>(std::max(1L, cores)) / processes);
  }
}

}  // namespace consilium
