// Model shapes that tests sweep: the demo and random models of unusual but legal sizes.
#pragma once
#include <vector>

#include "common/model/numerics_choice.h"
#include "common/testing/tiny_checkpoint.h"

namespace consilium {

struct Case {
  const char* name;
  TinyConfig config;
  bool demo = false;
  const char* golden = nullptr;  // a folder beside this file instead
  NumericsFlags numerics = {};
};

inline Case Tiny(const char* name, auto change) {
  Case c{name, {}, false, nullptr};
  change(&c.config);
  return c;
}

inline std::vector<Case> TinyCases() {
  return {
      {"demo", {}, true, nullptr},
      Tiny("deepseek", [](TinyConfig*) {}),
      Tiny("deepseek_odd",
           [](TinyConfig* c) {
             c->dtype = DType::kF32;
             c->vocab = 301, c->hidden = 37, c->heads = 1, c->q_lora = 0, c->kv_lora = 11, c->nope = 5,
             c->rope = 6, c->v_dim = 7;
             c->experts = 7, c->top_k = 3, c->groups = 1, c->groups_kept = 1, c->expert_inter = 13;
             c->shared_experts = 0, c->dense_layers = 0, c->tied = true;
           }),
      Tiny(
          "deepseek_groups",
          [](TinyConfig* c) {
            c->heads = 3, c->q_lora = 13, c->experts = 10, c->groups = 5, c->groups_kept = 2, c->top_k = 4;
            c->layers = 4, c->dense_layers = 2, c->shared_experts = 2, c->shards = 2;
            c->rope_scaling =
                R"({"type":"yarn","factor":4,"original_max_position_embeddings":16,"mscale":1,"mscale_all_dim":1})";
          }),
      Tiny("mixtral_window",
           [](TinyConfig* c) {
             c->family = TinyConfig::Family::kMixtral;
             c->hidden = 33, c->heads = 3, c->kv_heads = 1, c->head_dim = 10, c->window = 20;
             c->experts = 5, c->top_k = 3, c->expert_inter = 21, c->tied = true;
           }),
      Tiny("mixtral_f16",
           [](TinyConfig* c) {
             c->family = TinyConfig::Family::kMixtral;
             c->dtype = DType::kF16, c->gelu = true;
             c->hidden = 40, c->heads = 5, c->kv_heads = 5, c->head_dim = 8, c->experts = 3, c->top_k = 3;
             c->rope_scaling = R"({"type":"linear","factor":2})";
           }),
      Tiny("lfm2_bias",
           [](TinyConfig* c) {
             c->family = TinyConfig::Family::kLfm2Moe;
             c->dtype = DType::kF32;
             c->hidden = 33, c->layers = 4, c->heads = 3, c->head_dim = 10, c->taps = 5, c->conv_bias = true;
             c->experts = 7, c->top_k = 3, c->expert_inter = 13;
           }),
      // Taps reach over three pages.
      Tiny("lfm2_long",
           [](TinyConfig* c) {
             c->family = TinyConfig::Family::kLfm2Moe;
             c->hidden = 40, c->kv_heads = 2, c->taps = 35, c->dense_layers = 0, c->tied = true;
           }),
      Tiny("delta_net", [](TinyConfig* c) { c->family = TinyConfig::Family::kQwen3Next; }),
      // Heads that fill no panel, a convolution over more than a page.
      Tiny("delta_net_odd",
           [](TinyConfig* c) {
             c->family = TinyConfig::Family::kQwen3Next;
             c->dtype = DType::kF32;
             c->hidden = 37, c->heads = 3, c->head_dim = 12, c->taps = 19;
             c->delta_k_heads = 3, c->delta_v_heads = 9, c->delta_k_dim = 5, c->delta_v_dim = 21;
             c->experts = 7, c->top_k = 3, c->expert_inter = 13, c->tied = true;
           }),
  };
}

// The same, one golden folder for each attention and gate kind, and class i8g32 in each integer format.
inline std::vector<Case> ExactCases() {
  std::vector<Case> cases = TinyCases();
  for (const char* folder :
       {"dbrx", "deepseek_v2", "deepseek_v3_bias_gelu", "ernie4_5_moe", "glm4_moe", "gpt_oss",
        "granitemoeshared", "grok1", "hunyuan_v1_moe", "lfm2_moe", "llama4", "minimax_m2", "mistral4",
        "olmoe", "phimoe", "qwen2_moe", "qwen3_moe_fused", "qwen3_next"}) {
    cases.push_back({folder, {}, false, folder});
  }
  for (const char* folder :
       {"gguf_mixtral_q8_0", "gguf_olmoe_q4_0", "gguf_qwen3moe_q4_k_q6_k", "gguf_qwen3moe_q2_k_iq4",
        "kimi_k2_int4", "gpt_oss_mxfp4", "qwen3_moe_awq", "mixtral_w8a8"}) {
    cases.push_back({folder, {}, false, folder, {"i8g32", "stored"}});
  }
  cases.push_back({"demo_int8", {}, true, nullptr, {"auto", "int8"}});
  cases.push_back({"demo_int4", {}, true, nullptr, {"i8g32", "int4"}});
  cases.push_back({"llama4_int8", {}, false, "llama4", {"i8g32", "int8"}});  // scales what experts read
  return cases;
}

}  // namespace consilium
