// Question: how long from cold files to loaded experts, against the bytes and the disk's bandwidth; and how
// much memory stays, against the bytes of the experts.
//   load_bench MODEL [--share S] [--threads N] [--state DIR]
// Loads the first S (0..1, default 1) of all experts as a shard does, after dropping the model's pages from
// the page cache. bytes / bandwidth: the same ranges read by the same threads and thrown away, cold as well.
// Bounds: time <= bytes / bandwidth + 1 s; peak RSS <= bytes + 10 % + 100 MB.
#include <fcntl.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/model/model_store.h"
#include "common/model/stored_matrix.h"

namespace consilium {
namespace {

// Removes a file's clean pages from the page cache.
void Forget(const Manifest& manifest) {
  for (const std::string& path : manifest.files) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    ::fsync(fd);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

double PeakMb() {
  struct rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// Seconds for `threads` threads to do work(i) for all i below n; the first error is kept.
template <class Work>
double Timed(size_t n, unsigned threads, absl::Status* status, Work work) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const MonoTime begin = NowUs();
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t) {
    pool.emplace_back([&] {
      for (size_t i = next++; i < n && !failed; i = next++) {
        if (absl::Status s = work(i); !s.ok() && !failed.exchange(true)) *status = s;
      }
    });
  }
  for (auto& t : pool) t.join();
  return static_cast<double>(NowUs() - begin) / 1e6;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "load_bench: %s\n", ToString(status).c_str());
  return 1;
}

int Main(int argc, char** argv) {
  std::string model, state;
  double share = 1;
  unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (arg == "--share")
      share = std::atof(value), ++i;
    else if (arg == "--threads")
      threads = static_cast<unsigned>(std::atoi(value)), ++i;
    else if (arg == "--state")
      state = value, ++i;
    else
      model = arg;
  }
  if (model.empty() || share < 0 || share > 1 || threads < 1)
    return Fail(InvalidArgument("expected MODEL [--share 0..1] [--threads N] [--state DIR]"));
  MonoTime begin = NowUs();
  auto manifest = OpenManifest(model, state);
  if (!manifest.ok()) return Fail(manifest.status());
  std::printf("manifest (first time: hashing): %.2f s\n", static_cast<double>(NowUs() - begin) / 1e6);
  if (!state.empty()) {
    begin = NowUs();
    manifest = OpenManifest(model, state);
    if (!manifest.ok()) return Fail(manifest.status());
    std::printf("manifest (kept): %.3f s\n", static_cast<double>(NowUs() - begin) / 1e6);
  }
  const size_t n = static_cast<size_t>(share * static_cast<double>(manifest->experts.size()));
  const auto store = OpenFolderStore(*manifest);
  uint64_t bytes = 0;
  for (size_t i = 0; i < n; ++i) bytes += manifest->experts[i].bytes();
  absl::Status status;

  Forget(*manifest);
  const double disk = Timed(n, threads, &status, [&](size_t i) -> absl::Status {
    thread_local std::vector<std::byte> buffer;
    for (const ByteRange& range : manifest->experts[i].Ranges()) {
      buffer.resize(range.length);
      RETURN_IF_ERROR(store->Read(range, buffer));
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return Fail(status);
  Forget(*manifest);
  ::malloc_trim(0);
  std::vector<kernels::FfnWeights> loaded(n);
  const double seconds = Timed(n, threads, &status, [&](size_t i) -> absl::Status {
    ASSIGN_OR_RETURN(loaded[i], LoadExpert(manifest->experts[i], store.get()));
    return absl::OkStatus();
  });
  if (!status.ok()) return Fail(status);
  uint64_t packed = 0;
  for (const auto& w : loaded) packed += w.bytes();
  const double mb = static_cast<double>(bytes) / 1e6, rate = mb / disk;
  std::printf("experts %zu of %zu, %.0f MB stored, %.0f MB packed, %u threads\n", n, manifest->experts.size(),
              mb, static_cast<double>(packed) / 1e6, threads);
  std::printf("disk %.0f MB/s: %.2f s; loaded in %.2f s (%.0f MB/s); bound %.2f s: %s\n", rate, disk, seconds,
              mb / seconds, disk + 1, seconds <= disk + 1 ? "within" : "ABOVE");
  const double bound = mb * 1.1 * 1e6 / (1 << 20) + 100;
  std::printf("peak RSS %.0f MiB; bound %.0f MiB: %s\n", PeakMb(), bound,
              PeakMb() <= bound ? "within" : "ABOVE");
  return 0;
}

}  // namespace
}  // namespace consilium

int main(int argc, char** argv) { return consilium::Main(argc, argv); }
