#include "common/model/quant_storage.h"

#include <re2/re2.h>

#include <algorithm>
#include <memory>
#include <set>
#include <unordered_map>

#include "common/base/status.h"
#include "common/model/json_text.h"
#include "common/model/safetensors.h"

namespace consilium {
namespace {

constexpr size_t kIgnoreMax = 100'000;
constexpr size_t kPatternBytesMax = 1000;
constexpr uint32_t kBlockMax = 1 << 16;
constexpr std::string_view kSupported =
    "fp8 (e4m3 blocks), compressed-tensors (pack-quantized INT4 groups, float-quantized FP8), mxfp4";

std::string TextOf(const Json& object, const char* key, const char* fallback = "") {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : fallback;
}

std::string Shown(const Json& v) {
  return v.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 80);
}

const Json* Member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

RE2::Options PatternOptions() {
  RE2::Options options;
  options.set_max_mem(1 << 20);
  options.set_log_errors(false);
  return options;
}

absl::Status ReadIgnore(const Json& section, const char* key, const std::string& where, QuantConfig* out) {
  const Json* list = Member(section, key);
  if (list == nullptr) return absl::OkStatus();
  if (!list->is_array() || list->size() > kIgnoreMax)
    return InvalidArgument(where + key + ": expected a list of names, got " + Shown(*list));
  for (const Json& entry : *list) {
    if (!entry.is_string() || entry.get_ref<const std::string&>().size() > kPatternBytesMax)
      return InvalidArgument(where + key + ": expected names, got " + Shown(entry));
    const auto& text = entry.get_ref<const std::string&>();
    if (text.starts_with("re:")) {
      if (const RE2 pattern(text.substr(3), PatternOptions()); !pattern.ok())
        return Unimplemented(where + key + ": the pattern \"" + text.substr(0, 100) +
                             "\" is not supported: " + pattern.error());
    }
    out->ignore.push_back(text);
  }
  return absl::OkStatus();
}

// A positive number, or an error.
absl::StatusOr<uint32_t> Size(const Json& v, const std::string& where) {
  if (v.is_number_unsigned() && v.get<uint64_t>() >= 1 && v.get<uint64_t>() <= kBlockMax)
    return v.get<uint32_t>();
  return InvalidArgument(where + ": expected a number in 1.." + std::to_string(kBlockMax) + ", got " +
                         Shown(v));
}

absl::Status ReadBlock(const Json& v, const std::string& where, QuantConfig* out) {
  if (!v.is_array() || v.size() != 2)
    return InvalidArgument(where + ": expected two numbers, got " + Shown(v));
  ASSIGN_OR_RETURN(out->block_rows, Size(v[0], where));
  ASSIGN_OR_RETURN(out->block_columns, Size(v[1], where));
  return absl::OkStatus();
}

absl::Status ReadFp8(const Json& section, const std::string& where, QuantConfig* out) {
  out->method = QuantConfig::Method::kFp8;
  if (const std::string fmt = TextOf(section, "fmt", "e4m3"); fmt != "e4m3" && fmt != "float8_e4m3fn")
    return Unimplemented(where + "fmt: \"" + fmt.substr(0, 40) +
                         "\" is not supported; supported: e4m3, float8_e4m3fn");
  // Without blocks there is one scale for each matrix.
  if (const Json* block = Member(section, "weight_block_size"))
    RETURN_IF_ERROR(ReadBlock(*block, where + "weight_block_size", out));
  return ReadIgnore(section, "modules_to_not_convert", where, out);
}

absl::Status ReadGroupWeights(const Json& weights, const std::string& format, const std::string& where,
                              QuantConfig* out) {
  const auto unsupported = [&](const char* key, const char* supported) {
    const Json* v = Member(weights, key);
    return Unimplemented(where + key + ": " + (v != nullptr ? Shown(*v) : std::string("null")) +
                         " is not supported with " + format + "; supported: " + supported);
  };
  const auto is = [&](const char* key, const Json& value) {
    const Json* v = Member(weights, key);
    return v != nullptr && *v == value;
  };
  if (const Json* order = Member(weights, "actorder"); order != nullptr && *order != Json(false))
    return unsupported("actorder", "null");
  if (const Json* symmetric = Member(weights, "symmetric"); symmetric != nullptr && *symmetric != Json(true))
    return unsupported("symmetric", "true");
  const std::string strategy = TextOf(weights, "strategy");
  if (format == "pack-quantized") {
    if (!is("num_bits", 4)) return unsupported("num_bits", "4");
    if (!is("type", "int")) return unsupported("type", "int");
    if (strategy != "group") return unsupported("strategy", "group");
    const Json* group = Member(weights, "group_size");
    if (group == nullptr) return InvalidArgument(where + "group_size: missing");
    ASSIGN_OR_RETURN(out->group, Size(*group, where + "group_size"));
    if (out->group % 32 != 0) return unsupported("group_size", "multiples of 32");
    out->method = QuantConfig::Method::kPackedInt4;
    return absl::OkStatus();
  }
  if (!is("num_bits", 8)) return unsupported("num_bits", "8");
  if (!is("type", "float")) return unsupported("type", "float");
  out->method = QuantConfig::Method::kCompressedFp8;
  if (strategy == "block") {
    const Json* block = Member(weights, "block_structure");
    if (block == nullptr) return InvalidArgument(where + "block_structure: missing");
    return ReadBlock(*block, where + "block_structure", out);
  }
  if (strategy != "tensor" && strategy != "channel") return unsupported("strategy", "tensor, channel, block");
  out->block_rows = strategy == "channel" ? 1 : 0;
  return absl::OkStatus();
}

absl::Status ReadCompressed(const Json& section, const std::string& where, QuantConfig* out) {
  const std::string format = TextOf(section, "format");
  if (format != "pack-quantized" && format != "float-quantized") {
    return Unimplemented(where + "format: \"" + format.substr(0, 40) +
                         "\" is not supported; supported: pack-quantized, float-quantized");
  }
  if (const std::string status = TextOf(section, "quantization_status", "compressed"); status != "compressed")
    return Unimplemented(where + "quantization_status: \"" + status.substr(0, 40) +
                         "\" is not supported; supported: compressed");
  if (Member(section, "kv_cache_scheme") != nullptr)
    return Unimplemented(where + "kv_cache_scheme: a quantised cache is not supported; supported: null");
  if (const Json* sparsity = Member(section, "sparsity_config"); sparsity != nullptr && !sparsity->empty())
    return Unimplemented(where + "sparsity_config is not supported");
  const Json* groups = Member(section, "config_groups");
  if (groups == nullptr || !groups->is_object() || groups->size() != 1)
    return Unimplemented(where + "config_groups: expected exactly one group");
  for (const auto& [name, group] : groups->items()) {
    const Json* weights = Member(group, "weights");
    const std::string here = where + "config_groups." + name.substr(0, 40) + ".weights";
    if (weights == nullptr || !weights->is_object()) return InvalidArgument(here + ": expected an object");
    RETURN_IF_ERROR(ReadGroupWeights(*weights, format, here + ".", out));
  }
  return ReadIgnore(section, "ignore", where, out);
}

// Mistral's own spelling, in params.json. Anything else under the key is another tool's storage.
absl::Status ReadNativeFp8(const Json& section, const std::string& where, QuantConfig* out) {
  const std::string format = TextOf(section, "qformat_weight");
  if (format != "fp8_e4m3")
    return Unimplemented(where + "qformat_weight: \"" + format.substr(0, 40) +
                         "\" is not supported; supported: fp8_e4m3");
  out->method = QuantConfig::Method::kFp8;
  return absl::OkStatus();
}

// Modules that stay as they are, by name or pattern; patterns match from the beginning of the name.
class IgnoreList {
 public:
  explicit IgnoreList(const std::vector<std::string>& entries) {
    for (const std::string& entry : entries) {
      if (entry.starts_with("re:")) {
        patterns_.push_back(std::make_unique<RE2>(entry.substr(3), PatternOptions()));
      } else {
        names_.insert(entry);
      }
    }
  }
  bool Has(const std::string& name) const {
    if (names_.contains(name)) return true;
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
  }

  absl::Status Run() {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const TensorInfo& t = tensors_[i];
      if (taken_[i]) continue;
      if (t.dtype == DType::kF8E4m3) {
        RETURN_IF_ERROR(Fp8(i));
      } else if (t.name.ends_with(".weight_packed")) {
        RETURN_IF_ERROR(Packed(i));
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
  using Method = QuantConfig::Method;

  std::string Where(const TensorInfo& t) const {
    return files_[t.range.file] + ": tensor \"" + t.name + "\": ";
  }

  absl::Status CheckMethod(const TensorInfo& t, std::initializer_list<Method> allowed,
                           const std::string& module) {
    if (std::find(allowed.begin(), allowed.end(), config_.method) == allowed.end()) {
      return InvalidArgument(
          Where(t) + std::string(DTypeName(t.dtype)) +
          " data, but config.json's quantization_config does not say how they are quantised");
    }
    if (ignore_.Has(module))
      return InvalidArgument(Where(t) + "quantised, but quantization_config lists " + module +
                             " as not quantised");
    return absl::OkStatus();
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
    RETURN_IF_ERROR(CheckMethod(t, {Method::kFp8, Method::kCompressedFp8}, module));
    if (t.shape.size() < 2 || t.shape.size() > 3)
      return InvalidArgument(Where(t) + "FP8 in shape " + ShapeText(t.shape));
    std::string name = t.name + (config_.method == Method::kFp8 ? "_scale_inv" : "_scale");
    for (const std::string& other : {t.name + "_scales_inv", t.name + "_scale", module + ".qscale_weight"}) {
      if (!by_name_.contains(name) && by_name_.contains(other)) name = other;
    }
    ASSIGN_OR_RETURN(const TensorInfo* scales, Take(t, name));
    RETURN_IF_ERROR(CheckScaleType(*scales));
    const size_t n = t.shape.size();
    std::vector<uint64_t> expected = {Blocks(t.shape[n - 2], config_.block_rows),
                                      Blocks(t.shape[n - 1], config_.block_columns)};
    if (n == 3) expected.insert(expected.begin(), t.shape[0]);
    uint64_t one = 1;
    for (uint64_t d : scales->shape) one *= d;  // a stored tensor: no overflow
    if (!(config_.block_rows == 0 && config_.block_columns == 0 && one == 1 && n == 2))
      RETURN_IF_ERROR(Expect(t, *scales, expected));
    t.coding = Coding::kFp8Block;
    t.scales = scales->range;
    t.scale_dtype = scales->dtype;
    t.block_rows = config_.block_rows;
    t.block_columns = config_.block_columns;
    // Scales of activations: not used, activations are not quantised.
    for (const std::string& other : {module + ".input_scale", module + ".activation_scale",
                                     module + ".qscale_act", t.name + "_activation_scale"}) {
      if (by_name_.contains(other)) RETURN_IF_ERROR(Take(t, other).status());
    }
    return absl::OkStatus();
  }

  absl::Status Packed(size_t i) {
    TensorInfo& t = tensors_[i];
    const std::string module = t.name.substr(0, t.name.size() - std::string_view(".weight_packed").size());
    RETURN_IF_ERROR(CheckMethod(t, {Method::kPackedInt4}, module));
    if (t.dtype != DType::kI32 || t.shape.size() != 2)
      return InvalidArgument(Where(t) + "expected I32 [out, in / 8], got " + std::string(DTypeName(t.dtype)) +
                             " " + ShapeText(t.shape));
    for (const char* other : {".weight_zero_point", ".weight_g_idx"}) {
      if (by_name_.contains(module + other))
        return Unimplemented(Where(t) + "with " + (other + 1) + " is not supported");
    }
    ASSIGN_OR_RETURN(const TensorInfo* scales, Take(t, module + ".weight_scale"));
    ASSIGN_OR_RETURN(const TensorInfo* shape, Take(t, module + ".weight_shape"));
    RETURN_IF_ERROR(CheckScaleType(*scales));
    RETURN_IF_ERROR(Expect(t, *shape, {2}));
    // The true width: groups are whole, so it follows from the scales; weight_shape must say the same and is
    // compared by the claim (the family knows the shape).
    if (scales->shape.size() != 2 || scales->shape[0] != t.shape[0])
      return InvalidArgument(Where(*scales) + "expected [" + std::to_string(t.shape[0]) + ", groups], got " +
                             ShapeText(scales->shape));
    const uint64_t width = t.shape[1] * 8, groups = Blocks(width, config_.group);
    if (t.shape[1] > UINT32_MAX || scales->shape[1] != groups)
      return InvalidArgument(Where(*scales) + "expected " + std::to_string(groups) + " groups of " +
                             std::to_string(config_.group) + " beside " + ShapeText(t.shape) + ", got " +
                             ShapeText(scales->shape));
    t.name = module + ".weight";
    t.shape = {t.shape[0], width};
    t.coding = Coding::kInt4Group;
    t.scales = scales->range;
    t.scale_dtype = scales->dtype;
    t.block_rows = 1;
    t.block_columns = config_.group;
    return absl::OkStatus();
  }

  absl::Status Mxfp4(size_t i) {
    TensorInfo& t = tensors_[i];
    const std::string name = t.name.substr(0, t.name.size() - std::string_view("_blocks").size());
    RETURN_IF_ERROR(CheckMethod(t, {Method::kMxfp4}, name));
    if (t.shape.size() != 4 || t.shape[3] != 16 || t.shape[2] > UINT32_MAX)
      return InvalidArgument(Where(t) + "expected [experts, out, in / 32, 16], got " + ShapeText(t.shape));
    ASSIGN_OR_RETURN(const TensorInfo* scales, Take(t, name + "_scales"));
    if (scales->dtype != DType::kU8)
      return InvalidArgument(Where(*scales) + "expected U8, got " + std::string(DTypeName(scales->dtype)));
    RETURN_IF_ERROR(Expect(t, *scales, {t.shape[0], t.shape[1], t.shape[2]}));
    t.name = name;
    t.shape = {t.shape[0], t.shape[1], t.shape[2] * 32};
    t.coding = Coding::kMxfp4;
    t.scales = scales->range;
    t.scale_dtype = DType::kU8;
    t.block_rows = 1;
    t.block_columns = 32;
    return absl::OkStatus();
  }

  const QuantConfig& config_;
  const IgnoreList ignore_;
  const std::vector<std::string>& files_;
  std::vector<TensorInfo>& tensors_;
  std::unordered_map<std::string, size_t> by_name_;  // only looked up, never iterated
  std::vector<bool> taken_;
};

}  // namespace

absl::StatusOr<QuantConfig> ParseQuantConfig(std::string_view config_text, const std::string& source) {
  ASSIGN_OR_RETURN(const Json config, ParseJson(config_text, source));
  QuantConfig out;
  const Json* section = Member(config, "quantization_config");
  if (section == nullptr) {
    if (const Json* text = Member(config, "text_config")) section = Member(*text, "quantization_config");
  }
  if (const Json* native = Member(config, "quantization"); section == nullptr && native != nullptr) {
    RETURN_IF_ERROR(ReadNativeFp8(*native, source + ": quantization.", &out));
  }
  if (section == nullptr) return out;
  const std::string where = source + ": quantization_config";
  if (!section->is_object()) return InvalidArgument(where + ": expected an object, got " + Shown(*section));
  const std::string method = TextOf(*section, "quant_method");
  absl::Status status;
  if (method == "fp8") {
    status = ReadFp8(*section, where + ".", &out);
  } else if (method == "compressed-tensors") {
    status = ReadCompressed(*section, where + ".", &out);
  } else if (method == "mxfp4") {
    out.method = QuantConfig::Method::kMxfp4;
  } else {
    status = Unimplemented(where + ".quant_method: \"" + method.substr(0, 40) +
                           "\" is not supported; supported: " + std::string(kSupported));
  }
  RETURN_IF_ERROR(status);
  return out;
}

absl::Status JoinQuantised(const QuantConfig& config, const std::vector<std::string>& files,
                           std::vector<TensorInfo>* tensors) {
  return Joiner(config, files, tensors).Run();
}

}  // namespace consilium
