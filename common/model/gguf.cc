#include "common/model/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/safetensors.h"

namespace consilium {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint64_t kFirstBytes = uint64_t{4} << 20;
constexpr uint64_t kNameBytesMax = 65535;
constexpr uint32_t kDimensionsMax = 4;
constexpr uint32_t kAlignmentMax = 1 << 20;

enum class Type : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kText, kArray, kU64, kI64, kF64 };

size_t TypeBytes(Type type) {  // least bytes of one value
  switch (type) {
    case Type::kU8:
    case Type::kI8:
    case Type::kBool:
      return 1;
    case Type::kU16:
    case Type::kI16:
      return 2;
    case Type::kU32:
    case Type::kI32:
    case Type::kF32:
      return 4;
    case Type::kText:
    case Type::kU64:
    case Type::kI64:
    case Type::kF64:
      return 8;
    case Type::kArray:
      return 12;
  }
  return 0;
}

// A ggml tensor type that is read, and its blocks.
struct GgmlType {
  uint32_t id;
  Coding coding;
  DType dtype;
  uint32_t block_elements, block_bytes;
};
constexpr GgmlType kGgmlTypes[] = {
    {0, Coding::kPlain, DType::kF32, 1, 4},   {1, Coding::kPlain, DType::kF16, 1, 2},
    {30, Coding::kPlain, DType::kBf16, 1, 2}, {8, Coding::kQ8_0, DType::kU8, 32, 34},
    {2, Coding::kQ4_0, DType::kU8, 32, 18},   {3, Coding::kQ4_1, DType::kU8, 32, 20},
    {6, Coding::kQ5_0, DType::kU8, 32, 22},   {7, Coding::kQ5_1, DType::kU8, 32, 24},
    {12, Coding::kQ4K, DType::kU8, 256, 144}, {13, Coding::kQ5K, DType::kU8, 256, 176},
    {14, Coding::kQ6K, DType::kU8, 256, 210}, {39, Coding::kMxfp4Ggml, DType::kU8, 32, 17},
    {10, Coding::kQ2K, DType::kU8, 256, 84},  {11, Coding::kQ3K, DType::kU8, 256, 110},
    {20, Coding::kIq4Nl, DType::kU8, 32, 18}, {23, Coding::kIq4Xs, DType::kU8, 256, 136},
};
constexpr std::string_view kGgmlSupported =
    "F32 0, F16 1, Q4_0 2, Q4_1 3, Q5_0 6, Q5_1 7, Q8_0 8, Q2_K 10, Q3_K 11, Q4_K 12, Q5_K 13, Q6_K 14, "
    "IQ4_NL 20, IQ4_XS 23, BF16 30, MXFP4 39";

// Walks the header. The first failure is kept; reads after it give zero.
class Cursor {
 public:
  Cursor(std::span<const std::byte> head, uint64_t file_size, const std::string& source)
      : head_(head), file_size_(file_size), source_(source) {}

  template <class T>
  T Read() {
    T v{};
    if (!Need(sizeof(T))) return v;
    std::memcpy(&v, head_.data() + at_, sizeof(T));  // the format is little endian, as are our machines
    at_ += sizeof(T);
    return v;
  }

  std::string Text(uint64_t bytes_max) {
    const uint64_t n = Read<uint64_t>();
    if (n > bytes_max)
      Fail("a text of " + std::to_string(n) + " bytes; expected at most " + std::to_string(bytes_max));
    if (!Need(n)) return "";
    std::string text(reinterpret_cast<const char*>(head_.data()) + at_, n);
    at_ += n;
    return text;
  }

  // Whether `n` items of at least `bytes` each can still lie in the file.
  bool Fits(uint64_t n, uint64_t bytes, const std::string& what) {
    if (!status_.ok()) return false;
    if (n <= (file_size_ - at_) / bytes) return true;
    Fail(std::to_string(n) + " " + what + "; the file has " + std::to_string(file_size_ - at_) +
         " bytes left");
    return false;
  }

  void Fail(const std::string& message) {
    if (status_.ok()) {
      status_ = InvalidArgument(source_ + ": GGUF header" + where_ + ": at byte " + std::to_string(at_) +
                                ": " + message);
    }
  }
  void At(const std::string& where) { where_ = where; }
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  uint64_t position() const { return at_; }

 private:
  bool Need(uint64_t n) {
    if (!status_.ok()) return false;
    if (n > file_size_ - at_) {
      Fail("truncated: " + std::to_string(n) + " bytes expected, the file has " +
           std::to_string(file_size_ - at_) + " left");
      return false;
    }
    if (n <= head_.size() - at_) return true;
    status_ = absl::OutOfRangeError("more of the file is needed");
    return false;
  }

  const std::span<const std::byte> head_;
  const uint64_t file_size_;
  const std::string& source_;
  std::string where_;
  uint64_t at_ = 0;
  absl::Status status_;
};

int64_t ReadInteger(Cursor& c, Type type) {
  switch (type) {
    case Type::kU8:
      return c.Read<uint8_t>();
    case Type::kI8:
      return c.Read<int8_t>();
    case Type::kU16:
      return c.Read<uint16_t>();
    case Type::kI16:
      return c.Read<int16_t>();
    case Type::kU32:
      return c.Read<uint32_t>();
    case Type::kI32:
      return c.Read<int32_t>();
    case Type::kI64:
      return c.Read<int64_t>();
    case Type::kU64: {
      const uint64_t v = c.Read<uint64_t>();
      if (v > uint64_t{INT64_MAX}) c.Fail("a number above 2^63");
      return static_cast<int64_t>(v);
    }
    default:
      break;
  }
  return 0;
}

double ReadDouble(Cursor& c, Type type) {
  const double v = type == Type::kF32 ? static_cast<double>(c.Read<float>()) : c.Read<double>();
  return v;
}

bool ReadBool(Cursor& c) {
  const uint8_t v = c.Read<uint8_t>();
  if (v > 1) c.Fail("a truth value of " + std::to_string(v) + "; expected 0 or 1");
  return v == 1;
}

template <class T, class Get>
GgufValue ReadList(Cursor& c, uint64_t n, Get get) {
  std::vector<T> out;
  out.reserve(std::min<uint64_t>(n, 1 << 16));  // grown as far as the bytes reach
  for (uint64_t i = 0; i < n && c.ok(); ++i) out.push_back(get());
  return out;
}

GgufValue ReadValue(Cursor& c, Type type) {
  switch (type) {
    case Type::kF32:
    case Type::kF64:
      return ReadDouble(c, type);
    case Type::kBool:
      return ReadBool(c);
    case Type::kText:
      return c.Text(kGgufHeaderBytesMax);
    case Type::kArray: {
      const auto item = static_cast<Type>(c.Read<uint32_t>());
      const uint64_t n = c.Read<uint64_t>();
      if (item > Type::kF64 || item == Type::kArray) {
        c.Fail("an array of type " + std::to_string(static_cast<uint32_t>(item)) +
               "; expected a plain type 0..12");
        return int64_t{0};
      }
      if (!c.Fits(n, TypeBytes(item), "array items")) return int64_t{0};
      if (item == Type::kText)
        return ReadList<std::string>(c, n, [&] { return c.Text(kGgufHeaderBytesMax); });
      if (item == Type::kBool) return ReadList<bool>(c, n, [&] { return ReadBool(c); });
      if (item == Type::kF32 || item == Type::kF64)
        return ReadList<double>(c, n, [&] { return ReadDouble(c, item); });
      return ReadList<int64_t>(c, n, [&] { return ReadInteger(c, item); });
    }
    default:
      break;
  }
  if (type > Type::kF64) {
    c.Fail("a value of type " + std::to_string(static_cast<uint32_t>(type)) + "; expected 0..12");
    return int64_t{0};
  }
  return ReadInteger(c, type);
}

// A tensor's size in bytes by its type and shape; 0 after a failure.
uint64_t TensorBytes(Cursor& c, uint32_t type, TensorInfo* t) {
  const auto known = std::find_if(std::begin(kGgmlTypes), std::end(kGgmlTypes),
                                  [&](const GgmlType& g) { return g.id == type; });
  if (known == std::end(kGgmlTypes)) {
    c.Fail("type " + std::to_string(type) + " is not supported; supported: " + std::string(kGgmlSupported));
    return 0;
  }
  t->coding = known->coding;
  t->dtype = known->dtype;
  uint64_t elements = 1;
  for (uint64_t d : t->shape) {
    if (d == 0 || __builtin_mul_overflow(elements, d, &elements)) {
      c.Fail("shape " + ShapeText(t->shape) + " is empty or too large");
      return 0;
    }
  }
  if (t->shape.empty() || t->shape.back() % known->block_elements != 0) {
    c.Fail("shape " + ShapeText(t->shape) + ": rows are no multiple of " +
           std::to_string(known->block_elements) + " elements");
    return 0;
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(elements / known->block_elements, uint64_t{known->block_bytes}, &bytes))
    c.Fail("shape " + ShapeText(t->shape) + " is too large");
  return bytes;
}

TensorInfo ReadTensorEntry(Cursor& c, uint32_t file, uint32_t alignment) {
  TensorInfo t;
  t.name = c.Text(kNameBytesMax);
  c.At(": tensor \"" + t.name.substr(0, 200) + "\"");
  const uint32_t rank = c.Read<uint32_t>();
  if (rank == 0 || rank > kDimensionsMax) c.Fail(std::to_string(rank) + " dimensions; expected 1..4");
  for (uint32_t i = 0; i < rank && c.ok(); ++i) t.shape.insert(t.shape.begin(), c.Read<uint64_t>());
  while (t.shape.size() > 1 && t.shape.front() == 1) t.shape.erase(t.shape.begin());
  const uint32_t type = c.Read<uint32_t>();
  const uint64_t offset = c.Read<uint64_t>();
  if (!c.ok()) return t;
  t.range = ByteRange{file, offset, TensorBytes(c, type, &t)};
  if (offset % alignment != 0)
    c.Fail("offset " + std::to_string(offset) + " is no multiple of " + std::to_string(alignment));
  return t;
}

// Offsets become absolute. Tensors must lie in the file without overlap; padding to the alignment is allowed.
absl::Status PlaceTensors(Gguf* gguf, uint64_t data_begin, uint64_t file_size, uint32_t alignment,
                          const std::string& source) {
  for (TensorInfo& t : gguf->tensors) {
    if (data_begin > file_size || t.range.offset > file_size - data_begin ||
        t.range.length > file_size - data_begin - t.range.offset) {
      return InvalidArgument(source + ": tensor \"" + t.name +
                             "\": truncated or wrong: " + std::to_string(t.range.length) + " bytes at " +
                             std::to_string(t.range.offset) + " of the data, which begin at byte " +
                             std::to_string(data_begin) + "; the file has " + std::to_string(file_size));
    }
    t.range.offset += data_begin;
  }
  std::stable_sort(gguf->tensors.begin(), gguf->tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) { return a.range.offset < b.range.offset; });
  uint64_t next = data_begin;
  for (const TensorInfo& t : gguf->tensors) {
    if (t.range.offset != next) {
      return InvalidArgument(source + ": tensor \"" + t.name + "\" begins at byte " +
                             std::to_string(t.range.offset) + "; expected " + std::to_string(next) +
                             " (tensors must tile the data)");
    }
    next =
        (t.range.offset + t.range.length - data_begin + alignment - 1) / alignment * alignment + data_begin;
  }
  if (file_size > next) {
    return InvalidArgument(source + ": tensors end at byte " + std::to_string(next) + ", the file has " +
                           std::to_string(file_size));
  }
  return absl::OkStatus();
}

template <class T>
const std::vector<T>* ListOf(const Gguf& gguf, const std::string& key) {
  const auto it = gguf.metadata.find(key);
  return it == gguf.metadata.end() ? nullptr : std::get_if<std::vector<T>>(&it->second);
}

template <class T>
absl::StatusOr<std::optional<T>> Scalar(const Gguf& gguf, const std::string& key, const char* expected) {
  const auto it = gguf.metadata.find(key);
  if (it == gguf.metadata.end()) return std::optional<T>();
  if (const T* v = std::get_if<T>(&it->second)) return std::optional<T>(*v);
  return InvalidArgument("GGUF metadata " + key + ": expected " + expected + ", got another type");
}

}  // namespace

absl::StatusOr<std::optional<int64_t>> Gguf::Integer(const std::string& key) const {
  return Scalar<int64_t>(*this, key, "an integer");
}
absl::StatusOr<std::optional<double>> Gguf::Number(const std::string& key) const {
  const auto it = metadata.find(key);
  if (it != metadata.end()) {
    if (const auto* v = std::get_if<int64_t>(&it->second))
      return std::optional<double>(static_cast<double>(*v));
    if (const auto* v = std::get_if<double>(&it->second); v != nullptr && !std::isfinite(*v))
      return InvalidArgument("GGUF metadata " + key + ": expected a finite number");
  }
  return Scalar<double>(*this, key, "a number");
}
absl::StatusOr<std::optional<bool>> Gguf::Bool(const std::string& key) const {
  return Scalar<bool>(*this, key, "a truth value");
}
absl::StatusOr<std::optional<std::string>> Gguf::Text(const std::string& key) const {
  return Scalar<std::string>(*this, key, "a text");
}
const std::vector<std::string>* Gguf::Texts(const std::string& key) const {
  return ListOf<std::string>(*this, key);
}
const std::vector<int64_t>* Gguf::Integers(const std::string& key) const {
  return ListOf<int64_t>(*this, key);
}
const std::vector<double>* Gguf::Numbers(const std::string& key) const { return ListOf<double>(*this, key); }

absl::StatusOr<Gguf> ParseGguf(std::span<const std::byte> head, uint64_t file_size, uint32_t file,
                               const std::string& source) {
  if (head.size() > file_size) head = head.first(file_size);
  Cursor c(head, file_size, source);
  if (file_size < 4 || head.size() < 4 || std::memcmp(head.data(), "GGUF", 4) != 0)
    return InvalidArgument(source + ": no GGUF file: expected it to begin with \"GGUF\"");
  (void)c.Read<uint32_t>();
  const uint32_t version = c.Read<uint32_t>();
  if (c.ok() && version != kVersion)
    return InvalidArgument(source + ": GGUF version " + std::to_string(version) + "; expected 3");
  const uint64_t tensors = c.Read<uint64_t>(), pairs = c.Read<uint64_t>();
  c.Fits(pairs, 8 + 4 + 1, "metadata entries");
  c.Fits(tensors, 8 + 4 + 8 + 4 + 8, "tensors");
  Gguf out;
  for (uint64_t i = 0; i < pairs && c.ok(); ++i) {
    std::string key = c.Text(kNameBytesMax);
    c.At(": key \"" + key.substr(0, 200) + "\"");
    GgufValue value = ReadValue(c, static_cast<Type>(c.Read<uint32_t>()));
    if (c.ok() && !out.metadata.emplace(std::move(key), std::move(value)).second) c.Fail("comes twice");
  }
  RETURN_IF_ERROR(c.status());
  ASSIGN_OR_RETURN(const auto given, out.Integer("general.alignment"));
  const int64_t alignment = given.value_or(32);
  if (alignment < 1 || alignment > kAlignmentMax || (alignment & (alignment - 1)) != 0)
    return InvalidArgument(source + ": general.alignment: expected a power of two up to 2^20, got " +
                           std::to_string(alignment));
  std::set<std::string> names;
  for (uint64_t i = 0; i < tensors && c.ok(); ++i) {
    out.tensors.push_back(ReadTensorEntry(c, file, static_cast<uint32_t>(alignment)));
    if (c.ok() && !names.insert(out.tensors.back().name).second) c.Fail("comes twice");
  }
  RETURN_IF_ERROR(c.status());
  const uint64_t a = static_cast<uint64_t>(alignment);
  RETURN_IF_ERROR(
      PlaceTensors(&out, (c.position() + a - 1) / a * a, file_size, static_cast<uint32_t>(a), source));
  return out;
}

absl::StatusOr<Gguf> ReadGguf(const std::string& path, uint32_t file) {
  ASSIGN_OR_RETURN(const FileStamp stamp, StampFile(path));
  ASSIGN_OR_RETURN(const ReadFd fd, ReadFd::Open(path));
  std::vector<std::byte> head;
  for (uint64_t want = kFirstBytes;; want *= 4) {
    const size_t had = head.size();
    head.resize(std::min<uint64_t>({want, stamp.size, kGgufHeaderBytesMax}));
    RETURN_IF_ERROR(fd.ReadAt(had, std::span(head).subspan(had)));
    auto parsed = ParseGguf(head, stamp.size, file, path);
    if (parsed.ok() || parsed.status().code() != absl::StatusCode::kOutOfRange) return parsed;
    if (head.size() == kGgufHeaderBytesMax) {
      return InvalidArgument(path + ": GGUF header of more than " + std::to_string(kGgufHeaderBytesMax) +
                             " bytes");
    }
  }
}

}  // namespace consilium
