// Names, sizes and layouts of the weight formats.
#include "kernels/api/weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "common/base/status.h"

namespace consilium::kernels {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr uint32_t kFp8BlockK = 128;
constexpr uint32_t kSuperShift = 3;  // a K-quant has 256 inputs: 8 blocks

// Zeroed pages of the system's, aligned so that it can make them huge ones: fewer faults at load and fewer
// table walks ever after. Null where it gives none.
AlignedBytes MapHuge(size_t bytes) {
  void* whole = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) return nullptr;
  auto* first = static_cast<std::byte*>(whole);
  const size_t lead = (kHugePage - reinterpret_cast<uintptr_t>(whole) % kHugePage) % kHugePage;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), mapped = (bytes + page - 1) / page * page;
  if (lead > 0) munmap(first, lead);
  munmap(first + lead + mapped, bytes + kHugePage - lead - mapped);
#if defined(MADV_HUGEPAGE)
  madvise(first + lead, mapped, MADV_HUGEPAGE);  // advice: nothing hangs on the answer
#endif
  return {first + lead, AlignedDelete{mapped}};
}

uint32_t CodeBytes(RawCode code) {  // of one block
  switch (code) {
    case RawCode::kF32:
      return 64;
    case RawCode::kBf16:
    case RawCode::kF16:
      return 32;
    case RawCode::kFp8:
      return kFp8BlockK * kPanelColumns;
    case RawCode::k8:
      return 512;
    case RawCode::k4:
    case RawCode::k4Zero:
    case RawCode::k4Table:
    case RawCode::k4Iq:
      return 256;
    case RawCode::k2:
      return 128;
    case RawCode::k3:
      return 128 + 64;
    case RawCode::k5:
      return 256 + 64;
    case RawCode::k6:
      return 256 + 128;
  }
  return 0;
}

RawScale ScaleOf(DType type) {
  return type == DType::kF32 ? RawScale::kF32 : type == DType::kBf16 ? RawScale::kBf16 : RawScale::kF16;
}

RawLayout Kinds(WeightFormat format, DType scale) {
  const auto make = [](RawCode code, RawScale s, RawTail tail, uint32_t bias) {
    RawLayout l;
    l.code = code, l.scale = s, l.tail = tail, l.bias = bias;
    l.block_k = code == RawCode::kFp8 ? kFp8BlockK : code >= RawCode::k8 ? kGroup : 1;
    return l;
  };
  switch (format) {
    case WeightFormat::kF32:
      return make(RawCode::kF32, RawScale::kNone, RawTail::kNone, 0);
    case WeightFormat::kBf16:
      return make(RawCode::kBf16, RawScale::kNone, RawTail::kNone, 0);
    case WeightFormat::kF16:
      return make(RawCode::kF16, RawScale::kNone, RawTail::kNone, 0);
    case WeightFormat::kFp8:
      return make(RawCode::kFp8, RawScale::kF32, RawTail::kNone, 0);
    case WeightFormat::kInt8:
      return make(RawCode::k8, ScaleOf(scale), RawTail::kNone, 128);
    case WeightFormat::kInt4:
      return make(RawCode::k4, ScaleOf(scale), RawTail::kNone, 8);
    case WeightFormat::kInt4Zero:
      return make(RawCode::k4Zero, ScaleOf(scale), RawTail::kZero, 0);
    case WeightFormat::kMxfp4:
      return make(RawCode::k4Table, RawScale::kE8m0, RawTail::kNone, 12);
    case WeightFormat::kQ8_0:
      return make(RawCode::k8, RawScale::kF16, RawTail::kNone, 128);
    case WeightFormat::kQ4_0:
      return make(RawCode::k4, RawScale::kF16, RawTail::kNone, 8);
    case WeightFormat::kQ4_1:
      return make(RawCode::k4, RawScale::kF16, RawTail::kMin, 0);
    case WeightFormat::kQ5_0:
      return make(RawCode::k5, RawScale::kF16, RawTail::kNone, 16);
    case WeightFormat::kQ5_1:
      return make(RawCode::k5, RawScale::kF16, RawTail::kMin, 0);
    case WeightFormat::kQ4K:
      return make(RawCode::k4, RawScale::kK, RawTail::kMin, 0);
    case WeightFormat::kQ5K:
      return make(RawCode::k5, RawScale::kK, RawTail::kMin, 0);
    case WeightFormat::kQ6K:
      return make(RawCode::k6, RawScale::kK6, RawTail::kNone, 32);
    case WeightFormat::kQ2K:
      return make(RawCode::k2, RawScale::kK2, RawTail::kMin, 0);
    case WeightFormat::kQ3K:
      return make(RawCode::k3, RawScale::kK6, RawTail::kNone, 4);
    case WeightFormat::kIq4Nl:
      return make(RawCode::k4Iq, RawScale::kF16, RawTail::kNone, 128);
    case WeightFormat::kIq4Xs:
      return make(RawCode::k4Iq, RawScale::kKS, RawTail::kNone, 128);
  }
  return {};
}

uint32_t HeaderBytes(const RawLayout& l) {
  if (HasSuper(l.scale)) return (l.scale == RawScale::kKS ? 1 : 2) * kPanelColumns;
  uint32_t n = l.scale == RawScale::kF32    ? 4
               : l.scale == RawScale::kE8m0 ? 1
               : l.scale == RawScale::kNone ? 0
                                            : 2;
  if (l.tail == RawTail::kZero) n += 1;
  if (l.tail == RawTail::kMin) n += 2;
  return n * kPanelColumns;
}

}  // namespace

void AlignedDelete::operator()(std::byte* p) const {
  if (mapped == 0) return std::free(p);
  munmap(p, mapped);
}

AlignedBytes AllocateFresh(size_t bytes) {
  if (bytes >= kHugePage) {
    if (AlignedBytes p = MapHuge(bytes); p != nullptr) return p;
  }
  void* p = nullptr;
  if (posix_memalign(&p, kAlign, std::max<size_t>(1, bytes)) != 0) throw std::bad_alloc();
  std::memset(p, 0, bytes);
  return AlignedBytes(static_cast<std::byte*>(p));
}

AlignedBytes AllocateAligned(size_t bytes) {
  AlignedBytes p = AllocateFresh(bytes);
  if (p.get_deleter().mapped > 0) std::memset(p.get(), 0, bytes);
  return p;
}

std::string_view WeightFormatName(WeightFormat format) {
  constexpr std::string_view kNames[] = {"F32",   "BF16", "F16",  "FP8",  "INT8", "INT4",  "INT4Z",
                                         "MXFP4", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",  "IQ4_NL",
                                         "Q4_K",  "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS"};
  return kNames[static_cast<size_t>(format)];
}

WeightFormat PlainFormat(DType dtype) {
  if (dtype == DType::kF32) return WeightFormat::kF32;
  if (dtype == DType::kBf16) return WeightFormat::kBf16;
  CHECK_MSG(dtype == DType::kF16, "dtype is F32, BF16 or F16, got " + std::string(DTypeName(dtype)));
  return WeightFormat::kF16;
}

bool IsIntegerFormat(WeightFormat format) { return format >= WeightFormat::kInt8; }

uint32_t GranularityK(WeightFormat format) {
  if (format >= WeightFormat::kQ4K) return 256;
  return format >= WeightFormat::kMxfp4 ? kGroup : 1;
}

RawLayout PackedMatrix::layout() const {
  RawLayout l = Kinds(format, scale);
  if (HasSuper(l.scale)) {
    l.super_shift = kSuperShift;
    l.super_header = (l.tail == RawTail::kMin ? 4 : 2) * kPanelColumns;
  }
  l.header = HeaderBytes(l);
  l.block_bytes = l.header + CodeBytes(l.code);
  const size_t blocks = (size_t{in} + l.block_k - 1) / l.block_k;
  l.panel_bytes = (blocks >> l.super_shift) * l.SuperBytes();
  if (l.block_k > 1) l.panel_bytes = (l.panel_bytes + 63) / 64 * 64;
  return l;
}

double QuantError::relative() const { return reference > 0 ? std::sqrt(squared / reference) : 0; }

void QuantError::Add(const QuantError& other) {
  squared += other.squared;
  reference += other.reference;
  largest = std::max(largest, other.largest);
}

void WireFromQuantRow(const std::byte* row, uint32_t in, std::byte* wire) {
  const size_t groups = Groups(in);
  std::memcpy(wire, row, in);
  std::memcpy(wire + in, row + groups * kGroup, groups * 4);
}

void QuantRowFromWire(const std::byte* wire, uint32_t in, std::byte* row) {
  const size_t groups = Groups(in);
  std::memcpy(row, wire, in);
  auto* q = reinterpret_cast<int8_t*>(row);
  for (uint32_t i = 0; i < in; ++i) q[i] = std::max<int8_t>(q[i], -127);  // whoever sent it
  std::memset(row + in, 0, groups * kGroup - in);
  std::memcpy(row + groups * kGroup, wire + in, groups * 4);
  for (size_t half = 0; half < 2 * groups; ++half) {
    int sum = 0;
    for (size_t i = 0; i < kGroup / 2; ++i) sum += q[half * kGroup / 2 + i];
    const int16_t value = static_cast<int16_t>(sum);
    std::memcpy(row + groups * (kGroup + 4) + half * 2, &value, 2);
  }
}

void DequantizeQuantRow(const std::byte* row, uint32_t in, float* x) {
  const auto* q = reinterpret_cast<const int8_t*>(row);
  const std::byte* scales = row + size_t{Groups(in)} * kGroup;
  for (uint32_t k = 0; k < in; ++k) {
    float scale;
    std::memcpy(&scale, scales + size_t{k / kGroup} * 4, 4);
    x[k] = static_cast<float>(q[k]) * scale;
  }
}

}  // namespace consilium::kernels
