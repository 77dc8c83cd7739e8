// What golden tests look at: one run of `consilium verify` for each folder, its checks by kind.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "common/base/status.h"
#include "services/cli/verify.h"

namespace consilium {

// `folder`: from the root of the source tree; `golden`: the folder with the golden file where it is another
// one. Runs once a program.
inline const Verdict& VerdictOf(const std::string& folder, const std::string& golden = "") {
  static std::map<std::string, Verdict> verdicts;
  const auto it = verdicts.find(folder);
  if (it != verdicts.end()) return it->second;
  VerifyOptions options;
  options.model = std::string(CONSILIUM_SOURCE_DIR) + "/" + folder;
  if (!golden.empty())
    options.golden = std::string(CONSILIUM_SOURCE_DIR) + "/" + golden + "/golden.safetensors";
  options.threads = 1;
  options.progress = false;
  auto verdict = Verify(options);
  CHECK_MSG(verdict.ok(), folder + ": " + ToString(verdict.status()));
  return verdicts[folder] = *std::move(verdict);
}

// Exactly `count` checks of this kind, and all hold.
inline void ExpectHolds(const std::string& folder, GoldenCheck::Kind kind, size_t count,
                        const std::string& golden = "") {
  size_t found = 0;
  double share = 0;
  for (const GoldenCheck& check : VerdictOf(folder, golden).checks) {
    if (check.kind != kind) continue;
    ++found;
    EXPECT_GT(check.values, 0u) << check.prompt;
    if (check.miss) ADD_FAILURE() << folder << ": " << MissText(check);
    if (check.tolerance > 0) share = std::max(share, check.largest / check.tolerance);
  }
  EXPECT_EQ(found, count) << folder;
  std::printf("%s: %s: %zu checks, largest difference %.3g of its tolerance\n", folder.c_str(),
              std::string(KindName(kind)).c_str(), found, share);
}

}  // namespace consilium
