// What a process computes with, chosen by --numerics and --weights-as for one model. All processes that serve
// the model must come to the same choice: name() and the kernels' fingerprint are what they compare.
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/model/model_store.h"
#include "common/model/stored_matrix.h"
#include "kernels/api/kernels.h"

namespace consilium {

class Options;

struct NumericsFlags {
  std::string numerics = "f32";       // f32, i8g32, auto
  std::string weights_as = "stored";  // stored, int8, int4
  void AddTo(Options* options);
};

struct NumericsChoice {
  kernels::NumericsClass arithmetic = kernels::NumericsClass::kF32;
  WeightsAs weights_as = WeightsAs::kStored;
  // Experts read rows quantised once by the router (wire dtype 4): every gate and up projection has integer
  // dots in this class.
  bool integer_rows = false;

  std::string name() const;  // "f32", "i8g32", "i8g32+int8"
  // Bytes of an expert in memory (as stored: of its files).
  uint64_t ExpertBytes(const ExpertEntry& entry) const;
};

// auto: i8g32 if the experts' gate and up projections are integers in memory, else f32. INVALID_ARGUMENT:
// --weights-as for experts that are quantised already.
absl::StatusOr<NumericsChoice> ChooseNumerics(const NumericsFlags& flags, const Manifest& manifest);

}  // namespace consilium
