// Folders that hold the weights of another one, so that its golden is theirs. Read by golden_http_test.py
// too.
#pragma once

namespace consilium {

struct GoldenPair {
  const char* folder;
  const char* golden;
};
// GGUF of a bf16 folder, bit for bit, as llama.cpp's converter writes it.
inline constexpr GoldenPair kGgufPairs[] = {{"gguf_qwen2moe", "qwen2_moe"},
                                            {"gguf_granitemoe", "granitemoe"},
                                            {"gguf_granitemoe_shared", "granitemoeshared"},
                                            {"gguf_glm4moe", "glm4_moe"},
                                            {"gguf_deepseek2_lite", "deepseek_v2_lite"},
                                            {"gguf_deepseek2_lite_old", "deepseek_v2_lite"},
                                            {"gguf_dots1", "dots1"},
                                            {"gguf_ernie4_5_moe", "ernie4_5_moe"},
                                            {"gguf_hunyuan_moe", "hunyuan_v1_moe"},
                                            {"gguf_minimax_m2", "minimax_m2"},
                                            {"gguf_dbrx", "dbrx"},
                                            {"gguf_grok", "grok1"},
                                            {"gguf_lfm2moe", "lfm2_moe"}};
// The same integers in the layout of another format (make_quantised.py).
inline constexpr GoldenPair kQuantPairs[] = {
    {"qwen3_moe_gptq_v2", "qwen3_moe_gptq"},    {"qwen3_moe_awq", "qwen3_moe_gptq"},
    {"qwen3_moe_w4a16_zero", "qwen3_moe_gptq"}, {"mixtral_w4a16", "mixtral_gptq"},
    {"mixtral_gptq_int8", "mixtral_w8a8"},      {"mixtral_w8a16", "mixtral_w8a8"}};

}  // namespace consilium
