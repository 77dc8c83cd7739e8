// What the fuzzer of tokenizer.json does with one input: read it, and if it is one, encode and decode a text.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/text/text.h"

namespace consilium {

inline void FuzzTokenizer(const uint8_t* data, size_t size) {
  const auto tokenizer = Tokenizer::FromJson({reinterpret_cast<const char*>(data), size});
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)->Encode("Hello w\u00f6rld 123\n\u4f60\u597d", true);
  if (!ids.ok()) return;
  (void)(*tokenizer)->Decode(*ids, false).ok();
  for (const TokenId id : *ids) (void)(*tokenizer)->TokenBytes(id).size();
}

}  // namespace consilium
