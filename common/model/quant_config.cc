// What a configuration says about quantised storage.
#include <re2/re2.h>

#include <algorithm>
#include <cctype>

#include "common/base/status.h"
#include "common/model/json_text.h"
#include "common/model/quant_storage.h"

namespace consilium {
namespace {

constexpr size_t kModulesMax = 100'000;
constexpr size_t kGroupsMax = 64;
constexpr size_t kPatternBytesMax = 1000;
constexpr uint32_t kBlockMax = 1 << 16;
constexpr std::string_view kSupported =
    "fp8, compressed-tensors (pack-quantized, int-quantized, float-quantized, mxfp4-pack-quantized), gptq, "
    "awq, mxfp4, modelopt (FP8)";

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

absl::Status ReadModules(const Json& section, const char* key, const std::string& where,
                         std::vector<std::string>* out) {
  const Json* list = Member(section, key);
  if (list == nullptr) return absl::OkStatus();
  if (!list->is_array() || list->size() > kModulesMax)
    return InvalidArgument(where + key + ": expected a list of names, got " + Shown(*list));
  for (const Json& entry : *list) {
    if (!entry.is_string() || entry.get_ref<const std::string&>().size() > kPatternBytesMax)
      return InvalidArgument(where + key + ": expected names, got " + Shown(entry));
    const auto& text = entry.get_ref<const std::string&>();
    if (text.starts_with("re:")) {
      if (const RE2 pattern(text.substr(3), ModulePatternOptions()); !pattern.ok())
        return Unimplemented(where + key + ": the pattern \"" + text.substr(0, 100) +
                             "\" is not supported: " + pattern.error());
    }
    out->push_back(text);
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

absl::Status ReadBlock(const Json& v, const std::string& where, QuantScheme* out) {
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
  return ReadModules(section, "modules_to_not_convert", where, &out->ignore);
}

// Keys of one object that choose a storage, and what to say where one is not read.
struct Choices {
  const Json& object;
  const std::string& where;  // ends in "."
  std::string_view with;     // the format, for messages

  absl::Status Unsupported(const char* key, std::string_view supported) const {
    const Json* v = Member(object, key);
    return Unimplemented(where + key + ": " + (v != nullptr ? Shown(*v) : std::string("null")) +
                         " is not supported with " + std::string(with) +
                         "; supported: " + std::string(supported));
  }
  bool Is(const char* key, const Json& value) const {
    const Json* v = Member(object, key);
    return v != nullptr && *v == value;
  }
  bool FalseOrAbsent(const char* key) const { return Member(object, key) == nullptr || Is(key, false); }
  // 4 or 8.
  absl::Status Bits(const char* key, QuantScheme* out) const {
    if (!Is(key, 4) && !Is(key, 8)) return Unsupported(key, "4, 8");
    out->bits = Is(key, 4) ? 4 : 8;
    return absl::OkStatus();
  }
  // Inputs that share a scale; -1: the whole row.
  absl::Status Group(const char* key, QuantScheme* out) const {
    const Json* group = Member(object, key);
    if (group == nullptr) return InvalidArgument(where + key + ": missing");
    if (*group == Json(-1)) return absl::OkStatus();
    ASSIGN_OR_RETURN(out->group, Size(*group, where + key));
    return out->group % 32 == 0 ? absl::OkStatus() : Unsupported(key, "multiples of 32, -1");
  }
};

// Integers of compressed-tensors: packed into words, or bytes.
absl::Status ReadIntegers(const Choices& c, QuantScheme* out) {
  const std::string strategy = TextOf(c.object, "strategy");
  const bool packed = c.with == "pack-quantized";
  if (!c.Is("type", "int")) return c.Unsupported("type", "int");
  if (packed) {
    RETURN_IF_ERROR(c.Bits("num_bits", out));
  } else if (!c.Is("num_bits", 8)) {
    return c.Unsupported("num_bits", "8");
  }
  out->symmetric = !c.Is("symmetric", false);
  if (!out->symmetric && (!packed || out->bits == 8)) return c.Unsupported("symmetric", "true in 8 bits");
  if (strategy != "group" && strategy != "channel") return c.Unsupported("strategy", "group, channel");
  if (strategy == "group") RETURN_IF_ERROR(c.Group("group_size", out));
  out->method = packed ? QuantConfig::Method::kPacked : QuantConfig::Method::kInt8;
  return absl::OkStatus();
}

// E2M1 with E8M0 scales.
absl::Status ReadMxfp4(const Choices& c, QuantScheme* out) {
  if (!c.Is("num_bits", 4)) return c.Unsupported("num_bits", "4");
  if (!c.Is("type", "float")) return c.Unsupported("type", "float");
  if (!c.Is("group_size", 32)) return c.Unsupported("group_size", "32");
  out->method = QuantConfig::Method::kMxfp4;
  return absl::OkStatus();
}

absl::Status ReadWeights(const Json& weights, const std::string& format, const std::string& where,
                         QuantScheme* out) {
  const Choices c{weights, where, format};
  // Static orders leave groups where they are; the others add weight_g_idx.
  if (!c.FalseOrAbsent("actorder") && !c.Is("actorder", "weight") && !c.Is("actorder", "static"))
    return c.Unsupported("actorder", "null, weight, static");
  if (format == "mxfp4-pack-quantized") return ReadMxfp4(c, out);
  const bool floats = format == "float-quantized" || (format == "naive-quantized" && c.Is("type", "float"));
  if (!floats) return ReadIntegers(c, out);
  const std::string strategy = TextOf(weights, "strategy");
  if (c.Is("symmetric", false)) return c.Unsupported("symmetric", "true");
  if (!c.Is("num_bits", 8)) return c.Unsupported("num_bits", "8");
  if (!c.Is("type", "float")) return c.Unsupported("type", "float");
  out->method = QuantConfig::Method::kCompressedFp8;
  if (strategy == "block") {
    const Json* block = Member(weights, "block_structure");
    if (block == nullptr) return InvalidArgument(where + "block_structure: missing");
    return ReadBlock(*block, where + "block_structure", out);
  }
  if (strategy != "tensor" && strategy != "channel")
    return c.Unsupported("strategy", "tensor, channel, block");
  out->block_rows = strategy == "channel" ? 1 : 0;
  return absl::OkStatus();
}

absl::Status CheckFormat(const std::string& format, const std::string& where) {
  constexpr std::string_view kFormats[] = {"pack-quantized", "int-quantized", "float-quantized",
                                           "naive-quantized", "mxfp4-pack-quantized"};
  if (std::find(std::begin(kFormats), std::end(kFormats), format) != std::end(kFormats))
    return absl::OkStatus();
  return Unimplemented(where + "format: \"" + format.substr(0, 40) +
                       "\" is not supported; supported: pack-quantized, int-quantized, float-quantized, "
                       "mxfp4-pack-quantized");
}

// One of config_groups as it says weights are stored.
struct GroupRead {
  const Json& object;
  std::string where;  // ends in "."
  QuantScheme scheme;
};

// Those that have weights; the others are about activations. `format` holds where a group names none.
absl::StatusOr<std::vector<GroupRead>> ReadGroups(const Json& groups, const std::string& format,
                                                  const std::string& where) {
  std::vector<GroupRead> out;
  for (const auto& [name, group] : groups.items()) {
    const std::string here = where + "." + name.substr(0, 40) + ".";
    const Json* weights = Member(group, "weights");
    if (!group.is_object() || (weights != nullptr && !weights->is_object()))
      return InvalidArgument(here + "weights: expected an object, got " + Shown(group));
    if (weights == nullptr) continue;
    const std::string own = TextOf(group, "format", format.c_str());
    RETURN_IF_ERROR(CheckFormat(own, here));
    out.push_back({group, here, {}});
    RETURN_IF_ERROR(ReadWeights(*weights, own, here + "weights.", &out.back().scheme));
  }
  if (out.empty()) return InvalidArgument(where + ": no group has weights");
  return out;
}

// Groups that store alike are one, whatever they name; else "Linear" is every module that no other one names.
absl::Status TakeGroups(const std::vector<GroupRead>& groups, const std::string& where, QuantConfig* out) {
  QuantScheme& rest = *out;
  if (std::all_of(groups.begin(), groups.end(),
                  [&](const GroupRead& group) { return group.scheme == groups[0].scheme; })) {
    rest = groups[0].scheme;
    return absl::OkStatus();
  }
  for (const GroupRead& group : groups) {
    std::vector<std::string> modules;
    RETURN_IF_ERROR(ReadModules(group.object, "targets", group.where, &modules));
    if (std::erase(modules, "Linear") > 0) {
      if (rest.method != QuantScheme::Method::kNone)
        return InvalidArgument(where + ": two groups have the target \"Linear\"");
      rest = group.scheme;
    }
    if (!modules.empty()) out->groups.push_back({std::move(modules), group.scheme});
  }
  return absl::OkStatus();
}

absl::Status ReadCompressed(const Json& section, const std::string& where, QuantConfig* out) {
  const std::string format = TextOf(section, "format");
  if (format != "mixed-precision") RETURN_IF_ERROR(CheckFormat(format, where));
  if (const std::string status = TextOf(section, "quantization_status", "compressed");
      status != "compressed" && status != "frozen")
    return Unimplemented(where + "quantization_status: \"" + status.substr(0, 40) +
                         "\" is not supported; supported: compressed, frozen");
  if (const Json* sparsity = Member(section, "sparsity_config");
      sparsity != nullptr && !sparsity->empty() && TextOf(*sparsity, "format") != "dense")
    return Unimplemented(where + "sparsity_config is not supported");
  const Json* groups = Member(section, "config_groups");
  if (groups == nullptr || !groups->is_object() || groups->size() > kGroupsMax)
    return InvalidArgument(where + "config_groups: expected up to " + std::to_string(kGroupsMax) + " groups");
  const std::string here = where + "config_groups";
  ASSIGN_OR_RETURN(const std::vector<GroupRead> read, ReadGroups(*groups, format, here));
  RETURN_IF_ERROR(TakeGroups(read, here, out));
  return ReadModules(section, "ignore", where, &out->ignore);
}

// Rules of GPTQModel that treat modules apart: "-:" leaves them as they are, which their tensors show.
absl::Status CheckDynamic(const Json& section, const std::string& where) {
  const Json* rules = Member(section, "dynamic");
  if (rules == nullptr) return absl::OkStatus();
  if (!rules->is_object())
    return InvalidArgument(where + "dynamic: expected an object, got " + Shown(*rules));
  for (const auto& [pattern, rule] : rules->items()) {
    if (!pattern.starts_with("-:") && !rule.empty())
      return Unimplemented(where + "dynamic: \"" + pattern.substr(0, 60) +
                           "\" is not supported; supported: patterns that begin with \"-:\"");
  }
  return absl::OkStatus();
}

absl::Status ReadGptq(const Json& section, const std::string& where, QuantConfig* out) {
  const Choices c{section, where, "gptq"};
  const std::string format = TextOf(section, "checkpoint_format", "gptq");
  if (format != "gptq" && format != "gptq_v2") return c.Unsupported("checkpoint_format", "gptq, gptq_v2");
  RETURN_IF_ERROR(c.Bits("bits", out));
  RETURN_IF_ERROR(c.Group("group_size", out));
  out->symmetric = !c.Is("sym", false);
  if (!out->symmetric && out->bits == 8) return c.Unsupported("sym", "true in 8 bits");
  // With one group there is no order of groups.
  if (!c.FalseOrAbsent("desc_act") && out->group != 0)
    return c.Unsupported("desc_act", "false, or group_size -1");
  RETURN_IF_ERROR(CheckDynamic(section, where));
  out->zeros_minus_one = format == "gptq";
  out->method = QuantConfig::Method::kGptq;
  return absl::OkStatus();
}

absl::Status ReadAwq(const Json& section, const std::string& where, QuantConfig* out) {
  const Choices c{section, where, "awq"};
  std::string version = TextOf(section, "version", "gemm");
  std::transform(version.begin(), version.end(), version.begin(),
                 [](unsigned char l) { return std::tolower(l); });
  if (version != "gemm") return c.Unsupported("version", "gemm");
  if (TextOf(section, "backend", "autoawq") == "llm-awq") return c.Unsupported("backend", "autoawq");
  const char* bits = Member(section, "bits") != nullptr ? "bits" : "w_bit";
  if (!c.Is(bits, 4)) return c.Unsupported(bits, "4");
  RETURN_IF_ERROR(c.Group(Member(section, "group_size") != nullptr ? "group_size" : "q_group_size", out));
  out->symmetric = c.Is("zero_point", false);
  out->method = QuantConfig::Method::kAwq;
  return absl::OkStatus();
}

// NVIDIA's ModelOpt: E4M3 with a scale for each matrix. What it leaves as it is, the tensors show.
absl::Status ReadModelOpt(const Json& section, const std::string& where, QuantConfig* out) {
  const Choices c{section, where, "modelopt"};
  if (!c.Is("quant_algo", "FP8")) return c.Unsupported("quant_algo", "FP8");
  out->method = QuantConfig::Method::kFp8;
  return absl::OkStatus();
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

}  // namespace

RE2::Options ModulePatternOptions() {
  RE2::Options options;
  options.set_max_mem(1 << 20);
  options.set_log_errors(false);
  return options;
}

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
  } else if (method == "gptq") {
    status = ReadGptq(*section, where + ".", &out);
  } else if (method == "awq") {
    status = ReadAwq(*section, where + ".", &out);
  } else if (method == "modelopt") {
    status = ReadModelOpt(*section, where + ".", &out);
  } else if (method == "mxfp4") {
    out.method = QuantConfig::Method::kMxfp4;
  } else {
    status = Unimplemented(where + ".quant_method: \"" + method.substr(0, 40) +
                           "\" is not supported; supported: " + std::string(kSupported));
  }
  RETURN_IF_ERROR(status);
  return out;
}

}  // namespace consilium
