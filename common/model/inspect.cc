#include "common/model/inspect.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <set>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/model/fit.h"
#include "common/model/json_text.h"
#include "common/model/model_files.h"
#include "common/model/model_spec.h"
#include "common/model/numerics_choice.h"
#include "common/model/tensor_index.h"

namespace consilium {
namespace {

constexpr std::array<std::string_view, 8> kPartNames = {"embedding", "attention", "norms", "gates",
                                                        "shared",    "dense",     "head",  "experts"};

struct Figures {
  std::array<uint64_t, kPartNames.size()> bytes{}, params{};
  std::set<std::string> formats;
  uint64_t expert_bytes = 0, expert_params = 0;  // of one
  uint64_t total_params = 0, active_params = 0, total_bytes = 0;
};

Figures Sum(const ModelSpec& spec, const Manifest& manifest) {
  Figures f;
  const auto add = [&](ModelPart part, const TensorInfo& t) {
    f.params[static_cast<size_t>(part)] += t.elements();
    f.formats.insert(std::string(FormatName(t)));
  };
  for (const TensorInfo& t : manifest.dense) {
    add(PartOf(t.role), t);
    f.bytes[static_cast<size_t>(PartOf(t.role))] += t.bytes();
  }
  for (const ExpertEntry& e : manifest.experts) {
    for (const TensorInfo& t : e.parts) add(ModelPart::kExperts, t);
    for (const TensorInfo& t : e.biases) {
      if (e.has_biases()) add(ModelPart::kExperts, t);
    }
    f.bytes[static_cast<size_t>(ModelPart::kExperts)] += e.bytes();
  }
  if (!manifest.experts.empty()) {
    f.expert_bytes = manifest.experts[0].bytes();
    for (const TensorInfo& t : manifest.experts[0].parts) f.expert_params += t.elements();
    for (const TensorInfo& t : manifest.experts[0].biases) {
      if (manifest.experts[0].has_biases()) f.expert_params += t.elements();
    }
  }
  for (size_t i = 0; i < kPartNames.size(); ++i) {
    f.total_params += f.params[i];
    f.total_bytes += f.bytes[i];
  }
  const uint64_t routed = f.params[static_cast<size_t>(ModelPart::kExperts)];
  f.active_params = f.total_params - routed + uint64_t{spec.moe_layers()} * spec.gate.top_k * f.expert_params;
  return f;
}

// Keys and values as the f32 arena holds them.
uint64_t KvBytesPerToken(const ModelSpec& spec) { return spec.kv_page_bytes() / kernels::kKvPageTokens; }

std::string Join(const std::set<std::string>& items) {
  std::string out;
  for (const auto& i : items) out += (out.empty() ? "" : ", ") + i;
  return out;
}

std::string Human(uint64_t bytes) {
  char text[64];
  if (bytes >= uint64_t{10} << 30) {
    std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (1 << 30));
  } else if (bytes >= uint64_t{1} << 20) {
    std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  } else {
    std::snprintf(text, sizeof text, "%.1f KiB", static_cast<double>(bytes) / 1024);
  }
  return text;
}

// ", window 128 in 12 of 24 layers, ...".
std::string PatternText(const ModelSpec& s) {
  std::map<std::string, size_t> patterns;
  for (const LayerSpec& l : s.layers) {
    if (l.window != 0) ++patterns["window " + std::to_string(l.window)];
    if (l.chunk != 0) ++patterns["chunks of " + std::to_string(l.chunk)];
    if (!l.rotates) ++patterns["no rotation"];
    if (l.mixer == Mixer::kShortConv)
      ++patterns["short convolution of " + std::to_string(s.short_conv.taps) + " tokens"];
    if (l.mixer == Mixer::kDeltaNet)
      ++patterns["gated delta net of " + std::to_string(s.delta_net.v_heads) + " heads"];
  }
  std::string out;
  for (const auto& [text, count] : patterns) {
    out += ", " + text;
    if (count != s.layers.size())
      out += " in " + std::to_string(count) + " of " + std::to_string(s.layers.size()) + " layers";
  }
  return out;
}

std::string AttentionText(const ModelSpec& s) {
  if (s.mla_attention) {
    return "MLA, " + std::to_string(s.mla.heads) + " heads, q rank " + std::to_string(s.mla.q_lora) +
           ", kv rank " + std::to_string(s.mla.kv_lora) + ", lanes " + std::to_string(s.mla.nope) + "+" +
           std::to_string(s.mla.rope) + ", values " + std::to_string(s.mla.v_dim);
  }
  return "GQA, " + std::to_string(s.gqa.q_heads) + " heads over " + std::to_string(s.gqa.kv_heads) + " of " +
         std::to_string(s.gqa.head_dim) + " lanes" + PatternText(s);
}

std::string TokenizerText(const ModelPlace& place) {
  const auto texts = ReadModelTexts(place.key());
  if (!texts.ok()) return "unreadable";
  if (!texts->tokenizer) return "missing";
  const auto tree = ParseJson(*texts->tokenizer, "tokenizer");
  if (!tree.ok() || !tree->is_object() || !tree->contains("model") || !(*tree)["model"].is_object())
    return "unreadable";
  const Json& model = (*tree)["model"];
  const std::string type =
      model.contains("type") && model["type"].is_string() ? model["type"].get<std::string>() : "unknown";
  const size_t entries = model.contains("vocab") ? model["vocab"].size() : 0;
  return type + ", " + std::to_string(entries) + " entries";
}

// What fits where: JSON "fit".
absl::StatusOr<Json> Fit(const ModelSpec& spec, const Manifest& manifest, const Figures& f,
                         const InspectOptions& options) {
  ASSIGN_OR_RETURN(const NumericsChoice choice, ChooseNumerics({"f32", options.weights_as}, manifest));
  std::vector<uint64_t> sizes;
  uint64_t total = 0;
  for (const ExpertEntry& e : manifest.experts) {
    sizes.push_back(choice.ExpertBytes(e));
    total += sizes.back();
  }
  Json out;
  out["weights_as"] = options.weights_as;
  out["expert_bytes"] = total;
  out["bytes_per_expert"] = sizes.empty() ? 0 : *std::max_element(sizes.begin(), sizes.end());
  out["shards"] = Json::array();
  for (const std::string& text : options.shard_memory.empty()
                                     ? std::vector<std::string>{"24GiB", "48GiB", "80GiB"}
                                     : options.shard_memory) {
    const auto memory = ParseByteCount(text);
    if (!memory.ok()) return Annotate(memory.status(), "--shard-memory");
    if (sizes.empty()) continue;
    const ShardFit fit = FitShards(sizes, *memory);
    Json shard;
    shard["memory"] = fit.memory;
    shard["shards"] = fit.shards == 0 ? Json() : Json(fit.shards);
    shard["experts_per_shard"] = fit.experts_each;
    shard["bytes_per_shard"] = fit.bytes_each;
    shard["headroom_per_shard"] = fit.headroom_each;
    out["shards"].push_back(shard);
  }
  const uint64_t tokens = options.tokens != 0 ? options.tokens : spec.context;
  const uint64_t pages = (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  const uint64_t dense = f.total_bytes - f.bytes[static_cast<size_t>(ModelPart::kExperts)];
  const uint64_t kv = pages * kKvBlockTokens * KvBytesPerToken(spec);
  // One sequence that computes: the state it reads and the one it leaves.
  const uint64_t states = kStateSlotsMin * spec.state_bytes();
  out["attention"] = {{"tokens", tokens},
                      {"dense_bytes", dense},
                      {"kv_bytes", kv},
                      {"state_bytes", states},
                      {"memory", ProcessBytes(dense + kv + states)}};
  return out;
}

Json ToJson(const ModelPlace& place, const ModelSpec& s, const Figures& f, const UnusedTensors& unused,
            const std::vector<std::string>& unread_keys) {
  Json bytes = Json::object(), params = Json::object();
  for (size_t i = 0; i < kPartNames.size(); ++i) {
    bytes[std::string(kPartNames[i])] = f.bytes[i];
    params[std::string(kPartNames[i])] = f.params[i];
  }
  Json out;
  out["id"] = place.id;
  out["family"] = s.family;
  out["format"] = (place.gguf.empty() ? "safetensors " : "GGUF ") + Join(f.formats);
  out["attention"] = AttentionText(s);
  out["layers"] = s.layers.size();
  out["moe_layers"] = s.moe_layers();
  out["hidden"] = s.hidden;
  out["vocab"] = s.vocab;
  out["context"] = s.context;
  out["experts_per_layer"] = s.gate.experts;
  out["experts_per_token"] = s.gate.top_k;
  out["experts_total"] = s.experts_total();
  out["params_total"] = f.total_params;
  out["params_active"] = f.active_params;
  out["params_by_part"] = params;
  out["bytes_total"] = f.total_bytes;
  out["bytes_by_part"] = bytes;
  out["bytes_per_expert"] = f.expert_bytes;
  out["kv_bytes_per_token"] = KvBytesPerToken(s);
  out["state_bytes_per_sequence"] = s.state_bytes();
  out["tokenizer"] = TokenizerText(place);
  out["eos_ids"] = s.eos_ids;
  out["unused"] = {{"tensors", unused.tensors}, {"bytes", unused.bytes}, {"config_keys", unread_keys}};
  return out;
}

std::string FitText(const Json& fit) {
  const auto human = [](const Json& bytes) { return Human(bytes.get<uint64_t>()); };
  const auto number = [](const Json& value) { return std::to_string(value.get<uint64_t>()); };
  std::string out = "what fits (whole experts, " + fit["weights_as"].get<std::string>() + ": " +
                    human(fit["bytes_per_expert"]) + " each, " + human(fit["expert_bytes"]) +
                    " in all; a tenth and 100 MB of a process for its work)\n";
  for (const Json& s : fit["shards"]) {
    out += "  shards of " + human(s["memory"]) + ": ";
    if (s["shards"].is_null()) {
      out += "too small for one expert\n";
      continue;
    }
    out += number(s["shards"]) + ", with up to " + number(s["experts_per_shard"]) + " experts (" +
           human(s["bytes_per_shard"]) + ") each; " + human(s["headroom_per_shard"]) + " left\n";
  }
  const Json& a = fit["attention"];
  return out + "  attention: " + human(a["memory"]) + " with " + number(a["tokens"]) + " tokens cached (" +
         human(a["dense_bytes"]) + " of weights, " + human(a["kv_bytes"]) + " of KV" +
         (a["state_bytes"] == 0 ? "" : ", " + human(a["state_bytes"]) + " of states") + ")\n";
}

std::string ToText(const Json& j) {
  std::string out;
  const auto line = [&](std::string_view key, const std::string& value) {
    std::string k(key);
    k.resize(20, ' ');
    out += k + value + "\n";
  };
  const auto number = [&](const char* key) { return std::to_string(j[key].get<uint64_t>()); };
  line("model", j["id"].get<std::string>());
  line("family", j["family"].get<std::string>());
  line("format", j["format"].get<std::string>());
  line("attention", j["attention"].get<std::string>());
  line("layers", number("layers") + " (" + number("moe_layers") + " with experts)");
  line("hidden, vocabulary", number("hidden") + ", " + number("vocab"));
  line("context", number("context") + " tokens");
  line("experts", number("experts_per_layer") + " a layer, " + number("experts_per_token") + " a token, " +
                      number("experts_total") + " in all, " + Human(j["bytes_per_expert"].get<uint64_t>()) +
                      " each");
  line("parameters", number("params_total") + ", active " + number("params_active"));
  line("bytes", number("bytes_total") + " (" + Human(j["bytes_total"].get<uint64_t>()) + ")");
  for (std::string_view part : kPartNames) {
    const uint64_t bytes = j["bytes_by_part"][std::string(part)].get<uint64_t>();
    line("  " + std::string(part), std::to_string(bytes) + " (" + Human(bytes) + ")");
  }
  line("KV cache", number("kv_bytes_per_token") + " bytes a token");
  if (const uint64_t state = j["state_bytes_per_sequence"].get<uint64_t>(); state != 0)
    line("recurrent state", std::to_string(state) + " bytes a sequence (" + Human(state) + ")");
  line("tokenizer", j["tokenizer"].get<std::string>());
  if (const Json& unused = j["unused"]; unused["tensors"] != 0) {
    line("unused", std::to_string(unused["tensors"].get<uint64_t>()) + " tensors, " +
                       Human(unused["bytes"].get<uint64_t>()) + " (vision, prediction layers)");
  }
  return out + FitText(j["fit"]);
}

}  // namespace

absl::StatusOr<std::string> DescribeModel(const std::string& path, const InspectOptions& options) {
  ASSIGN_OR_RETURN(const ModelPlace place, FindModel(path));
  ASSIGN_OR_RETURN(const ModelSpec spec, ReadModelSpec(path));
  ASSIGN_OR_RETURN(const ConfigText config, ReadConfigText(place));
  ASSIGN_OR_RETURN(TensorIndex index, ReadTensorIndex(place, config));
  UnusedTensors unused;
  ASSIGN_OR_RETURN(const Manifest manifest, ClaimTensors(spec, std::move(index), place.key(), &unused));
  std::vector<std::string> unread;
  RETURN_IF_ERROR(ParseModelSpec(config.text, config.source, &unread).status());
  const Figures figures = Sum(spec, manifest);
  Json json = ToJson(place, spec, figures, unused, unread);
  ASSIGN_OR_RETURN(json["fit"], Fit(spec, manifest, figures, options));
  return options.json ? json.dump(2) + "\n" : ToText(json);
}

}  // namespace consilium
