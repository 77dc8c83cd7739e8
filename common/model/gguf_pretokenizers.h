// How the named pre-tokenizers of GGUF's byte-level BPE cut text before merging (tokenizer.ggml.pre).
#pragma once
#include <string>
#include <string_view>

namespace consilium {

struct GgufPreTokenizer {
  std::string_view names;      // values of tokenizer.ggml.pre, separated by blanks
  std::string_view splits[6];  // one after another, each cuts what the ones before left: matches stand alone
  bool nfc = false;            // text is composed first
  bool ignore_merges = false;  // a piece that is a token is taken whole
  bool bos = false;            // begins with BOS unless the file says otherwise
};

// Null when unknown.
const GgufPreTokenizer* FindGgufPreTokenizer(std::string_view name);
// All names, for messages.
std::string GgufPreTokenizerNames();

}  // namespace consilium
