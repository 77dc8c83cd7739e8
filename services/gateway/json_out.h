// Appends JSON values to a string. Texts are valid UTF-8 by construction.
#pragma once
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>

namespace consilium::gateway {

inline void AppendString(std::string* out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          *out += "\\u00";
          out->push_back(kHex[(c >> 4) & 15]);
          out->push_back(kHex[c & 15]);
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

template <class Int>
void AppendInt(std::string* out, Int value) {
  char text[24];
  out->append(text, std::to_chars(text, text + sizeof text, value).ptr);
}

// The shortest decimal that reads back as this float, widened to double. Minus infinity, which JSON has not:
// -9999, as OpenAI.
inline void AppendLogprob(std::string* out, float value) {
  if (!std::isfinite(value)) {
    *out += "-9999.0";
    return;
  }
  char text[40];
  const std::string_view digits(
      text,
      static_cast<size_t>(std::to_chars(text, text + sizeof text, static_cast<double>(value)).ptr - text));
  *out += digits;
  if (digits.find_first_of(".e") == std::string_view::npos) *out += ".0";
}

}  // namespace consilium::gateway
