// What `consilium verify` prints.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "services/cli/verify.h"

namespace consilium {
namespace {

using Kind = GoldenCheck::Kind;
using Json = nlohmann::ordered_json;

bool IsExact(Kind kind) { return kind == Kind::kRouterIds || kind == Kind::kGreedyIds; }
bool HasLayer(Kind kind) { return kind <= Kind::kRouterLogits; }

std::string CheckName(const GoldenCheck& c) {
  std::string name(KindName(c.kind));
  std::replace(name.begin(), name.end(), '_', ' ');
  if (c.kind == Kind::kHidden) return name + "[" + std::to_string(c.layer) + "]";
  return HasLayer(c.kind) ? "layer " + std::to_string(c.layer) + " " + name : name;
}

std::string Table(const Verdict& verdict) {
  std::string out;
  char line[200];
  const auto row = [&](const std::string& name, const std::string& prompt, const std::string& values,
                       const std::string& largest, const std::string& tolerance, const std::string& at,
                       const char* holds) {
    std::snprintf(line, sizeof line, "%-26s %-10s %9s %12s %12s %9s  %s\n", name.c_str(), prompt.c_str(),
                  values.c_str(), largest.c_str(), tolerance.c_str(), at.c_str(), holds);
    out += line;
  };
  row("check", "prompt", "values", "difference", "tolerance", "position", "holds");
  for (const GoldenCheck& c : verdict.checks) {
    char largest[40], tolerance[40];
    std::snprintf(largest, sizeof largest, IsExact(c.kind) ? "%.0f differ" : "%.2e", c.largest);
    std::snprintf(tolerance, sizeof tolerance, "%.2e", c.tolerance);
    row(CheckName(c), c.prompt, std::to_string(c.values), largest, IsExact(c.kind) ? "exact" : tolerance,
        c.largest > 0 ? std::to_string(c.largest_at) : "-", c.miss ? "NO" : "yes");
  }
  return out;
}

std::string ToJson(const VerifyOptions& options, const Verdict& verdict) {
  Json out;
  out["model"] = options.model;
  out["golden"] = verdict.golden;
  const GoldenCheck* miss = verdict.first_miss();
  out["holds"] = miss == nullptr;
  out["tolerance"] = {{"logits", verdict.tolerance.logits},
                      {"hidden", verdict.tolerance.hidden},
                      {"router_weights", verdict.tolerance.router_weights},
                      {"logprobs", verdict.tolerance.logprobs}};
  // Infinite differences (a value is no number) have no spelling in JSON: null.
  const auto one = [](const GoldenCheck& c) {
    Json j;
    j["check"] = KindName(c.kind);
    j["layer"] = HasLayer(c.kind) ? Json(c.layer) : Json();
    j["prompt"] = c.prompt;
    j["values"] = c.values;
    if (IsExact(c.kind)) {
      j["differ"] = static_cast<size_t>(c.largest);
    } else {
      j["largest_difference"] = c.largest;
    }
    j["tolerance"] = c.tolerance;
    j["position"] = c.largest > 0 ? Json(c.largest_at) : Json();
    j["holds"] = !c.miss.has_value();
    return j;
  };
  out["checks"] = Json::array();
  for (const GoldenCheck& c : verdict.checks) out["checks"].push_back(one(c));
  if (miss != nullptr) {
    Json first = one(*miss);
    first["position"] = miss->miss->position;
    first["expected"] = miss->miss->expected;
    first["got"] = miss->miss->got;
    first["message"] = MissText(*miss);
    out["first"] = first;
  }
  return out.dump(2) + "\n";
}

}  // namespace

std::string_view KindName(Kind kind) {
  switch (kind) {
    case Kind::kHidden:
      return "hidden";
    case Kind::kRouterIds:
      return "router_ids";
    case Kind::kRouterWeights:
      return "router_weights";
    case Kind::kRouterLogits:
      return "router_logits";
    case Kind::kLogits:
      return "logits";
    case Kind::kGreedyIds:
      return "greedy_ids";
    case Kind::kLogprobs:
      return "logprobs";
  }
  return "";
}

std::string MissText(const GoldenCheck& c) {
  CHECK(c.miss);
  std::string where, what;
  switch (c.kind) {
    case Kind::kHidden:
      where = c.layer == 0 ? "embedding" : "layer " + std::to_string(c.layer - 1);
      what = c.layer == 0 ? "hidden state entering layer 0" : "hidden state leaving the layer";
      break;
    case Kind::kRouterIds:
      what = "experts chosen by the router";
      break;
    case Kind::kRouterWeights:
      what = "weights of the router";
      break;
    case Kind::kRouterLogits:
      what = "logits of the router";
      break;
    case Kind::kLogits:
      where = "head", what = "logits";
      break;
    case Kind::kGreedyIds:
      where = "continuation", what = "greedy token";
      break;
    case Kind::kLogprobs:
      where = "continuation", what = "log-probability of the greedy token";
      break;
  }
  if (where.empty()) where = "layer " + std::to_string(c.layer);
  std::string text = where + ", " + c.prompt + ", position " + std::to_string(c.miss->position) + ": " +
                     what + ": expected " + c.miss->expected + ", got " + c.miss->got;
  if (IsExact(c.kind)) return text;
  char tolerance[40];
  std::snprintf(tolerance, sizeof tolerance, " (tolerance %.3g)", c.tolerance);
  return text + tolerance;
}

int RunVerify(const VerifyOptions& options) {
  const absl::StatusOr<Verdict> verdict = Verify(options);
  if (!verdict.ok()) {
    std::fprintf(stderr, "consilium verify: %s\n", Message(verdict.status()).c_str());
    return 2;
  }
  const GoldenCheck* miss = verdict->first_miss();
  if (options.json) {
    std::fputs(ToJson(options, *verdict).c_str(), stdout);
    return miss == nullptr ? 0 : 1;
  }
  std::fputs(Table(*verdict).c_str(), stdout);
  if (!verdict->tolerance_stated) {
    std::printf("The golden file states no tolerances: 1e-4 where no flag says otherwise.\n");
  }
  if (miss == nullptr) {
    std::printf("All %zu checks hold.\n", verdict->checks.size());
    return 0;
  }
  std::printf("First place out of tolerance: %s. All checks before it hold.\n", MissText(*miss).c_str());
  return 1;
}

}  // namespace consilium
