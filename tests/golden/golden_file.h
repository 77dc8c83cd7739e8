// Reads the tensors of a golden.safetensors.
#pragma once
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/safetensors.h"

namespace consilium {

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path) {
    auto tensors = ReadSafetensors(path, 0);
    CHECK_MSG(tensors.ok(), ToString(tensors.status()));
    auto fd = ReadFd::Open(path);
    CHECK_MSG(fd.ok(), ToString(fd.status()));
    for (const TensorInfo& t : *tensors) {
      std::vector<std::byte> bytes(t.range.length);
      CHECK(fd->ReadAt(t.range.offset, bytes).ok());
      tensors_[t.name] = {t, std::move(bytes)};
    }
  }
  bool Has(const std::string& name) const { return tensors_.contains(name); }
  std::vector<float> Floats(const std::string& name) const { return Read<float>(name, DType::kF32); }
  std::vector<int32_t> Ints(const std::string& name) const { return Read<int32_t>(name, DType::kI32); }
  std::vector<TokenId> Tokens(const std::string& name) const {
    const auto ints = Ints(name);
    return {ints.begin(), ints.end()};
  }

 private:
  template <class T>
  std::vector<T> Read(const std::string& name, DType dtype) const {
    const auto& [info, bytes] = tensors_.at(name);
    CHECK(info.dtype == dtype);
    std::vector<T> out(bytes.size() / sizeof(T));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  std::map<std::string, std::pair<TensorInfo, std::vector<std::byte>>> tensors_;
};

}  // namespace consilium
