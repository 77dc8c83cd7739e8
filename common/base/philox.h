// Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC11). A draw is a pure function of its key and counter: no sampler state, so that a stream can be resumed
// anywhere.
#pragma once
#include <array>
#include <cstdint>

namespace consilium {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Uniform in [0, 1) with 53 bits, for the token at `position` of choice `choice` of a request with `seed`.
// `purpose` separates independent draws of one position (0: token choice).
double PhiloxUniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t purpose = 0);

}  // namespace consilium
