#include "common/base/status.h"

#include <cstdio>
#include <cstdlib>

namespace consilium {
namespace {
absl::string_view View(std::string_view s) { return absl::string_view(s.data(), s.size()); }
}  // namespace

absl::Status InvalidArgument(std::string_view m) { return absl::InvalidArgumentError(View(m)); }
absl::Status NotFound(std::string_view m) { return absl::NotFoundError(View(m)); }
absl::Status Unavailable(std::string_view m) { return absl::UnavailableError(View(m)); }
absl::Status ResourceExhausted(std::string_view m) { return absl::ResourceExhaustedError(View(m)); }
absl::Status FailedPrecondition(std::string_view m) { return absl::FailedPreconditionError(View(m)); }
absl::Status Internal(std::string_view m) { return absl::InternalError(View(m)); }
absl::Status DataLoss(std::string_view m) { return absl::DataLossError(View(m)); }
absl::Status DeadlineExceeded(std::string_view m) { return absl::DeadlineExceededError(View(m)); }
absl::Status Cancelled(std::string_view m) { return absl::CancelledError(View(m)); }
absl::Status Unimplemented(std::string_view m) { return absl::UnimplementedError(View(m)); }

std::string Message(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

std::string ToString(const absl::Status& status) {
  return absl::StatusCodeToString(status.code()) + ": " + Message(status);
}

absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  const std::string text = std::string(context) + ": " + Message(status);
  return absl::Status(status.code(), View(text));
}

void CheckFailed(const char* expression, const char* file, int line, const std::string& message) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s %s\n", file, line, expression, message.c_str());
  std::abort();
}

}  // namespace consilium
