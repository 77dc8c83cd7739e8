#include "services/cli/golden.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/safetensors.h"

namespace consilium {
namespace {

using Json = nlohmann::json;

constexpr size_t kJsonBytesMax = size_t{64} << 20;

class Reader {
 public:
  Reader(std::string file, const ModelSpec& spec) : file_(std::move(file)), spec_(spec) {}

  absl::StatusOr<Golden> Read();

 private:
  absl::Status Open();
  absl::Status ReadJson();
  absl::Status ReadPrompt(const std::string& prefix);
  absl::Status ReadRouters(const std::string& prefix, uint64_t tokens, GoldenPrompt* prompt);
  absl::Status ReadExperts(const std::string& prefix, uint64_t tokens, GoldenPrompt* prompt);
  absl::Status ReadContinuation(const std::string& prefix, const GoldenPrompt& prompt);
  absl::Status ReadJsonContinuations();
  absl::Status ReadTolerance();
  absl::StatusOr<std::vector<TokenId>> JsonTokens(const Json& from, const char* key, const std::string& name);
  absl::Status CheckTokens(const std::vector<TokenId>& ids, const std::string& name) const;
  absl::Status CheckLength(size_t prompt, size_t more, const std::string& name) const;
  bool Has(const std::string& name) const { return tensors_.contains(name); }
  // The values of a tensor. A dimension of 0 in `shape` takes any size.
  template <class T>
  absl::StatusOr<std::vector<T>> Values(const std::string& name, DType dtype,
                                        const std::vector<uint64_t>& shape);
  absl::StatusOr<std::vector<TokenId>> Tokens(const std::string& name);

  const std::string file_;
  const ModelSpec& spec_;
  std::optional<ReadFd> fd_;
  std::map<std::string, TensorInfo> tensors_;
  Json json_;
  std::string json_file_;
  Golden golden_;
};

absl::Status Reader::Open() {
  if (!FileExists(file_)) return NotFound("no golden file " + file_);
  ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, ReadSafetensors(file_, 0));
  ASSIGN_OR_RETURN(fd_, ReadFd::Open(file_));
  for (TensorInfo& t : tensors) {
    const std::string name = t.name;
    tensors_.emplace(name, std::move(t));
  }
  return absl::OkStatus();
}

template <class T>
absl::StatusOr<std::vector<T>> Reader::Values(const std::string& name, DType dtype,
                                              const std::vector<uint64_t>& shape) {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return InvalidArgument(file_ + ": tensor \"" + name + "\" is missing");
  const TensorInfo& t = it->second;
  bool fits = t.shape.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] == 0 || shape[i] == t.shape[i];
  if (!fits || t.dtype != dtype) {
    std::string expected = ShapeText(shape);
    if (shape == std::vector<uint64_t>{0}) expected = "[tokens]";
    return InvalidArgument(file_ + ": tensor \"" + name + "\" does not fit the model: expected " +
                           std::string(DTypeName(dtype)) + " " + expected + ", got " +
                           std::string(DTypeName(t.dtype)) + " " + ShapeText(t.shape));
  }
  std::vector<T> out(t.elements());
  RETURN_IF_ERROR(fd_->ReadAt(t.range.offset, std::as_writable_bytes(std::span(out))));
  return out;
}

absl::Status Reader::CheckTokens(const std::vector<TokenId>& ids, const std::string& name) const {
  for (const TokenId id : ids) {
    if (id >= spec_.vocab) {
      return InvalidArgument(file_ + ": " + name + ": token " + std::to_string(static_cast<int32_t>(id)) +
                             "; expected 0.." + std::to_string(spec_.vocab - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status Reader::CheckLength(size_t prompt, size_t more, const std::string& name) const {
  if (prompt != 0 && prompt + more <= spec_.context) return absl::OkStatus();
  return InvalidArgument(file_ + ": " + name + ": " + std::to_string(prompt + more) +
                         " tokens; expected 1.." + std::to_string(spec_.context) +
                         ", the context of the model");
}

absl::StatusOr<std::vector<TokenId>> Reader::Tokens(const std::string& name) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ints, Values<int32_t>(name, DType::kI32, {0}));
  std::vector<TokenId> out(ints.begin(), ints.end());
  RETURN_IF_ERROR(CheckTokens(out, name));
  return out;
}

// prompt.P.router.L.*
absl::Status Reader::ReadRouters(const std::string& prefix, uint64_t tokens, GoldenPrompt* prompt) {
  const uint64_t experts = spec_.gate.experts, top_k = spec_.gate.top_k;
  for (uint32_t layer = 0; layer < spec_.layers.size(); ++layer) {
    const std::string name = prefix + "router." + std::to_string(layer) + ".";
    if (!Has(name + "ids")) continue;
    if (spec_.layers[layer].ffn != FfnKind::kMoe) {
      return InvalidArgument(file_ + ": tensor \"" + name + "ids\": layer " + std::to_string(layer) +
                             " of the model has no router");
    }
    GoldenRouter& router = prompt->routers[layer];
    ASSIGN_OR_RETURN(router.ids, Values<int32_t>(name + "ids", DType::kI32, {tokens, top_k}));
    ASSIGN_OR_RETURN(router.weights, Values<float>(name + "weights", DType::kF32, {tokens, top_k}));
    if (Has(name + "logits")) {
      ASSIGN_OR_RETURN(router.logits, Values<float>(name + "logits", DType::kF32, {tokens, experts}));
    }
  }
  return absl::OkStatus();
}

// prompt_P.experts and weights: [MoE layers, T, k].
absl::Status Reader::ReadExperts(const std::string& prefix, uint64_t tokens, GoldenPrompt* prompt) {
  if (!Has(prefix + "experts")) return absl::OkStatus();
  golden_.ordered_experts = false;
  const std::vector<uint64_t> shape = {spec_.moe_layers(), tokens, spec_.gate.top_k};
  ASSIGN_OR_RETURN(const auto ids, Values<int32_t>(prefix + "experts", DType::kI32, shape));
  ASSIGN_OR_RETURN(const auto weights, Values<float>(prefix + "weights", DType::kF32, shape));
  const size_t width = tokens * spec_.gate.top_k;
  size_t at = 0;
  for (uint32_t layer = 0; layer < spec_.layers.size(); ++layer) {
    if (spec_.layers[layer].ffn != FfnKind::kMoe) continue;
    GoldenRouter& router = prompt->routers[layer];
    router.ids.assign(ids.begin() + static_cast<long>(at), ids.begin() + static_cast<long>(at + width));
    router.weights.assign(weights.begin() + static_cast<long>(at),
                          weights.begin() + static_cast<long>(at + width));
    at += width;
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadContinuation(const std::string& prefix, const GoldenPrompt& prompt) {
  if (!Has(prefix + "greedy_ids")) return absl::OkStatus();
  GoldenContinuation c{prompt.name, prompt.ids, {}, {}};
  ASSIGN_OR_RETURN(c.ids, Tokens(prefix + "greedy_ids"));
  RETURN_IF_ERROR(CheckLength(prompt.ids.size(), c.ids.size(), prefix + "greedy_ids"));
  if (Has(prefix + "greedy_logprobs")) {
    ASSIGN_OR_RETURN(c.logprobs, Values<float>(prefix + "greedy_logprobs", DType::kF32, {c.ids.size()}));
  }
  golden_.continuations.push_back(std::move(c));
  return absl::OkStatus();
}

absl::Status Reader::ReadPrompt(const std::string& prefix) {
  GoldenPrompt prompt;
  prompt.name = prefix.substr(0, prefix.size() - 1);
  ASSIGN_OR_RETURN(prompt.ids, Tokens(prefix + "ids"));
  RETURN_IF_ERROR(CheckLength(prompt.ids.size(), 0, prefix + "ids"));
  const uint64_t tokens = prompt.ids.size();
  if (Has(prefix + "logits")) {
    ASSIGN_OR_RETURN(prompt.logits,
                     Values<float>(prefix + "logits", DType::kF32, {tokens, uint64_t{spec_.vocab}}));
  }
  if (Has(prefix + "hidden")) {
    ASSIGN_OR_RETURN(prompt.hidden, Values<float>(prefix + "hidden", DType::kF32,
                                                  {spec_.layers.size() + 1, tokens, uint64_t{spec_.hidden}}));
  }
  RETURN_IF_ERROR(ReadRouters(prefix, tokens, &prompt));
  RETURN_IF_ERROR(ReadExperts(prefix, tokens, &prompt));
  RETURN_IF_ERROR(ReadContinuation(prefix, prompt));
  golden_.prompts.push_back(std::move(prompt));
  return absl::OkStatus();
}

absl::Status Reader::ReadJson() {
  json_file_ = std::filesystem::path(file_).replace_extension(".json").string();
  if (!FileExists(json_file_)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(json_file_, kJsonBytesMax));
  json_ = Json::parse(text, nullptr, false);
  if (!json_.is_object()) return InvalidArgument(json_file_ + ": expected a JSON object");
  RETURN_IF_ERROR(ReadTolerance());
  return ReadJsonContinuations();
}

absl::Status Reader::ReadTolerance() {
  const auto tolerance = json_.find("tolerance");
  if (tolerance == json_.end()) return absl::OkStatus();
  if (!tolerance->is_object()) return InvalidArgument(json_file_ + ": \"tolerance\": expected an object");
  golden_.states_tolerance = true;
  GoldenTolerance& t = golden_.tolerance;
  const std::pair<const char*, double*> keys[] = {{"logits", &t.logits},
                                                  {"hidden", &t.hidden},
                                                  {"router_weights", &t.router_weights},
                                                  {"logprobs", &t.logprobs}};
  for (const auto& [key, value] : keys) {
    const auto it = tolerance->find(key);
    if (it == tolerance->end()) continue;
    if (!it->is_number() || it->get<double>() < 0) {
      return InvalidArgument(json_file_ + ": \"tolerance." + key + "\": expected a number from 0, got " +
                             it->dump());
    }
    *value = it->get<double>();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> Reader::JsonTokens(const Json& from, const char* key,
                                                        const std::string& name) {
  std::vector<TokenId> out;
  const auto it = from.is_object() ? from.find(key) : from.end();
  bool fits = from.is_object() && it != from.end() && it->is_array();
  for (size_t i = 0; fits && i < it->size(); ++i) {
    fits = (*it)[i].is_number_unsigned() && (*it)[i].get<uint64_t>() < spec_.vocab;
    if (fits) out.push_back((*it)[i].get<TokenId>());
  }
  if (fits) return out;
  return InvalidArgument(json_file_ + ": " + name + "." + key + ": expected a list of token ids in 0.." +
                         std::to_string(spec_.vocab - 1));
}

absl::Status Reader::ReadJsonContinuations() {
  const auto list = json_.find("greedy");
  if (list == json_.end()) return absl::OkStatus();
  if (!list->is_array()) return InvalidArgument(json_file_ + ": \"greedy\": expected a list");
  for (size_t i = 0; i < list->size(); ++i) {
    GoldenContinuation c;
    c.name = "greedy." + std::to_string(i);
    ASSIGN_OR_RETURN(c.prompt, JsonTokens((*list)[i], "ids", c.name));
    ASSIGN_OR_RETURN(c.ids, JsonTokens((*list)[i], "continuation_ids", c.name));
    RETURN_IF_ERROR(CheckLength(c.prompt.size(), c.ids.size(), c.name));
    golden_.continuations.push_back(std::move(c));
  }
  return absl::OkStatus();
}

absl::StatusOr<Golden> Reader::Read() {
  RETURN_IF_ERROR(Open());
  for (const char* spelling : {"prompt.", "prompt_"}) {
    for (size_t p = 0;; ++p) {
      const std::string prefix = spelling + std::to_string(p) + ".";
      if (!Has(prefix + "ids")) break;
      RETURN_IF_ERROR(ReadPrompt(prefix));
    }
  }
  if (golden_.prompts.empty()) {
    return InvalidArgument(file_ +
                           ": no tensor \"prompt.0.ids\" or \"prompt_0.ids\"; expected a golden file");
  }
  RETURN_IF_ERROR(ReadJson());
  return std::move(golden_);
}

}  // namespace

absl::StatusOr<Golden> ReadGolden(const std::string& file, const ModelSpec& spec) {
  return Reader(file, spec).Read();
}

}  // namespace consilium
