// Matrices in 32-bit words of several codes with the outputs side by side: GPTQ's, and AWQ's made into them.
#pragma once
#include <span>

#include "absl/status/status.h"
#include "common/model/model_store.h"

namespace consilium {

// Whether the tensor's coding is one of these.
bool IsInWords(const TensorInfo& tensor);

// The tensor's bytes as kernels::WeightSource::Layout::kWords has them, in place: AWQ's words of eight
// outputs become words of eight inputs, zero points stored less one are made whole. INVALID_ARGUMENT where
// zero points are not in the middle though the tensor says so.
absl::Status NormaliseWords(const TensorInfo& tensor, std::span<std::byte> values,
                            std::span<std::byte> zeros);

// How many inputs, of all rows, are read at a time: about kStagingBytes, no group cut.
uint64_t WordPieceInputs(const TensorInfo& tensor);
// Inputs [begin, begin + count) as a tensor of their own; begin at a multiple of WordPieceInputs.
TensorInfo WordInputsOf(const TensorInfo& tensor, uint64_t begin, uint64_t count);

}  // namespace consilium
