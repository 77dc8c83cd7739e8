// The tokenizer of a GGUF file as the text of a tokenizer.json, for the `tokenizers` library.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/gguf.h"

namespace consilium {

// Byte-level BPE (tokenizer.ggml.model "gpt2", by its pre-tokenizer's name) and SentencePiece BPE with byte
// fallback
// ("llama"; merges follow from scores as Transformers derives them). UNIMPLEMENTED names an unknown model or
// pre-tokenizer and lists the known ones; INVALID_ARGUMENT what is missing or wrong. Pure.
absl::StatusOr<std::string> GgufTokenizerJson(const Gguf& gguf, const std::string& source);

// bos_token, eos_token, add_bos_token and chat_template as a tokenizer_config.json.
absl::StatusOr<std::string> GgufTokenizerConfigJson(const Gguf& gguf, const std::string& source);

// Tokens that end an answer: those that metadata name, and control tokens that the families' files call so.
absl::StatusOr<std::vector<int64_t>> GgufStopIds(const Gguf& gguf);

}  // namespace consilium
