// What gguf_model.cc and gguf_config.cc share: the architectures that are read, and typed reads of their
// keys.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/gguf.h"

namespace consilium {

enum class GgufArch {
  kMixtral,
  kDeepseek,
  kQwen2Moe,
  kQwen3Moe,
  kOlmoe,
  kGptOss,
  kGranite,
  kGlm4,
  kDots1,
  kErnie,
  kHunyuan,
  kMinimax,
  kDbrx,
  kGrok,
  kLlama4,
  kLfm2,
};

// UNIMPLEMENTED names an unknown architecture and lists the known ones.
absl::StatusOr<GgufArch> GgufArchOf(const Gguf& gguf, const std::string& source, std::string* name);

// Reads keys of one architecture; the first error is kept.
class GgufKeys {
 public:
  GgufKeys(const Gguf& gguf, std::string arch) : gguf_(gguf), arch_(std::move(arch) + ".") {}

  // Larger than 2^40 either way is refused, so that sums and differences fit.
  std::optional<int64_t> Integer(const std::string& key);
  std::optional<double> Number(const std::string& key) { return Take(gguf_.Number(arch_ + key)); }
  std::optional<bool> Bool(const std::string& key) { return Take(gguf_.Bool(arch_ + key)); }
  std::optional<std::string> Text(const std::string& key) { return Take(gguf_.Text(arch_ + key)); }
  int64_t Need(const std::string& key);
  // A count that some converters write as one number a layer: only where all are equal.
  int64_t NeedEqual(const std::string& key);
  // The same where layers without attention count 0.
  int64_t NeedEqualOrNone(const std::string& key);
  // One number a layer; null where there is one for all, or none.
  const std::vector<int64_t>* Layers(const std::string& key) const { return gguf_.Integers(arch_ + key); }
  // expert_gating_func, where it is there, must be `only`: 1 softmax, 2 sigmoid.
  void ExpectGating(int64_t only);
  // INVALID_ARGUMENT "GGUF metadata ARCH.key: message".
  void Fail(const std::string& key, const std::string& message);
  const absl::Status& status() const { return status_; }

 private:
  template <class T>
  std::optional<T> Take(absl::StatusOr<std::optional<T>> v) {
    if (v.ok()) return *v;
    if (status_.ok()) status_ = v.status();
    return std::nullopt;
  }
  const Gguf& gguf_;
  const std::string arch_;
  absl::Status status_;
};

// Divisors of rotary frequencies are the one tensor that configurations need: ReadGgufFiles puts its values
// among the metadata under its name.
inline constexpr char kGgufRopeFactors[] = "rope_freqs.weight";
inline bool GgufHasRopeFactors(GgufArch arch) {
  return arch == GgufArch::kMixtral || arch == GgufArch::kLlama4;
}

// Layers of the decoder: block_count without the prediction layers behind them.
int64_t GgufDecoderLayers(GgufKeys& keys);
int64_t GgufHeadDim(GgufKeys& keys);
int64_t GgufKvHeads(GgufKeys& keys, GgufArch arch);

}  // namespace consilium
