// The seam where model families enter. A family is one small file: how its config.json maps to ModelSpec, and
// which tensor of its files plays which role in which shape. Maths lives in shared pieces; docs/MODELS.md
// says how to add one.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/model/config_reader.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"

namespace consilium {

// Parts of a model, as `inspect` sums them.
enum class ModelPart : uint8_t { kEmbedding, kAttention, kNorm, kGate, kShared, kDense, kHead, kExperts };

// One tensor a model of the family must have.
struct TensorRole {
  std::string name;  // in the files
  std::string role;  // canonical, what decoders ask for: "embed", "layers.3.q" (roles below); empty for
                     // routed experts
  ModelPart part = ModelPart::kEmbedding;
  std::vector<uint64_t> shape;
  LayerId layer;  // kExperts
  ExpertId expert;
  ExpertPart expert_part = ExpertPart::kGate;
};

// Collects roles; the shared pieces add whole groups in Hugging Face's usual spelling.
class RoleList {
 public:
  explicit RoleList(const ModelSpec& spec) : spec_(spec) {}
  void Add(ModelPart part, std::string role, std::string name, std::vector<uint64_t> shape);
  // embed, final_norm and, unless tied, head.
  void AddEnds();
  // layers.N.input_norm, layers.N.post_norm; `prefix` is "model.layers.N.".
  void AddBlockNorms(uint32_t layer, const std::string& prefix);
  // layers.N.{q,k,v,o}[_bias] or, for MLA, layers.N.{q | q_a,q_a_norm,q_b, kv_a,kv_a_norm,kv_b, o}; prefix
  // ends in ".".
  void AddAttention(uint32_t layer, const std::string& prefix);
  // layers.N.<group>.{gate,up,down} of a gated MLP of `inter` lanes; `names` are the files' names of gate,
  // up, down.
  void AddMlp(ModelPart part, uint32_t layer, const std::string& group, const std::string& prefix,
              uint32_t inter, std::span<const std::string_view, 3> names);
  // All routed experts of a layer: prefix + expert + "." + name + ".weight".
  void AddExperts(uint32_t layer, const std::string& prefix, std::span<const std::string_view, 3> names);

  std::vector<TensorRole> roles;

 private:
  const ModelSpec& spec_;
};

inline constexpr std::string_view kGateUpDown[3] = {"gate_proj", "up_proj", "down_proj"};

struct Family {
  std::string_view name;                          // ModelSpec::family
  std::span<const std::string_view> model_types;  // values of config.json's model_type
  ModelSpec (*read)(ConfigReader& config);        // errors are recorded in the reader
  void (*list)(const ModelSpec& spec, RoleList* out);
  // A tensor that releases carry and inference does not use (multi-token prediction layers, stored rope
  // tables).
  bool (*ignored)(const ModelSpec& spec, std::string_view tensor);
};

std::span<const Family* const> Families();
// By model_type; null when unknown.
const Family* FindFamily(std::string_view model_type);
extern const Family kMixtral;
extern const Family kDeepseekV3;

// "layers.N.suffix".
std::string LayerRole(uint32_t layer, std::string_view suffix);

// What every family reads alike: hidden, vocab, context, norm_eps, tied_embeddings, activation, and refusal
// of quantised storage. Shared limits keep products of sizes within 32 bits.
void ReadCommon(ConfigReader& config, ModelSpec* spec);
inline constexpr uint32_t kHiddenMax = 1 << 17;
inline constexpr uint32_t kHeadsMax = 1 << 12;
inline constexpr uint32_t kHeadDimMax = 1 << 13;
inline constexpr uint32_t kLayersMax = 1 << 12;
inline constexpr uint32_t kExpertsMax = 1 << 15;
inline constexpr uint32_t kRoutedExpertsMax = 1
                                              << 18;  // of all layers together; bounds the manifest's memory

}  // namespace consilium
