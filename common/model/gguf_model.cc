#include "common/model/gguf_model.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <set>

#include "common/base/status.h"
#include "common/model/families/family.h"
#include "common/model/files.h"
#include "common/model/gguf_config.h"
#include "common/model/safetensors.h"

namespace consilium {
namespace {

constexpr int64_t kSplitsMax = 10'000;

struct RoleName {
  std::string_view gguf, role;
};
constexpr RoleName kEnds[] = {
    {"token_embd.weight", "embed"},
    {"output_norm.weight", "final_norm"},
    {"output.weight", "head"},
    {"token_embd_norm.weight", "final_norm"},  // LFM2's name for it
};
constexpr RoleName kLayer[] = {
    {"attn_norm.weight", "input_norm"},
    {"ffn_norm.weight", "post_norm"},
    {"post_attention_norm.weight", "post_norm"},
    {"attn_q.weight", "q"},
    {"attn_k.weight", "k"},
    {"attn_v.weight", "v"},
    {"attn_output.weight", "o"},
    {"attn_q.bias", "q_bias"},
    {"attn_k.bias", "k_bias"},
    {"attn_v.bias", "v_bias"},
    {"attn_output.bias", "o_bias"},
    {"attn_q_norm.weight", "q_norm"},
    {"attn_k_norm.weight", "k_norm"},
    {"attn_sinks.weight", "sinks"},
    {"shortconv.in_proj.weight", "conv_in"},
    {"shortconv.conv.weight", "conv"},
    {"shortconv.out_proj.weight", "o"},
    {"attn_q_a.weight", "q_a"},
    {"attn_q_a_norm.weight", "q_a_norm"},
    {"attn_q_b.weight", "q_b"},
    {"attn_kv_a_mqa.weight", "kv_a"},
    {"attn_kv_a_norm.weight", "kv_a_norm"},
    {"attn_kv_b.weight", "kv_b"},
    {"attn_k_b.weight", "k_b"},
    {"attn_v_b.weight", "v_b"},
    {"layer_output_norm.weight", "ffn_out_norm"},
    {"post_ffw_norm.weight", "ffn_out_norm"},
    {"ffn_gate.weight", "dense.gate"},
    {"ffn_up.weight", "dense.up"},
    {"ffn_down.weight", "dense.down"},
    {"ffn_gate_inp.weight", "gate"},
    {"ffn_gate_inp.bias", "gate_weight_bias"},
    {"exp_probs_b.bias", "gate_bias"},
    {"ffn_gate_shexp.weight", "shared.gate"},
    {"ffn_up_shexp.weight", "shared.up"},
    {"ffn_down_shexp.weight", "shared.down"},
    {"ffn_gate_inp_shexp.weight", "shared_gate"},
};
constexpr RoleName kStacks[] = {
    {"ffn_gate_exps.weight", "gate"},    {"ffn_up_exps.weight", "up"},    {"ffn_down_exps.weight", "down"},
    {"ffn_gate_exps.bias", "gate_bias"}, {"ffn_up_exps.bias", "up_bias"}, {"ffn_down_exps.bias", "down_bias"},
};

template <size_t N>
std::string_view Find(const RoleName (&table)[N], std::string_view name) {
  for (const RoleName& r : table) {
    if (r.gguf == name) return r.role;
  }
  return {};
}

// "blk.7.attn_q.weight" -> 7, "attn_q.weight".
bool SplitLayer(std::string_view name, uint32_t* layer, std::string_view* rest) {
  if (!name.starts_with("blk.")) return false;
  const auto [end, error] = std::from_chars(name.data() + 4, name.data() + name.size(), *layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return false;
  *rest = name.substr(static_cast<size_t>(end - name.data()) + 1);
  return true;
}

// Cuts a stack [E, ...] into its experts; `halves` of the next dimension are different roles.
absl::Status CutStack(const TensorInfo& stack, uint32_t layer, std::initializer_list<std::string_view> roles,
                      const std::string& source, std::vector<TensorInfo>* out) {
  const size_t parts = roles.size();
  if (stack.shape.size() < 2 || stack.shape[0] > kExpertsMax ||
      stack.range.length % (stack.shape[0] * parts) != 0 || stack.shape[1] % parts != 0) {
    return InvalidArgument(source + ": tensor \"" + stack.name + "\": expected [experts, out, in], got " +
                           ShapeText(stack.shape));
  }
  const uint64_t bytes = stack.range.length / (stack.shape[0] * parts);
  for (uint32_t e = 0; e < stack.shape[0]; ++e) {
    size_t part = 0;
    for (std::string_view role : roles) {
      TensorInfo t = stack;
      t.name = stack.name + "[" + std::to_string(e) + "]";
      t.role = LayerRole(layer, "experts." + std::to_string(e) + "." + std::string(role));
      t.shape.erase(t.shape.begin());
      t.shape[0] /= parts;
      t.range.offset += (e * parts + part) * bytes;
      t.range.length = bytes;
      out->push_back(std::move(t));
      ++part;
    }
  }
  return absl::OkStatus();
}

// How the heads of an architecture lie in its files.
struct Heads {
  uint64_t lanes = 0, queries = 0, keys = 0;
  bool permuted = false;  // rows of q and k are in adjacent-pair order
};

// Cuts q, k, v out of one matrix or bias that holds their rows one after another.
absl::Status CutQkv(const TensorInfo& all, uint32_t layer, bool bias, const Heads& heads,
                    const std::string& source, std::vector<TensorInfo>* out) {
  const uint64_t rows = heads.lanes * (heads.queries + 2 * heads.keys);
  if (rows == 0 || all.shape.size() != (bias ? 1 : 2) || all.shape[0] != rows ||
      (bias && all.coding != Coding::kPlain))
    return InvalidArgument(source + ": tensor \"" + all.name + "\": expected " + std::to_string(rows) +
                           " rows of q, k and v, got " + ShapeText(all.shape));
  const uint64_t row_bytes = all.range.length / rows;
  uint64_t offset = all.range.offset;
  for (const char* part : {"q", "k", "v"}) {
    TensorInfo t = all;
    t.shape[0] = heads.lanes * (*part == 'q' ? heads.queries : heads.keys);
    t.range.offset = offset;
    t.range.length = t.shape[0] * row_bytes;
    offset += t.range.length;
    t.role = LayerRole(layer, std::string(part) + (bias ? "_bias" : ""));
    if (heads.permuted && *part != 'v') t.rotary_head = static_cast<uint32_t>(heads.lanes);
    out->push_back(std::move(t));
  }
  return absl::OkStatus();
}

// "ffn_up.3.weight" -> "experts.3.up": one tensor an expert, as files before April 2024 have them.
std::string SingleExpertRole(std::string_view rest) {
  for (std::string_view part : {"gate", "up", "down"}) {
    const std::string prefix = "ffn_" + std::string(part) + ".";
    if (!rest.starts_with(prefix) || !rest.ends_with(".weight")) continue;
    const std::string_view number = rest.substr(prefix.size(), rest.size() - prefix.size() - 7);
    if (number.empty() || number.size() > 4 ||
        !std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; }))
      return "";
    return "experts." + std::string(number) + "." + std::string(part);
  }
  return "";
}

absl::Status AddLayerTensor(const TensorInfo& stored, uint32_t layer, std::string_view rest, GgufArch arch,
                            const Heads& heads, const std::string& source, std::vector<TensorInfo>* out) {
  if (const std::string_view role = Find(kStacks, rest); !role.empty())
    return CutStack(stored, layer, {role}, source, out);
  if (rest == "ffn_gate_up_exps.weight") return CutStack(stored, layer, {"gate", "up"}, source, out);
  if (rest == "attn_qkv.weight" || rest == "attn_qkv.bias")
    return CutQkv(stored, layer, rest.ends_with("bias"), heads, source, out);
  TensorInfo t = stored;
  if (const std::string_view role = Find(kLayer, rest); !role.empty()) t.role = LayerRole(layer, role);
  if (const std::string role = SingleExpertRole(rest); !role.empty()) t.role = LayerRole(layer, role);
  if (rest == "attn_output_norm.weight")  // DBRX's name for the norm before its experts
    t.role = LayerRole(layer, arch == GgufArch::kDbrx ? "post_norm" : "attention_out_norm");
  if (heads.permuted &&
      (rest == "attn_q.weight" || rest == "attn_k.weight" || rest == "attn_q.bias" || rest == "attn_k.bias"))
    t.rotary_head = static_cast<uint32_t>(heads.lanes);
  out->push_back(std::move(t));
  return absl::OkStatus();
}

absl::StatusOr<Heads> ReadHeads(GgufKeys& k, GgufArch arch) {
  Heads heads;
  if (arch == GgufArch::kDeepseek) return heads;
  const int64_t lanes = GgufHeadDim(k), queries = k.NeedEqual("attention.head_count"),
                keys = GgufKvHeads(k, arch);
  const auto check = [&](const char* key, int64_t v, int64_t max) {
    if (v < 1 || v > max) k.Fail(key, "expected 1.." + std::to_string(max) + ", got " + std::to_string(v));
  };
  check("attention.key_length", lanes, kHeadDimMax);
  check("attention.head_count", queries, kHeadsMax);
  check("attention.head_count_kv", keys, kHeadsMax);
  RETURN_IF_ERROR(k.status());
  heads.lanes = static_cast<uint64_t>(lanes);
  heads.queries = static_cast<uint64_t>(queries);
  heads.keys = static_cast<uint64_t>(keys);
  // llama.cpp's converter reorders q and k of these for its adjacent-pair rotation.
  heads.permuted = arch == GgufArch::kMixtral || arch == GgufArch::kGranite;
  return heads;
}

// The values of the tensor that configurations need, where there is one, among the metadata.
absl::Status ReadRopeFactors(GgufFiles* files) {
  for (const TensorInfo& t : files->gguf.tensors) {
    if (t.name != kGgufRopeFactors) continue;
    const std::string& path = files->files[t.range.file];
    if (t.coding != Coding::kPlain || t.dtype != DType::kF32 || t.shape.size() != 1 ||
        t.elements() > kernels::kRopeLanesMax / 2)
      return InvalidArgument(path + ": tensor \"" + t.name + "\": expected at most " +
                             std::to_string(kernels::kRopeLanesMax / 2) + " numbers in F32, got " +
                             std::string(FormatName(t)) + " " + ShapeText(t.shape));
    std::vector<float> values(t.elements());
    ASSIGN_OR_RETURN(const ReadFd fd, ReadFd::Open(path));
    RETURN_IF_ERROR(fd.ReadAt(t.range.offset, std::as_writable_bytes(std::span(values))));
    files->gguf.metadata[t.name] = std::vector<double>(values.begin(), values.end());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> GgufTensors(const Gguf& gguf, const std::string& source) {
  std::string name;
  ASSIGN_OR_RETURN(const GgufArch arch, GgufArchOf(gguf, source, &name));
  GgufKeys k(gguf, name);
  const int64_t layers = GgufDecoderLayers(k);
  const auto heads = ReadHeads(k, arch);
  if (!k.status().ok()) return Annotate(k.status(), source);
  std::vector<TensorInfo> out;
  uint64_t cut = 0;  // bounds what stacks become
  for (const TensorInfo& t : gguf.tensors) {
    uint32_t layer = 0;
    std::string_view rest;
    if (t.name == kGgufRopeFactors && GgufHasRopeFactors(arch) && gguf.metadata.contains(t.name))
      continue;  // part of the configuration
    if (!SplitLayer(t.name, &layer, &rest)) {
      out.push_back(t);
      out.back().role = Find(kEnds, t.name);
      continue;
    }
    if (static_cast<int64_t>(layer) >= layers) continue;
    if (rest.find("_exps.") != std::string_view::npos && !t.shape.empty()) cut += t.shape[0];
    if (cut > 6 * uint64_t{kRoutedExpertsMax})
      return InvalidArgument(source + ": more than " + std::to_string(kRoutedExpertsMax) + " routed experts");
    RETURN_IF_ERROR(AddLayerTensor(t, layer, rest, arch, *heads, source, &out));
  }
  return out;
}

absl::StatusOr<GgufFiles> ReadGgufFiles(const std::string& given) {
  const std::string path = std::filesystem::absolute(given).lexically_normal().string();
  GgufFiles out;
  out.files.push_back(path);
  ASSIGN_OR_RETURN(out.gguf, ReadGguf(path, 0));
  ASSIGN_OR_RETURN(const auto count, out.gguf.Integer("split.count"));
  if (!count || *count <= 1) {
    RETURN_IF_ERROR(ReadRopeFactors(&out));
    return out;
  }
  ASSIGN_OR_RETURN(const auto number, out.gguf.Integer("split.no"));
  char suffix[64];
  std::snprintf(suffix, sizeof suffix, "-00001-of-%05lld.gguf", static_cast<long long>(*count));
  if (*count > kSplitsMax || number.value_or(0) != 0 || !path.ends_with(suffix))
    return InvalidArgument(path + ": a split GGUF file: give the first, named ..." + suffix);
  const std::string stem = path.substr(0, path.size() - std::char_traits<char>::length(suffix));
  for (int64_t i = 1; i < *count; ++i) {
    std::snprintf(suffix, sizeof suffix, "-%05lld-of-%05lld.gguf", static_cast<long long>(i + 1),
                  static_cast<long long>(*count));
    out.files.push_back(stem + suffix);
    ASSIGN_OR_RETURN(Gguf next, ReadGguf(out.files.back(), static_cast<uint32_t>(i)));
    out.gguf.tensors.insert(out.gguf.tensors.end(), std::make_move_iterator(next.tensors.begin()),
                            std::make_move_iterator(next.tensors.end()));
  }
  std::set<std::string_view> names;
  for (const TensorInfo& t : out.gguf.tensors) {
    if (!names.insert(t.name).second)
      return InvalidArgument(path + ": tensor \"" + t.name + "\" is in two of the split files");
  }
  RETURN_IF_ERROR(ReadRopeFactors(&out));
  return out;
}

}  // namespace consilium
