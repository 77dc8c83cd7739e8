// GGUF folders that hold the weights of a bf16 folder, bit for bit, as llama.cpp's converter writes them:
// that folder's golden is theirs. Read by golden_http_test.py too.
#pragma once

namespace consilium {

struct GgufPair {
  const char* gguf;
  const char* folder;
};
inline constexpr GgufPair kGgufPairs[] = {{"gguf_qwen2moe", "qwen2_moe"},
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
                                          {"gguf_grok", "grok1"}};

}  // namespace consilium
