// consilium: the whole system on one machine, and a client for it.
#include <cstdio>
#include <string>

#include "common/base/status.h"
#include "common/config/options.h"
#include "common/model/inspect.h"
#include "services/cli/bench.h"
#include "services/cli/chat.h"
#include "services/cli/import.h"
#include "services/cli/perplexity.h"
#include "services/cli/processes.h"
#include "services/cli/up.h"
#include "services/cli/verify.h"

namespace consilium {
namespace {

constexpr char kDefaultUrl[] = "http://127.0.0.1:8080";
constexpr char kModelHelp[] = "Hugging Face folder or GGUF file";

// --url, else the gateway that the last `up` in the state folder started.
std::string UrlOr(const std::string& url, const std::string& state_dir) {
  if (!url.empty()) return url;
  const auto table = ReadProcesses(state_dir.empty() ? DefaultStateDir() : state_dir);
  return table.ok() && !table->url.empty() ? table->url : kDefaultUrl;
}

void AddTarget(Options* options, ApiTarget* target, std::string* state_dir) {
  options->Add(&target->url, "url",
               "of the gateway; empty: the one that `up` started here, else " + std::string(kDefaultUrl));
  options->Add(state_dir, "state-dir", "where `up` keeps processes.json; empty: as `up`");
  options->Add(&target->model, "model", "name of the model; empty: the server's first");
  options->Add(&target->api_key, "api-key", "sent as a bearer token");
}

// What commands that run a model in this process have.
void AddLocalRun(Options* options, std::string* model, std::string* ops, uint32_t* threads,
                 std::string* state_dir, bool* json) {
  options->AddPositional(model, "MODEL", kModelHelp, true);
  options->AddChoice(ops, "ops", "kernels; all give the same bits",
                     {"auto", "ref", "scalar", "avx2", "avx512"});
  options->Add(threads, "threads", "kernel threads; 0: the cores of this process", 0u, 1024u);
  options->Add(state_dir, "state-dir", "keeps hashes of the model's weights; empty: as `up`");
  options->Add(json, "json", "print as JSON");
}

// Each command: its options, and what it does with them; the exit code comes back.
struct Ps {
  std::string state_dir;
  bool json = false;
  void AddTo(Options* o) {
    o->Add(&state_dir, "state-dir", "where `up` keeps processes.json; empty: as `up`");
    o->Add(&json, "json", "print a JSON list of {role, name, pid, address, state}");
  }
  int Run() const {
    auto table = ReadProcesses(state_dir.empty() ? DefaultStateDir() : state_dir);
    if (!table.ok()) {
      std::fprintf(stderr, "consilium ps: %s\n", Message(table.status()).c_str());
      return 1;
    }
    ProbeStates(&*table, 500);
    std::fputs((json ? ProcessesJson(table->processes) : ProcessesText(table->processes)).c_str(), stdout);
    return 0;
  }
};

struct Chat {
  ChatOptions options;
  std::string state_dir, text;
  void AddTo(Options* o) {
    AddTarget(o, &options.target, &state_dir);
    o->Add(&options.message, "message,m", "ask this one question and end");
    o->AddPositional(&text, "TEXT", "as --message", false);
    o->Add(&options.system, "system", "system message; empty: none");
    o->Add(&options.sampling.temperature, "temperature", "0: always the likeliest token", 0.0, 2.0);
    o->Add(&options.sampling.top_p, "top-p", "sample from the likeliest tokens up to this probability", 0.0,
           1.0);
    o->Add(&options.sampling.max_tokens, "max-tokens", "tokens of an answer; 0: as many as fit", 0u,
           1u << 20);
    o->Add(&options.sampling.seed, "seed", "of the sampling; -1: the server's choice", int64_t{-1},
           INT64_MAX);
  }
  int Run() {
    options.target.url = UrlOr(options.target.url, state_dir);
    if (options.message.empty()) options.message = text;
    return RunChat(options);
  }
};

struct Bench {
  BenchOptions options;
  std::string state_dir;
  void AddTo(Options* o) {
    AddTarget(o, &options.target, &state_dir);
    o->Add(&options.concurrency, "concurrency", "streams at a time, one run each");
    o->Add(&options.prompt_tokens, "prompt-tokens", "tokens of a prompt", 1u, 1u << 20);
    o->Add(&options.output_tokens, "output-tokens", "tokens of an answer", 1u, 1u << 20);
    o->Add(&options.requests, "requests", "requests of one run; 0: 4 a stream, at least 8", 0u, 1u << 24);
    o->Add(&options.vocabulary, "vocabulary", "prompt ids are drawn from 10 to this", 11u, 1u << 20);
    o->Add(&options.temperature, "temperature", "0: always the likeliest token", 0.0, 2.0);
    o->Add(&options.seed, "seed", "of prompts and sampling", int64_t{0}, int64_t{1} << 40);
    o->Add(&options.json_file, "json", "write the results to this file");
  }
  int Run() {
    options.target.url = UrlOr(options.target.url, state_dir);
    return RunBench(options);
  }
};

struct Inspect {
  InspectOptions options;
  std::string model;
  void AddTo(Options* o) {
    o->AddPositional(&model, "MODEL", kModelHelp, true);
    o->Add(&options.json, "json", "print as JSON");
    o->Add(&options.shard_memory, "shard-memory",
           "memory of an expert shard, such as 24GiB; repeat for several; none: 24, 48, 80 GiB");
    o->Add(&options.tokens, "tokens", "held in the KV cache of the attention service; 0: the model's context",
           0u, UINT32_MAX);
    o->AddChoice(&options.weights_as, "weights-as", "routed experts in memory, as of `up`",
                 {"stored", "int8", "int4"});
  }
  int Run() const {
    const absl::StatusOr<std::string> text = DescribeModel(model, options);
    if (!text.ok()) {
      std::fprintf(stderr, "consilium inspect: %s\n", Message(text.status()).c_str());
      return 1;
    }
    std::fputs(text->c_str(), stdout);
    return 0;
  }
};

struct ImportCommand {
  std::string model, state_dir;
  bool json = false;
  void AddTo(Options* o) {
    o->AddPositional(&model, "MODEL", kModelHelp, true);
    o->Add(&state_dir, "state-dir",
           "keep the manifest in this state folder; empty: beside the model, where every service finds it");
    o->Add(&json, "json", "print as JSON");
  }
  int Run() const { return RunImport(model, state_dir, json); }
};

struct VerifyCommand {
  VerifyOptions options;
  void AddTo(Options* o) {
    AddLocalRun(o, &options.model, &options.ops, &options.threads, &options.state_dir, &options.json);
    o->Add(&options.golden, "golden", "golden.safetensors, with its .json beside it; empty: the model's");
    const auto tolerance = [&](double* value, const char* name, const std::string& of) {
      o->Add(value, name, "largest difference of " + of + "; 0: as the golden file says", 0.0, 1e9);
    };
    tolerance(&options.tolerance.logits, "tolerance-logits", "logits, the router's too");
    tolerance(&options.tolerance.hidden, "tolerance-hidden", "hidden states");
    tolerance(&options.tolerance.router_weights, "tolerance-router-weights", "the router's weights");
    tolerance(&options.tolerance.logprobs, "tolerance-logprobs", "log-probabilities");
  }
  int Run() {
    if (options.state_dir.empty()) options.state_dir = DefaultStateDir();
    return RunVerify(options);
  }
};

struct Perplexity {
  PerplexityOptions options;
  std::string against = "none";
  void AddTo(Options* o) {
    AddLocalRun(o, &options.model, &options.ops, &options.threads, &options.state_dir, &options.json);
    o->Add(&options.text, "text", "UTF-8 file; special tokens written in it count as such");
    o->Required("text");
    options.numerics.AddTo(o);
    o->AddChoice(&against, "against",
                 "f32: also class f32 with weights as stored, and the loss of quality against it",
                 {"none", "f32"});
    o->Add(&options.context, "context",
           "tokens of a window; 0: the model's, at most " + std::to_string(kWindowDefaultMax), 0u, 1u << 24);
    o->Add(&options.stride, "stride",
           "tokens from window to window; 0: no overlap. Each token is scored once", 0u, 1u << 24);
    o->Add(&options.tokens_max, "tokens", "of the text, from its start; 0: all", 0u, 1u << 31);
  }
  int Run() {
    if (options.state_dir.empty()) options.state_dir = DefaultStateDir();
    options.against_f32 = against == "f32";
    return RunPerplexity(options);
  }
};

int Main(int argc, char** argv) {
  Options options("consilium", "Serves Mixture-of-Experts language models from shared pools of experts.");
  UpOptions up;
  Ps ps;
  Chat chat;
  Bench bench;
  Inspect inspect;
  ImportCommand import;
  VerifyCommand verify;
  Perplexity perplexity;
  up.AddTo(options.AddCommand("up", "start all services on this machine, in the foreground"));
  ps.AddTo(options.AddCommand("ps", "list the processes of `up`"));
  chat.AddTo(options.AddCommand("chat", "talk to a model; one question a line, or one as argument"));
  bench.AddTo(options.AddCommand("bench", "measure a running gateway"));
  inspect.AddTo(
      options.AddCommand("inspect", "what a model holds: sizes by part, experts, format; what fits where"));
  import.AddTo(
      options.AddCommand("import", "hash a model once, ahead of its first start, so that services need not"));
  verify.AddTo(options.AddCommand(
      "verify", "run a model against its golden file and find the first place that differs"));
  perplexity.AddTo(options.AddCommand("perplexity", "how well a model predicts a text, in a numerics class"));

  if (const auto code = options.Parse(argc, argv)) return *code;
  const std::string command = options.chosen_command();
  if (command == "up") return RunUp(up);
  if (command == "ps") return ps.Run();
  if (command == "chat") return chat.Run();
  if (command == "inspect") return inspect.Run();
  if (command == "import") return import.Run();
  if (command == "verify") return verify.Run();
  if (command == "perplexity") return perplexity.Run();
  return bench.Run();
}

}  // namespace
}  // namespace consilium

int main(int argc, char** argv) { return consilium::Main(argc, argv); }
