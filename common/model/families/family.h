// The seam where model families enter. A family is one small file: how its config.json maps to ModelSpec, and
// which tensor of its files plays which role in which shape. Maths lives in shared pieces; docs/MODELS.md
// says how to add one.
#pragma once
#include <cstdint>
#include <functional>
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

// Which piece of a stored tensor a role is: bytes [begin, begin + count) of `of` equal pieces, then inside of
// it rows first_row, first_row + row_step, ... of the stored matrix, or its columns when it is `transposed`.
struct TensorPiece {
  std::vector<uint64_t> stored;  // the tensor's shape in the files; empty: the role's own, whole
  uint64_t begin = 0, count = 1, of = 1;
  uint32_t first_row = 0, row_step = 1;
  bool transposed = false;
};

// One tensor a model of the family must have.
struct TensorRole {
  std::string name;  // in the files
  std::string role;  // canonical, what decoders ask for: "embed", "layers.3.q" (roles below); empty for
                     // routed experts
  ModelPart part = ModelPart::kEmbedding;
  std::vector<uint64_t> shape;
  TensorPiece piece;
  LayerId layer;  // kExperts
  ExpertId expert;
  ExpertPart expert_part = ExpertPart::kGate;
  bool expert_bias = false;  // of that part
};

// How the files of a family call things; the defaults are Transformers' usual names.
inline constexpr std::string_view kGateUpDown[3] = {"gate_proj", "up_proj", "down_proj"};
inline constexpr std::string_view kW132[3] = {"w1", "w3", "w2"};
struct FileNames {
  std::string_view root = "model.";  // embed_tokens, norm; then "layers.N."
  std::string_view embed = "embed_tokens.weight", norm = "norm.weight", head = "lm_head.weight";
  std::string_view layers = "layers.";
  std::string_view input_norm = "input_layernorm", post_norm = "post_attention_layernorm";
  std::string_view norm_weight = ".weight";
  std::string_view attention = "self_attn.", q_norm = "q_norm", k_norm = "k_norm", o = "o_proj";
  std::string_view conv = "conv.";  // of short convolutions
  std::string_view delta_net = "linear_attn.";
  // Of latent attention: q_a, q_a_norm, q_b, kv_a, kv_a_norm, kv_b, o.
  std::string_view mla[7] = {"q_a_proj",       "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa",
                             "kv_a_layernorm", "kv_b_proj",     "o_proj"};
  std::string_view dense = "mlp.", shared = "mlp.shared_experts.",
                   shared_gate = "mlp.shared_expert_gate.weight";
  std::span<const std::string_view, 3> mlp = kGateUpDown;  // of dense and shared MLPs
  std::string_view gate = "mlp.gate.weight", gate_bias = "mlp.gate.e_score_correction_bias";
  std::string_view experts = "mlp.experts.";
  std::span<const std::string_view, 3> expert = kGateUpDown;
};

// A tensor of the files, null when it is not there.
using StoredTensor = std::function<const TensorInfo*(const std::string&)>;

// Collects roles; the shared pieces add whole groups.
class RoleList {
 public:
  RoleList(const ModelSpec& spec, StoredTensor stored) : spec_(spec), stored_(std::move(stored)) {}
  void Add(ModelPart part, std::string role, std::string name, std::vector<uint64_t> shape,
           TensorPiece piece = {});
  bool Has(const std::string& name) const { return stored_(name) != nullptr; }
  // The first of the names that the files have; the first one when they have none.
  std::string FirstOf(std::initializer_list<std::string> names) const;

  // The names of a text model that lies beside a vision tower, when the files have one.
  void BesideVision(FileNames* names) const;

  // Everything of a model that differs from the usual in names only.
  void AddModel(const FileNames& names);
  // embed, final_norm and, unless tied, head.
  void AddEnds(const FileNames& names);
  // layers.N.input_norm, layers.N.post_norm; `prefix` is "model.layers.N.".
  void AddBlockNorms(uint32_t layer, const std::string& prefix, const FileNames& names);
  void AddNorm(const std::string& role, const std::string& name, uint64_t n, const FileNames& names);
  // layers.N.{q,k,v,o}[_bias], q_norm, k_norm, sinks or, for MLA, layers.N.{q | q_a,q_a_norm,q_b,
  // kv_a,kv_a_norm, kv_b, o}; prefix ends in ".".
  void AddAttention(uint32_t layer, const std::string& prefix, const FileNames& names);
  // layers.N.{conv_in,conv,o} and their biases; prefix ends in ".".
  void AddShortConv(uint32_t layer, const std::string& prefix);
  // layers.N.{delta_in,delta_gates | delta_qkv,delta_z,delta_b,delta_a} and
  // {conv,a_log,dt_bias,delta_norm,o}; prefix ends in ".".
  void AddDeltaNet(uint32_t layer, const std::string& prefix);
  // layers.N.<group>.{gate,up,down} of a gated MLP of `inter` lanes; `names` are the files' names of gate,
  // up, down.
  void AddMlp(ModelPart part, uint32_t layer, const std::string& group, const std::string& prefix,
              uint32_t inter, std::span<const std::string_view, 3> names);
  // All routed experts of a layer: prefix + expert + "." + name + ".weight", or, where the files have them,
  // stacks of all experts: prefix + gate_up_proj [E, 2 I, H] or [E, H, 2 I], prefix + down_proj [E, H, I] or
  // [E, I, H].
  void AddExperts(uint32_t layer, const std::string& prefix, std::span<const std::string_view, 3> names);
  void AddExpert(uint32_t layer, uint32_t expert, ExpertPart part, std::string name, TensorPiece piece);
  // One vector a role: of parts of an expert.
  void AddExpertBias(uint32_t layer, uint32_t expert, ExpertPart part, std::string name, TensorPiece piece);
  // Stacks [E, 2 I, H] and [E, H, I] under any name. `transposed`: [E, H, 2 I] and [E, I, H]; taken from the
  // shape where that is unambiguous, and never of quantised stacks. `interleaved`: gate and up lanes
  // alternate.
  void AddStackedExperts(uint32_t layer, const std::string& gate_up, const std::string& down, bool transposed,
                         bool interleaved);

  // Brings all parts of an expert together, as the manifest wants them.
  void GroupExperts();

  std::vector<TensorRole> roles;

 private:
  bool Transposed(const std::string& name, uint64_t rows, uint64_t columns, bool otherwise) const;
  const ModelSpec& spec_;
  StoredTensor stored_;
};

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
// By Family::name.
const Family* FamilyNamed(std::string_view name);

// "layers.N.suffix".
std::string LayerRole(uint32_t layer, std::string_view suffix);

// What `ignored` of most families is: stored rope tables, a head beside tied embeddings, prediction layers
// (from num_hidden_layers on, or named mtp), vision towers and what joins them to the text model.
bool UsuallyIgnored(const ModelSpec& spec, std::string_view tensor);

inline constexpr uint32_t kHiddenMax = 1 << 17;
inline constexpr uint32_t kHeadsMax = 1 << 12;
inline constexpr uint32_t kHeadDimMax = 1 << 13;
inline constexpr uint32_t kLayersMax = 1 << 12;
inline constexpr uint32_t kExpertsMax = 4096;  // of a layer; kernels::RouteRow
inline constexpr uint32_t kRoutedExpertsMax = 1
                                              << 18;  // of all layers together; bounds the manifest's memory

}  // namespace consilium
