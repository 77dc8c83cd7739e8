#include "common/model/model_store.h"

#include <algorithm>
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

std::string_view CodingName(Coding coding) {
  switch (coding) {
    case Coding::kPlain:
      return "plain";
    case Coding::kFp8Block:
      return "FP8 blocks";
    case Coding::kInt4Group:
      return "INT4 groups";
    case Coding::kMxfp4:
      return "MXFP4";
    case Coding::kQ8_0:
      return "Q8_0";
    case Coding::kQ4_0:
      return "Q4_0";
    case Coding::kQ4_1:
      return "Q4_1";
    case Coding::kQ5_0:
      return "Q5_0";
    case Coding::kQ5_1:
      return "Q5_1";
    case Coding::kQ4K:
      return "Q4_K";
    case Coding::kQ5K:
      return "Q5_K";
    case Coding::kQ6K:
      return "Q6_K";
    case Coding::kMxfp4Ggml:
      return "MXFP4 (GGUF)";
    case Coding::kInt8Group:
      return "INT8 groups";
    case Coding::kInt8:
      return "INT8";
    case Coding::kGptq4:
      return "GPTQ INT4";
    case Coding::kGptq8:
      return "GPTQ INT8";
    case Coding::kAwq:
      return "AWQ INT4";
    case Coding::kIq4Nl:
      return "IQ4_NL";
    case Coding::kIq4Xs:
      return "IQ4_XS";
    case Coding::kQ2K:
      return "Q2_K";
    case Coding::kQ3K:
      return "Q3_K";
  }
  return "?";
}

std::string_view FormatName(const TensorInfo& tensor) {
  if (tensor.coding == Coding::kFp8Block && tensor.block_columns == 0)
    return tensor.block_rows == 0 ? "FP8 per matrix" : "FP8 per row";
  return tensor.coding == Coding::kPlain ? DTypeName(tensor.dtype) : CodingName(tensor.coding);
}

uint64_t TensorInfo::columns() const {
  uint64_t n = 1;
  for (size_t i = 1; i < shape.size(); ++i) n *= shape[i];
  return n;
}

std::vector<ByteRange> ExpertEntry::Ranges() const {
  std::vector<ByteRange> out;
  const auto add = [&](const ByteRange& range) {
    if (range.length > 0 && std::find(out.begin(), out.end(), range) == out.end()) out.push_back(range);
  };
  for (const TensorInfo* tensors : {parts, biases}) {
    for (int i = 0; i < 3; ++i) {
      for (const ByteRange& range : tensors[i].ranges()) add(range);
    }
  }
  return out;
}

uint64_t ExpertEntry::bytes() const {
  uint64_t n = 0;
  for (const ByteRange& range : Ranges()) n += range.length;
  return n;
}

absl::Status ReadPieces(ModelStore* store, const ByteRange& range, std::vector<std::byte>* buffer,
                        const std::function<void(std::span<const std::byte>)>& take) {
  if (const uint64_t n = std::min(kStagingBytes, range.length); buffer->size() < n) buffer->resize(n);
  for (uint64_t done = 0; done < range.length;) {
    const uint64_t n = std::min(kStagingBytes, range.length - done);
    const std::span<std::byte> bytes(buffer->data(), n);
    RETURN_IF_ERROR(store->Read(ByteRange{range.file, range.offset + done, n}, bytes));
    take(bytes);
    done += n;
  }
  return absl::OkStatus();
}

std::unique_ptr<ModelStore> OpenFolderStore(const Manifest& manifest) {
  return std::make_unique<FolderStore>(manifest.files);
}

}  // namespace consilium
