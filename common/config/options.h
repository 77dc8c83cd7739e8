// Options of a program: flags, environment and a config file, one declaration each. Precedence: flag, then
// environment (CONSILIUM_ + upper case name, '-' as '_'), then file (--config FILE, TOML), then default.
// Unknown keys and bad values are errors that say what, which, expected and got. --help and --version come
// with it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace consilium {

class Options {
 public:
  Options(std::string_view program, std::string_view description);
  ~Options();
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;

  // `name` without dashes, for example "admin-port". *value holds the default, shown in --help. Help names
  // the unit. "message,m" gives it the short flag -m as well.
  void Add(std::string* value, std::string_view name, std::string_view help);
  void Add(std::vector<std::string>* value, std::string_view name,
           std::string_view help);                                      // repeated or comma list
  void Add(bool* value, std::string_view name, std::string_view help);  // --x, --no-x, --x=false
  void Add(int64_t* value, std::string_view name, std::string_view help, int64_t min, int64_t max);
  void Add(uint32_t* value, std::string_view name, std::string_view help, uint32_t min, uint32_t max);
  void Add(double* value, std::string_view name, std::string_view help, double min, double max);
  // One of `choices`.
  void AddChoice(std::string* value, std::string_view name, std::string_view help,
                 std::vector<std::string> choices);
  void AddPositional(std::string* value, std::string_view name, std::string_view help, bool required);
  void Required(std::string_view name);
  // A subcommand with options of its own; `chosen` after Parse says which one was given.
  Options* AddCommand(std::string_view name, std::string_view description);
  std::string chosen_command() const;

  // nullopt: go on. Otherwise exit with the code: 0 after --help or --version; 2 after one clear line on
  // stderr.
  std::optional<int> Parse(int argc, const char* const* argv);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What every service has: adds --log-level, --log-format, --admin (host:port of /healthz /readyz /metrics).
struct ServiceOptions {
  std::string log_level = "info";
  std::string log_format = "text";
  std::string admin = "127.0.0.1:0";
  void AddTo(Options* options);
  void ConfigureLog(std::string_view service) const;
};

// "host:port" -> parts; port 0..65535. INVALID_ARGUMENT otherwise. [::1]:80 is accepted.
struct HostPort {
  std::string host;
  uint16_t port = 0;
};
bool ParseHostPort(std::string_view text, HostPort* out);

}  // namespace consilium
