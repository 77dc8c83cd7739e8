// Writes small Hugging Face folders with random weights: config.json, safetensors (one file or shards), a
// byte-level tokenizer with a chat template. The same TinyConfig gives the same bytes.
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/tensor/dtype.h"

namespace consilium {

struct TinyConfig {
  enum class Family : uint8_t { kDeepseekV3, kMixtral, kLfm2Moe, kQwen3Next };
  Family family = Family::kDeepseekV3;
  uint64_t seed = 1;
  DType dtype = DType::kBf16;  // of matrices and norms; correction biases are F32
  uint32_t shards = 1;         // above 1: model-0000i-of-0000n.safetensors and an index
  uint32_t vocab = 320, hidden = 32, layers = 3, context = 512;
  uint32_t heads = 2;
  bool tied = false;
  bool gelu = false;  // gelu_pytorch_tanh instead of silu
  uint32_t experts = 8, top_k = 2, expert_inter = 16;
  // Mixtral and, but for the window, LFM2-MoE and Qwen3-Next.
  uint32_t kv_heads = 1, head_dim = 16, window = 0;
  // LFM2-MoE: even layers are short convolutions. Qwen3-Next: even layers are delta nets.
  uint32_t taps = 3;
  uint32_t delta_k_heads = 2, delta_v_heads = 4, delta_k_dim = 8, delta_v_dim = 12;
  bool conv_bias = false;
  // DeepSeek-V3; of LFM2-MoE dense_layers and dense_inter.
  uint32_t q_lora = 12;  // 0: none
  uint32_t kv_lora = 16, nope = 8, rope = 8, v_dim = 8;
  uint32_t shared_experts = 1, dense_layers = 1, dense_inter = 40, groups = 2, groups_kept = 1;
  std::string rope_scaling;  // JSON object, or empty: null
};

// The config.json of it.
std::string TinyConfigJson(const TinyConfig& config);
// Makes `dir` and fills it. Files that are there already are overwritten.
absl::Status WriteTinyCheckpoint(const TinyConfig& config, const std::string& dir);

// A new empty folder under the system's temporary folder, removed with all in it at the end of the object's
// life.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace consilium
