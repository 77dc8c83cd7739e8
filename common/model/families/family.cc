#include "common/model/families/family.h"

#include <algorithm>
#include <charconv>
#include <tuple>

#include "common/model/families/table.h"

namespace consilium {

std::span<const Family* const> Families() { return kFamilies; }

const Family* FindFamily(std::string_view model_type) {
  for (const Family* family : kFamilies) {
    for (std::string_view type : family->model_types) {
      if (type == model_type) return family;
    }
  }
  return nullptr;
}

const Family* FamilyNamed(std::string_view name) {
  for (const Family* family : kFamilies) {
    if (family->name == name) return family;
  }
  return nullptr;
}

std::string LayerRole(uint32_t layer, std::string_view suffix) {
  return "layers." + std::to_string(layer) + "." + std::string(suffix);
}

bool UsuallyIgnored(const ModelSpec& spec, std::string_view tensor) {
  if (tensor.ends_with("rotary_emb.inv_freq") || (spec.tied_embeddings && tensor == "lm_head.weight"))
    return true;
  constexpr std::string_view kUnused[] = {"mtp",
                                          "model.mtp",
                                          "vision_tower.",
                                          "vision_model.",
                                          "multi_modal_projector.",
                                          "mm_projector.",
                                          "model.vision_tower.",
                                          "model.multi_modal_projector."};
  for (std::string_view prefix : kUnused) {
    if (tensor.starts_with(prefix)) return true;
  }
  constexpr std::string_view kPrefix = "model.layers.";
  if (!tensor.starts_with(kPrefix)) return false;
  const char* begin = tensor.data() + kPrefix.size();
  uint32_t layer = 0;
  const auto [end, error] = std::from_chars(begin, tensor.data() + tensor.size(), layer);
  return error == std::errc() && end != begin && layer >= spec.layers.size();
}

void RoleList::Add(ModelPart part, std::string role, std::string name, std::vector<uint64_t> shape,
                   TensorPiece piece) {
  TensorRole r;
  r.part = part;
  r.role = std::move(role);
  r.name = std::move(name);
  r.shape = std::move(shape);
  r.piece = std::move(piece);
  roles.push_back(std::move(r));
}

void RoleList::BesideVision(FileNames* names) const {
  if (Has("language_model.model.embed_tokens.weight")) {
    names->root = "language_model.model.";
    names->head = "language_model.lm_head.weight";
  } else if (Has("model.language_model.embed_tokens.weight")) {
    names->root = "model.language_model.";
  }
}

std::string RoleList::FirstOf(std::initializer_list<std::string> names) const {
  for (const std::string& name : names) {
    if (Has(name)) return name;
  }
  return *names.begin();
}

void RoleList::AddNorm(const std::string& role, const std::string& name, uint64_t n, const FileNames& names) {
  Add(ModelPart::kNorm, role, name + std::string(names.norm_weight), {n});
  if (spec_.norm_bias) Add(ModelPart::kNorm, role + "_bias", name + ".bias", {n});
}

void RoleList::AddEnds(const FileNames& names) {
  const std::string root(names.root);
  Add(ModelPart::kEmbedding, "embed", root + std::string(names.embed), {spec_.vocab, spec_.hidden});
  std::string norm = root + std::string(names.norm);
  norm.resize(norm.size() - std::string_view(".weight").size());
  AddNorm("final_norm", norm, spec_.hidden, names);
  if (spec_.tied_embeddings) return;
  const std::string head(names.head);
  Add(ModelPart::kHead, "head", head, {spec_.vocab, spec_.hidden});
  if (spec_.head_bias)
    Add(ModelPart::kHead, "head_bias", head.substr(0, head.rfind('.')) + ".bias", {spec_.vocab});
}

void RoleList::AddBlockNorms(uint32_t layer, const std::string& prefix, const FileNames& names) {
  AddNorm(LayerRole(layer, "input_norm"), prefix + std::string(names.input_norm), spec_.hidden, names);
  AddNorm(LayerRole(layer, "post_norm"), prefix + std::string(names.post_norm), spec_.hidden, names);
}

void RoleList::AddAttention(uint32_t layer, const std::string& prefix, const FileNames& names) {
  const auto add = [&](std::string_view suffix, const std::string& name, std::vector<uint64_t> shape) {
    Add(ModelPart::kAttention, LayerRole(layer, suffix), prefix + name, std::move(shape));
  };
  const uint64_t hidden = spec_.hidden;
  if (spec_.mla_attention) {
    const MlaSpec& m = spec_.mla;
    const auto name = [&](int i) { return std::string(names.mla[i]) + ".weight"; };
    const uint64_t q_width = uint64_t{m.heads} * (m.nope + m.rope);
    if (m.q_lora == 0) {
      add("q", "q_proj.weight", {q_width, hidden});
    } else {
      add("q_a", name(0), {m.q_lora, hidden});
      add("q_a_norm", name(1), {m.q_lora});
      add("q_b", name(2), {q_width, m.q_lora});
    }
    add("kv_a", name(3), {uint64_t{m.kv_lora} + m.rope, hidden});
    add("kv_a_norm", name(4), {m.kv_lora});
    add("kv_b", name(5), {uint64_t{m.heads} * (m.nope + m.v_dim), m.kv_lora});
    add("o", name(6), {hidden, uint64_t{m.heads} * m.v_dim});
    if (!m.bias) return;
    if (m.q_lora > 0) add("q_a_bias", std::string(names.mla[0]) + ".bias", {m.q_lora});
    add("kv_a_bias", std::string(names.mla[3]) + ".bias", {uint64_t{m.kv_lora} + m.rope});
    add("o_bias", std::string(names.mla[6]) + ".bias", {hidden});
    return;
  }
  const GqaSpec& g = spec_.gqa;
  const uint64_t q_width = uint64_t{g.q_heads} * g.head_dim, kv_width = uint64_t{g.kv_heads} * g.head_dim;
  add("q", "q_proj.weight", {g.out_gate ? 2 * q_width : q_width, hidden});
  add("k", "k_proj.weight", {kv_width, hidden});
  add("v", "v_proj.weight", {kv_width, hidden});
  const std::string o(names.o);
  add("o", o + ".weight", {hidden, q_width});
  if (g.qkv_bias) {
    add("q_bias", "q_proj.bias", {q_width});
    add("k_bias", "k_proj.bias", {kv_width});
    add("v_bias", "v_proj.bias", {kv_width});
  }
  if (g.o_bias) add("o_bias", o + ".bias", {hidden});
  if (g.qk_norm != QkNorm::kNone && g.qk_norm != QkNorm::kUnitRotated) {
    const bool whole = g.qk_norm == QkNorm::kProjection;
    add("q_norm", std::string(names.q_norm) + ".weight", {whole ? q_width : g.head_dim});
    add("k_norm", std::string(names.k_norm) + ".weight", {whole ? kv_width : g.head_dim});
  }
  if (g.sinks) add("sinks", "sinks", {g.q_heads});
}

void RoleList::AddShortConv(uint32_t layer, const std::string& prefix) {
  const uint64_t hidden = spec_.hidden;
  const auto add = [&](std::string_view role, const std::string& name, std::vector<uint64_t> weight) {
    const uint64_t out = weight[0];
    Add(ModelPart::kAttention, LayerRole(layer, role), prefix + name + ".weight", std::move(weight));
    if (spec_.short_conv.bias)
      Add(ModelPart::kAttention, LayerRole(layer, std::string(role) + "_bias"), prefix + name + ".bias",
          {out});
  };
  add("conv_in", "in_proj", {3 * hidden, hidden});
  add("conv", "conv", {hidden, 1, spec_.short_conv.taps});
  add("o", "out_proj", {hidden, hidden});
}

void RoleList::AddDeltaNet(uint32_t layer, const std::string& prefix) {
  const DeltaNetSpec& d = spec_.delta_net;
  const auto add = [&](std::string_view role, const std::string& name, std::vector<uint64_t> shape) {
    Add(ModelPart::kAttention, LayerRole(layer, role), prefix + name, std::move(shape));
  };
  const uint64_t hidden = spec_.hidden;
  if (d.split) {
    add("delta_qkv", "in_proj_qkv.weight", {d.channels(), hidden});
    add("delta_z", "in_proj_z.weight", {d.v_width(), hidden});
    add("delta_b", "in_proj_b.weight", {d.v_heads, hidden});
    add("delta_a", "in_proj_a.weight", {d.v_heads, hidden});
  } else {
    add("delta_in", "in_proj_qkvz.weight", {uint64_t{d.channels()} + d.v_width(), hidden});
    add("delta_gates", "in_proj_ba.weight", {uint64_t{2} * d.v_heads, hidden});
  }
  add("conv", "conv1d.weight", {d.channels(), 1, d.taps});
  add("a_log", "A_log", {d.v_heads});
  add("dt_bias", "dt_bias", {d.v_heads});
  add("delta_norm", "norm.weight", {d.v_dim});
  add("o", "out_proj.weight", {hidden, d.v_width()});
}

void RoleList::AddMlp(ModelPart part, uint32_t layer, const std::string& group, const std::string& prefix,
                      uint32_t inter, std::span<const std::string_view, 3> names) {
  constexpr std::string_view kRoles[3] = {".gate", ".up", ".down"};
  for (int i = 0; i < 3; ++i) {
    const uint64_t rows = i == 2 ? spec_.hidden : inter, columns = i == 2 ? inter : spec_.hidden;
    Add(part, LayerRole(layer, group + std::string(kRoles[i])), prefix + std::string(names[i]) + ".weight",
        {rows, columns});
  }
}

void RoleList::AddExpert(uint32_t layer, uint32_t expert, ExpertPart part, std::string name,
                         TensorPiece piece) {
  TensorRole r;
  r.part = ModelPart::kExperts;
  r.name = std::move(name);
  r.shape = {spec_.expert_inter, spec_.hidden};
  if (part == ExpertPart::kDown) r.shape = {spec_.hidden, spec_.expert_inter};
  r.piece = std::move(piece);
  r.layer = LayerId(static_cast<uint16_t>(layer));
  r.expert = ExpertId(static_cast<uint16_t>(expert));
  r.expert_part = part;
  roles.push_back(std::move(r));
}

void RoleList::AddExpertBias(uint32_t layer, uint32_t expert, ExpertPart part, std::string name,
                             TensorPiece piece) {
  AddExpert(layer, expert, part, std::move(name), std::move(piece));
  roles.back().shape.resize(1);
  roles.back().expert_bias = true;
}

void RoleList::AddExperts(uint32_t layer, const std::string& prefix,
                          std::span<const std::string_view, 3> names) {
  if (Has(prefix + "gate_up_proj") || Has(prefix + "gate_up_proj.weight")) {
    const auto name = [&](const std::string& base) {
      return FirstOf({prefix + base, prefix + base + ".weight"});
    };
    return AddStackedExperts(layer, name("gate_up_proj"), name("down_proj"), false, false);
  }
  for (uint32_t e = 0; e < spec_.gate.experts; ++e) {
    for (int i = 0; i < 3; ++i) {
      AddExpert(layer, e, static_cast<ExpertPart>(i),
                prefix + std::to_string(e) + "." + std::string(names[i]) + ".weight", {});
    }
  }
}

bool RoleList::Transposed(const std::string& name, uint64_t rows, uint64_t columns, bool otherwise) const {
  const TensorInfo* tensor = stored_(name);
  if (tensor == nullptr) return otherwise;
  if (tensor->coding != Coding::kPlain) return false;
  if (rows == columns) return otherwise;
  if (tensor->shape == std::vector<uint64_t>{spec_.gate.experts, rows, columns}) return false;
  if (tensor->shape == std::vector<uint64_t>{spec_.gate.experts, columns, rows}) return true;
  return otherwise;
}

void RoleList::AddStackedExperts(uint32_t layer, const std::string& gate_up, const std::string& down,
                                 bool transposed, bool interleaved) {
  const uint64_t experts = spec_.gate.experts, inter = spec_.expert_inter, hidden = spec_.hidden;
  const bool wide_transposed = Transposed(gate_up, 2 * inter, hidden, transposed);
  const bool down_transposed = Transposed(down, hidden, inter, transposed);
  for (uint32_t e = 0; e < experts; ++e) {
    for (uint32_t i = 0; i < 2; ++i) {
      TensorPiece piece;
      piece.stored = {experts, 2 * inter, hidden};
      piece.transposed = wide_transposed;
      if (wide_transposed) std::swap(piece.stored[1], piece.stored[2]);
      if (interleaved || wide_transposed) {
        piece.begin = e;
        piece.of = experts;
        piece.first_row = interleaved ? i : i * spec_.expert_inter;
        piece.row_step = interleaved ? 2 : 1;
      } else {
        piece.begin = 2 * e + i;
        piece.of = 2 * experts;
      }
      AddExpert(layer, e, static_cast<ExpertPart>(i), gate_up, std::move(piece));
    }
    TensorPiece piece;
    piece.stored = {experts, hidden, inter};
    piece.transposed = down_transposed;
    if (down_transposed) std::swap(piece.stored[1], piece.stored[2]);
    piece.begin = e;
    piece.of = experts;
    AddExpert(layer, e, ExpertPart::kDown, down, std::move(piece));
  }
}

void RoleList::GroupExperts() {
  const auto key = [](const TensorRole& r) {
    return std::tuple(r.part == ModelPart::kExperts, r.layer.value, r.expert.value);
  };
  std::stable_sort(roles.begin(), roles.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
}

void RoleList::AddModel(const FileNames& names) {
  AddEnds(names);
  const auto text = [](std::string_view s) { return std::string(s); };
  for (uint32_t i = 0; i < spec_.layers.size(); ++i) {
    const LayerSpec& layer = spec_.layers[i];
    const std::string prefix = text(names.root) + text(names.layers) + std::to_string(i) + ".";
    AddBlockNorms(i, prefix, names);
    if (layer.mixer == Mixer::kShortConv) {
      AddShortConv(i, prefix + text(names.conv));
    } else if (layer.mixer == Mixer::kDeltaNet) {
      AddDeltaNet(i, prefix + text(names.delta_net));
    } else {
      AddAttention(i, prefix + text(names.attention), names);
    }
    if (layer.ffn == FfnKind::kDense) {
      AddMlp(ModelPart::kDense, i, "dense", prefix + text(names.dense), layer.dense_inter, names.mlp);
      continue;
    }
    Add(ModelPart::kGate, LayerRole(i, "gate"), prefix + text(names.gate),
        {spec_.gate.experts, spec_.hidden});
    if (spec_.gate.has_bias)
      Add(ModelPart::kGate, LayerRole(i, "gate_bias"), prefix + text(names.gate_bias), {spec_.gate.experts});
    if (layer.shared_inter > 0)
      AddMlp(ModelPart::kShared, i, "shared", prefix + text(names.shared), layer.shared_inter, names.mlp);
    if (layer.shared_inter > 0 && spec_.shared_gate)
      Add(ModelPart::kShared, LayerRole(i, "shared_gate"), prefix + text(names.shared_gate),
          {1, spec_.hidden});
    AddExperts(i, prefix + text(names.experts), names.expert);
  }
}

}  // namespace consilium
