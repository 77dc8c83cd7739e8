// How many cores the control group of this process grants. Split from AvailableCores so that tests can hand
// in trees.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

namespace consilium {

// The smallest CPU quota, in cores (quota / period), on the way from this process's groups up to the root;
// nothing if there is no limit. `proc_cgroup`: text of /proc/self/cgroup; `root`: where the hierarchies are
// mounted
// (/sys/fs/cgroup). Reads v2 (cpu.max) and v1 (cpu.cfs_quota_us of the cpu controller).
std::optional<double> CgroupCpuCores(const std::string& proc_cgroup, const std::string& root);

// Cores of an affinity count and a quota: the smaller, the quota rounded up, at least 1.
uint32_t CoresOf(uint32_t affinity, std::optional<double> quota);

}  // namespace consilium
