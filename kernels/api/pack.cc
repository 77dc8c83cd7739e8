// Weights to column panels, once at load.
#include <cstring>
#include <new>
#include <string>

#include "common/base/status.h"
#include "kernels/api/kernels.h"

namespace consilium::kernels {
namespace {

constexpr std::align_val_t kAlign{64};

float WidenF16(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1F;
  const uint32_t mantissa = h & 0x3FF;
  if (exponent == 0) {  // zero or denormal: mantissa * 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return __builtin_bit_cast(float, sign | (wide << 23) | (mantissa << 13));
}

// Copies [out, in] into panels of 16 columns; get(r, k) reads one element.
template <class T, class Get>
PackedMatrix PackAs(DType dtype, uint32_t out, uint32_t in, Get get) {
  PackedMatrix m;
  m.out = out;
  m.in = in;
  m.dtype = dtype;
  m.data = AllocateAligned(m.bytes());
  for (uint32_t r = 0; r < out; ++r) {
    T* column =
        reinterpret_cast<T*>(m.data.get() + (r / kPanelColumns) * m.panel_bytes()) + r % kPanelColumns;
    for (uint32_t k = 0; k < in; ++k) column[size_t{k} * kPanelColumns] = get(r, k);
  }
  return m;
}

template <class T>
T Read(const std::byte* source, size_t index) {
  T v;
  std::memcpy(&v, source + index * sizeof(T), sizeof(T));
  return v;
}

}  // namespace

void AlignedDelete::operator()(std::byte* p) const { ::operator delete[](p, kAlign); }

AlignedBytes AllocateAligned(size_t bytes) {
  AlignedBytes p(static_cast<std::byte*>(::operator new[](bytes == 0 ? 1 : bytes, kAlign)));
  std::memset(p.get(), 0, bytes);
  return p;
}

PackedMatrix Pack(DType dtype, const std::byte* source, uint32_t out, uint32_t in) {
  switch (dtype) {
    case DType::kF32:
      return PackAs<float>(dtype, out, in,
                           [&](size_t r, size_t k) { return Read<float>(source, r * in + k); });
    case DType::kBf16:
      return PackAs<uint16_t>(dtype, out, in,
                              [&](size_t r, size_t k) { return Read<uint16_t>(source, r * in + k); });
    case DType::kF16:
      return PackAs<float>(DType::kF32, out, in,
                           [&](size_t r, size_t k) { return WidenF16(Read<uint16_t>(source, r * in + k)); });
    default:
      break;
  }
  CheckFailed("dtype is F32, BF16 or F16", __FILE__, __LINE__, std::string(DTypeName(dtype)));
}

PackedMatrix PackF32(std::span<const float> source, uint32_t out, uint32_t in) {
  CHECK_MSG(source.size() == size_t{out} * in, "source holds " + std::to_string(source.size()) + " floats");
  return Pack(DType::kF32, reinterpret_cast<const std::byte*>(source.data()), out, in);
}

}  // namespace consilium::kernels
