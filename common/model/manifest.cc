#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/log/log.h"
#include "common/model/files.h"
#include "common/model/manifest_cache.h"
#include "common/model/model_files.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/model/safetensors.h"
#include "common/model/tensor_index.h"

namespace consilium {
namespace {

constexpr MonoTime kProgressUs = 2'000'000;
constexpr unsigned kHashThreadsMax = 16;

// What a tensor's bytes mean; unequal lines for unequal meanings.
std::string FormatLine(std::string_view what, const TensorInfo& t) {
  std::string line = std::string(what) + " " + std::string(FormatName(t)) + " " + ShapeText(t.shape);
  if (t.scales.length > 0) {
    line += " scales " + std::string(DTypeName(t.scale_dtype)) + " " + std::to_string(t.block_rows) + "x" +
            std::to_string(t.block_columns);
  }
  if (t.zeros.length > 0) {
    line += std::string(" zeros") + (t.zeros_minus_one ? " minus one" : "") + (t.centred ? " centred" : "");
  }
  if (t.first_row != 0 || t.row_step != 1)
    line += " rows " + std::to_string(t.first_row) + "+" + std::to_string(t.row_step);
  if (t.transposed) line += " transposed";
  if (t.rotary_head != 0) line += " rotary " + std::to_string(t.rotary_head);
  return line + "\n";
}

std::string ActivationText(const ModelSpec& spec) {
  switch (spec.activation) {
    case kernels::Activation::kSilu:
      return "silu";
    case kernels::Activation::kGeluTanh:
      return "gelu_tanh";
    case kernels::Activation::kGeluErf:
      return "gelu_erf";
    case kernels::Activation::kSwigluClamped:
      return "swiglu_clamped " + std::to_string(spec.swiglu_alpha) + " " + std::to_string(spec.swiglu_limit);
  }
  return "?";
}

// Digest over kind and parts; layer and expert number stay out: equal experts are one expert. Ranges that
// gate and up share are read and hashed once.
absl::Status HashExpert(ModelStore* store, const std::string& activation, ExpertEntry* entry,
                        std::vector<std::byte>* buffer) {
  constexpr std::string_view kParts[3] = {"gate", "up", "down"},
                             kBiases[3] = {"gate_bias", "up_bias", "down_bias"};
  Sha256 sha;
  Xxh3Stream checksum;  // the bytes in the order of Ranges()
  sha.Update("consilium expert 1 gated " + activation + "\n");
  std::vector<ByteRange> seen;
  const auto add = [&](const ByteRange& range) -> absl::Status {
    if (range.length == 0 || std::find(seen.begin(), seen.end(), range) != seen.end())
      return absl::OkStatus();
    seen.push_back(range);
    return ReadPieces(store, range, buffer, [&](std::span<const std::byte> bytes) {
      sha.Update(bytes);
      checksum.Update(bytes);
    });
  };
  for (int i = 0; i < 3; ++i) {
    sha.Update(FormatLine(kParts[i], entry->parts[i]));
    for (const ByteRange& range : entry->parts[i].ranges()) RETURN_IF_ERROR(add(range));
  }
  for (int i = 0; i < 3 && entry->has_biases(); ++i) {
    sha.Update(FormatLine(kBiases[i], entry->biases[i]));
    RETURN_IF_ERROR(add(entry->biases[i].range));
  }
  entry->digest = sha.Finish();
  entry->checksum = checksum.value();
  return absl::OkStatus();
}

absl::StatusOr<Digest> HashTensor(ModelStore* store, const TensorInfo& tensor,
                                  std::vector<std::byte>* buffer) {
  Sha256 sha;
  sha.Update(FormatLine(tensor.role, tensor));
  for (const ByteRange& range : tensor.ranges()) {
    RETURN_IF_ERROR(
        ReadPieces(store, range, buffer, [&](std::span<const std::byte> bytes) { sha.Update(bytes); }));
  }
  return sha.Finish();
}

// Hashes all experts and tensors on a few threads; they share the list by an atomic index.
class Hasher {
 public:
  Hasher(const ModelSpec& spec, Manifest* manifest, const std::string& dir)
      : activation_(ActivationText(spec)),
        manifest_(manifest),
        dir_(dir),
        store_(OpenFolderStore(*manifest)),
        dense_(manifest->dense.size()) {
    for (const auto& e : manifest->experts) bytes_total_ += e.bytes();
    for (const auto& t : manifest->dense) bytes_total_ += t.bytes();
  }

  absl::Status Run(const std::string& config_text) {
    started_ = NowUs();
    next_report_ = started_ + kProgressUs;
    // Twice the cores: while one of two waits for the disk, the other hashes.
    const unsigned threads = std::clamp(2 * std::thread::hardware_concurrency(), 2u, kHashThreadsMax);
    log::Info("import: hashing a model", {{"dir", dir_}, {"bytes", bytes_total_}, {"threads", threads}});
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back([this] { Work(); });
    Work();
    for (auto& t : others) t.join();
    RETURN_IF_ERROR(failure_);
    Sha256 sha;
    sha.Update("consilium manifest 1\n");
    sha.Update(config_text);
    for (const auto& e : manifest_->experts) sha.Update(std::as_bytes(std::span(e.digest)));
    for (const Digest& d : dense_) sha.Update(std::as_bytes(std::span(d)));
    manifest_->digest = sha.Finish();
    log::Info("import: done", {{"dir", dir_},
                               {"bytes", bytes_total_},
                               {"seconds", (NowUs() - started_) / 1e6},
                               {"digest", Hex(manifest_->digest)}});
    return absl::OkStatus();
  }

 private:
  void Work() {
    std::vector<std::byte> buffer;
    const size_t experts = manifest_->experts.size(), items = experts + dense_.size();
    for (size_t i = next_++; i < items && !failed_; i = next_++) {
      absl::Status status;
      if (i < experts) {
        status = HashExpert(store_.get(), activation_, &manifest_->experts[i], &buffer);
        if (status.ok()) Report(manifest_->experts[i].bytes());
      } else {
        auto digest = HashTensor(store_.get(), manifest_->dense[i - experts], &buffer);
        status = digest.status();
        if (digest.ok()) dense_[i - experts] = *digest;
        if (digest.ok()) Report(manifest_->dense[i - experts].bytes());
      }
      if (!status.ok()) Fail(status);
    }
  }

  void Fail(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = status;
    failed_ = true;
  }

  void Report(uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_done_ += bytes;
    const MonoTime now = NowUs();
    if (now < next_report_) return;
    next_report_ = now + kProgressUs;
    const double rate = bytes_done_ * 1e6 / static_cast<double>(now - started_);
    log::Info("import: hashing", {{"dir", dir_},
                                  {"bytes_done", bytes_done_},
                                  {"bytes", bytes_total_},
                                  {"bytes_per_second", rate},
                                  {"seconds_left", (bytes_total_ - bytes_done_) / rate}});
  }

  const std::string activation_;
  Manifest* manifest_;
  const std::string dir_;
  std::unique_ptr<ModelStore> store_;
  std::vector<Digest> dense_;
  uint64_t bytes_total_ = 0;
  MonoTime started_ = 0;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // the rest
  absl::Status failure_;
  uint64_t bytes_done_ = 0;
  MonoTime next_report_ = 0;
};

// Found without reading a header, so that a kept manifest needs none.
absl::StatusOr<ManifestSources> StampSources(const ModelPlace& place) {
  ManifestSources sources;
  sources.dir = place.dir;
  std::vector<std::string> all = ListWeightFiles(place);
  if (place.gguf.empty()) {
    all.push_back(ModelConfigPath(place.dir));
    for (const char* optional : {"/model.safetensors.index.json", "/consolidated.safetensors.index.json"}) {
      if (FileExists(place.dir + optional)) all.push_back(place.dir + optional);
    }
  }
  for (const std::string& path : all) {
    ASSIGN_OR_RETURN(const FileStamp stamp, StampFile(path));
    sources.files.emplace_back(path, stamp);
  }
  return sources;
}

// A model to be opened: where it is, what it is, what its manifest depends on.
struct Model {
  ModelPlace place;
  ModelSpec spec;
  ManifestSources sources;

  static absl::StatusOr<Model> Find(const std::string& path) {
    Model m;
    ASSIGN_OR_RETURN(m.place, FindModel(path));
    ASSIGN_OR_RETURN(m.spec, ReadModelSpec(path));
    if (m.place.gguf.empty() && !FileExists(m.place.dir + "/tokenizer.json"))
      return NotFound(m.place.dir + "/tokenizer.json: missing; the model cannot be served without it");
    ASSIGN_OR_RETURN(m.sources, StampSources(m.place));
    return m;
  }

  // The first that is good.
  std::optional<Manifest> Kept(std::initializer_list<std::string> paths) const {
    for (const std::string& path : paths) {
      if (auto kept = LoadKeptManifest(path, sources)) {
        kept->id = place.id;
        return kept;
      }
    }
    return std::nullopt;
  }

  // Reads and hashes everything.
  absl::StatusOr<Manifest> Make() const {
    ASSIGN_OR_RETURN(const ConfigText config, ReadConfigText(place));
    ASSIGN_OR_RETURN(TensorIndex index, ReadTensorIndex(place, config));
    ASSIGN_OR_RETURN(Manifest manifest, ClaimTensors(spec, std::move(index), place.key()));
    manifest.id = place.id;
    RETURN_IF_ERROR(Hasher(spec, &manifest, place.key()).Run(config.text));
    return manifest;
  }
};

}  // namespace

const ExpertEntry* Manifest::FindExpert(LayerId layer, ExpertId expert) const {
  const auto it = std::lower_bound(
      experts.begin(), experts.end(), std::pair(layer, expert),
      [](const ExpertEntry& e, const auto& key) { return std::pair(e.layer, e.expert) < key; });
  return it != experts.end() && it->layer == layer && it->expert == expert ? &*it : nullptr;
}

const TensorInfo* Manifest::FindDense(std::string_view role) const {
  const auto it = std::lower_bound(dense.begin(), dense.end(), role,
                                   [](const TensorInfo& t, std::string_view r) { return t.role < r; });
  return it != dense.end() && it->role == role ? &*it : nullptr;
}

absl::StatusOr<Manifest> OpenManifest(const std::string& path, const std::string& state_dir) {
  ASSIGN_OR_RETURN(const Model model, Model::Find(path));
  const std::string beside = BesideManifestPath(model.place);
  if (state_dir.empty()) {
    if (auto kept = model.Kept({beside})) return *std::move(kept);
    return model.Make();
  }
  const std::string own = StateManifestPath(state_dir, model.place);
  if (auto kept = model.Kept({own, beside})) return *std::move(kept);
  // Processes that start together share one import: the others find what the first stores. A folder that
  // cannot be locked cannot be written either, which is said below.
  const auto lock = FileLock::Acquire(state_dir + "/import.lock", "hashes the model");
  if (auto kept = model.Kept({own})) return *std::move(kept);
  ASSIGN_OR_RETURN(Manifest manifest, model.Make());
  const absl::Status stored = KeepManifest(own, model.sources, manifest);
  if (!stored.ok())
    log::Warn("import: the manifest is not kept",
              {{"model", model.place.key()}, {"error", ToString(stored)}});
  return manifest;
}

absl::StatusOr<Import> ImportModel(const std::string& path, const std::string& state_dir) {
  ASSIGN_OR_RETURN(const Model model, Model::Find(path));
  Import out;
  out.kept = state_dir.empty() ? BesideManifestPath(model.place) : StateManifestPath(state_dir, model.place);
  if (auto kept = model.Kept({out.kept})) {
    out.manifest = *std::move(kept);
    return out;
  }
  // Before the long work: is the place writable? An empty file counts as absent.
  RETURN_IF_ERROR(MakeFolderOf(out.kept));
  RETURN_IF_ERROR(WriteFileAtomically(out.kept, ""));
  absl::StatusOr<Manifest> made = model.Make();
  const absl::Status stored = made.ok() ? KeepManifest(out.kept, model.sources, *made) : made.status();
  if (!stored.ok()) {
    ::unlink(out.kept.c_str());
    return stored;
  }
  out.manifest = *std::move(made);
  out.made = true;
  return out;
}

}  // namespace consilium
