#include "common/model/tensor_index.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <unordered_map>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/gguf_model.h"
#include "common/model/json_text.h"
#include "common/model/quant_storage.h"
#include "common/model/safetensors.h"
#include "common/model/word_matrix.h"

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

std::string ExpertKey(const TensorRole& role) {
  constexpr std::string_view kParts[3] = {"gate", "up", "down"};
  return LayerRole(role.layer.value, "experts." + std::to_string(role.expert.value) + "." +
                                         std::string(kParts[static_cast<int>(role.expert_part)]) +
                                         (role.expert_bias ? "_bias" : ""));
}

// A slice of `range`: pieces [begin, begin + count) of `of` equal ones.
absl::Status Slice(const TensorPiece& piece, const std::string& where, ByteRange* range) {
  if (range->length % piece.of != 0)
    return InvalidArgument(where + std::to_string(range->length) + " bytes do not divide by " +
                           std::to_string(piece.of));
  const uint64_t one = range->length / piece.of;
  range->offset += piece.begin * one;
  range->length = piece.count * one;
  return absl::OkStatus();
}

// The part of a stored tensor that a role is.
absl::StatusOr<TensorInfo> TakePiece(const TensorRole& role, const TensorInfo& stored,
                                     const std::string& file) {
  const std::string where = file + ": tensor \"" + stored.name + "\": ";
  TensorPiece piece = role.piece;
  std::vector<uint64_t> expected = piece.stored.empty() ? role.shape : piece.stored;
  // Packed forms hold [out, in] where the same stack in plain elements is [in, out].
  if (stored.coding != Coding::kPlain && piece.transposed) {
    piece.transposed = false;
    std::swap(expected[expected.size() - 2], expected.back());
  }
  if (stored.shape != expected)
    return InvalidArgument(where + "expected shape " + ShapeText(expected) + ", got " +
                           ShapeText(stored.shape));
  if (stored.coding == Coding::kPlain && stored.dtype != DType::kF32 && stored.dtype != DType::kF16 &&
      stored.dtype != DType::kBf16) {
    return Unimplemented(where + "expected dtype F32, F16 or BF16, got " +
                         std::string(DTypeName(stored.dtype)));
  }
  TensorInfo out = stored;
  out.shape = role.shape;
  out.first_row = piece.first_row;
  out.row_step = piece.row_step;
  out.transposed = piece.transposed;
  if (piece.of == 1) return out;
  if (IsInWords(stored) || stored.zeros.length > 0)
    return Unimplemented(where + "a part of a matrix in " + std::string(FormatName(stored)) +
                         " is not supported: one matrix each is");
  RETURN_IF_ERROR(Slice(piece, where, &out.range));
  if (out.scales.length == 0) return out;
  // Blocks of scales must not reach over the cut.
  const uint64_t rows = stored.rows() * stored.columns() / std::max<uint64_t>(1, stored.shape.back());
  if (stored.block_rows > 1 && rows % piece.of == 0 && rows / piece.of % stored.block_rows != 0)
    return Unimplemented(where + "parts of " + std::to_string(rows / piece.of) + " rows share scales of " +
                         std::to_string(stored.block_rows) + " rows");
  // One scale for each matrix of a stack, which its gate and up halves share.
  if (stored.coding == Coding::kFp8Block && stored.block_rows == 0 && stored.shape.size() == 3 &&
      piece.of % stored.shape[0] == 0) {
    const uint64_t parts = piece.of / stored.shape[0];
    piece.begin /= parts;
    piece.count = 1;
    piece.of = stored.shape[0];
  }
  RETURN_IF_ERROR(Slice(piece, where, &out.scales));
  return out;
}

// Finds the tensors of roles and keeps count.
class Claimer {
 public:
  Claimer(const TensorIndex& index, const std::string& source) : index_(index), source_(source) {
    claimed_.assign(index.tensors.size(), false);
  }

  absl::Status Index() {
    for (size_t i = 0; i < index_.tensors.size(); ++i) {
      const TensorInfo& t = index_.tensors[i];
      const std::string& key = index_.by_role ? t.role : t.name;
      if (index_.by_role && key.empty()) continue;
      if (!by_key_.emplace(key, i).second) {
        return InvalidArgument(
            index_.files[t.range.file] + ": tensor \"" + t.name +
            (index_.by_role ? "\" has the role of another tensor" : "\" is in another file too"));
      }
    }
    return absl::OkStatus();
  }

  // By the name in safetensors files; null when absent.
  const TensorInfo* Stored(const std::string& name) const {
    const auto it = index_.by_role ? by_key_.end() : by_key_.find(name);
    return it == by_key_.end() ? nullptr : &index_.tensors[it->second];
  }
  bool Has(const std::string& key) const { return by_key_.contains(key); }

  absl::StatusOr<TensorInfo> Claim(const TensorRole& role) {
    const std::string key = !index_.by_role                    ? role.name
                            : role.part == ModelPart::kExperts ? ExpertKey(role)
                                                               : role.role;
    const auto it = by_key_.find(key);
    if (it == by_key_.end()) {
      return InvalidArgument(source_ + ": tensor \"" + (index_.by_role ? "of role " + key : key) + "\" " +
                             ShapeText(role.piece.stored.empty() ? role.shape : role.piece.stored) +
                             " is missing");
    }
    const TensorInfo& stored = index_.tensors[it->second];
    claimed_[it->second] = true;
    TensorRole plain = role;
    if (index_.by_role) plain.piece = {};  // cut already
    // One row of a matrix is stored as a vector there.
    TensorInfo reshaped = stored;
    if (index_.by_role && role.shape.size() == 2 && role.shape[0] == 1 && stored.shape.size() == 1)
      reshaped.shape = {1, stored.shape[0]};
    // And taps without the one channel that a group of theirs has.
    if (index_.by_role && role.shape.size() == 3 && role.shape[1] == 1 && stored.shape.size() == 2)
      reshaped.shape.insert(reshaped.shape.begin() + 1, 1);
    ASSIGN_OR_RETURN(TensorInfo out, TakePiece(plain, reshaped, index_.files[stored.range.file]));
    if (role.part == ModelPart::kExperts && role.piece.of > 1 && !index_.by_role)
      out.name += "[" + std::to_string(role.expert.value) + "]";
    out.role = role.role;
    return out;
  }

  absl::Status CheckAllClaimed(const ModelSpec& spec, const Family& family, UnusedTensors* unused) const {
    for (size_t i = 0; i < claimed_.size(); ++i) {
      const TensorInfo& t = index_.tensors[i];
      if (claimed_[i]) continue;
      if (!index_.by_role && (family.ignored(spec, t.name) || IsGptqBias(t.name))) {
        ++unused->tensors;
        unused->bytes += t.bytes();
        continue;
      }
      return InvalidArgument(index_.files[t.range.file] + ": unknown tensor \"" + t.name + "\" " +
                             ShapeText(t.shape) + ": family " + spec.family + " has no use for it");
    }
    return absl::OkStatus();
  }

 private:
  // AutoGPTQ gives every matrix a bias, of zeros where the model has none.
  bool IsGptqBias(const std::string& name) const {
    if (!name.ends_with(".bias")) return false;
    const auto it = by_key_.find(name.substr(0, name.size() - 4) + "weight");
    return it != by_key_.end() && claimed_[it->second] && IsInWords(index_.tensors[it->second]);
  }

  const TensorIndex& index_;
  const std::string& source_;
  std::unordered_map<std::string, size_t> by_key_;  // only looked up, never iterated
  std::vector<bool> claimed_;
};

absl::StatusOr<TensorIndex> ReadGgufIndex(const ModelPlace& place) {
  TensorIndex index;
  index.by_role = true;
  ASSIGN_OR_RETURN(GgufFiles read, ReadGgufFiles(place.gguf));
  ASSIGN_OR_RETURN(index.tensors, GgufTensors(read.gguf, place.gguf));
  index.files = std::move(read.files);
  return index;
}

// The shards that an index names, checked against it.
absl::Status ReadShards(const std::string& dir, const std::string& map_path, TensorIndex* index) {
  ASSIGN_OR_RETURN(const auto map, ReadWeightMap(map_path));
  std::set<std::string> names;
  for (const auto& [tensor, file] : map) names.insert(file);
  for (const std::string& name : names) {
    const uint32_t file = static_cast<uint32_t>(index->files.size());
    index->files.push_back(Absolute(dir + "/" + name));
    ASSIGN_OR_RETURN(auto tensors, ReadSafetensors(index->files.back(), file));
    index->tensors.insert(index->tensors.end(), std::make_move_iterator(tensors.begin()),
                          std::make_move_iterator(tensors.end()));
  }
  return CheckAgainstMap(*index, map, map_path);
}

}  // namespace

absl::StatusOr<TensorIndex> ReadTensorIndex(const ModelPlace& place, const ConfigText& config) {
  if (!place.gguf.empty()) return ReadGgufIndex(place);
  ASSIGN_OR_RETURN(const QuantConfig quantised, ParseQuantConfig(config.text, config.source));
  TensorIndex index;
  bool found = false;
  for (const char* stem : {"model", "consolidated"}) {
    const std::string single = Absolute(place.dir + "/" + stem + ".safetensors"),
                      map = single + ".index.json";
    if (!FileExists(single) && !FileExists(map)) continue;
    if (FileExists(single)) {
      index.files.push_back(single);
      ASSIGN_OR_RETURN(index.tensors, ReadSafetensors(single, 0));
    } else {
      RETURN_IF_ERROR(ReadShards(place.dir, map, &index));
    }
    found = true;
    break;
  }
  if (!found) {
    return NotFound(place.dir +
                    ": neither model.safetensors nor model.safetensors.index.json is there, nor one .gguf");
  }
  RETURN_IF_ERROR(JoinQuantised(quantised, index.files, &index.tensors));
  return index;
}

absl::StatusOr<std::vector<TensorRole>> ListRoles(const ModelSpec& spec) {
  const Family* family = FamilyNamed(spec.family);
  if (family == nullptr) return Internal("no family named " + spec.family);
  RoleList list(spec, [](const std::string&) { return nullptr; });
  family->list(spec, &list);
  return std::move(list.roles);
}

ModelPart PartOf(std::string_view role) {
  if (role == "embed") return ModelPart::kEmbedding;
  if (role.starts_with("head")) return ModelPart::kHead;
  if (role.find(".dense.") != std::string_view::npos) return ModelPart::kDense;
  if (role.find(".shared") != std::string_view::npos) return ModelPart::kShared;
  if (role.ends_with(".gate") || role.ends_with(".gate_bias") || role.ends_with(".gate_weight_bias"))
    return ModelPart::kGate;
  for (std::string_view norm :
       {"input_norm", "post_norm", "final_norm", "out_norm"}) {  // others are attention's
    if (role.find(norm) != std::string_view::npos) return ModelPart::kNorm;
  }
  return ModelPart::kAttention;
}

absl::StatusOr<Manifest> ClaimTensors(const ModelSpec& spec, TensorIndex index, const std::string& source,
                                      UnusedTensors* unused) {
  const Family* family = FamilyNamed(spec.family);
  if (family == nullptr) return Internal("no family named " + spec.family);
  Claimer claimer(index, source);
  RETURN_IF_ERROR(claimer.Index());
  RoleList list(spec, [&](const std::string& name) { return claimer.Stored(name); });
  family->list(spec, &list);
  Manifest manifest;
  manifest.files = index.files;
  for (const TensorRole& role : list.roles) {
    if (role.part != ModelPart::kExperts) {
      // Latent attention's kv_b may come in its two halves (GGUF): [heads, kv_lora, nope], [heads, v_dim,
      // kv_lora].
      const std::string base = role.role.ends_with(".kv_b") ? role.role.substr(0, role.role.size() - 4) : "";
      if (index.by_role && !base.empty() && claimer.Has(base + "k_b")) {
        const MlaSpec& m = spec.mla;
        TensorRole k = role, v = role;
        k.role = base + "k_b";
        k.shape = {m.heads, m.kv_lora, m.nope};
        v.role = base + "v_b";
        v.shape = {m.heads, m.v_dim, m.kv_lora};
        for (const TensorRole* half : {&k, &v}) {
          ASSIGN_OR_RETURN(TensorInfo tensor, claimer.Claim(*half));
          manifest.dense.push_back(std::move(tensor));
        }
        continue;
      }
      ASSIGN_OR_RETURN(TensorInfo tensor, claimer.Claim(role));
      manifest.dense.push_back(std::move(tensor));
      continue;
    }
    ASSIGN_OR_RETURN(TensorInfo tensor, claimer.Claim(role));
    if (manifest.experts.empty() || manifest.experts.back().layer != role.layer ||
        manifest.experts.back().expert != role.expert) {
      ExpertEntry entry;
      entry.layer = role.layer;
      entry.expert = role.expert;
      manifest.experts.push_back(std::move(entry));
    }
    ExpertEntry& entry = manifest.experts.back();
    (role.expert_bias ? entry.biases : entry.parts)[static_cast<int>(role.expert_part)] = std::move(tensor);
  }
  UnusedTensors nobody_asks;
  RETURN_IF_ERROR(claimer.CheckAllClaimed(spec, *family, unused != nullptr ? unused : &nobody_asks));
  std::sort(manifest.dense.begin(), manifest.dense.end(),
            [](const auto& a, const auto& b) { return a.role < b.role; });
  return manifest;
}

}  // namespace consilium
