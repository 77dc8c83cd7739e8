// Error helpers. Policy (docs/ARCHITECTURE.md): bad input -> INVALID_ARGUMENT, peer gone -> UNAVAILABLE,
// limit reached -> RESOURCE_EXHAUSTED, own bug -> CHECK. A message says what, which id, expected, got.
#pragma once
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace consilium {

// The status codes used, from std::string (Debian's absl::string_view is not std::string_view).
absl::Status InvalidArgument(std::string_view message);
absl::Status NotFound(std::string_view message);
absl::Status Unavailable(std::string_view message);
absl::Status ResourceExhausted(std::string_view message);
absl::Status FailedPrecondition(std::string_view message);
absl::Status Internal(std::string_view message);
absl::Status DataLoss(std::string_view message);
absl::Status DeadlineExceeded(std::string_view message);
absl::Status Cancelled(std::string_view message);
absl::Status Unimplemented(std::string_view message);

// The message of a status as std::string.
std::string Message(const absl::Status& status);
// "INVALID_ARGUMENT: message", for logs.
std::string ToString(const absl::Status& status);
// The same status with `context` and ": " before its message.
absl::Status Annotate(const absl::Status& status, std::string_view context);

// Prints to stderr and aborts: an own bug, never bad input.
[[noreturn]] void CheckFailed(const char* expression, const char* file, int line, const std::string& message);

}  // namespace consilium

#define CHECK_MSG(condition, message)                                      \
  do {                                                                     \
    if (!(condition)) [[unlikely]]                                         \
      ::consilium::CheckFailed(#condition, __FILE__, __LINE__, (message)); \
  } while (false)
#define CHECK(condition) CHECK_MSG(condition, "")

#define RETURN_IF_ERROR(expression)                                      \
  do {                                                                   \
    if (absl::Status status_ = (expression); !status_.ok()) [[unlikely]] \
      return status_;                                                    \
  } while (false)

#define CONSILIUM_CONCAT_(a, b) a##b
#define CONSILIUM_CONCAT(a, b) CONSILIUM_CONCAT_(a, b)
// ASSIGN_OR_RETURN(auto x, F()): x = value of F(), or returns its status.
#define ASSIGN_OR_RETURN(lhs, expression) \
  ASSIGN_OR_RETURN_(CONSILIUM_CONCAT(statusor_, __LINE__), lhs, expression)
#define ASSIGN_OR_RETURN_(var, lhs, expression) \
  auto var = (expression);                      \
  if (!var.ok()) [[unlikely]]                   \
    return var.status();                        \
  lhs = std::move(var).value()
