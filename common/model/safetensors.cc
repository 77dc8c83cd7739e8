#include "common/model/safetensors.h"

#include <algorithm>
#include <optional>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/json_text.h"

namespace consilium {
namespace {

constexpr size_t kRankMax = 8;

std::optional<DType> ParseDType(std::string_view name) {
  for (DType t : {DType::kF32, DType::kF16, DType::kBf16, DType::kI32, DType::kI64, DType::kU8,
                  DType::kF8E4m3, DType::kI8}) {
    if (DTypeName(t) == name) return t;
  }
  return std::nullopt;
}

absl::StatusOr<uint64_t> HeaderLength(std::span<const std::byte> head, uint64_t file_size,
                                      const std::string& source) {
  if (head.size() < 8 || file_size < 8) {
    return InvalidArgument(source + ": too short for safetensors: expected at least 8 bytes, got " +
                           std::to_string(file_size));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | std::to_integer<uint64_t>(head[i]);
  if (length > kSafetensorsHeaderBytesMax) {
    return InvalidArgument(source + ": safetensors header length " + std::to_string(length) +
                           "; expected at most " + std::to_string(kSafetensorsHeaderBytesMax));
  }
  if (length > file_size - 8) {
    return InvalidArgument(source + ": truncated: the header says " + std::to_string(length) +
                           " bytes, the file has " + std::to_string(file_size - 8) + " after its length");
  }
  return length;
}

// Product of the shape times the element size, checked against 64-bit overflow.
absl::StatusOr<uint64_t> TensorBytes(const TensorInfo& tensor, const std::string& where) {
  uint64_t bytes = DTypeBytes(tensor.dtype);
  for (uint64_t d : tensor.shape) {
    if (__builtin_mul_overflow(bytes, d, &bytes)) {
      return InvalidArgument(where + ": shape " + ShapeText(tensor.shape) + " is more than 2^64 bytes");
    }
  }
  return bytes;
}

absl::StatusOr<TensorInfo> ParseEntry(const std::string& name, const Json& entry, uint32_t file,
                                      uint64_t data_begin, uint64_t data_bytes, const std::string& source) {
  const std::string where = source + ": tensor \"" + name.substr(0, 200) + "\"";
  if (!entry.is_object())
    return InvalidArgument(where + ": expected an object with dtype, shape, data_offsets");
  const auto dtype = entry.find("dtype"), shape = entry.find("shape"), offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string() || shape == entry.end() || !shape->is_array() ||
      offsets == entry.end() || !offsets->is_array() || offsets->size() != 2) {
    return InvalidArgument(where + ": expected dtype (text), shape (list) and data_offsets (two numbers)");
  }
  TensorInfo tensor;
  tensor.name = name;
  const auto& dtype_name = dtype->get_ref<const std::string&>();
  const auto known = ParseDType(dtype_name);
  if (!known) return InvalidArgument(where + ": dtype \"" + dtype_name.substr(0, 40) + "\" is not supported");
  tensor.dtype = *known;
  if (shape->size() > kRankMax)
    return InvalidArgument(where + ": more than " + std::to_string(kRankMax) + " dimensions");
  for (const Json& d : *shape) {
    if (!d.is_number_unsigned())
      return InvalidArgument(where + ": shape: expected whole numbers, got " + d.dump());
    tensor.shape.push_back(d.get<uint64_t>());
  }
  for (const Json& o : *offsets) {
    if (!o.is_number_unsigned())
      return InvalidArgument(where + ": data_offsets: expected whole numbers, got " + o.dump());
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > data_bytes) {
    return InvalidArgument(where + ": truncated or wrong: data_offsets [" + std::to_string(begin) + ", " +
                           std::to_string(end) + "], the file has " + std::to_string(data_bytes) +
                           " data bytes");
  }
  ASSIGN_OR_RETURN(const uint64_t bytes, TensorBytes(tensor, where));
  if (bytes != end - begin) {
    return InvalidArgument(where + ": " + std::string(DTypeName(tensor.dtype)) + " " +
                           ShapeText(tensor.shape) + " is " + std::to_string(bytes) +
                           " bytes, data_offsets span " + std::to_string(end - begin));
  }
  tensor.range = ByteRange{file, data_begin + begin, bytes};
  return tensor;
}

absl::Status CheckTiling(const std::vector<TensorInfo>& tensors, uint64_t data_begin, uint64_t file_size,
                         const std::string& source) {
  uint64_t next = data_begin;
  for (const TensorInfo& t : tensors) {
    if (t.range.offset != next) {
      return InvalidArgument(source + ": tensor \"" + t.name + "\" begins at byte " +
                             std::to_string(t.range.offset) + "; expected " + std::to_string(next) +
                             " (tensors must tile the file)");
    }
    next += t.range.length;
  }
  if (next != file_size) {
    return InvalidArgument(source + ": tensors end at byte " + std::to_string(next) + ", the file has " +
                           std::to_string(file_size));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShapeText(std::span<const uint64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> head, uint64_t file_size,
                                                         uint32_t file, const std::string& source) {
  ASSIGN_OR_RETURN(const uint64_t length, HeaderLength(head, file_size, source));
  if (head.size() - 8 < length) return InvalidArgument(source + ": truncated inside the safetensors header");
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + 8, length);
  ASSIGN_OR_RETURN(const Json tree, ParseJson(text, source + ": safetensors header"));
  if (!tree.is_object()) return InvalidArgument(source + ": safetensors header: expected an object");
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : tree.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(TensorInfo tensor,
                     ParseEntry(name, entry, file, 8 + length, file_size - 8 - length, source));
    tensors.push_back(std::move(tensor));
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.range.offset, a.range.length, a.name) <
           std::tie(b.range.offset, b.range.length, b.name);
  });
  RETURN_IF_ERROR(CheckTiling(tensors, 8 + length, file_size, source));
  return tensors;
}

absl::StatusOr<std::vector<TensorInfo>> ReadSafetensors(const std::string& path, uint32_t file) {
  ASSIGN_OR_RETURN(const FileStamp stamp, StampFile(path));
  ASSIGN_OR_RETURN(const ReadFd fd, ReadFd::Open(path));
  std::vector<std::byte> head(std::min<uint64_t>(8, stamp.size));
  RETURN_IF_ERROR(fd.ReadAt(0, head));
  ASSIGN_OR_RETURN(const uint64_t length, HeaderLength(head, stamp.size, path));
  head.resize(8 + length);
  RETURN_IF_ERROR(fd.ReadAt(8, std::span(head).subspan(8)));
  return ParseSafetensors(head, stamp.size, file, path);
}

}  // namespace consilium
