#include "common/exec/cores.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace consilium {
namespace {

class CgroupTest : public testing::Test {
 protected:
  CgroupTest()
      : root_(testing::TempDir() + "/cgroup_" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
  }
  ~CgroupTest() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string root_;
};

TEST_F(CgroupTest, V2TakesTheSmallestQuotaOnTheWayUp) {
  Write("/pod/box/cpu.max", "max 100000\n");
  Write("/pod/cpu.max", "250000 100000\n");
  Write("/cpu.max", "400000 100000\n");
  EXPECT_EQ(CgroupCpuCores("0::/pod/box\n", root_), 2.5);
}

TEST_F(CgroupTest, V2WithoutTheHostPathReadsTheContainersRoot) {
  Write("/cpu.max", "150000 100000\n");
  EXPECT_EQ(CgroupCpuCores("0::/kubepods/pod1/box\n", root_), 1.5);
}

TEST_F(CgroupTest, V1ReadsTheCpuControllerOnly) {
  Write("/cpu,cpuacct/box/cpu.cfs_quota_us", "300000\n");
  Write("/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
  Write("/memory/box/cpu.cfs_quota_us", "100000\n");
  Write("/memory/box/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuCores("4:memory:/box\n3:cpu,cpuacct:/box\n", root_), 3.0);
}

TEST_F(CgroupTest, NoLimitAnywhereIsNothing) {
  Write("/cpu/cpu.cfs_quota_us", "-1\n");
  Write("/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuCores("1:cpu:/\n", root_), std::nullopt);
  EXPECT_EQ(CgroupCpuCores("", root_), std::nullopt);
  EXPECT_EQ(CgroupCpuCores("nonsense\n::\n0::\n", root_), std::nullopt);
}

TEST(CoresOf, IsTheSmallerOfAffinityAndQuotaRoundedUp) {
  EXPECT_EQ(CoresOf(8, std::nullopt), 8u);
  EXPECT_EQ(CoresOf(8, 2.5), 3u);
  EXPECT_EQ(CoresOf(2, 16.0), 2u);
  EXPECT_EQ(CoresOf(8, 0.2), 1u);
  EXPECT_EQ(CoresOf(0, std::nullopt), 1u);
}

}  // namespace
}  // namespace consilium
