// File access of model loading. Errors name the path.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace consilium {

bool FileExists(const std::string& path);

// What tells a changed file from an unchanged one.
struct FileStamp {
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  bool operator==(const FileStamp&) const = default;
};
absl::StatusOr<FileStamp> StampFile(const std::string& path);

// The whole file. NOT_FOUND when it is not there, INVALID_ARGUMENT above `bytes_max`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t bytes_max);
// Makes the folder that `path` lies in, and those above it.
absl::Status MakeFolderOf(const std::string& path);
// Writes to a temporary name beside `path`, syncs, then renames: readers see the old or the new text, never a
// part.
absl::Status WriteFileAtomically(const std::string& path, std::string_view text);

// An exclusive lock between processes; it ends with this object or the process. Makes the file and its
// folder.
class FileLock {
 public:
  // Waits as long as another process holds it, and says so in the log as `what`.
  static absl::StatusOr<FileLock> Acquire(const std::string& path, std::string_view what);
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

// A file open for reading; -1 never escapes.
class ReadFd {
 public:
  static absl::StatusOr<ReadFd> Open(const std::string& path);
  ReadFd(ReadFd&& other) noexcept;
  ReadFd& operator=(ReadFd&& other) noexcept;
  ~ReadFd();
  // Loops over short reads. DATA_LOSS names path and offset when the file ends early.
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) const;
  const std::string& path() const { return path_; }

 private:
  ReadFd(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

}  // namespace consilium
