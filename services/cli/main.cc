// consilium: the whole system on one machine, and a client for it.
#include <cstdio>
#include <string>

#include "common/base/status.h"
#include "common/config/options.h"
#include "common/model/inspect.h"
#include "services/cli/bench.h"
#include "services/cli/chat.h"
#include "services/cli/processes.h"
#include "services/cli/up.h"

namespace consilium {
namespace {

constexpr char kDefaultUrl[] = "http://127.0.0.1:8080";

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

int RunPs(const std::string& state_dir, bool json) {
  auto table = ReadProcesses(state_dir.empty() ? DefaultStateDir() : state_dir);
  if (!table.ok()) {
    std::fprintf(stderr, "consilium ps: %s\n", Message(table.status()).c_str());
    return 1;
  }
  ProbeStates(&*table, 500);
  std::fputs((json ? ProcessesJson(table->processes) : ProcessesText(table->processes)).c_str(), stdout);
  return 0;
}

int RunInspect(const std::string& folder, bool json) {
  const absl::StatusOr<std::string> text = DescribeModel(folder, json);
  if (text.ok()) {
    std::fputs(text->c_str(), stdout);
    if (text->empty() || text->back() != '\n') std::fputs("\n", stdout);
    return 0;
  }
  std::fprintf(stderr, "consilium inspect: %s\n", Message(text.status()).c_str());
  return 1;
}

int Main(int argc, char** argv) {
  Options options("consilium", "Serves Mixture-of-Experts language models from shared pools of experts.");

  UpOptions up;
  up.AddTo(options.AddCommand("up", "start all services on this machine, in the foreground"));

  std::string ps_state;
  bool ps_json = false;
  Options* ps = options.AddCommand("ps", "list the processes of `up`");
  ps->Add(&ps_state, "state-dir", "where `up` keeps processes.json; empty: as `up`");
  ps->Add(&ps_json, "json", "print a JSON list of {role, name, pid, address, state}");

  ChatOptions chat;
  std::string chat_state, chat_text;
  Options* chat_command =
      options.AddCommand("chat", "talk to a model; one question a line, or one as argument");
  AddTarget(chat_command, &chat.target, &chat_state);
  chat_command->Add(&chat.message, "message,m", "ask this one question and end");
  chat_command->AddPositional(&chat_text, "TEXT", "as --message", false);
  chat_command->Add(&chat.system, "system", "system message; empty: none");
  chat_command->Add(&chat.sampling.temperature, "temperature", "0: always the likeliest token", 0.0, 2.0);
  chat_command->Add(&chat.sampling.top_p, "top-p", "sample from the likeliest tokens up to this probability",
                    0.0, 1.0);
  chat_command->Add(&chat.sampling.max_tokens, "max-tokens", "tokens of an answer; 0: as many as fit", 0u,
                    1u << 20);
  chat_command->Add(&chat.sampling.seed, "seed", "of the sampling; -1: the server's choice", int64_t{-1},
                    INT64_MAX);

  BenchOptions bench;
  std::string bench_state;
  Options* bench_command = options.AddCommand("bench", "measure a running gateway");
  AddTarget(bench_command, &bench.target, &bench_state);
  bench_command->Add(&bench.concurrency, "concurrency", "streams at a time, one run each");
  bench_command->Add(&bench.prompt_tokens, "prompt-tokens", "tokens of a prompt", 1u, 1u << 20);
  bench_command->Add(&bench.output_tokens, "output-tokens", "tokens of an answer", 1u, 1u << 20);
  bench_command->Add(&bench.requests, "requests", "requests of one run; 0: 4 a stream, at least 8", 0u,
                     1u << 24);
  bench_command->Add(&bench.vocabulary, "vocabulary", "prompt ids are drawn from 10 to this", 11u, 1u << 20);
  bench_command->Add(&bench.seed, "seed", "of prompts and sampling", int64_t{0}, int64_t{1} << 40);
  bench_command->Add(&bench.json_file, "json", "write the results to this file");

  std::string inspect_folder;
  bool inspect_json = false;
  Options* inspect =
      options.AddCommand("inspect", "what a model folder holds: sizes by part, experts, format");
  inspect->AddPositional(&inspect_folder, "DIR", "Hugging Face folder of the model", true);
  inspect->Add(&inspect_json, "json", "print as JSON");

  if (const auto code = options.Parse(argc, argv)) return *code;
  const std::string command = options.chosen_command();
  if (command == "up") return RunUp(up);
  if (command == "ps") return RunPs(ps_state, ps_json);
  if (command == "inspect") return RunInspect(inspect_folder, inspect_json);
  if (command == "chat") {
    chat.target.url = UrlOr(chat.target.url, chat_state);
    if (chat.message.empty()) chat.message = chat_text;
    return RunChat(chat);
  }
  bench.target.url = UrlOr(bench.target.url, bench_state);
  return RunBench(bench);
}

}  // namespace
}  // namespace consilium

int main(int argc, char** argv) { return consilium::Main(argc, argv); }
