#include "common/model/quant_storage.h"

#include <re2/re2.h>

#include <algorithm>
#include <memory>
#include <set>
#include <unordered_map>

#include "common/base/status.h"
#include "common/model/safetensors.h"

namespace consilium {
namespace {

// Modules by name or pattern; patterns match from the beginning of the name.
class ModuleList {
 public:
  explicit ModuleList(const std::vector<std::string>& entries) {
    for (const std::string& entry : entries) {
      if (entry.starts_with("re:")) {
        patterns_.push_back(std::make_unique<RE2>(entry.substr(3), ModulePatternOptions()));
      } else {
        names_.insert(entry);
      }
    }
  }
  bool Has(const std::string& name) const { return Names(name) || Matches(name); }
  bool Names(const std::string& name) const { return names_.contains(name); }
  bool Matches(const std::string& name) const {
    return std::any_of(patterns_.begin(), patterns_.end(), [&](const auto& pattern) {
      return pattern->ok() && pattern->Match(name, 0, name.size(), RE2::ANCHOR_START, nullptr, 0);
    });
  }

 private:
  std::set<std::string> names_;
  std::vector<std::unique_ptr<RE2>> patterns_;
};

// Finds and joins; tensors taken up by another one are dropped at the end.
class Joiner {
 public:
  Joiner(const QuantConfig& config, const std::vector<std::string>& files, std::vector<TensorInfo>* tensors)
      : config_(config), ignore_(config.ignore), files_(files), tensors_(*tensors) {
    for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
    taken_.assign(tensors_.size(), false);
    for (const QuantConfig::Group& group : config.groups) groups_.emplace_back(group.modules, &group.scheme);
  }

  absl::Status Run() {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const TensorInfo& t = tensors_[i];
      if (taken_[i]) continue;
      if (t.dtype == DType::kF8E4m3) {
        RETURN_IF_ERROR(Fp8(i));
      } else if (t.name.ends_with(".weight_packed")) {
        RETURN_IF_ERROR(Packed(i));
      } else if (t.dtype == DType::kI8) {
        RETURN_IF_ERROR(Int8(i));
      } else if (t.name.ends_with(".qweight")) {
        RETURN_IF_ERROR(Words(i));
      } else if (IsCacheScale(t)) {
        taken_[i] = true;
      } else if (t.name.ends_with("_blocks") && t.dtype == DType::kU8) {
        RETURN_IF_ERROR(Mxfp4(i));
      }
    }
    std::vector<TensorInfo> kept;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (!taken_[i]) kept.push_back(std::move(tensors_[i]));
    }
    tensors_ = std::move(kept);
    return absl::OkStatus();
  }

 private:
  using Method = QuantScheme::Method;

  std::string Where(const TensorInfo& t) const {
    return files_[t.range.file] + ": tensor \"" + t.name + "\": ";
  }

  const QuantScheme& SchemeOf(const std::string& module) const {
    for (const auto& [modules, scheme] : groups_) {
      if (modules.Names(module)) return *scheme;
    }
    for (const auto& [modules, scheme] : groups_) {
      if (modules.Matches(module)) return *scheme;
    }
    return config_;
  }

  // How the module is stored, which must be in one of these ways.
  absl::StatusOr<const QuantScheme*> Scheme(const TensorInfo& t, std::initializer_list<Method> allowed,
                                            const std::string& module) {
    const QuantScheme& scheme = SchemeOf(module);
    if (std::find(allowed.begin(), allowed.end(), scheme.method) == allowed.end()) {
      return InvalidArgument(
          Where(t) + std::string(DTypeName(t.dtype)) +
          " data, but config.json's quantization_config does not say how they are quantised");
    }
    if (ignore_.Has(module))
      return InvalidArgument(Where(t) + "quantised, but quantization_config lists " + module +
                             " as not quantised");
    return &scheme;
  }

  // The tensor `name` beside `t`, taken up.
  absl::StatusOr<const TensorInfo*> Take(const TensorInfo& t, const std::string& name) {
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) return InvalidArgument(Where(t) + "\"" + name + "\" is missing");
    if (taken_[it->second]) return InvalidArgument(Where(t) + "\"" + name + "\" belongs to two tensors");
    taken_[it->second] = true;
    return &tensors_[it->second];
  }

  absl::Status Expect(const TensorInfo& t, const TensorInfo& scales, const std::vector<uint64_t>& shape) {
    if (scales.shape == shape) return absl::OkStatus();
    return InvalidArgument(Where(scales) + "expected shape " + ShapeText(shape) + " beside " +
                           ShapeText(t.shape) + ", got " + ShapeText(scales.shape));
  }

  absl::Status CheckScaleType(const TensorInfo& scales) {
    if (scales.dtype == DType::kF32 || scales.dtype == DType::kBf16 || scales.dtype == DType::kF16)
      return absl::OkStatus();
    return Unimplemented(Where(scales) + "expected scales in F32, F16 or BF16, got " +
                         std::string(DTypeName(scales.dtype)));
  }

  static uint64_t Blocks(uint64_t n, uint32_t block) { return block == 0 ? 1 : (n + block - 1) / block; }

  absl::Status Fp8(size_t i) {
    TensorInfo& t = tensors_[i];
    const bool weight = t.name.ends_with(".weight");
    const std::string module = weight ? t.name.substr(0, t.name.size() - 7) : t.name;
    ASSIGN_OR_RETURN(const QuantScheme* scheme, Scheme(t, {Method::kFp8, Method::kCompressedFp8}, module));
    if (t.shape.size() < 2 || t.shape.size() > 3)
      return InvalidArgument(Where(t) + "FP8 in shape " + ShapeText(t.shape));
    std::string name = t.name + (scheme->method == Method::kFp8 ? "_scale_inv" : "_scale");
    for (const std::string& other : {t.name + "_scales_inv", t.name + "_scale", module + ".qscale_weight"}) {
      if (!by_name_.contains(name) && by_name_.contains(other)) name = other;
    }
    ASSIGN_OR_RETURN(const TensorInfo* scales, Take(t, name));
    RETURN_IF_ERROR(CheckScaleType(*scales));
    const size_t n = t.shape.size();
    std::vector<uint64_t> expected = {Blocks(t.shape[n - 2], scheme->block_rows),
                                      Blocks(t.shape[n - 1], scheme->block_columns)};
    if (n == 3) expected.insert(expected.begin(), t.shape[0]);
    uint64_t one = 1;
    for (uint64_t d : scales->shape) one *= d;  // a stored tensor: no overflow
    const bool whole = scheme->block_rows == 0 && scheme->block_columns == 0 && one == 1 && n == 2;
    const bool flat = scheme->block_rows == 1 && scheme->block_columns == 0 && n == 2 &&
                      scales->shape == std::vector<uint64_t>{t.shape[0]};
    if (!whole && !flat) RETURN_IF_ERROR(Expect(t, *scales, expected));
    t.coding = Coding::kFp8Block;
    t.scales = scales->range;
    t.scale_dtype = scales->dtype;
    t.block_rows = scheme->block_rows;
    t.block_columns = scheme->block_columns;
    // Scales of activations: not used, activations are not quantised.
    for (const std::string& other : {module + ".input_scale", module + ".activation_scale",
                                     module + ".qscale_act", t.name + "_activation_scale"}) {
      if (by_name_.contains(other)) RETURN_IF_ERROR(Take(t, other).status());
    }
    return absl::OkStatus();
  }

  // Scales of a quantised KV cache: ours is not.
  bool IsCacheScale(const TensorInfo& t) const {
    if (groups_.empty() && config_.method != Method::kFp8 && config_.method != Method::kCompressedFp8 &&
        config_.method != Method::kInt8 && config_.method != Method::kPacked)
      return false;
    return t.elements() == 1 && (t.name.ends_with(".k_scale") || t.name.ends_with(".v_scale"));
  }

  // The scales beside `t`, and that they are [rows, groups] of `columns` inputs (transposed: [groups, rows]).
  absl::StatusOr<const TensorInfo*> TakeScales(const TensorInfo& t, const std::string& name,
                                               std::vector<uint64_t> shape) {
    ASSIGN_OR_RETURN(const TensorInfo* scales, Take(t, name));
    RETURN_IF_ERROR(CheckScaleType(*scales));
    RETURN_IF_ERROR(Expect(t, *scales, shape));
    return scales;
  }

  absl::Status CheckWords(const TensorInfo& t, const char* expected) {
    if (t.dtype == DType::kI32 && t.shape.size() == 2 && t.shape[0] <= UINT32_MAX && t.shape[1] <= UINT32_MAX)
      return absl::OkStatus();
    return InvalidArgument(Where(t) + "expected I32 " + expected + ", got " +
                           std::string(DTypeName(t.dtype)) + " " + ShapeText(t.shape));
  }

  static void SetGroups(TensorInfo* t, const TensorInfo& scales, uint32_t group) {
    t->scales = scales.range;
    t->scale_dtype = scales.dtype;
    t->block_rows = 1;
    t->block_columns = group;
  }

  absl::Status Packed(size_t i) {
    TensorInfo& t = tensors_[i];
    const std::string module = t.name.substr(0, t.name.size() - std::string_view(".weight_packed").size());
    ASSIGN_OR_RETURN(const QuantScheme* scheme, Scheme(t, {Method::kPacked, Method::kMxfp4}, module));
    if (scheme->method == Method::kMxfp4) return PackedMxfp4(i, module);
    RETURN_IF_ERROR(CheckWords(t, scheme->bits == 4 ? "[out, in / 8]" : "[out, in / 4]"));
    if (by_name_.contains(module + ".weight_g_idx"))
      return Unimplemented(Where(t) + "with weight_g_idx is not supported");
    ASSIGN_OR_RETURN(const TensorInfo* shape, Take(t, module + ".weight_shape"));
    RETURN_IF_ERROR(Expect(t, *shape, {2}));
    // The true width, as far as the words tell; weight_shape must say the same and is compared by the claim
    // (the family knows the shape).
    const uint64_t rows = t.shape[0], width = t.shape[1] * (32 / scheme->bits);
    const uint64_t groups = Blocks(width, scheme->group);
    ASSIGN_OR_RETURN(const TensorInfo* scales, TakeScales(t, module + ".weight_scale", {rows, groups}));
    if (!scheme->symmetric) {
      ASSIGN_OR_RETURN(const TensorInfo* zeros, Take(t, module + ".weight_zero_point"));
      RETURN_IF_ERROR(CheckWords(*zeros, "[out / 8, groups]"));
      RETURN_IF_ERROR(Expect(t, *zeros, {(rows + 7) / 8, groups}));
      t.zeros = zeros->range;
    } else if (by_name_.contains(module + ".weight_zero_point")) {
      return InvalidArgument(Where(t) + "has a weight_zero_point, though the configuration says symmetric");
    }
    t.name = module + ".weight";
    t.shape = {rows, width};
    t.coding = scheme->bits == 4 ? Coding::kInt4Group : Coding::kInt8Group;
    SetGroups(&t, *scales, scheme->group);
    return absl::OkStatus();
  }

  absl::Status Int8(size_t i) {
    TensorInfo& t = tensors_[i];
    if (!t.name.ends_with(".weight")) return absl::OkStatus();  // nobody's, or somebody's beside it
    const std::string module = t.name.substr(0, t.name.size() - 7);
    ASSIGN_OR_RETURN(const QuantScheme* scheme, Scheme(t, {Method::kInt8}, module));
    if (t.shape.size() != 2)
      return InvalidArgument(Where(t) + "expected I8 [out, in], got shape " + ShapeText(t.shape));
    if (by_name_.contains(module + ".weight_zero_point"))
      return Unimplemented(Where(t) + "with weight_zero_point is not supported in 8 bits");
    ASSIGN_OR_RETURN(const TensorInfo* scales, TakeScales(t, module + ".weight_scale",
                                                          {t.shape[0], Blocks(t.shape[1], scheme->group)}));
    for (const char* other : {".input_scale", ".input_zero_point"}) {  // of activations
      if (by_name_.contains(module + other)) RETURN_IF_ERROR(Take(t, module + other).status());
    }
    t.coding = Coding::kInt8;
    SetGroups(&t, *scales, scheme->group);
    return absl::OkStatus();
  }

  // compressed-tensors' layout of it: element 2b in the low nibble of byte b.
  absl::Status PackedMxfp4(size_t i, const std::string& module) {
    TensorInfo& t = tensors_[i];
    if (t.dtype != DType::kU8 || t.shape.size() != 2 || t.shape[1] % 16 != 0 || t.shape[1] > UINT32_MAX)
      return InvalidArgument(Where(t) + "expected U8 [out, in / 2], in a multiple of 32, got " +
                             std::string(DTypeName(t.dtype)) + " " + ShapeText(t.shape));
    return SetMxfp4(&t, module + ".weight", module + ".weight_scale", {t.shape[0], t.shape[1] / 16});
  }

  // E2M1 pairs, and E8M0 scales of this shape: its last dimension counts groups of 32.
  absl::Status SetMxfp4(TensorInfo* t, std::string name, const std::string& scale_name,
                        std::vector<uint64_t> shape) {
    ASSIGN_OR_RETURN(const TensorInfo* scales, Take(*t, scale_name));
    if (scales->dtype != DType::kU8)
      return InvalidArgument(Where(*scales) + "expected U8, got " + std::string(DTypeName(scales->dtype)));
    RETURN_IF_ERROR(Expect(*t, *scales, shape));
    t->name = std::move(name);
    t->shape = std::move(shape);
    t->shape.back() *= 32;
    t->coding = Coding::kMxfp4;
    SetGroups(t, *scales, 32);
    return absl::OkStatus();
  }

  // GPTQ and AWQ.
  absl::Status Words(size_t i) {
    TensorInfo& t = tensors_[i];
    const std::string module = t.name.substr(0, t.name.size() - std::string_view(".qweight").size());
    ASSIGN_OR_RETURN(const QuantScheme* scheme, Scheme(t, {Method::kGptq, Method::kAwq}, module));
    const bool awq = scheme->method == Method::kAwq;
    const uint64_t codes = 32 / scheme->bits;  // in a word
    RETURN_IF_ERROR(CheckWords(t, awq ? "[in, out / 8]" : codes == 8 ? "[in / 8, out]" : "[in / 4, out]"));
    const uint64_t in = t.shape[0] * (awq ? 1 : codes), out = t.shape[1] * (awq ? codes : 1);
    if (in % 32 != 0 || out % codes != 0)
      return Unimplemented(Where(t) + "a matrix of " + std::to_string(out) + " outputs and " +
                           std::to_string(in) +
                           " inputs is not supported: they are whole words, and inputs a multiple of 32");
    const uint64_t groups = Blocks(in, scheme->group);
    ASSIGN_OR_RETURN(const TensorInfo* scales, TakeScales(t, module + ".scales", {groups, out}));
    ASSIGN_OR_RETURN(const TensorInfo* zeros, Take(t, module + ".qzeros"));
    RETURN_IF_ERROR(CheckWords(*zeros, codes == 8 ? "[groups, out / 8]" : "[groups, out / 4]"));
    RETURN_IF_ERROR(Expect(t, *zeros, {groups, out / codes}));
    // Inputs to groups: in order, as the configuration has said.
    if (by_name_.contains(module + ".g_idx")) RETURN_IF_ERROR(Take(t, module + ".g_idx").status());
    t.name = module + ".weight";
    t.shape = {out, in};
    t.coding = awq ? Coding::kAwq : codes == 8 ? Coding::kGptq4 : Coding::kGptq8;
    t.zeros = zeros->range;
    t.centred = scheme->symmetric;
    t.zeros_minus_one = scheme->zeros_minus_one;
    SetGroups(&t, *scales, scheme->group);
    return absl::OkStatus();
  }

  absl::Status Mxfp4(size_t i) {
    TensorInfo& t = tensors_[i];
    const std::string name = t.name.substr(0, t.name.size() - std::string_view("_blocks").size());
    RETURN_IF_ERROR(Scheme(t, {Method::kMxfp4}, name).status());
    if (t.shape.size() != 4 || t.shape[3] != 16 || t.shape[2] > UINT32_MAX)
      return InvalidArgument(Where(t) + "expected [experts, out, in / 32, 16], got " + ShapeText(t.shape));
    return SetMxfp4(&t, name, name + "_scales", {t.shape[0], t.shape[1], t.shape[2]});
  }

  const QuantConfig& config_;
  const ModuleList ignore_;
  std::vector<std::pair<ModuleList, const QuantScheme*>> groups_;  // of config_
  const std::vector<std::string>& files_;
  std::vector<TensorInfo>& tensors_;
  std::unordered_map<std::string, size_t> by_name_;  // only looked up, never iterated
  std::vector<bool> taken_;
};

}  // namespace

absl::Status JoinQuantised(const QuantConfig& config, const std::vector<std::string>& files,
                           std::vector<TensorInfo>* tensors) {
  return Joiner(config, files, tensors).Run();
}

}  // namespace consilium
