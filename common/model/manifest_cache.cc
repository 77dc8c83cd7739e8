#include "common/model/manifest_cache.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <stdexcept>

#include "common/base/status.h"
#include "common/model/json_text.h"

namespace consilium {
namespace {

constexpr int kVersion = 4;
constexpr size_t kCacheBytesMax = size_t{1} << 30;

std::string Hex64(uint64_t v) {
  char text[17];
  std::snprintf(text, sizeof text, "%016" PRIx64, v);
  return text;
}

uint64_t TextHash(std::string_view text) { return Xxh3(std::as_bytes(std::span(text))); }

Json RangeJson(const ByteRange& r) { return Json::array({r.file, r.offset, r.length}); }
ByteRange RangeOf(const Json& j) {
  return ByteRange{j.at(0).get<uint32_t>(), j.at(1).get<uint64_t>(), j.at(2).get<uint64_t>()};
}

// Plain whole tensors, the bulk, take the short form.
Json TensorJson(const TensorInfo& t) {
  Json out = Json::array({t.name, t.role, static_cast<int>(t.dtype), t.shape, RangeJson(t.range)});
  const bool plain = t.coding == Coding::kPlain && t.first_row == 0 && t.row_step == 1 && !t.transposed &&
                     t.rotary_head == 0;
  if (plain) return out;
  for (const Json& more :
       {Json(static_cast<int>(t.coding)), RangeJson(t.scales), Json(static_cast<int>(t.scale_dtype)),
        Json(t.block_rows), Json(t.block_columns), Json(t.first_row), Json(t.row_step), Json(t.transposed),
        Json(t.rotary_head), RangeJson(t.zeros), Json(t.zeros_minus_one), Json(t.centred)}) {
    out.push_back(more);
  }
  return out;
}

TensorInfo TensorOf(const Json& j) {
  TensorInfo t;
  t.name = j.at(0).get<std::string>();
  t.role = j.at(1).get<std::string>();
  t.dtype = static_cast<DType>(j.at(2).get<uint8_t>());
  t.shape = j.at(3).get<std::vector<uint64_t>>();
  t.range = RangeOf(j.at(4));
  if (j.size() == 5) return t;
  t.coding = static_cast<Coding>(j.at(5).get<uint8_t>());
  t.scales = RangeOf(j.at(6));
  t.scale_dtype = static_cast<DType>(j.at(7).get<uint8_t>());
  t.block_rows = j.at(8).get<uint32_t>();
  t.block_columns = j.at(9).get<uint32_t>();
  t.first_row = j.at(10).get<uint32_t>();
  t.row_step = j.at(11).get<uint32_t>();
  t.transposed = j.at(12).get<bool>();
  t.rotary_head = j.at(13).get<uint32_t>();
  t.zeros = RangeOf(j.at(14));
  t.zeros_minus_one = j.at(15).get<bool>();
  t.centred = j.at(16).get<bool>();
  return t;
}

Digest DigestOf(const Json& j) {
  const auto& text = j.get_ref<const std::string&>();
  Digest d{};
  if (text.size() != 2 * d.size()) throw std::invalid_argument("digest");
  for (size_t i = 0; i < d.size(); ++i)
    d[i] = static_cast<uint8_t>(std::stoul(text.substr(2 * i, 2), nullptr, 16));
  return d;
}

std::string Relative(const std::string& path, const std::string& dir) {
  return std::filesystem::path(path).lexically_relative(dir).string();
}

Json SourcesJson(const ManifestSources& sources) {
  Json files = Json::array();
  for (const auto& [path, stamp] : sources.files)
    files.push_back({Relative(path, sources.dir), stamp.size, stamp.mtime_ns});
  return files;
}

Manifest ManifestOf(const Json& j, const std::string& dir) {
  Manifest m;
  m.digest = DigestOf(j.at("digest"));
  for (const Json& name : j.at("files"))
    m.files.push_back((std::filesystem::path(dir) / name.get<std::string>()).string());
  for (const Json& e : j.at("experts")) {
    ExpertEntry entry;
    entry.layer = LayerId(e.at(0).get<uint16_t>());
    entry.expert = ExpertId(e.at(1).get<uint16_t>());
    entry.digest = DigestOf(e.at(2));
    entry.checksum = e.at(3).get<uint64_t>();
    for (int i = 0; i < 3; ++i) {
      entry.parts[i] = TensorOf(e.at(4).at(i));
      if (e.at(4).size() == 6) entry.biases[i] = TensorOf(e.at(4).at(3 + i));
    }
    m.experts.push_back(std::move(entry));
  }
  for (const Json& t : j.at("dense")) m.dense.push_back(TensorOf(t));
  return m;
}

}  // namespace

std::string StateManifestPath(const std::string& state_dir, const ModelPlace& place) {
  return state_dir + "/manifests/" + Hex64(TextHash(place.key())) + ".json";
}

std::string BesideManifestPath(const ModelPlace& place) {
  return place.gguf.empty() ? place.dir + "/consilium-manifest.json"
                            : place.gguf + ".consilium-manifest.json";
}

std::optional<Manifest> LoadKeptManifest(const std::string& path, const ManifestSources& sources) {
  const auto text = ReadTextFile(path, kCacheBytesMax);
  if (!text.ok()) return std::nullopt;
  // First line: hash of the rest, so that a damaged file is not half believed.
  const size_t line = text->find('\n');
  if (line == std::string::npos) return std::nullopt;
  const std::string_view body = std::string_view(*text).substr(line + 1);
  if (text->substr(0, line) != Hex64(TextHash(body))) return std::nullopt;
  try {
    const Json tree = Json::parse(body.begin(), body.end());
    if (tree.at("version").get<int>() != kVersion || tree.at("sources") != SourcesJson(sources))
      return std::nullopt;
    return ManifestOf(tree.at("manifest"), sources.dir);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

absl::Status KeepManifest(const std::string& path, const ManifestSources& sources, const Manifest& manifest) {
  RETURN_IF_ERROR(MakeFolderOf(path));
  Json experts = Json::array(), dense = Json::array();
  for (const ExpertEntry& e : manifest.experts) {
    Json parts = Json::array();
    for (const TensorInfo& part : e.parts) parts.push_back(TensorJson(part));
    for (const TensorInfo& bias : e.biases) {
      if (e.has_biases()) parts.push_back(TensorJson(bias));
    }
    experts.push_back({e.layer.value, e.expert.value, Hex(e.digest), e.checksum, parts});
  }
  Json files = Json::array();
  for (const std::string& file : manifest.files) files.push_back(Relative(file, sources.dir));
  for (const TensorInfo& t : manifest.dense) dense.push_back(TensorJson(t));
  const Json tree = {
      {"version", kVersion},
      {"sources", SourcesJson(sources)},
      {"manifest",
       {{"digest", Hex(manifest.digest)}, {"files", files}, {"experts", experts}, {"dense", dense}}}};
  const std::string body = tree.dump();
  return WriteFileAtomically(path, Hex64(TextHash(body)) + "\n" + body);
}

}  // namespace consilium
