#include "services/cli/processes.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/base/status.h"
#include "services/cli/http_client.h"

namespace consilium {
namespace {

using Json = nlohmann::ordered_json;

// A zombie counts as gone. /proc/PID/stat is "pid (name) state ...".
bool Alive(pid_t pid) {
  if (pid <= 0 || kill(pid, 0) != 0) return false;
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t close = text.rfind(") ");
  return close == std::string::npos || (text[close + 2] != 'Z' && text[close + 2] != 'X');
}

}  // namespace

std::string DefaultStateDir() {
  const char* xdg = std::getenv("XDG_STATE_HOME");
  return xdg != nullptr && xdg[0] == '/' ? std::string(xdg) + "/consilium" : "state";
}

absl::Status WriteProcesses(const std::string& state_dir, const ProcessTable& table) {
  Json json;
  json["up_pid"] = table.up_pid;
  json["url"] = table.url;
  json["model"] = table.model;
  json["processes"] = Json::array();
  for (const ProcessInfo& p : table.processes) {
    json["processes"].push_back({{"role", p.role},
                                 {"name", p.name},
                                 {"pid", p.pid},
                                 {"address", p.address},
                                 {"admin", p.admin},
                                 {"state", p.state}});
  }
  const std::string path = state_dir + "/processes.json";
  const std::string beside = path + ".tmp";
  std::ofstream file(beside, std::ios::trunc);
  file << json.dump(1) << '\n';
  file.close();
  if (!file || std::rename(beside.c_str(), path.c_str()) != 0) {
    return InvalidArgument("--state-dir: cannot write " + path + ": " + std::strerror(errno));
  }
  return absl::OkStatus();
}

absl::StatusOr<ProcessTable> ReadProcesses(const std::string& state_dir) {
  const std::string path = state_dir + "/processes.json";
  std::ifstream file(path);
  if (!file)
    return NotFound("no " + path + ": start with `consilium up`, or name its folder with --state-dir");
  const Json json = Json::parse(file, nullptr, false);
  if (!json.is_object() || !json.contains("processes")) return DataLoss(path + ": not a list of processes");
  ProcessTable table;
  try {
    table.up_pid = json.at("up_pid");
    table.url = json.at("url");
    table.model = json.at("model");
    for (const Json& p : json.at("processes")) {
      table.processes.push_back(
          {p.at("role"), p.at("name"), p.at("pid"), p.at("address"), p.at("admin"), p.at("state")});
    }
  } catch (const nlohmann::json::exception& error) {
    return DataLoss(path + ": " + error.what());
  }
  return table;
}

void ProbeStates(ProcessTable* table, int timeout_ms) {
  const bool up_lives = Alive(table->up_pid);
  for (ProcessInfo& p : table->processes) {
    if (!up_lives || !Alive(p.pid)) {
      p.state = "down";
      continue;
    }
    const auto answer = p.admin.empty() ? absl::StatusOr<HttpAnswer>(Unavailable("no admin port yet"))
                                        : HttpGet("http://" + p.admin + "/readyz", timeout_ms);
    p.state = answer.ok() && answer->status == 200 ? "ready" : "starting";
  }
}

std::string ProcessesJson(const std::vector<ProcessInfo>& processes) {
  Json list = Json::array();
  for (const ProcessInfo& p : processes) {
    list.push_back(
        {{"role", p.role}, {"name", p.name}, {"pid", p.pid}, {"address", p.address}, {"state", p.state}});
  }
  return list.dump(2) + "\n";
}

std::string ProcessesText(const std::vector<ProcessInfo>& processes) {
  std::vector<std::vector<std::string>> rows = {{"ROLE", "NAME", "PID", "ADDRESS", "STATE"}};
  for (const ProcessInfo& p : processes) {
    rows.push_back({p.role, p.name, std::to_string(p.pid), p.address, p.state});
  }
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string out;
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) {
      out += row[c];
      out += c + 1 == row.size() ? "\n" : std::string(widths[c] - row[c].size() + 2, ' ');
    }
  }
  return out;
}

}  // namespace consilium
