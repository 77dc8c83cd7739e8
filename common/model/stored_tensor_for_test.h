// A stored tensor for tests.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "common/model/model_store.h"

namespace consilium {

// Plain, whole, at byte 100 of file 0.
inline TensorInfo Stored(const std::string& name, DType dtype, std::vector<uint64_t> shape) {
  TensorInfo t;
  t.name = name;
  t.dtype = dtype;
  t.shape = std::move(shape);
  t.range = ByteRange{0, 100, t.elements() * DTypeBytes(dtype)};
  return t;
}

}  // namespace consilium
