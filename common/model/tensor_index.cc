#include "common/model/tensor_index.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <unordered_map>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/json_text.h"
#include "common/model/safetensors.h"

namespace consilium {
namespace {

constexpr size_t kIndexBytesMax = size_t{256} << 20;

// weight_map of an index.json: tensor -> file name. File names must stay inside the folder.
absl::StatusOr<std::map<std::string, std::string>> ReadWeightMap(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kIndexBytesMax));
  ASSIGN_OR_RETURN(const Json tree, ParseJson(text, path));
  const Json* map = nullptr;
  if (tree.is_object() && tree.contains("weight_map")) map = &tree["weight_map"];
  if (map == nullptr || !map->is_object() || map->empty()) {
    return InvalidArgument(path + ": expected an object \"weight_map\" from tensor names to file names");
  }
  std::map<std::string, std::string> out;
  for (const auto& [tensor, file] : map->items()) {
    const bool plain = file.is_string() &&
                       file.get_ref<const std::string&>().find('/') == std::string::npos &&
                       file.get_ref<const std::string&>().ends_with(".safetensors");
    if (!plain)
      return InvalidArgument(path + ": weight_map." + tensor + ": expected a .safetensors file name, got " +
                             file.dump());
    out[tensor] = file.get<std::string>();
  }
  return out;
}

absl::Status CheckAgainstMap(const TensorIndex& index, const std::map<std::string, std::string>& map,
                             const std::string& path) {
  std::set<std::string> seen;
  for (const TensorInfo& t : index.tensors) {
    const auto it = map.find(t.name);
    const std::string file = std::filesystem::path(index.files[t.range.file]).filename();
    if (it == map.end())
      return InvalidArgument(path + ": weight_map lacks tensor \"" + t.name + "\" of " + file);
    if (it->second != file) {
      return InvalidArgument(path + ": weight_map puts tensor \"" + t.name + "\" into " + it->second +
                             ", it is in " + file);
    }
    seen.insert(t.name);
  }
  for (const auto& [tensor, file] : map) {
    if (!seen.contains(tensor))
      return InvalidArgument(path + ": tensor \"" + tensor + "\" is not in " + file);
  }
  return absl::OkStatus();
}

std::string Absolute(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

absl::Status CheckTensor(const TensorRole& role, const TensorInfo& tensor, const std::string& file) {
  const std::string where = file + ": tensor \"" + tensor.name + "\": ";
  if (tensor.shape != role.shape) {
    return InvalidArgument(where + "expected shape " + ShapeText(role.shape) + ", got " +
                           ShapeText(tensor.shape));
  }
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kBf16) {
    return Unimplemented(where + "expected dtype F32, F16 or BF16, got " +
                         std::string(DTypeName(tensor.dtype)));
  }
  return absl::OkStatus();
}

// A matrix of a mixed model could be stored in several types; one expert may not.
absl::Status CheckExpertTypes(const Manifest& manifest) {
  for (const ExpertEntry& e : manifest.experts) {
    for (const TensorInfo& part : e.parts) {
      if (part.dtype != e.parts[0].dtype) {
        return InvalidArgument(manifest.files[part.range.file] + ": tensor \"" + part.name +
                               "\": expected dtype " + std::string(DTypeName(e.parts[0].dtype)) + " as \"" +
                               e.parts[0].name + "\", got " + std::string(DTypeName(part.dtype)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TensorIndex> ReadTensorIndex(const std::string& dir) {
  TensorIndex index;
  const std::string single = Absolute(dir + "/model.safetensors"),
                    map_path = Absolute(dir + "/model.safetensors.index.json");
  if (FileExists(single)) {
    index.files.push_back(single);
    ASSIGN_OR_RETURN(index.tensors, ReadSafetensors(single, 0));
    return index;
  }
  if (!FileExists(map_path)) {
    return NotFound(dir + ": neither model.safetensors nor model.safetensors.index.json is there");
  }
  ASSIGN_OR_RETURN(const auto map, ReadWeightMap(map_path));
  std::set<std::string> names;
  for (const auto& [tensor, file] : map) names.insert(file);
  for (const std::string& name : names) {
    const uint32_t file = static_cast<uint32_t>(index.files.size());
    index.files.push_back(Absolute(dir + "/" + name));
    ASSIGN_OR_RETURN(auto tensors, ReadSafetensors(index.files.back(), file));
    index.tensors.insert(index.tensors.end(), std::make_move_iterator(tensors.begin()),
                         std::make_move_iterator(tensors.end()));
  }
  RETURN_IF_ERROR(CheckAgainstMap(index, map, map_path));
  return index;
}

absl::StatusOr<std::vector<TensorRole>> ListRoles(const ModelSpec& spec) {
  const Family* family = FindFamily(spec.family);
  if (family == nullptr) return Internal("no family named " + spec.family);
  RoleList list(spec);
  family->list(spec, &list);
  return std::move(list.roles);
}

absl::StatusOr<Manifest> ClaimTensors(const ModelSpec& spec, TensorIndex index, const std::string& dir) {
  const Family* family = FindFamily(spec.family);
  if (family == nullptr) return Internal("no family named " + spec.family);
  std::unordered_map<std::string_view, size_t> by_name;  // only looked up, never iterated
  for (size_t i = 0; i < index.tensors.size(); ++i) {
    const TensorInfo& t = index.tensors[i];
    if (!by_name.emplace(t.name, i).second) {
      return InvalidArgument(index.files[t.range.file] + ": tensor \"" + t.name +
                             "\" is in another file too");
    }
  }
  ASSIGN_OR_RETURN(const std::vector<TensorRole> roles, ListRoles(spec));
  Manifest manifest;
  manifest.files = index.files;
  std::vector<bool> claimed(index.tensors.size(), false);
  for (const TensorRole& role : roles) {
    const auto it = by_name.find(role.name);
    if (it == by_name.end()) {
      return InvalidArgument(dir + ": tensor \"" + role.name + "\" " + ShapeText(role.shape) + " is missing");
    }
    const TensorInfo& tensor = index.tensors[it->second];
    CHECK_MSG(!claimed[it->second], "two roles claim " + tensor.name);
    claimed[it->second] = true;
    RETURN_IF_ERROR(CheckTensor(role, tensor, index.files[tensor.range.file]));
    if (role.part != ModelPart::kExperts) {
      manifest.dense.push_back(tensor);
      manifest.dense.back().role = role.role;
      continue;
    }
    if (manifest.experts.empty() || manifest.experts.back().layer != role.layer ||
        manifest.experts.back().expert != role.expert) {
      ExpertEntry entry;
      entry.layer = role.layer;
      entry.expert = role.expert;
      manifest.experts.push_back(std::move(entry));
    }
    manifest.experts.back().parts[static_cast<int>(role.expert_part)] = tensor;
  }
  for (size_t i = 0; i < claimed.size(); ++i) {
    const TensorInfo& t = index.tensors[i];
    if (!claimed[i] && !family->ignored(spec, t.name)) {
      return InvalidArgument(index.files[t.range.file] + ": unknown tensor \"" + t.name + "\" " +
                             ShapeText(t.shape) + ": family " + spec.family + " has no use for it");
    }
  }
  RETURN_IF_ERROR(CheckExpertTypes(manifest));
  std::sort(manifest.dense.begin(), manifest.dense.end(),
            [](const auto& a, const auto& b) { return a.role < b.role; });
  return manifest;
}

}  // namespace consilium
