#include "common/exec/cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>

#include "common/exec/kernel_pool.h"

namespace consilium {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// "max 100000" or "150000 100000"; nothing when unlimited or unreadable.
std::optional<double> Quota(const std::string& text) {
  std::istringstream in(text);
  double quota = 0, period = 0;
  if (!(in >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

void Smaller(std::optional<double>* best, std::optional<double> other) {
  if (other && (!*best || *other < **best)) *best = other;
}

// read(directory) for `path` and each of its parents below `mount`. In a container the path may name a
// directory of the host that is not mounted here: then only the root, which is the container's own group, is
// found.
template <class Read>
std::optional<double> OnTheWay(const std::string& mount, std::string path, Read read) {
  std::optional<double> best;
  while (true) {
    Smaller(&best, read(mount + path));
    if (path.empty() || path == "/") return best;
    path.resize(path.find_last_of('/'));
  }
}

bool HasController(const std::string& list, std::string_view name) {
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) {
    if (item == name) return true;
  }
  return false;
}

}  // namespace

std::optional<double> CgroupCpuCores(const std::string& proc_cgroup, const std::string& root) {
  const auto v2 = [](const std::string& dir) { return Quota(ReadFile(dir + "/cpu.max")); };
  const auto v1 = [](const std::string& dir) {
    return Quota(ReadFile(dir + "/cpu.cfs_quota_us") + " " + ReadFile(dir + "/cpu.cfs_period_us"));
  };
  std::optional<double> best;
  std::istringstream lines(proc_cgroup);
  for (std::string line; std::getline(lines, line);) {  // hierarchy:controllers:path
    const size_t a = line.find(':');
    const size_t b = a == std::string::npos ? a : line.find(':', a + 1);
    if (b == std::string::npos || line.size() <= b + 1 || line[b + 1] != '/') continue;
    const std::string controllers = line.substr(a + 1, b - a - 1);
    const std::string path = line.substr(b + 1);
    if (controllers.empty()) {
      Smaller(&best, OnTheWay(root, path, v2));
    } else if (HasController(controllers, "cpu")) {
      Smaller(&best, OnTheWay(root + "/cpu", path, v1));
      Smaller(&best, OnTheWay(root + "/" + controllers, path, v1));
    }
  }
  return best;
}

uint32_t CoresOf(uint32_t affinity, std::optional<double> quota) {
  uint32_t cores = std::max(1u, affinity);
  if (quota && *quota < cores) cores = std::max(1u, static_cast<uint32_t>(std::ceil(*quota)));
  return cores;
}

uint32_t AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return CoresOf(static_cast<uint32_t>(count),
                 CgroupCpuCores(ReadFile("/proc/self/cgroup"), "/sys/fs/cgroup"));
}

}  // namespace consilium
