#include "common/model/gguf_config.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/model/families/family.h"
#include "common/model/gguf_model.h"
#include "common/model/gguf_tokenizer.h"
#include "common/model/json_text.h"

namespace consilium {
namespace {

struct ArchName {
  std::string_view name;
  GgufArch arch;
};
constexpr ArchName kArchs[] = {
    {"llama", GgufArch::kMixtral},       {"deepseek2", GgufArch::kDeepseek},
    {"qwen2moe", GgufArch::kQwen2Moe},   {"qwen3moe", GgufArch::kQwen3Moe},
    {"olmoe", GgufArch::kOlmoe},         {"gpt-oss", GgufArch::kGptOss},
    {"granitemoe", GgufArch::kGranite},  {"glm4moe", GgufArch::kGlm4},
    {"dots1", GgufArch::kDots1},         {"ernie4_5-moe", GgufArch::kErnie},
    {"hunyuan-moe", GgufArch::kHunyuan}, {"minimax-m2", GgufArch::kMinimax},
    {"dbrx", GgufArch::kDbrx},           {"grok", GgufArch::kGrok},
    {"llama4", GgufArch::kLlama4},       {"lfm2moe", GgufArch::kLfm2},
};

bool HasTensor(const Gguf& gguf, std::string_view suffix) {
  return std::any_of(gguf.tensors.begin(), gguf.tensors.end(),
                     [&](const TensorInfo& t) { return t.name.ends_with(suffix); });
}

void AddRope(GgufKeys& k, GgufArch arch, const Gguf& gguf, Json* out) {
  (*out)["rope_theta"] = k.Number("rope.freq_base").value_or(10000.0);
  const std::string type = k.Text("rope.scaling.type").value_or("none");
  if (const auto* factors = gguf.Numbers(kGgufRopeFactors); factors != nullptr && GgufHasRopeFactors(arch)) {
    if (type != "none") k.Fail("rope.scaling.type", "together with " + std::string(kGgufRopeFactors));
    (*out)["rope_scaling"] = {{"rope_type", "frequency_factors"}, {"factors", *factors}};
    return;
  }
  if (type == "none") return;
  Json scaling = {{"rope_type", type}, {"factor", k.Number("rope.scaling.factor").value_or(1.0)}};
  if (type == "yarn") {
    const auto original = k.Integer("rope.scaling.original_context_length");
    if (original) scaling["original_max_position_embeddings"] = *original;
    if (const auto v = k.Number("rope.scaling.yarn_beta_fast")) scaling["beta_fast"] = *v;
    if (const auto v = k.Number("rope.scaling.yarn_beta_slow")) scaling["beta_slow"] = *v;
    if (const auto v = k.Number("rope.scaling.attn_factor"); v && *v != 1) scaling["attention_factor"] = *v;
    // 0.1 mscale_all_dim, stored as f32; releases have mscale equal to it.
    if (const auto v = k.Number("rope.scaling.yarn_log_multiplier"); v && arch == GgufArch::kDeepseek) {
      const double mscale = static_cast<double>(static_cast<float>(*v * 10));
      scaling["mscale"] = mscale;
      scaling["mscale_all_dim"] = mscale;
    }
    if (arch == GgufArch::kGptOss) scaling["truncate"] = false;  // as released; the metadata cannot say
  } else if (type != "linear") {
    k.Fail("rope.scaling.type",
           "\"" + type.substr(0, 40) + "\" is not supported; supported: none, linear, yarn");
  }
  (*out)["rope_scaling"] = scaling;
}

// What DeepSeek-V3's gate and the layers around it are called in every architecture that has them.
void AddDenseFirst(GgufKeys& k, int64_t shared, bool normed, Json* out) {
  Json& j = *out;
  j["n_routed_experts"] = k.Need("expert_count");
  j["n_shared_experts"] = k.Integer("expert_shared_count").value_or(shared);
  j["moe_intermediate_size"] = k.Need("expert_feed_forward_length");
  j["first_k_dense_replace"] = k.Integer("leading_dense_block_count").value_or(0);
  j["routed_scaling_factor"] = k.Number("expert_weights_scale").value_or(1.0);
  j["norm_topk_prob"] = k.Bool("expert_weights_norm").value_or(normed);
  j["n_group"] = std::max<int64_t>(k.Integer("expert_group_count").value_or(1), 1);
  j["topk_group"] = std::max<int64_t>(k.Integer("expert_group_used_count").value_or(1), 1);
}

void AddDeepseek(GgufKeys& k, const Gguf& gguf, Json* out) {
  Json& j = *out;
  const bool sigmoid = k.Integer("expert_gating_func").value_or(1) == 2;
  if (!sigmoid) k.ExpectGating(1);
  j["model_type"] = sigmoid ? "deepseek_v3" : "deepseek_v2";
  j["num_key_value_heads"] = j["num_attention_heads"];
  if (const auto q = k.Integer("attention.q_lora_rank"); q && *q > 0) j["q_lora_rank"] = *q;
  j["kv_lora_rank"] = k.Need("attention.kv_lora_rank");
  const int64_t rope = k.Need("rope.dimension_count");
  const bool split = HasTensor(gguf, ".attn_k_b.weight");  // such files give both kinds of head sizes
  const auto mla_key = k.Integer("attention.key_length_mla"),
             mla_value = k.Integer("attention.value_length_mla");
  const int64_t key = mla_key ? *mla_key : k.Need("attention.key_length");
  if (split && !mla_key) k.Fail("attention.key_length_mla", "missing");
  j["qk_rope_head_dim"] = rope;
  j["qk_nope_head_dim"] = key - rope;
  j["v_head_dim"] = mla_value ? *mla_value : k.Need("attention.value_length");
  AddDenseFirst(k, 0, false, &j);
  // Mistral Large 3 comes as this architecture too. Whether its scores are scaled with the context, which
  // Mistral's own config says (yarn.apply_scale), is not in the metadata.
  if (k.Number("attention.temperature_scale").value_or(0) != 0 ||
      (!sigmoid && j["norm_topk_prob"].get<bool>()))
    k.Fail("attention.temperature_scale", "Mistral Large 3 is supported in its own format only");
  // Files from before llama.cpp knew groups lack their counts. DeepSeek-V2 (160 experts) and V3, R1 (256)
  // have them.
  if (!k.Integer("expert_group_count")) {
    const int64_t experts = j["n_routed_experts"].get<int64_t>();
    if (experts == (sigmoid ? 256 : 160)) {
      j["n_group"] = 8;
      j["topk_group"] = sigmoid ? 4 : 3;
    }
  }
  j["scoring_func"] = sigmoid ? "sigmoid" : "softmax";
  j["topk_method"] = sigmoid                           ? "noaux_tc"
                     : j["n_group"].get<int64_t>() > 1 ? "group_limited_greedy"
                                                       : "greedy";
  j["rope_interleave"] = true;
}

void AddPartialRotary(GgufKeys& k, Json* out) {
  const int64_t head = GgufHeadDim(k);
  if (const auto rotary = k.Integer("rope.dimension_count"); rotary && head > 0)
    (*out)["partial_rotary_factor"] = static_cast<double>(*rotary) / static_cast<double>(head);
}

void AddGlm4(GgufKeys& k, const Gguf& gguf, Json* out) {
  Json& j = *out;
  j["model_type"] = "glm4_moe";
  j["attention_bias"] = HasTensor(gguf, ".attn_q.bias") || HasTensor(gguf, ".attn_qkv.bias");
  j["use_qk_norm"] = HasTensor(gguf, ".attn_q_norm.weight");
  AddPartialRotary(k, &j);
  k.ExpectGating(2);
  AddDenseFirst(k, 1, true, &j);
}

void AddGptOss(GgufKeys& k, Json* out) {
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

void AddGranite(GgufKeys& k, Json* out) {
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

void AddQwen(GgufKeys& k, GgufArch arch, Json* out) {
  Json& j = *out;
  j["model_type"] = arch == GgufArch::kQwen2Moe ? "qwen2_moe" : "qwen3_moe";
  j["norm_topk_prob"] = arch == GgufArch::kQwen3Moe;
  j["decoder_sparse_step"] = 1;
  j["mlp_only_layers"] = Json::array();
  if (const auto inter = k.Integer("expert_feed_forward_length")) j["moe_intermediate_size"] = *inter;
  if (arch != GgufArch::kQwen2Moe) return;
  // The first Qwen1.5 files have the shared expert's width only.
  const int64_t wide = k.Need("feed_forward_length"), used = k.Need("expert_used_count");
  j["shared_expert_intermediate_size"] = k.Integer("expert_shared_feed_forward_length").value_or(wide);
  if (!j.contains("moe_intermediate_size") && used > 0) j["moe_intermediate_size"] = wide / used;
}

void AddDots1(GgufKeys& k, Json* out) {
  (*out)["model_type"] = "dots1";
  k.ExpectGating(2);
  AddDenseFirst(k, 0, false, out);
}

void AddErnie(GgufKeys& k, const Gguf& gguf, Json* out) {
  Json& j = *out;
  j["model_type"] = "ernie4_5_moe";
  j["use_bias"] = HasTensor(gguf, ".attn_q.bias");
  j["moe_num_experts"] = k.Need("expert_count");
  j["moe_k"] = k.Need("expert_used_count");
  j["moe_intermediate_size"] = k.Need("expert_feed_forward_length");
  j["moe_num_shared_experts"] = k.Integer("expert_shared_count").value_or(0);
  j["moe_layer_start_index"] = k.Integer("leading_dense_block_count").value_or(0);
  j["moe_layer_interval"] = k.Integer("interleave_moe_layer_step").value_or(1);
}

void AddHunyuan(GgufKeys& k, Json* out) {
  Json& j = *out;
  const int64_t inter = k.Need("expert_feed_forward_length");
  const int64_t shared = k.Integer("expert_shared_feed_forward_length").value_or(inter);
  if (inter > 0 && shared % inter != 0)
    k.Fail("expert_shared_feed_forward_length", "expected a multiple of expert_feed_forward_length " +
                                                    std::to_string(inter) + ", got " +
                                                    std::to_string(shared));
  j["model_type"] = "hunyuan_v1_moe";
  j["intermediate_size"] = j["moe_intermediate_size"] = inter;
  j["moe_topk"] = k.Need("expert_used_count");
  j["num_shared_expert"] = inter > 0 ? shared / inter : 0;
}

void AddMinimax(GgufKeys& k, Json* out) {
  Json& j = *out;
  j["model_type"] = "minimax_m2";
  j["intermediate_size"] = k.Need("expert_feed_forward_length");
  k.ExpectGating(2);
  AddPartialRotary(k, &j);
}

void AddDbrx(GgufKeys& k, Json* out) {
  Json& j = *out;
  j["model_type"] = "dbrx";
  j["d_model"] = j["hidden_size"];
  j["n_heads"] = j["num_attention_heads"];
  j["n_layers"] = j["num_hidden_layers"];
  j["max_seq_len"] = j["max_position_embeddings"];
  j["attn_config"] = {{"kv_n_heads", j["num_key_value_heads"]}};
  if (const auto clip = k.Number("attention.clamp_kqv"); clip && *clip > 0)
    j["attn_config"]["clip_qkv"] = *clip;
  j["ffn_config"] = {{"ffn_hidden_size", k.Need("feed_forward_length")},
                     {"moe_num_experts", k.Need("expert_count")},
                     {"moe_top_k", k.Need("expert_used_count")},
                     {"moe_normalize_expert_weights", 1}};
}

// Without these keys: what Grok-1 has (xai-org/grok-1, run.py), as its first files lack them.
void AddGrok(GgufKeys& k, Json* out) {
  Json& j = *out;
  j["model_type"] = "grok-1";
  j["hidden_act"] = "gelu_pytorch_tanh";
  if (const auto inter = k.Integer("expert_feed_forward_length")) j["intermediate_size"] = *inter;
  j["attn_output_multiplier"] = k.Number("attention.output_scale").value_or(0.08838834764831845);
  j["max_attn_value"] = k.Number("attn_logit_softcapping").value_or(30.0);
  j["embedding_multiplier_scale"] = k.Number("embedding_scale").value_or(78.38367176906169);
  j["output_multiplier_scale"] = k.Number("logit_scale").value_or(0.5773502691896257);
  for (const char* key : {"final_logit_softcapping", "attention.temperature_length"}) {
    if (k.Number(key).value_or(0) != 0) k.Fail(key, "Grok-2 is not supported");
  }
}

// Chunks, layers without rotation and temperature are llama.cpp's constants, those of the releases.
void AddLlama4(GgufKeys& k, Json* out) {
  Json& j = *out;
  if (k.Integer("attention.sliding_window").value_or(1) == 0)
    k.Fail("attention.sliding_window", "a model without chunks is not supported");
  j["model_type"] = "llama4_text";
  j["intermediate_size_mlp"] = j["intermediate_size"];
  j["intermediate_size"] = k.Need("expert_feed_forward_length");
  j["interleave_moe_layer_step"] = k.Need("interleave_moe_layer_step");
  j["use_qk_norm"] = k.Need("expert_count") != 128;  // all but Maverick
  j["attention_chunk_size"] = 8192;
  j["no_rope_layer_interval"] = 4;
  j["attn_temperature_tuning"] = true;
  j["attn_scale"] = 0.1;
  j["floor_scale"] = 8192;
}

// Layers without key heads are short convolutions.
void AddLfm2(GgufKeys& k, const Gguf& gguf, Json* out) {
  Json& j = *out;
  j["model_type"] = "lfm2_moe";
  j["norm_eps"] = j["rms_norm_eps"];
  j["conv_L_cache"] = k.Need("shortconv.l_cache");
  j["moe_intermediate_size"] = k.Need("expert_feed_forward_length");
  j["num_dense_layers"] = k.Integer("leading_dense_block_count").value_or(0);
  j["use_expert_bias"] = HasTensor(gguf, ".exp_probs_b.bias");
  k.ExpectGating(2);
  Json types = Json::array();
  if (const auto* heads = k.Layers("attention.head_count_kv"); heads != nullptr) {
    for (int64_t n : *heads) types.push_back(n == 0 ? "conv" : "full_attention");
  }
  j["layer_types"] = types;
}

void AddArch(GgufKeys& k, GgufArch arch, const Gguf& gguf, Json* out) {
  Json& j = *out;
  switch (arch) {
    case GgufArch::kMixtral:
      j["model_type"] = "mixtral";
      if (const auto window = k.Integer("attention.sliding_window"); window && *window > 0)
        j["sliding_window"] = *window;
      break;
    case GgufArch::kOlmoe:
      j["model_type"] = "olmoe";
      j["norm_topk_prob"] = false;
      if (const auto v = k.Number("attention.clamp_kqv"); v && *v > 0) j["clip_qkv"] = *v;
      break;
    case GgufArch::kDeepseek:
      return AddDeepseek(k, gguf, out);
    case GgufArch::kQwen2Moe:
    case GgufArch::kQwen3Moe:
      return AddQwen(k, arch, out);
    case GgufArch::kGptOss:
      return AddGptOss(k, out);
    case GgufArch::kGranite:
      return AddGranite(k, out);
    case GgufArch::kGlm4:
      return AddGlm4(k, gguf, out);
    case GgufArch::kDots1:
      return AddDots1(k, out);
    case GgufArch::kErnie:
      return AddErnie(k, gguf, out);
    case GgufArch::kHunyuan:
      return AddHunyuan(k, out);
    case GgufArch::kMinimax:
      return AddMinimax(k, out);
    case GgufArch::kDbrx:
      return AddDbrx(k, out);
    case GgufArch::kGrok:
      return AddGrok(k, out);
    case GgufArch::kLlama4:
      return AddLlama4(k, out);
    case GgufArch::kLfm2:
      return AddLfm2(k, gguf, out);
  }
}

// What all architectures have.
absl::Status AddCommon(GgufKeys& k, GgufArch arch, const Gguf& gguf, const std::string& where, Json* out) {
  Json& j = *out;
  j["hidden_size"] = k.Need("embedding_length");
  const int64_t layers = GgufDecoderLayers(k);
  RETURN_IF_ERROR(k.status());
  if (layers < 1 || layers > int64_t{kLayersMax})
    return InvalidArgument(where + ".block_count: expected 1.." + std::to_string(kLayersMax) +
                           " layers, got " + std::to_string(layers));
  j["num_hidden_layers"] = layers;
  j["num_attention_heads"] = k.NeedEqual("attention.head_count");
  j["num_key_value_heads"] = GgufKvHeads(k, arch);
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
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GgufArch> GgufArchOf(const Gguf& gguf, const std::string& source, std::string* name) {
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

std::optional<int64_t> GgufKeys::Integer(const std::string& key) {
  constexpr int64_t kMost = int64_t{1} << 40;
  const auto v = Take(gguf_.Integer(arch_ + key));
  if (!v || (*v >= -kMost && *v <= kMost)) return v;
  Fail(key, "expected a number up to 2^40, got " + std::to_string(*v));
  return std::nullopt;
}

int64_t GgufKeys::Need(const std::string& key) {
  const auto v = Integer(key);
  if (!v) Fail(key, "missing; expected an integer");
  return v.value_or(0);
}

int64_t GgufKeys::NeedEqual(const std::string& key) {
  if (const auto* list = gguf_.Integers(arch_ + key); list != nullptr && !list->empty()) {
    for (int64_t v : *list) {
      if (v != list->front()) Fail(key, "layers that differ are not supported");
    }
    return list->front();
  }
  return Need(key);
}

int64_t GgufKeys::NeedEqualOrNone(const std::string& key) {
  const std::vector<int64_t>* list = Layers(key);
  if (list == nullptr || list->empty()) return Need(key);
  int64_t only = 0;
  for (int64_t v : *list) {
    if (v != 0 && only != 0 && v != only) Fail(key, "layers that differ are not supported");
    if (v != 0) only = v;
  }
  return only;
}

void GgufKeys::ExpectGating(int64_t only) {
  const int64_t func = Integer("expert_gating_func").value_or(0);
  if (func != 0 && func != only)
    Fail("expert_gating_func",
         "expected " + std::to_string(only) + " (1 softmax, 2 sigmoid), got " + std::to_string(func));
}

void GgufKeys::Fail(const std::string& key, const std::string& message) {
  if (status_.ok()) status_ = InvalidArgument("GGUF metadata " + arch_ + key + ": " + message);
}

int64_t GgufDecoderLayers(GgufKeys& k) {
  return k.Need("block_count") - k.Integer("nextn_predict_layers").value_or(0);
}

int64_t GgufHeadDim(GgufKeys& k) {
  if (const auto v = k.Integer("attention.key_length")) return *v;
  const int64_t heads = k.NeedEqual("attention.head_count");
  return heads > 0 ? k.Need("embedding_length") / heads : 0;
}

int64_t GgufKvHeads(GgufKeys& k, GgufArch arch) {
  const std::string key = "attention.head_count_kv";
  return arch == GgufArch::kLfm2 ? k.NeedEqualOrNone(key) : k.NeedEqual(key);
}

absl::StatusOr<std::string> GgufConfigJson(const Gguf& gguf, const std::string& source) {
  std::string name;
  ASSIGN_OR_RETURN(const GgufArch arch, GgufArchOf(gguf, source, &name));
  GgufKeys k(gguf, name);
  Json j = {{"hidden_act", "silu"}};
  const auto experts = k.Integer("expert_count");
  if (!experts || *experts < 1)
    return Unimplemented(source + ": architecture " + name + " without experts (" + name + ".expert_count)");
  RETURN_IF_ERROR(AddCommon(k, arch, gguf, source + ": " + name, &j));
  if (arch != GgufArch::kDeepseek) {
    j["head_dim"] = GgufHeadDim(k);
    j["num_local_experts"] = *experts;
    j["num_experts"] = *experts;
  }
  AddArch(k, arch, gguf, &j);
  AddRope(k, arch, gguf, &j);
  ASSIGN_OR_RETURN(const std::vector<int64_t> stops, GgufStopIds(gguf));
  if (!stops.empty()) j["eos_token_id"] = stops;
  if (!k.status().ok()) return Annotate(k.status(), source);
  return j.dump(1);
}

}  // namespace consilium
