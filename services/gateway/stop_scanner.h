// Finds stop strings in a text that comes in pieces. The result does not depend on the pieces: the match that
// ends first wins; of those that end together the one that starts first.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace consilium::gateway {

class StopScanner {
 public:
  // `include`: the match stays in the text.
  StopScanner(std::vector<std::string> stops, bool include) : stops_(std::move(stops)), include_(include) {}
  // Appends to *out what is certain. True: a stop string was found, *out ends there, and nothing more may be
  // fed.
  bool Feed(std::string_view text, std::string* out);
  // Appends what is held back: the text has ended.
  void Flush(std::string* out);

 private:
  std::vector<std::string> stops_;
  bool include_;
  std::string held_;  // shorter than the longest stop string
};

// Length of the longest suffix of `text` that is a proper prefix of `word`.
size_t PartialMatch(std::string_view text, std::string_view word);

}  // namespace consilium::gateway
