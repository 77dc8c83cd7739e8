#include "common/model/numerics_choice.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/config/options.h"

namespace consilium {
namespace {

using kernels::NumericsClass;
using kernels::WeightFormat;

constexpr std::string_view kNames[] = {"stored", "int8", "int4"};  // by WeightsAs

}  // namespace

void NumericsFlags::AddTo(Options* o) {
  o->AddChoice(&numerics, "numerics",
               "numerics class: f32 widens weights exactly; i8g32 runs integer dots on 8- and 4-bit formats; "
               "auto: i8g32 where the experts have such a format",
               {"f32", "i8g32", "auto"});
  o->AddChoice(&weights_as, "weights-as",
               "routed experts in memory: as stored, or quantised at load from bf16, f16 or f32",
               {kNames[0].data(), kNames[1].data(), kNames[2].data()});
}

std::string NumericsChoice::name() const {
  const std::string arithmetic_name(kernels::NumericsClassName(arithmetic));
  return weights_as == WeightsAs::kStored
             ? arithmetic_name
             : arithmetic_name + "+" + std::string(kNames[static_cast<size_t>(weights_as)]);
}

uint64_t NumericsChoice::ExpertBytes(const ExpertEntry& entry) const {
  if (weights_as == WeightsAs::kStored) return entry.bytes();
  uint64_t bytes = 0;
  for (const TensorInfo& t : entry.parts) {
    kernels::PackedMatrix m;
    m.out = static_cast<uint32_t>(t.rows());
    m.in = static_cast<uint32_t>(t.columns());
    m.format = QuantFormat(weights_as);
    m.scale = kQuantScale;
    bytes += m.bytes();
  }
  for (const TensorInfo& t : entry.biases) bytes += entry.has_biases() ? t.elements() * sizeof(float) : 0;
  return bytes;
}

absl::StatusOr<NumericsChoice> ChooseNumerics(const NumericsFlags& flags, const Manifest& manifest) {
  NumericsChoice choice;
  const auto as = std::find(std::begin(kNames), std::end(kNames), flags.weights_as);
  if (as == std::end(kNames)) {
    return InvalidArgument("--weights-as: expected stored, int8 or int4, got \"" + flags.weights_as + "\"");
  }
  choice.weights_as = static_cast<WeightsAs>(as - std::begin(kNames));
  const bool quantises = choice.weights_as != WeightsAs::kStored;
  bool integers = !manifest.experts.empty();
  for (const ExpertEntry& e : manifest.experts) {
    for (const TensorInfo& t : e.parts) {
      if (quantises && t.coding != Coding::kPlain) {
        return InvalidArgument("--weights-as " + flags.weights_as +
                               ": expected experts in BF16, F16 or F32, got " + std::string(FormatName(t)) +
                               " in \"" + t.name + "\"");
      }
      if (&t == &e.parts[static_cast<size_t>(ExpertPart::kDown)]) continue;
      integers = integers && (quantises || kernels::IsIntegerFormat(FormatOf(t)));
    }
  }
  if (flags.numerics == "i8g32" || (flags.numerics == "auto" && integers)) {
    choice.arithmetic = NumericsClass::kI8g32;
  } else if (flags.numerics != "f32" && flags.numerics != "auto") {
    return InvalidArgument("--numerics: expected f32, i8g32 or auto, got \"" + flags.numerics + "\"");
  }
  choice.integer_rows = choice.arithmetic == NumericsClass::kI8g32 && integers;
  return choice;
}

}  // namespace consilium
