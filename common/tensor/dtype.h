// Element types of weights, activations and frames.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace consilium {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBf16,
  kI32,
  kI64,
  kU8,
  kF8E4m3,
  kI8,
};

constexpr size_t DTypeBytes(DType t) {
  switch (t) {
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBf16:
      return 2;
    case DType::kU8:
    case DType::kF8E4m3:
    case DType::kI8:
      return 1;
  }
  return 0;
}

constexpr std::string_view DTypeName(DType t) {
  switch (t) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBf16:
      return "BF16";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
    case DType::kF8E4m3:
      return "F8_E4M3";
    case DType::kI8:
      return "I8";
  }
  return "?";
}

}  // namespace consilium
