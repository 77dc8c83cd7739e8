// How the matrix of a coding lies in its file, and what it becomes in memory.
#pragma once
#include <cstdint>

#include "common/model/model_store.h"
#include "kernels/api/weights.h"

namespace consilium {

kernels::WeightSource::Layout LayoutOf(const TensorInfo& tensor);
// Bytes of one stored row of values; of words (word_matrix.h), its share of them.
uint64_t RowBytes(const TensorInfo& tensor);

}  // namespace consilium
