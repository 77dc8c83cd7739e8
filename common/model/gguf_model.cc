#include "common/model/gguf_model.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <set>

#include "common/base/status.h"
#include "common/model/families/family.h"
#include "common/model/json_text.h"
#include "common/model/safetensors.h"

namespace consilium {
namespace {

constexpr int64_t kSplitsMax = 10'000;

enum class Arch { kMixtral, kDeepseek, kQwen2Moe, kQwen3Moe, kOlmoe, kGptOss, kGranite, kGlm4 };
struct ArchName {
  std::string_view name;
  Arch arch;
};
constexpr ArchName kArchs[] = {{"llama", Arch::kMixtral},      {"deepseek2", Arch::kDeepseek},
                               {"qwen2moe", Arch::kQwen2Moe},  {"qwen3moe", Arch::kQwen3Moe},
                               {"olmoe", Arch::kOlmoe},        {"gpt-oss", Arch::kGptOss},
                               {"granitemoe", Arch::kGranite}, {"glm4moe", Arch::kGlm4}};

absl::StatusOr<Arch> ArchOf(const Gguf& gguf, const std::string& source, std::string* name) {
  ASSIGN_OR_RETURN(const auto text, gguf.Text("general.architecture"));
  *name = text.value_or("");
  std::string known;
  for (const ArchName& a : kArchs) {
    if (a.name == *name) return a.arch;
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  return Unimplemented(source + ": GGUF architecture \"" + name->substr(0, 60) +
                       "\" is not known; known: " + known);
}

// Reads keys of one architecture; the first error is kept.
class Keys {
 public:
  Keys(const Gguf& gguf, std::string arch) : gguf_(gguf), arch_(std::move(arch) + ".") {}

  std::optional<int64_t> Integer(const std::string& key) { return Take(gguf_.Integer(arch_ + key)); }
  std::optional<double> Number(const std::string& key) { return Take(gguf_.Number(arch_ + key)); }
  std::optional<bool> Bool(const std::string& key) { return Take(gguf_.Bool(arch_ + key)); }
  std::optional<std::string> Text(const std::string& key) { return Take(gguf_.Text(arch_ + key)); }
  int64_t Need(const std::string& key) {
    const auto v = Integer(key);
    if (!v) Fail("GGUF metadata " + arch_ + key + ": missing; expected an integer");
    return v.value_or(0);
  }
  // A count that some converters write as one number a layer: only where all are equal.
  int64_t NeedEqual(const std::string& key) {
    if (const auto* list = gguf_.Integers(arch_ + key); list != nullptr && !list->empty()) {
      for (int64_t v : *list) {
        if (v != list->front())
          Fail("GGUF metadata " + arch_ + key + ": layers that differ are not supported");
      }
      return list->front();
    }
    return Need(key);
  }
  void Fail(const std::string& message) {
    if (status_.ok()) status_ = InvalidArgument(message);
  }
  const absl::Status& status() const { return status_; }

 private:
  template <class T>
  std::optional<T> Take(absl::StatusOr<std::optional<T>> v) {
    if (v.ok()) return *v;
    if (status_.ok()) status_ = v.status();
    return std::nullopt;
  }
  const Gguf& gguf_;
  const std::string arch_;
  absl::Status status_;
};

bool HasTensor(const Gguf& gguf, std::string_view suffix) {
  for (const TensorInfo& t : gguf.tensors) {
    if (t.name.ends_with(suffix)) return true;
  }
  return false;
}

void AddRope(Keys& k, Arch arch, Json* out) {
  (*out)["rope_theta"] = k.Number("rope.freq_base").value_or(10000.0);
  const std::string type = k.Text("rope.scaling.type").value_or("none");
  if (type == "none") return;
  Json scaling = {{"rope_type", type}, {"factor", k.Number("rope.scaling.factor").value_or(1.0)}};
  if (type == "yarn") {
    const auto original = k.Integer("rope.scaling.original_context_length");
    if (original) scaling["original_max_position_embeddings"] = *original;
    if (const auto v = k.Number("rope.scaling.yarn_beta_fast")) scaling["beta_fast"] = *v;
    if (const auto v = k.Number("rope.scaling.yarn_beta_slow")) scaling["beta_slow"] = *v;
    if (const auto v = k.Number("rope.scaling.attn_factor"); v && *v != 1) scaling["attention_factor"] = *v;
    // 0.1 mscale_all_dim, stored as f32; releases have mscale equal to it.
    if (const auto v = k.Number("rope.scaling.yarn_log_multiplier"); v && arch == Arch::kDeepseek) {
      const double mscale = static_cast<double>(static_cast<float>(*v * 10));
      scaling["mscale"] = mscale;
      scaling["mscale_all_dim"] = mscale;
    }
    if (arch == Arch::kGptOss) scaling["truncate"] = false;  // as released; the metadata cannot say
  } else if (type != "linear") {
    k.Fail("GGUF metadata rope.scaling.type: \"" + type.substr(0, 40) +
           "\" is not supported; supported: none, linear, yarn");
  }
  (*out)["rope_scaling"] = scaling;
}

void AddDeepseek(Keys& k, const Gguf& gguf, Json* out) {
  Json& j = *out;
  const bool sigmoid = k.Integer("expert_gating_func").value_or(1) == 2;
  j["model_type"] = sigmoid ? "deepseek_v3" : "deepseek_v2";
  j["num_key_value_heads"] = j["num_attention_heads"];
  if (const auto q = k.Integer("attention.q_lora_rank"); q && *q > 0) j["q_lora_rank"] = *q;
  j["kv_lora_rank"] = k.Need("attention.kv_lora_rank");
  const int64_t rope = k.Need("rope.dimension_count");
  const bool split = HasTensor(gguf, ".attn_k_b.weight");  // such files give both kinds of head sizes
  const auto mla_key = k.Integer("attention.key_length_mla"),
             mla_value = k.Integer("attention.value_length_mla");
  const int64_t key = mla_key ? *mla_key : k.Need("attention.key_length");
  if (split && !mla_key) k.Fail("GGUF metadata deepseek2.attention.key_length_mla: missing");
  j["qk_rope_head_dim"] = rope;
  j["qk_nope_head_dim"] = key - rope;
  j["v_head_dim"] = mla_value ? *mla_value : k.Need("attention.value_length");
  j["n_routed_experts"] = k.Need("expert_count");
  j["n_shared_experts"] = k.Integer("expert_shared_count").value_or(0);
  j["moe_intermediate_size"] = k.Need("expert_feed_forward_length");
  j["first_k_dense_replace"] = k.Integer("leading_dense_block_count").value_or(0);
  j["routed_scaling_factor"] = k.Number("expert_weights_scale").value_or(1.0);
  j["norm_topk_prob"] = k.Bool("expert_weights_norm").value_or(false);
  const int64_t groups = k.Integer("expert_group_count").value_or(1);
  j["n_group"] = std::max<int64_t>(groups, 1);
  j["topk_group"] = std::max<int64_t>(k.Integer("expert_group_used_count").value_or(1), 1);
  j["scoring_func"] = sigmoid ? "sigmoid" : "softmax";
  j["topk_method"] = sigmoid ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
  j["rope_interleave"] = true;
}

void AddGlm4(Keys& k, const Gguf& gguf, Json* out) {
  Json& j = *out;
  j["model_type"] = "glm4_moe";
  j["attention_bias"] = HasTensor(gguf, ".attn_q.bias");
  j["use_qk_norm"] = HasTensor(gguf, ".attn_q_norm.weight");
  const int64_t head = k.Need("attention.key_length");
  if (const auto rotary = k.Integer("rope.dimension_count"); rotary && head > 0)
    j["partial_rotary_factor"] = static_cast<double>(*rotary) / static_cast<double>(head);
  j["n_routed_experts"] = k.Need("expert_count");
  j["n_shared_experts"] = k.Integer("expert_shared_count").value_or(1);
  j["moe_intermediate_size"] = k.Need("expert_feed_forward_length");
  j["first_k_dense_replace"] = k.Integer("leading_dense_block_count").value_or(0);
  j["routed_scaling_factor"] = k.Number("expert_weights_scale").value_or(1.0);
  j["norm_topk_prob"] = k.Bool("expert_weights_norm").value_or(true);
  j["n_group"] = 1;
  j["topk_group"] = 1;
}

void AddGptOss(Keys& k, Json* out) {
  Json& j = *out;
  j["model_type"] = "gpt_oss";
  j["attention_bias"] = true;
  if (const auto inter = k.Integer("expert_feed_forward_length")) j["intermediate_size"] = *inter;
  j["sliding_window"] = k.Need("attention.sliding_window");
  Json types = Json::array();
  for (int64_t i = 0; i < j["num_hidden_layers"].get<int64_t>(); ++i)
    types.push_back(i % 2 == 0 ? "sliding_attention" : "full_attention");
  j["layer_types"] = types;
}

void AddGranite(Keys& k, Json* out) {
  Json& j = *out;
  j["model_type"] = "granitemoe";
  if (const auto shared = k.Integer("expert_shared_feed_forward_length"); shared && *shared > 0) {
    j["model_type"] = "granitemoeshared";
    j["shared_intermediate_size"] = *shared;
  }
  if (const auto v = k.Number("embedding_scale")) j["embedding_multiplier"] = *v;
  if (const auto v = k.Number("residual_scale")) j["residual_multiplier"] = *v;
  if (const auto v = k.Number("attention.scale")) j["attention_multiplier"] = *v;
  if (const auto v = k.Number("logit_scale")) j["logits_scaling"] = *v;
}

void AddQwen(Keys& k, Arch arch, Json* out) {
  Json& j = *out;
  j["model_type"] = arch == Arch::kQwen2Moe ? "qwen2_moe" : "qwen3_moe";
  j["norm_topk_prob"] = arch == Arch::kQwen3Moe;
  j["decoder_sparse_step"] = 1;
  j["mlp_only_layers"] = Json::array();
  if (const auto inter = k.Integer("expert_feed_forward_length")) j["moe_intermediate_size"] = *inter;
  if (arch == Arch::kQwen2Moe)
    j["shared_expert_intermediate_size"] = k.Need("expert_shared_feed_forward_length");
}

// ---- tensors

struct RoleName {
  std::string_view gguf, role;
};
constexpr RoleName kEnds[] = {
    {"token_embd.weight", "embed"}, {"output_norm.weight", "final_norm"}, {"output.weight", "head"}};
constexpr RoleName kLayer[] = {
    {"attn_norm.weight", "input_norm"},
    {"ffn_norm.weight", "post_norm"},
    {"post_attention_norm.weight", "post_norm"},
    {"attn_q.weight", "q"},
    {"attn_k.weight", "k"},
    {"attn_v.weight", "v"},
    {"attn_output.weight", "o"},
    {"attn_q.bias", "q_bias"},
    {"attn_k.bias", "k_bias"},
    {"attn_v.bias", "v_bias"},
    {"attn_output.bias", "o_bias"},
    {"attn_q_norm.weight", "q_norm"},
    {"attn_k_norm.weight", "k_norm"},
    {"attn_sinks.weight", "sinks"},
    {"attn_q_a.weight", "q_a"},
    {"attn_q_a_norm.weight", "q_a_norm"},
    {"attn_q_b.weight", "q_b"},
    {"attn_kv_a_mqa.weight", "kv_a"},
    {"attn_kv_a_norm.weight", "kv_a_norm"},
    {"attn_kv_b.weight", "kv_b"},
    {"attn_k_b.weight", "k_b"},
    {"attn_v_b.weight", "v_b"},
    {"ffn_gate.weight", "dense.gate"},
    {"ffn_up.weight", "dense.up"},
    {"ffn_down.weight", "dense.down"},
    {"ffn_gate_inp.weight", "gate"},
    {"ffn_gate_inp.bias", "gate_weight_bias"},
    {"exp_probs_b.bias", "gate_bias"},
    {"ffn_gate_shexp.weight", "shared.gate"},
    {"ffn_up_shexp.weight", "shared.up"},
    {"ffn_down_shexp.weight", "shared.down"},
    {"ffn_gate_inp_shexp.weight", "shared_gate"},
};
constexpr RoleName kStacks[] = {
    {"ffn_gate_exps.weight", "gate"},    {"ffn_up_exps.weight", "up"},    {"ffn_down_exps.weight", "down"},
    {"ffn_gate_exps.bias", "gate_bias"}, {"ffn_up_exps.bias", "up_bias"}, {"ffn_down_exps.bias", "down_bias"},
};

template <size_t N>
std::string_view Find(const RoleName (&table)[N], std::string_view name) {
  for (const RoleName& r : table) {
    if (r.gguf == name) return r.role;
  }
  return {};
}

// "blk.7.attn_q.weight" -> 7, "attn_q.weight".
bool SplitLayer(std::string_view name, uint32_t* layer, std::string_view* rest) {
  if (!name.starts_with("blk.")) return false;
  const auto [end, error] = std::from_chars(name.data() + 4, name.data() + name.size(), *layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return false;
  *rest = name.substr(static_cast<size_t>(end - name.data()) + 1);
  return true;
}

// Cuts a stack [E, ...] into its experts; `halves` of the next dimension are different roles.
absl::Status CutStack(const TensorInfo& stack, uint32_t layer, std::initializer_list<std::string_view> roles,
                      const std::string& source, std::vector<TensorInfo>* out) {
  const size_t parts = roles.size();
  if (stack.shape.size() < 2 || stack.shape[0] > kExpertsMax ||
      stack.range.length % (stack.shape[0] * parts) != 0 || stack.shape[1] % parts != 0) {
    return InvalidArgument(source + ": tensor \"" + stack.name + "\": expected [experts, out, in], got " +
                           ShapeText(stack.shape));
  }
  const uint64_t bytes = stack.range.length / (stack.shape[0] * parts);
  for (uint32_t e = 0; e < stack.shape[0]; ++e) {
    size_t part = 0;
    for (std::string_view role : roles) {
      TensorInfo t = stack;
      t.name = stack.name + "[" + std::to_string(e) + "]";
      t.role = LayerRole(layer, "experts." + std::to_string(e) + "." + std::string(role));
      t.shape.erase(t.shape.begin());
      t.shape[0] /= parts;
      t.range.offset += (e * parts + part) * bytes;
      t.range.length = bytes;
      out->push_back(std::move(t));
      ++part;
    }
  }
  return absl::OkStatus();
}

absl::Status AddLayerTensor(const TensorInfo& stored, uint32_t layer, std::string_view rest,
                            uint32_t rotary_head, const std::string& source, std::vector<TensorInfo>* out) {
  if (const std::string_view role = Find(kStacks, rest); !role.empty())
    return CutStack(stored, layer, {role}, source, out);
  if (rest == "ffn_gate_up_exps.weight") return CutStack(stored, layer, {"gate", "up"}, source, out);
  TensorInfo t = stored;
  if (const std::string_view role = Find(kLayer, rest); !role.empty()) t.role = LayerRole(layer, role);
  if (rest == "attn_q.weight" || rest == "attn_k.weight" || rest == "attn_q.bias" || rest == "attn_k.bias")
    t.rotary_head = rotary_head;
  out->push_back(std::move(t));
  return absl::OkStatus();
}

// Layers of the decoder: block_count without the prediction layers behind them.
int64_t DecoderLayers(Keys& k) {
  return k.Need("block_count") - k.Integer("nextn_predict_layers").value_or(0);
}

int64_t HeadDim(Keys& k) {
  if (const auto v = k.Integer("attention.key_length")) return *v;
  if (const auto v = k.Integer("rope.dimension_count")) return *v;
  const int64_t heads = k.NeedEqual("attention.head_count");
  return heads > 0 ? k.Need("embedding_length") / heads : 0;
}

}  // namespace

absl::StatusOr<std::string> GgufConfigJson(const Gguf& gguf, const std::string& source) {
  std::string name;
  ASSIGN_OR_RETURN(const Arch arch, ArchOf(gguf, source, &name));
  Keys k(gguf, name);
  Json j = {{"hidden_act", "silu"}};
  const auto experts = k.Integer("expert_count");
  if (!experts || *experts < 1)
    return Unimplemented(source + ": architecture " + name + " without experts (" + name + ".expert_count)");
  j["hidden_size"] = k.Need("embedding_length");
  j["num_hidden_layers"] = DecoderLayers(k);
  RETURN_IF_ERROR(k.status());
  if (const int64_t layers = j["num_hidden_layers"].get<int64_t>();
      layers < 1 || layers > int64_t{kLayersMax})
    return InvalidArgument(source + ": " + name + ".block_count: expected 1.." + std::to_string(kLayersMax) +
                           " layers, got " + std::to_string(layers));
  j["num_attention_heads"] = k.NeedEqual("attention.head_count");
  j["num_key_value_heads"] = k.NeedEqual("attention.head_count_kv");
  if (const auto inter = k.Integer("feed_forward_length")) j["intermediate_size"] = *inter;
  j["num_experts_per_tok"] = k.Need("expert_used_count");
  j["max_position_embeddings"] = k.Need("context_length");
  j["rms_norm_eps"] = k.Number("attention.layer_norm_rms_epsilon").value_or(1e-5);
  const std::vector<std::string>* tokens = gguf.Texts("tokenizer.ggml.tokens");
  if (const auto vocab = k.Integer("vocab_size")) {
    j["vocab_size"] = *vocab;
  } else if (tokens != nullptr) {
    j["vocab_size"] = tokens->size();
  }
  j["tie_word_embeddings"] = std::none_of(gguf.tensors.begin(), gguf.tensors.end(),
                                          [](const TensorInfo& t) { return t.name == "output.weight"; });
  if (arch != Arch::kDeepseek) {
    j["head_dim"] = HeadDim(k);
    j["num_local_experts"] = *experts;
    j["num_experts"] = *experts;
  }
  switch (arch) {
    case Arch::kMixtral:
      j["model_type"] = "mixtral";
      break;
    case Arch::kOlmoe:
      j["model_type"] = "olmoe";
      j["norm_topk_prob"] = false;
      if (const auto v = k.Number("attention.clamp_kqv"); v && *v > 0) j["clip_qkv"] = *v;
      break;
    case Arch::kDeepseek:
      AddDeepseek(k, gguf, &j);
      break;
    case Arch::kQwen2Moe:
    case Arch::kQwen3Moe:
      AddQwen(k, arch, &j);
      break;
    case Arch::kGptOss:
      AddGptOss(k, &j);
      break;
    case Arch::kGranite:
      AddGranite(k, &j);
      break;
    case Arch::kGlm4:
      AddGlm4(k, gguf, &j);
      break;
  }
  if (arch == Arch::kMixtral) {
    if (const auto window = k.Integer("attention.sliding_window"); window && *window > 0)
      j["sliding_window"] = *window;
  }
  AddRope(k, arch, &j);
  Json eos = Json::array();
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const auto id, gguf.Integer(key));
    if (id && *id >= 0 && *id < INT32_MAX) eos.push_back(*id);
  }
  if (!eos.empty()) j["eos_token_id"] = eos;
  if (!k.status().ok()) return Annotate(k.status(), source);
  return j.dump(1);
}

absl::StatusOr<std::vector<TensorInfo>> GgufTensors(const Gguf& gguf, const std::string& source) {
  std::string name;
  ASSIGN_OR_RETURN(const Arch arch, ArchOf(gguf, source, &name));
  Keys k(gguf, name);
  const int64_t layers = DecoderLayers(k), head = arch == Arch::kDeepseek ? 0 : HeadDim(k);
  if (!k.status().ok()) return Annotate(k.status(), source);
  // llama.cpp's converter reorders q and k of these for its adjacent-pair rotation.
  const bool permuted = arch == Arch::kMixtral || arch == Arch::kGranite;
  if (permuted && (head < 2 || head > int64_t{kHeadDimMax}))
    return InvalidArgument(source + ": heads of " + std::to_string(head) + " lanes");
  std::vector<TensorInfo> out;
  uint64_t cut = 0;  // bounds what stacks become
  for (const TensorInfo& t : gguf.tensors) {
    uint32_t layer = 0;
    std::string_view rest;
    if (!SplitLayer(t.name, &layer, &rest)) {
      out.push_back(t);
      out.back().role = Find(kEnds, t.name);
      continue;
    }
    if (static_cast<int64_t>(layer) >= layers) continue;
    if (rest.find("_exps.") != std::string_view::npos && !t.shape.empty()) cut += t.shape[0];
    if (cut > 6 * uint64_t{kRoutedExpertsMax})
      return InvalidArgument(source + ": more than " + std::to_string(kRoutedExpertsMax) + " routed experts");
    RETURN_IF_ERROR(AddLayerTensor(t, layer, rest, permuted ? static_cast<uint32_t>(head) : 0, source, &out));
  }
  return out;
}

absl::StatusOr<GgufFiles> ReadGgufFiles(const std::string& given) {
  const std::string path = std::filesystem::absolute(given).lexically_normal().string();
  GgufFiles out;
  out.files.push_back(path);
  ASSIGN_OR_RETURN(out.gguf, ReadGguf(path, 0));
  ASSIGN_OR_RETURN(const auto count, out.gguf.Integer("split.count"));
  if (!count || *count <= 1) return out;
  ASSIGN_OR_RETURN(const auto number, out.gguf.Integer("split.no"));
  char suffix[64];
  std::snprintf(suffix, sizeof suffix, "-00001-of-%05lld.gguf", static_cast<long long>(*count));
  if (*count > kSplitsMax || number.value_or(0) != 0 || !path.ends_with(suffix))
    return InvalidArgument(path + ": a split GGUF file: give the first, named ..." + suffix);
  const std::string stem = path.substr(0, path.size() - std::char_traits<char>::length(suffix));
  for (int64_t i = 1; i < *count; ++i) {
    std::snprintf(suffix, sizeof suffix, "-%05lld-of-%05lld.gguf", static_cast<long long>(i + 1),
                  static_cast<long long>(*count));
    out.files.push_back(stem + suffix);
    ASSIGN_OR_RETURN(Gguf next, ReadGguf(out.files.back(), static_cast<uint32_t>(i)));
    out.gguf.tensors.insert(out.gguf.tensors.end(), std::make_move_iterator(next.tensors.begin()),
                            std::make_move_iterator(next.tensors.end()));
  }
  std::set<std::string_view> names;
  for (const TensorInfo& t : out.gguf.tensors) {
    if (!names.insert(t.name).second)
      return InvalidArgument(path + ": tensor \"" + t.name + "\" is in two of the split files");
  }
  return out;
}

}  // namespace consilium
