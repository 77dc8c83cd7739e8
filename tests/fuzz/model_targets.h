// What the fuzzers of model files do with one input; also run over their corpora by an ordinary test.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/base/status.h"
#include "common/model/families/family.h"
#include "common/model/gguf_model.h"
#include "common/model/gguf_tokenizer.h"
#include "common/model/model_spec.h"
#include "common/model/quant_storage.h"
#include "common/model/safetensors.h"

namespace consilium {

inline std::span<const std::byte> FuzzBytes(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}

// Ranges must lie in the file, whatever the header says.
inline void CheckRanges(const std::vector<TensorInfo>& tensors, uint64_t file_size) {
  for (const TensorInfo& t : tensors) {
    for (const ByteRange& range : t.ranges())
      CHECK(range.offset <= file_size && range.length <= file_size - range.offset);
    CHECK(t.range.length == 0 || t.elements() > 0);
  }
}

inline void FuzzSafetensors(const uint8_t* data, size_t size) {
  const std::string name = "fuzz";
  auto tensors = ParseSafetensors(FuzzBytes(data, size), size, 0, name);
  if (!tensors.ok()) return;
  CheckRanges(*tensors, size);
  uint64_t end = tensors->empty() ? size : tensors->front().range.offset;  // no gap, no byte that two share
  for (const TensorInfo& t : *tensors) {
    CHECK(t.range.offset == end);
    end += t.range.length;
  }
  CHECK(end == size);
  QuantConfig config;
  for (const QuantConfig::Method method :
       {QuantConfig::Method::kFp8, QuantConfig::Method::kPacked, QuantConfig::Method::kCompressedFp8,
        QuantConfig::Method::kMxfp4, QuantConfig::Method::kInt8, QuantConfig::Method::kGptq,
        QuantConfig::Method::kAwq}) {
    config.method = method;
    config.symmetric = method != QuantConfig::Method::kAwq;
    config.block_rows = config.block_columns = 128;
    config.group = 32;
    std::vector<TensorInfo> copy = *tensors;
    if (JoinQuantised(config, {name}, &copy).ok()) CheckRanges(copy, size);
  }
}

inline void FuzzGguf(const uint8_t* data, size_t size) {
  const std::string name = "fuzz";
  const auto gguf = ParseGguf(FuzzBytes(data, size), size, 0, name);
  if (!gguf.ok()) return;
  CheckRanges(gguf->tensors, size);
  if (const auto tensors = GgufTensors(*gguf, name); tensors.ok()) CheckRanges(*tensors, size);
  if (const auto config = GgufConfigJson(*gguf, name); config.ok()) (void)ParseModelSpec(*config, name).ok();
  (void)GgufTokenizerJson(*gguf, name).ok();
  (void)GgufTokenizerConfigJson(*gguf, name).ok();
}

inline void FuzzConfig(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)ParseQuantConfig(text, "config.json").ok();
  for (const char* name : {"config.json", "params.json"}) {
    const auto spec = ParseModelSpec(text, name);
    if (!spec.ok()) continue;
    // What others allocate from must be bounded.
    CHECK(spec->hidden > 0 && spec->hidden <= kHiddenMax && !spec->layers.empty());
    CHECK(spec->layers.size() <= kLayersMax && spec->experts_total() <= kRoutedExpertsMax);
    CHECK(spec->gate.top_k <= spec->gate.experts);
  }
}

}  // namespace consilium
