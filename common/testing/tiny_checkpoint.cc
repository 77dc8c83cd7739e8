#include "common/testing/tiny_checkpoint.h"

#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "common/base/hash.h"
#include "common/base/status.h"
#include "common/model/model_spec.h"
#include "common/model/tensor_index.h"

namespace consilium {
namespace {

using Json = nlohmann::json;

constexpr const char* kSpecials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
constexpr const char* kChatTemplate =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// Byte tokens before the specials.
uint32_t ByteTokens(const TinyConfig& c) { return std::min(256u, c.vocab > 3 ? c.vocab - 3 : 1); }

absl::Status WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  return out ? absl::OkStatus() : Unavailable(path + ": cannot write");
}

std::string Utf8(uint32_t code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

// GPT-2's printable stand-in for each byte.
std::string ByteSymbol(uint32_t byte) {
  uint32_t shifted = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    if (b == byte) return Utf8(plain ? b : shifted);
    if (!plain) ++shifted;
  }
  return "";
}

std::string TokenizerJson(const TinyConfig& c) {
  Json vocab = Json::object(), added = Json::array();
  const uint32_t bytes = ByteTokens(c);
  for (uint32_t b = 0; b < bytes; ++b) vocab[ByteSymbol(b)] = b;
  for (uint32_t i = 0; i < 3; ++i) {
    added.push_back({{"id", bytes + i},
                     {"content", kSpecials[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const Json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false},
                      {"vocab", vocab},
                      {"merges", Json::array()}};
  return Json{{"version", "1.0"},          {"truncation", nullptr}, {"padding", nullptr},
              {"added_tokens", added},     {"normalizer", nullptr}, {"pre_tokenizer", level},
              {"post_processor", nullptr}, {"decoder", level},      {"model", model}}
      .dump();
}

// Uniform in [-1, 1), a pure function of its place.
float Noise(uint64_t seed, uint64_t tensor, uint64_t element) {
  const uint64_t bits = Mix(Mix(seed, tensor), element) >> 40;
  return static_cast<float>(static_cast<double>(bits) / (1 << 23) - 1.0);
}

void AppendElement(DType dtype, float v, std::string* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if (dtype == DType::kF32) {
    out->append(reinterpret_cast<const char*>(&bits), 4);
    return;
  }
  // bf16: round to nearest even. f16: only values that it holds exactly are kept, cut to 8 bits of fraction.
  uint16_t half = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  if (dtype == DType::kF16) {
    const int exponent = static_cast<int>(bits >> 23 & 0xFF) - 127 + 15;
    half = exponent <= 0
               ? 0
               : static_cast<uint16_t>((bits >> 16 & 0x8000) | static_cast<uint32_t>(exponent) << 10 |
                                       ((bits >> 15 & 0xFF) << 2));
  }
  out->append(reinterpret_cast<const char*>(&half), 2);
}

struct TensorText {
  std::string name;
  DType dtype;
  std::vector<uint64_t> shape;
  std::string bytes;
};

TensorText MakeTensor(const TinyConfig& config, const TensorRole& role, uint64_t number) {
  TensorText t{role.name, config.dtype, role.shape, ""};
  uint64_t elements = 1;
  for (uint64_t d : role.shape) elements *= d;
  const bool correction = role.role.ends_with("gate_bias");
  if (correction) t.dtype = DType::kF32;
  // Uniform in [-a, a) has variance a^2 / 3; matrices keep the scale of what passes through, a bit more for
  // the gate so that choices are clear. Norm weights lie around 1.
  float amplitude = 1.0f, centre = 0.0f;
  if (role.shape.size() >= 2) amplitude = std::sqrt(3.0f / static_cast<float>(role.shape.back()));
  if (role.part == ModelPart::kEmbedding) amplitude = 1.5f;
  if (role.part == ModelPart::kGate) amplitude *= 2.0f;
  if (role.shape.size() == 1 && !correction) amplitude = 0.25f, centre = 1.0f;
  if (correction) amplitude = 0.2f;
  if (role.role.ends_with("a_log")) centre = -2.0f;  // states that last for some ten tokens
  for (uint64_t i = 0; i < elements; ++i) {
    AppendElement(t.dtype, centre + amplitude * Noise(config.seed, number, i), &t.bytes);
  }
  return t;
}

std::string Safetensors(const std::vector<TensorText>& tensors) {
  Json header = Json::object();
  std::string data;
  for (const TensorText& t : tensors) {
    header[t.name] = {{"dtype", DTypeName(t.dtype)},
                      {"shape", t.shape},
                      {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  header["__metadata__"] = {{"format", "pt"}};
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string out(8, '\0');
  const uint64_t length = text.size();
  std::memcpy(out.data(), &length, 8);
  return out + text + data;
}

std::string ShardName(uint32_t shard, uint32_t shards) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05u-of-%05u.safetensors", shard + 1, shards);
  return name;
}

absl::Status WriteWeights(const TinyConfig& config, const ModelSpec& spec, const std::string& dir) {
  ASSIGN_OR_RETURN(const std::vector<TensorRole> roles, ListRoles(spec));
  std::vector<std::vector<TensorText>> files(config.shards);
  Json map = Json::object();
  for (size_t i = 0; i < roles.size(); ++i) {
    const uint32_t shard = static_cast<uint32_t>(i * config.shards / roles.size());
    files[shard].push_back(MakeTensor(config, roles[i], i));
    map[roles[i].name] = ShardName(shard, config.shards);
  }
  if (config.shards == 1) return WriteFile(dir + "/model.safetensors", Safetensors(files[0]));
  for (uint32_t s = 0; s < config.shards; ++s) {
    RETURN_IF_ERROR(WriteFile(dir + "/" + ShardName(s, config.shards), Safetensors(files[s])));
  }
  return WriteFile(dir + "/model.safetensors.index.json",
                   Json{{"metadata", Json::object()}, {"weight_map", map}}.dump());
}

}  // namespace

std::string TinyConfigJson(const TinyConfig& c) {
  Json j = {{"vocab_size", c.vocab},
            {"hidden_size", c.hidden},
            {"num_hidden_layers", c.layers},
            {"max_position_embeddings", c.context},
            {"num_attention_heads", c.heads},
            {"num_experts_per_tok", c.top_k},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 10000.0},
            {"tie_word_embeddings", c.tied},
            {"hidden_act", c.gelu ? "gelu_pytorch_tanh" : "silu"},
            {"eos_token_id", ByteTokens(c) + 2},
            {"torch_dtype", "bfloat16"}};
  j["rope_scaling"] = c.rope_scaling.empty() ? Json(nullptr) : Json::parse(c.rope_scaling);
  if (c.family == TinyConfig::Family::kMixtral) {
    j.update({{"model_type", "mixtral"},
              {"num_key_value_heads", c.kv_heads},
              {"head_dim", c.head_dim},
              {"num_local_experts", c.experts},
              {"intermediate_size", c.expert_inter}});
    j["sliding_window"] = c.window == 0 ? Json(nullptr) : Json(c.window);
    return j.dump(1);
  }
  if (c.family == TinyConfig::Family::kQwen3Next) {
    j.update({{"model_type", "qwen3_next"},
              {"num_key_value_heads", c.kv_heads},
              {"head_dim", c.head_dim},
              {"partial_rotary_factor", 0.5},
              {"num_experts", c.experts},
              {"moe_intermediate_size", c.expert_inter},
              {"shared_expert_intermediate_size", c.expert_inter},
              {"linear_num_key_heads", c.delta_k_heads},
              {"linear_num_value_heads", c.delta_v_heads},
              {"linear_key_head_dim", c.delta_k_dim},
              {"linear_value_head_dim", c.delta_v_dim},
              {"linear_conv_kernel_dim", c.taps}});
    for (uint32_t i = 0; i < c.layers; ++i)
      j["layer_types"].push_back(i % 2 == 0 ? "linear_attention" : "full_attention");
    return j.dump(1);
  }
  if (c.family == TinyConfig::Family::kLfm2Moe) {
    j.erase("rms_norm_eps");
    j.erase("hidden_act");
    j.update({{"model_type", "lfm2_moe"},
              {"norm_eps", 1e-5},
              {"num_key_value_heads", c.kv_heads},
              {"head_dim", c.head_dim},
              {"num_experts", c.experts},
              {"moe_intermediate_size", c.expert_inter},
              {"num_dense_layers", c.dense_layers},
              {"intermediate_size", c.dense_inter},
              {"conv_L_cache", c.taps},
              {"conv_bias", c.conv_bias},
              {"routed_scaling_factor", 1.5}});
    for (uint32_t i = 0; i < c.layers; ++i)
      j["layer_types"].push_back(i % 2 == 0 ? "conv" : "full_attention");
    return j.dump(1);
  }
  j.update({{"model_type", "deepseek_v3"},
            {"num_key_value_heads", c.heads},
            {"kv_lora_rank", c.kv_lora},
            {"qk_nope_head_dim", c.nope},
            {"qk_rope_head_dim", c.rope},
            {"v_head_dim", c.v_dim},
            {"n_routed_experts", c.experts},
            {"n_shared_experts", c.shared_experts},
            {"moe_intermediate_size", c.expert_inter},
            {"intermediate_size", c.dense_inter},
            {"first_k_dense_replace", c.dense_layers},
            {"moe_layer_freq", 1},
            {"n_group", c.groups},
            {"topk_group", c.groups_kept},
            {"topk_method", "noaux_tc"},
            {"scoring_func", "sigmoid"},
            {"norm_topk_prob", true},
            {"routed_scaling_factor", 1.5},
            {"rope_interleave", true}});
  j["q_lora_rank"] = c.q_lora == 0 ? Json(nullptr) : Json(c.q_lora);
  return j.dump(1);
}

absl::Status WriteTinyCheckpoint(const TinyConfig& config, const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return Unavailable(dir + ": cannot make the folder: " + error.message());
  RETURN_IF_ERROR(WriteFile(dir + "/config.json", TinyConfigJson(config)));
  RETURN_IF_ERROR(WriteFile(dir + "/tokenizer.json", TokenizerJson(config)));
  const Json tokenizer_config = {
      {"chat_template", kChatTemplate}, {"eos_token", kSpecials[2]}, {"pad_token", kSpecials[0]}};
  RETURN_IF_ERROR(WriteFile(dir + "/tokenizer_config.json", tokenizer_config.dump(1)));
  ASSIGN_OR_RETURN(const ModelSpec spec, ReadModelSpec(dir));
  return WriteWeights(config, spec, dir);
}

TemporaryFolder::TemporaryFolder() {
  std::string path = (std::filesystem::temp_directory_path() / "consilium-test-XXXXXX").string();
  CHECK_MSG(::mkdtemp(path.data()) != nullptr, path);
  path_ = path;
}
TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace consilium
