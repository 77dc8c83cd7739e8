#include "services/cli/import.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/model/model_store.h"

namespace consilium {

int RunImport(const std::string& model, const std::string& state_dir, bool json) {
  const MonoTime begin = NowUs();
  const absl::StatusOr<Import> import = ImportModel(model, state_dir);
  if (!import.ok()) {
    std::fprintf(stderr, "consilium import: %s\n", Message(import.status()).c_str());
    return 1;
  }
  const Manifest& manifest = import->manifest;
  uint64_t bytes = 0;
  for (const ExpertEntry& e : manifest.experts) bytes += e.bytes();
  for (const TensorInfo& t : manifest.dense) bytes += t.bytes();
  const double seconds = static_cast<double>(NowUs() - begin) * 1e-6;
  if (json) {
    const nlohmann::ordered_json out = {
        {"model", manifest.id}, {"digest", Hex(manifest.digest)}, {"experts", manifest.experts.size()},
        {"bytes", bytes},       {"manifest", import->kept},       {"made", import->made},
        {"seconds", seconds}};
    std::printf("%s\n", out.dump(2).c_str());
    return 0;
  }
  std::printf("%s: %zu experts, %.2f GB, digest %s\n%s %s", manifest.id.c_str(), manifest.experts.size(),
              static_cast<double>(bytes) * 1e-9, Hex(manifest.digest).c_str(),
              import->made ? "manifest written to" : "a good manifest was there:", import->kept.c_str());
  if (import->made) std::printf(" in %.1f s", seconds);
  std::printf("\n");
  return 0;
}

}  // namespace consilium
