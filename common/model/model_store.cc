#include "common/model/model_store.h"

#include <map>
#include <mutex>

#include "common/base/status.h"
#include "common/model/files.h"

namespace consilium {
namespace {

// Opens each file at its first read and keeps it open; reads of one file run in parallel (pread has no shared
// offset).
class FolderStore final : public ModelStore {
 public:
  explicit FolderStore(std::vector<std::string> files) : files_(std::move(files)) {}

  absl::Status Read(const ByteRange& range, std::span<std::byte> out) override {
    if (range.file >= files_.size())
      return InvalidArgument("no file " + std::to_string(range.file) + " in the manifest");
    if (out.size() != range.length) {
      return InvalidArgument(files_[range.file] + ": expected a buffer of " + std::to_string(range.length) +
                             " bytes, got " + std::to_string(out.size()));
    }
    ASSIGN_OR_RETURN(const ReadFd* file, Open(range.file));
    return file->ReadAt(range.offset, out);
  }

 private:
  absl::StatusOr<const ReadFd*> Open(uint32_t file) {
    const std::lock_guard lock(mutex_);
    auto it = open_.find(file);
    if (it == open_.end()) {
      ASSIGN_OR_RETURN(ReadFd fd, ReadFd::Open(files_[file]));
      it = open_.emplace(file, std::move(fd)).first;
    }
    return &it->second;  // map nodes do not move
  }

  const std::vector<std::string> files_;
  std::mutex mutex_;
  std::map<uint32_t, ReadFd> open_;
};

}  // namespace

std::unique_ptr<ModelStore> OpenFolderStore(const Manifest& manifest) {
  return std::make_unique<FolderStore>(manifest.files);
}

}  // namespace consilium
