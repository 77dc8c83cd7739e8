// Flags and --help come from CLI11; environment, file, precedence, conversion and all error texts are ours:
// CLI11 puts the file above the environment, and its messages do not say what was expected.
#include "common/config/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "common/log/log.h"

namespace consilium {
namespace {

struct BadOption {
  std::string text;
};

std::string Quoted(std::string_view s) {
  std::string out = "\"";
  for (const char c : s) out += (static_cast<unsigned char>(c) < 0x20) ? '?' : c;
  return out + '"';
}

std::string NumberText(double v) {
  char buffer[40];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, v).ptr);
}

std::string Range(const std::string& min, const std::string& max) { return min + ".." + max; }

template <class T>
bool ParseNumber(const std::string& text, T* out) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (begin != end && *begin == '+') ++begin;
  const auto result = std::from_chars(begin, end, *out);
  return begin != end && result.ec == std::errc() && result.ptr == end;
}

std::string EnvironmentName(const std::string& name) {
  std::string out = "CONSILIUM_";
  for (const char c : name)
    out += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

std::vector<std::string> SplitCommas(const std::vector<std::string>& values) {
  std::vector<std::string> out;
  for (const std::string& value : values) {
    size_t begin = 0;
    while (begin <= value.size()) {
      const size_t end = std::min(value.find(',', begin), value.size());
      if (end > begin) out.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return out;
}

}  // namespace

struct Options::Impl {
  struct Entry {
    std::string name;
    bool positional = false;
    bool required = false;
    CLI::Option* flag = nullptr;
    // Converts and stores; throws BadOption with "expected ..., got ...".
    std::function<void(const std::vector<std::string>&)> set;
  };

  std::string program;  // "consilium up" for a command
  std::unique_ptr<CLI::App> owned_app;
  CLI::App* app = nullptr;
  Impl* parent = nullptr;
  std::string config_file;
  std::string sink;  // where CLI11 stores what we read back as text and convert ourselves
  bool version = false;
  std::vector<Entry> entries;
  std::map<std::string, std::unique_ptr<Options>> commands;

  Entry& AddEntry(std::string_view name, std::string_view help, const std::string& type,
                  const std::string& shown_default) {
    Entry& entry = entries.emplace_back();
    const size_t comma = name.find(',');
    entry.name = std::string(name.substr(0, comma));
    std::string flags = "--" + entry.name;
    if (comma != std::string_view::npos) flags += ",-" + std::string(name.substr(comma + 1));
    entry.flag = app->add_option(flags, [](const CLI::results_t&) { return true; }, std::string(help));
    entry.flag->type_name(type)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->expected(1)
        ->take_all();
    if (!shown_default.empty()) entry.flag->default_str(shown_default);
    return entry;
  }

  template <class T>
  void AddNumber(T* value, std::string_view name, std::string_view help, T min, T max, const char* what,
                 const std::function<std::string(T)>& show) {
    const std::string expected = std::string(what) + " in " + Range(show(min), show(max));
    AddEntry(name, help, Range(show(min), show(max)), show(*value)).set =
        [=](const std::vector<std::string>& given) {
          T parsed{};
          if (!ParseNumber(given.back(), &parsed) || !(parsed >= min && parsed <= max)) {
            throw BadOption{"expected " + expected + ", got " + Quoted(given.back())};
          }
          *value = parsed;
        };
  }

  void Resolve(const std::vector<CLI::ConfigItem>& file, const std::string& section,
               std::set<const CLI::ConfigItem*>* used);
  void CheckNames(const std::vector<CLI::ConfigItem>& file,
                  const std::set<const CLI::ConfigItem*>& used) const;
  std::vector<CLI::ConfigItem> ReadFile() const;
  Impl* chosen() const {
    for (const auto& [name, command] : commands) {
      if (command->impl_->app->parsed()) return command->impl_.get();
    }
    return nullptr;
  }
};

Options::Options(std::string_view program, std::string_view description) : impl_(new Impl) {
  impl_->program = std::string(program);
  impl_->owned_app = std::make_unique<CLI::App>(std::string(description), std::string(program));
  impl_->app = impl_->owned_app.get();
  impl_->app->add_flag("--version", impl_->version, "print the version and exit");
  impl_->app
      ->add_option(
          "--config",
          [impl = impl_.get()](const CLI::results_t& r) {
            impl->config_file = r.back();
            return true;
          },
          "TOML file with these options by name; flags and environment (CONSILIUM_NAME) win over it")
      ->type_name("FILE");
  impl_->app->set_help_flag("--help,-h", "print this help and exit");
  impl_->app->get_formatter()->column_width(36);
}

Options::~Options() = default;

void Options::Add(std::string* value, std::string_view name, std::string_view help) {
  impl_->AddEntry(name, help, "TEXT", *value).set = [value](const auto& given) { *value = given.back(); };
}

void Options::Add(std::vector<std::string>* value, std::string_view name, std::string_view help) {
  std::string shown;
  for (const std::string& v : *value) shown += (shown.empty() ? "" : ",") + v;
  impl_->AddEntry(name, help, "TEXT ...", shown).set = [value](const auto& given) {
    *value = SplitCommas(given);
  };
}

void Options::Add(bool* value, std::string_view name, std::string_view help) {
  Impl::Entry& entry = impl_->entries.emplace_back();
  entry.name = std::string(name);
  const std::string text = std::string(help) + (*value ? " (default: on)" : " (default: off)");
  entry.flag = impl_->app->add_flag("--" + entry.name + ",!--no-" + entry.name, impl_->sink, text);
  entry.flag->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  entry.set = [value](const std::vector<std::string>& given) {
    std::string lower = given.back();
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    if (lower == "true" || lower == "1" || lower == "on" || lower == "yes") {
      *value = true;
    } else if (lower == "false" || lower == "0" || lower == "off" || lower == "no" || lower == "-1") {
      *value = false;
    } else {
      throw BadOption{"expected true or false, got " + Quoted(given.back())};
    }
  };
}

void Options::Add(int64_t* value, std::string_view name, std::string_view help, int64_t min, int64_t max) {
  impl_->AddNumber<int64_t>(value, name, help, min, max, "an integer",
                            [](int64_t v) { return std::to_string(v); });
}

void Options::Add(uint32_t* value, std::string_view name, std::string_view help, uint32_t min, uint32_t max) {
  impl_->AddNumber<uint32_t>(value, name, help, min, max, "an integer",
                             [](uint32_t v) { return std::to_string(v); });
}

void Options::Add(double* value, std::string_view name, std::string_view help, double min, double max) {
  impl_->AddNumber<double>(value, name, help, min, max, "a number", NumberText);
}

void Options::AddChoice(std::string* value, std::string_view name, std::string_view help,
                        std::vector<std::string> choices) {
  std::string list;
  for (const std::string& c : choices) list += (list.empty() ? "" : "|") + c;
  impl_->AddEntry(name, help, list, *value).set = [value, list,
                                                   choices](const std::vector<std::string>& given) {
    if (std::find(choices.begin(), choices.end(), given.back()) == choices.end()) {
      throw BadOption{"expected one of " + list + ", got " + Quoted(given.back())};
    }
    *value = given.back();
  };
}

void Options::AddPositional(std::string* value, std::string_view name, std::string_view help, bool required) {
  Impl::Entry& entry = impl_->entries.emplace_back();
  entry.name = std::string(name);
  entry.positional = true;
  entry.required = required;
  entry.flag =
      impl_->app->add_option(entry.name, [](const CLI::results_t&) { return true; }, std::string(help));
  entry.flag->type_name("TEXT");
  entry.set = [value](const auto& given) { *value = given.back(); };
}

void Options::Required(std::string_view name) {
  for (Impl::Entry& entry : impl_->entries) {
    if (entry.name == name) entry.required = true;
  }
}

Options* Options::AddCommand(std::string_view name, std::string_view description) {
  auto command = std::unique_ptr<Options>(new Options(impl_->program + " " + std::string(name), description));
  Impl& child = *command->impl_;
  child.owned_app.reset();
  child.app = impl_->app->add_subcommand(std::string(name), std::string(description));
  child.app->fallthrough();  // --config and --version may follow the command
  child.app->set_help_flag("--help,-h", "print this help and exit");
  child.parent = impl_.get();
  Options* raw = command.get();
  impl_->commands[std::string(name)] = std::move(command);
  return raw;
}

std::string Options::chosen_command() const {
  for (const auto& [name, command] : impl_->commands) {
    if (command->impl_->app->parsed()) return name;
  }
  return "";
}

std::vector<CLI::ConfigItem> Options::Impl::ReadFile() const {
  if (config_file.empty()) return {};
  std::ifstream file(config_file);
  if (!file) throw BadOption{"--config: cannot read " + Quoted(config_file) + ": " + std::strerror(errno)};
  std::vector<CLI::ConfigItem> items = CLI::ConfigTOML().from_config(file);
  // Section borders are reported as items named "++" and "--".
  std::erase_if(items, [](const CLI::ConfigItem& item) { return item.name == "++" || item.name == "--"; });
  return items;
}

void Options::Impl::Resolve(const std::vector<CLI::ConfigItem>& file, const std::string& section,
                            std::set<const CLI::ConfigItem*>* used) {
  std::string missing;  // reported last: a bad value says more
  for (Entry& entry : entries) {
    const std::string shown = entry.positional ? entry.name : "--" + entry.name;
    std::vector<std::string> given;
    std::string where;
    for (const CLI::ConfigItem& item : file) {
      const bool in_section =
          section.empty() ? item.parents.empty() : item.parents == std::vector<std::string>{section};
      if (!in_section || item.name != entry.name || entry.positional) continue;
      used->insert(&item);
      given = item.inputs;
      where = " (in " + config_file + ")";
    }
    const std::string env_name = EnvironmentName(entry.name);
    if (const char* env = entry.positional ? nullptr : std::getenv(env_name.c_str()); env != nullptr) {
      given = {env};
      where = " (in the environment, " + env_name + ")";
    }
    if (entry.flag->count() > 0) {
      given = entry.flag->results();
      where.clear();
    }
    if (given.empty()) {
      if (entry.required && missing.empty()) missing = shown;
      continue;
    }
    try {
      entry.set(given);
    } catch (const BadOption& bad) {
      throw BadOption{shown + ": " + bad.text + where};
    }
  }
  if (!missing.empty()) throw BadOption{missing + ": required, but not given; see --help"};
}

// A key that no option took is a typing error, not something to ignore. Sections of other commands are left
// alone.
void Options::Impl::CheckNames(const std::vector<CLI::ConfigItem>& file,
                               const std::set<const CLI::ConfigItem*>& used) const {
  for (const CLI::ConfigItem& item : file) {
    if (used.count(&item) != 0) continue;
    const Impl* scope = this;
    if (!item.parents.empty()) {
      const auto command = commands.find(item.parents.front());
      scope = command == commands.end() ? nullptr : command->second->impl_.get();
    }
    const bool known = scope != nullptr && item.parents.size() <= 1 &&
                       std::any_of(scope->entries.begin(), scope->entries.end(),
                                   [&](const Entry& e) { return e.name == item.name && !e.positional; });
    if (!known)
      throw BadOption{config_file + ": unknown key " + Quoted(item.fullname()) +
                      "; see --help for the names"};
  }
}

std::optional<int> Options::Parse(int argc, const char* const* argv) {
  const auto fail = [](const std::string& program, std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    std::fprintf(stderr, "%s: %s\n", program.c_str(), text.c_str());
    return 2;
  };
  try {
    impl_->app->parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const Impl* command = impl_->chosen();
    std::fputs((command != nullptr ? command->app->help(impl_->program) : impl_->app->help()).c_str(),
               stdout);
    return 0;
  } catch (const CLI::ExtrasError&) {
    const std::vector<std::string> extras = impl_->app->remaining(true);
    return fail(impl_->program,
                "unknown argument " + Quoted(extras.empty() ? "" : extras.front()) + "; see --help");
  } catch (const CLI::ArgumentMismatch& error) {
    return fail(impl_->program, std::string(error.what()) + "; see --help");
  } catch (const CLI::ParseError& error) {
    return fail(impl_->program, std::string(error.what()) + "; see --help");
  }
  if (impl_->version) {
    std::printf("%s %s\n", impl_->program.c_str(), CONSILIUM_VERSION);
    return 0;
  }
  Impl* command = impl_->chosen();
  const std::string program = command != nullptr ? command->program : impl_->program;
  try {
    if (!impl_->commands.empty() && command == nullptr) {
      std::string list;
      for (const auto& [name, unused] : impl_->commands) list += (list.empty() ? "" : ", ") + name;
      throw BadOption{"expected a command (" + list + "), got none; see --help"};
    }
    const std::vector<CLI::ConfigItem> file = impl_->ReadFile();
    std::set<const CLI::ConfigItem*> used;
    impl_->Resolve(file, "", &used);
    if (command != nullptr) command->Resolve(file, chosen_command(), &used);
    impl_->CheckNames(file, used);
  } catch (const BadOption& bad) {
    return fail(program, bad.text);
  } catch (const CLI::Error& error) {
    return fail(program, impl_->config_file + ": " + error.what());
  }
  return std::nullopt;
}

void ServiceOptions::AddTo(Options* options) {
  options->AddChoice(&log_level, "log-level", "least severe lines to log",
                     {"debug", "info", "warn", "error"});
  options->AddChoice(&log_format, "log-format", "log lines as text or JSON", {"text", "json"});
  options->Add(&admin, "admin", "host:port of /healthz, /readyz and /metrics; port 0: any free port");
}

void ServiceOptions::ConfigureLog(std::string_view service) const {
  const log::Level level = log_level == "debug"   ? log::Level::kDebug
                           : log_level == "warn"  ? log::Level::kWarn
                           : log_level == "error" ? log::Level::kError
                                                  : log::Level::kInfo;
  log::Configure(std::string(service), level, log_format == "json" ? log::Format::kJson : log::Format::kText);
}

bool ParseHostPort(std::string_view text, HostPort* out) {
  std::string_view host;
  std::string_view port;
  if (!text.empty() && text.front() == '[') {
    const size_t close = text.find(']');
    if (close == std::string_view::npos || close + 1 >= text.size() || text[close + 1] != ':') return false;
    host = text.substr(1, close - 1);
    port = text.substr(close + 2);
  } else {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos || text.find(':', colon + 1) != std::string_view::npos) return false;
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  if (host.empty() || port.empty() || port.size() > 5) return false;
  uint32_t number = 0;
  const auto result = std::from_chars(port.data(), port.data() + port.size(), number);
  if (result.ec != std::errc() || result.ptr != port.data() + port.size() || number > 65535) return false;
  out->host = std::string(host);
  out->port = static_cast<uint16_t>(number);
  return true;
}

}  // namespace consilium
