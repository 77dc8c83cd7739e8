#include "common/log/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>

namespace consilium::log {
namespace {

struct State {
  std::string service = "consilium";
  Format format = Format::kText;
  int fd = STDERR_FILENO;
};

// Set once by Configure before other threads start; never destroyed, so that late lines stay safe.
State& TheState() {
  static State* state = new State;
  return *state;
}
std::atomic<Level> minimum_level{Level::kInfo};

constexpr std::string_view kNames[] = {"debug", "info", "warn", "error"};
constexpr std::string_view kTextNames[] = {"DEBUG", "INFO ", "WARN ", "ERROR"};

// Length of the valid UTF-8 sequence at s[i], or 0.
size_t Utf8Length(std::string_view s, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(s[k]); };
  const unsigned char c = byte(i);
  size_t n = c < 0x80                ? 1
             : c >= 0xc2 && c < 0xe0 ? 2
             : (c & 0xf0) == 0xe0    ? 3
             : c >= 0xf0 && c < 0xf5 ? 4
                                     : 0;
  if (n == 0 || i + n > s.size()) return 0;
  for (size_t k = 1; k < n; ++k) {
    if ((byte(i + k) & 0xc0) != 0x80) return 0;
  }
  if (c == 0xe0 && byte(i + 1) < 0xa0) return 0;  // overlong
  if (c == 0xed && byte(i + 1) > 0x9f) return 0;  // surrogates
  if (c == 0xf0 && byte(i + 1) < 0x90) return 0;
  if (c == 0xf4 && byte(i + 1) > 0x8f) return 0;
  return n;
}

// The text between JSON quotes; broken UTF-8 becomes U+FFFD.
void AppendEscaped(std::string* out, std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const unsigned char c = static_cast<unsigned char>(s[i]);
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += s[i++];
    } else if (c == '\n') {
      *out += "\\n", ++i;
    } else if (c == '\t') {
      *out += "\\t", ++i;
    } else if (c < 0x20 || c == 0x7f) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", c);
      *out += buffer, ++i;
    } else if (const size_t n = Utf8Length(s, i); n != 0) {
      out->append(s, i, n);
      i += n;
    } else {
      *out += "\xef\xbf\xbd", ++i;
    }
  }
}

void AppendQuoted(std::string* out, std::string_view s) {
  *out += '"';
  AppendEscaped(out, s);
  *out += '"';
}

// Text lines quote a value only where it would not be read back as one word.
void AppendWord(std::string* out, std::string_view s) {
  bool plain = !s.empty();
  for (const char c : s) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '"' || c == '\\' || c == '=' || c == 0x7f) plain = false;
  }
  if (plain) {
    for (size_t i = 0; i < s.size() && plain; i += Utf8Length(s, i)) plain = Utf8Length(s, i) != 0;
  }
  if (plain) {
    *out += s;
  } else {
    AppendQuoted(out, s);
  }
}

template <class T>
void AppendNumber(std::string* out, T value) {
  char buffer[40];
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  out->append(buffer, result.ptr);
}

void AppendValue(std::string* out, Format format, const Field& field) {
  if (const auto* s = std::get_if<std::string_view>(&field.value)) {
    format == Format::kJson ? AppendQuoted(out, *s) : AppendWord(out, *s);
  } else if (const auto* b = std::get_if<bool>(&field.value)) {
    *out += *b ? "true" : "false";
  } else if (const auto* i = std::get_if<int64_t>(&field.value)) {
    AppendNumber(out, *i);
  } else if (const auto* u = std::get_if<uint64_t>(&field.value)) {
    AppendNumber(out, *u);
  } else if (const double d = std::get<double>(field.value); std::isfinite(d)) {
    AppendNumber(out, d);
  } else {  // JSON has no such number
    const char* name = std::isnan(d) ? "nan" : d > 0 ? "inf" : "-inf";
    format == Format::kJson ? AppendQuoted(out, name) : AppendWord(out, name);
  }
}

void AppendTime(std::string* out, int64_t time_us) {
  int64_t seconds = time_us / 1000000;
  int64_t micros = time_us % 1000000;
  if (micros < 0) micros += 1000000, --seconds;
  const time_t t = static_cast<time_t>(seconds);
  struct tm parts{};
  gmtime_r(&t, &parts);
  char buffer[48];
  const size_t n = std::strftime(buffer, sizeof buffer, "%Y-%m-%dT%H:%M:%S", &parts);
  out->append(buffer, n);
  std::snprintf(buffer, sizeof buffer, ".%06dZ", static_cast<int>(micros));
  *out += buffer;
}

}  // namespace

void Configure(std::string service, Level level, Format format) {
  TheState() = {std::move(service), format};
  minimum_level.store(level, std::memory_order_relaxed);
}

bool Enabled(Level level) { return level >= minimum_level.load(std::memory_order_relaxed); }

std::string FormatLine(Format format, int64_t time_us, Level level, std::string_view service,
                       std::string_view message, Fields fields) {
  std::string line;
  line.reserve(160);
  const auto index = static_cast<size_t>(level);
  if (format == Format::kJson) {
    line += "{\"time\":\"";
    AppendTime(&line, time_us);
    line += "\",\"level\":\"";
    line += kNames[index];
    line += "\",\"service\":";
    AppendQuoted(&line, service);
    line += ",\"message\":";
    AppendQuoted(&line, message);
    for (const Field& field : fields) {
      line += ',';
      AppendQuoted(&line, field.key);
      line += ':';
      AppendValue(&line, format, field);
    }
    line += '}';
    return line;
  }
  AppendTime(&line, time_us);
  line += ' ';
  line += kTextNames[index];
  line += ' ';
  line += service;
  line += ": ";
  AppendEscaped(&line, message);
  for (const Field& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    AppendValue(&line, format, field);
  }
  return line;
}

bool WriteTo(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return false;
  TheState().fd = fd;  // for the rest of the process
  return true;
}

void Write(Level level, std::string_view message, Fields fields) {
  if (!Enabled(level)) return;
  const int64_t now_us = std::chrono::duration_cast<std::chrono::microseconds>(
                             std::chrono::system_clock::now().time_since_epoch())
                             .count();
  const State& state = TheState();
  std::string line = FormatLine(state.format, now_us, level, state.service, message, fields);
  line += '\n';
  // A log that cannot be written must not stop the service.
  [[maybe_unused]] const ssize_t written = ::write(state.fd, line.data(), line.size());
}

}  // namespace consilium::log
