// What families read from a config alike. Errors are recorded in the reader.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "common/model/config_reader.h"
#include "common/model/families/family.h"
#include "common/model/model_spec.h"

namespace consilium {

// hidden, vocab, context, norm_eps, tied_embeddings (absent: `tied`), activation. Shared limits keep products
// of sizes within 32 bits.
void ReadCommon(ConfigReader& config, ModelSpec* spec, bool tied = false,
                std::string_view norm_eps = "rms_norm_eps");
// `key` must be one of the activations implemented.
void ReadActivation(ConfigReader& config, std::string_view key, ModelSpec* spec);
// num_hidden_layers layers with routed experts.
void ReadLayers(ConfigReader& config, ModelSpec* spec);
// num_attention_heads, num_key_value_heads, head_dim (absent: hidden / heads), scale head_dim^-0.5.
void ReadHeads(ConfigReader& config, ModelSpec* spec);
// The three above, as every family with grouped-query attention begins.
void ReadGqaModel(ConfigReader& config, ModelSpec* spec, bool tied = false);
// Norms of each query and key head before rotation; attention_bias gives all four projections one.
void ReadNormedHeads(ConfigReader& config, ModelSpec* spec);
// The rotary table of grouped-query heads; `partial`: partial_rotary_factor is the family's, else it must
// be 1.
void ReadGqaRope(ConfigReader& config, ModelSpec* spec, bool partial = false, bool interleaved = false);
double PartialRotary(ConfigReader& config, double fallback = 1.0);
// Experts under the first key that is there, top_k; top_k <= experts.
void ReadExperts(ConfigReader& config, ModelSpec* spec, std::initializer_list<std::string_view> experts_keys,
                 std::string_view top_k_key = "num_experts_per_tok");
void CheckGroups(ConfigReader& config, const kernels::GateSpec& gate, uint32_t experts_a_group_min);
// n_group, topk_group, norm_topk_prob, routed_scaling_factor around a sigmoid gate with correction bias.
void ReadSigmoidGate(ConfigReader& config, ModelSpec* spec);
// Shared experts: one MLP of n_shared_experts * expert_inter lanes in every MoE layer.
void SetShared(ConfigReader& config, std::string_view key, uint64_t width, ModelSpec* spec);
void ReadSharedCount(ConfigReader& config, std::string_view key, ModelSpec* spec);
// DeepSeek's layers: experts of moe_intermediate_size lanes, layers below first_k_dense_replace dense of
// intermediate_size, n_shared_experts.
void ReadDeepseekLayers(ConfigReader& config, ModelSpec* spec);
// decoder_sparse_step and mlp_only_layers of the Qwen families.
void ReadSparseStep(ConfigReader& config, ModelSpec* spec);
// layer_types with `window` tokens for sliding_attention; false when the config has none.
bool ReadLayerTypes(ConfigReader& config, uint32_t window, ModelSpec* spec);
// `types`: of each layer "full_attention" or `name`, which means `mixer`; some layer has attention.
void SetMixers(ConfigReader& config, const std::vector<std::string>& types, std::string_view name,
               Mixer mixer, ModelSpec* spec);
// Latent attention (DeepSeek and Mistral): sizes, rope, scale; mscale_all_dim squared enters it when
// `mscale`.
void ReadMla(ConfigReader& config, ModelSpec* spec, bool mscale = true);
// Everything of a model with latent attention up to its gate: ReadCommon, ReadLayers, ReadMla,
// n_routed_experts.
void ReadMlaModel(ConfigReader& config, ModelSpec* spec);
uint32_t ReadWindow(ConfigReader& config, std::string_view key = "sliding_window");

}  // namespace consilium
