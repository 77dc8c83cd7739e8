// The table of families: one line each.
#pragma once
#include "common/model/families/family.h"

namespace consilium {

extern const Family kDbrx, kDeepseekV2, kDeepseekV3, kDots1, kErnie45Moe, kGlm4Moe, kGptOss, kGraniteMoe,
    kGrok1, kHunyuanMoe, kLfm2Moe, kLlama4, kMinimaxM2, kMistral4, kMistralLarge3, kMixtral, kOlmoe, kPhimoe,
    kQwen2Moe, kQwen3Moe, kQwen3Next, kQwen35Moe, kRecurrent;

inline constexpr const Family* kFamilies[] = {
    &kDbrx,  &kDeepseekV2, &kDeepseekV3, &kDots1,    &kErnie45Moe, &kGlm4Moe,   &kGptOss,        &kGraniteMoe,
    &kGrok1, &kHunyuanMoe, &kLfm2Moe,    &kLlama4,   &kMinimaxM2,  &kMistral4,  &kMistralLarge3, &kMixtral,
    &kOlmoe, &kPhimoe,     &kQwen2Moe,   &kQwen3Moe, &kQwen3Next,  &kQwen35Moe, &kRecurrent,
};

}  // namespace consilium
