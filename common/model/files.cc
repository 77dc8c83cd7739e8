#include "common/model/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "common/base/status.h"
#include "common/log/log.h"

namespace consilium {
namespace {

absl::Status ErrnoStatus(const std::string& path, const char* what) {
  const int error = errno;
  const std::string text = path + ": " + what + ": " + std::strerror(error);
  return error == ENOENT || error == ENOTDIR ? NotFound(text) : Unavailable(text);
}

}  // namespace

bool FileExists(const std::string& path) {
  struct stat info{};
  return ::stat(path.c_str(), &info) == 0;
}

absl::StatusOr<FileStamp> StampFile(const std::string& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(path, "cannot stat");
  if (!S_ISREG(info.st_mode)) return InvalidArgument(path + ": expected a file");
  return FileStamp{static_cast<uint64_t>(info.st_size),
                   int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t bytes_max) {
  ASSIGN_OR_RETURN(const FileStamp stamp, StampFile(path));
  if (stamp.size > bytes_max) {
    return InvalidArgument(path + ": expected at most " + std::to_string(bytes_max) + " bytes, got " +
                           std::to_string(stamp.size));
  }
  ASSIGN_OR_RETURN(const ReadFd file, ReadFd::Open(path));
  std::string text(stamp.size, '\0');
  RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(text))));
  return text;
}

absl::Status MakeFolderOf(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  if (error) return Unavailable(path + ": cannot make its folder: " + error.message());
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view text) {
  std::string temporary = path + ".XXXXXX";
  const int fd = ::mkstemp(temporary.data());
  if (fd < 0) return ErrnoStatus(temporary, "cannot create");
  size_t done = 0;
  bool good = true;
  while (good && done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n > 0) done += static_cast<size_t>(n);
    good = n > 0 || errno == EINTR;
  }
  good = good && ::fchmod(fd, 0644) == 0 && ::fsync(fd) == 0;
  good = (::close(fd) == 0) && good;
  if (good && ::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  absl::Status status = ErrnoStatus(path, "cannot write");
  ::unlink(temporary.c_str());
  return status;
}

absl::StatusOr<FileLock> FileLock::Acquire(const std::string& path, std::string_view what) {
  RETURN_IF_ERROR(MakeFolderOf(path));
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(path, "cannot open");
  FileLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno == EWOULDBLOCK) {
    log::Info("waits for another process", {{"that", what}, {"lock", path}});
    int got = 0;
    do got = ::flock(fd, LOCK_EX);
    while (got != 0 && errno == EINTR);
    if (got == 0) return lock;
  }
  return ErrnoStatus(path, "cannot lock");
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

absl::StatusOr<ReadFd> ReadFd::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(path, "cannot open");
  return ReadFd(fd, path);
}

ReadFd::ReadFd(ReadFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
ReadFd& ReadFd::operator=(ReadFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}
ReadFd::~ReadFd() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status ReadFd::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  constexpr size_t kReadBytesMax = size_t{1} << 30;  // Linux caps one pread below 2 GiB
  size_t done = 0;
  while (done < out.size()) {
    const size_t want = std::min(out.size() - done, kReadBytesMax);
    const ssize_t n = ::pread(fd_, out.data() + done, want, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(path_, "cannot read");
    if (n == 0) {
      return DataLoss(path_ + ": file ends at byte " + std::to_string(offset + done) + "; expected " +
                      std::to_string(out.size() - done) + " more");
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace consilium
