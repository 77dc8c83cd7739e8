#include <algorithm>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <thread>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/log/log.h"
#include "common/model/files.h"
#include "common/model/manifest_cache.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/model/safetensors.h"
#include "common/model/tensor_index.h"

namespace consilium {
namespace {

constexpr size_t kConfigBytesMax = size_t{16} << 20;
constexpr size_t kChunkBytes = size_t{4} << 20;
constexpr MonoTime kProgressUs = 2'000'000;
constexpr unsigned kHashThreadsMax = 8;  // each holds one expert's bytes

std::string FormatLine(std::string_view what, const TensorInfo& t) {
  return std::string(what) + " " + std::string(DTypeName(t.dtype)) + " " + ShapeText(t.shape) + "\n";
}

// Digest over kind and canonical parts; layer and expert number stay out: equal experts are one expert.
absl::Status HashExpert(ModelStore* store, kernels::Activation activation, ExpertEntry* entry,
                        std::vector<std::byte>* buffer) {
  constexpr std::string_view kParts[3] = {"gate", "up", "down"};
  buffer->resize(entry->bytes());
  Sha256 sha;
  sha.Update(std::string("consilium expert 1 gated ") +
             (activation == kernels::Activation::kSilu ? "silu\n" : "gelu_tanh\n"));
  size_t at = 0;
  for (int i = 0; i < 3; ++i) {
    const std::span<std::byte> bytes(buffer->data() + at, entry->parts[i].range.length);
    RETURN_IF_ERROR(store->Read(entry->parts[i].range, bytes));
    sha.Update(FormatLine(kParts[i], entry->parts[i]));
    sha.Update(bytes);
    at += bytes.size();
  }
  entry->digest = sha.Finish();
  entry->checksum = Xxh3(*buffer);
  return absl::OkStatus();
}

absl::StatusOr<Digest> HashTensor(ModelStore* store, const TensorInfo& tensor,
                                  std::vector<std::byte>* buffer) {
  Sha256 sha;
  sha.Update(FormatLine(tensor.role, tensor));
  buffer->resize(std::min<uint64_t>(kChunkBytes, tensor.range.length));
  for (uint64_t done = 0; done < tensor.range.length;) {
    const uint64_t n = std::min<uint64_t>(kChunkBytes, tensor.range.length - done);
    const std::span<std::byte> bytes(buffer->data(), n);
    RETURN_IF_ERROR(store->Read(ByteRange{tensor.range.file, tensor.range.offset + done, n}, bytes));
    sha.Update(bytes);
    done += n;
  }
  return sha.Finish();
}

// Hashes all experts and tensors on a few threads; they share the list by an atomic index.
class Hasher {
 public:
  Hasher(const ModelSpec& spec, Manifest* manifest, const std::string& dir)
      : spec_(spec),
        manifest_(manifest),
        dir_(dir),
        store_(OpenFolderStore(*manifest)),
        dense_(manifest->dense.size()) {
    for (const auto& e : manifest->experts) bytes_total_ += e.bytes();
    for (const auto& t : manifest->dense) bytes_total_ += t.range.length;
  }

  absl::Status Run(const std::string& config_text) {
    started_ = NowUs();
    next_report_ = started_ + kProgressUs;
    const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, kHashThreadsMax);
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
        status = HashExpert(store_.get(), spec_.activation, &manifest_->experts[i], &buffer);
        if (status.ok()) Report(manifest_->experts[i].bytes());
      } else {
        auto digest = HashTensor(store_.get(), manifest_->dense[i - experts], &buffer);
        status = digest.status();
        if (digest.ok()) dense_[i - experts] = *digest;
        if (digest.ok()) Report(manifest_->dense[i - experts].range.length);
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

  const ModelSpec& spec_;
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

absl::StatusOr<ManifestSources> StampSources(const std::string& dir, const std::vector<std::string>& files) {
  ManifestSources sources;
  sources.dir = dir;
  std::vector<std::string> all = files;
  all.push_back(dir + "/config.json");
  for (const char* optional : {"/model.safetensors.index.json"}) {
    if (FileExists(dir + optional)) all.push_back(dir + optional);
  }
  for (const std::string& path : all) {
    ASSIGN_OR_RETURN(const FileStamp stamp, StampFile(path));
    sources.files.emplace_back(path, stamp);
  }
  return sources;
}

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

absl::StatusOr<Manifest> OpenManifest(const std::string& given_dir, const std::string& state_dir) {
  std::string dir = std::filesystem::absolute(given_dir).lexically_normal().string();
  while (dir.size() > 1 && dir.ends_with('/')) dir.pop_back();
  if (!std::filesystem::is_directory(dir)) return NotFound(dir + ": no such folder");
  const std::string id = std::filesystem::path(dir).filename();
  ASSIGN_OR_RETURN(const ModelSpec spec, ReadModelSpec(dir));
  if (!FileExists(dir + "/tokenizer.json"))
    return NotFound(dir + "/tokenizer.json: missing; the model cannot be served without it");
  ASSIGN_OR_RETURN(TensorIndex index, ReadTensorIndex(dir));
  ASSIGN_OR_RETURN(const ManifestSources sources, StampSources(dir, index.files));
  if (!state_dir.empty()) {
    if (auto kept = LoadCachedManifest(state_dir, sources)) {
      kept->id = id;
      return *std::move(kept);
    }
  }
  ASSIGN_OR_RETURN(Manifest manifest, ClaimTensors(spec, std::move(index), dir));
  manifest.id = id;
  ASSIGN_OR_RETURN(const std::string config_text, ReadTextFile(dir + "/config.json", kConfigBytesMax));
  RETURN_IF_ERROR(Hasher(spec, &manifest, dir).Run(config_text));
  if (!state_dir.empty()) {
    const absl::Status stored = StoreCachedManifest(state_dir, sources, manifest);
    if (!stored.ok())
      log::Warn("import: the manifest is not kept", {{"dir", dir}, {"error", ToString(stored)}});
  }
  return manifest;
}

}  // namespace consilium
