// Structured logs: one line an event, as text or JSON, to stderr. A line has time, level, service, message
// and fields; a request id (field "request_id") is in every line of a request's way. Errors are logged once,
// where they are handled.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

namespace consilium::log {

enum class Level : uint8_t { kDebug, kInfo, kWarn, kError };
enum class Format : uint8_t { kText, kJson };

struct Field {
  std::string_view key;
  std::variant<std::string_view, int64_t, uint64_t, double, bool> value;
  Field(std::string_view k, std::string_view v) : key(k), value(v) {}
  Field(std::string_view k, const char* v) : key(k), value(std::string_view(v)) {}
  Field(std::string_view k, const std::string& v) : key(k), value(std::string_view(v)) {}
  Field(std::string_view k, bool v) : key(k), value(v) {}
  Field(std::string_view k, double v) : key(k), value(v) {}
  template <class T>
    requires(std::is_integral_v<T> && !std::is_same_v<T, bool>)
  Field(std::string_view k, T v) : key(k) {
    if constexpr (std::is_signed_v<T>)
      value = static_cast<int64_t>(v);
    else
      value = static_cast<uint64_t>(v);
  }
};
using Fields = std::initializer_list<Field>;

// Once, by main, before other threads start. `service` is in every line.
void Configure(std::string service, Level level, Format format);
bool Enabled(Level level);
// Lines go to this file (appended) instead of stderr. False: it cannot be opened, nothing changed. After
// Configure, before other threads start.
bool WriteTo(const std::string& path);

// Thread-safe; one write(2) a line.
void Write(Level level, std::string_view message, Fields fields);
inline void Debug(std::string_view m, Fields f = {}) {
  if (Enabled(Level::kDebug)) Write(Level::kDebug, m, f);
}
inline void Info(std::string_view m, Fields f = {}) {
  if (Enabled(Level::kInfo)) Write(Level::kInfo, m, f);
}
inline void Warn(std::string_view m, Fields f = {}) {
  if (Enabled(Level::kWarn)) Write(Level::kWarn, m, f);
}
inline void Error(std::string_view m, Fields f = {}) {
  if (Enabled(Level::kError)) Write(Level::kError, m, f);
}

// The line that Write prints (without newline), for tests. `time_us`: microseconds since the Unix epoch, UTC.
std::string FormatLine(Format format, int64_t time_us, Level level, std::string_view service,
                       std::string_view message, Fields fields);

}  // namespace consilium::log
