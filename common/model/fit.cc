#include "common/model/fit.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <numeric>
#include <queue>
#include <string>

#include "common/base/status.h"

namespace consilium {
namespace {

constexpr uint64_t kProcessBytes = 100'000'000;

struct Load {
  uint64_t bytes = 0, experts = 0;
  auto operator<=>(const Load&) const = default;
};

// The fullest of `shards` shards when each expert, largest first, goes to the emptiest.
Load Fullest(const std::vector<uint64_t>& descending, uint64_t shards) {
  std::priority_queue<Load, std::vector<Load>, std::greater<Load>> queue(
      std::greater<Load>(), std::vector<Load>(static_cast<size_t>(shards)));
  Load fullest;
  for (const uint64_t bytes : descending) {
    Load load = queue.top();
    queue.pop();
    load.bytes += bytes;
    ++load.experts;
    fullest = std::max(fullest, load);
    queue.push(load);
  }
  return fullest;
}

uint64_t CeilDiv(uint64_t a, uint64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

}  // namespace

absl::StatusOr<uint64_t> ParseByteCount(std::string_view text) {
  struct Unit {
    std::string_view name;
    uint64_t bytes;
  };
  static constexpr Unit kUnits[] = {{"", 1},
                                    {"B", 1},
                                    {"KiB", uint64_t{1} << 10},
                                    {"MiB", uint64_t{1} << 20},
                                    {"M", uint64_t{1} << 20},
                                    {"GiB", uint64_t{1} << 30},
                                    {"G", uint64_t{1} << 30},
                                    {"TiB", uint64_t{1} << 40},
                                    {"T", uint64_t{1} << 40},
                                    {"kB", 1'000},
                                    {"MB", 1'000'000},
                                    {"GB", 1'000'000'000},
                                    {"TB", 1'000'000'000'000}};
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  for (const Unit& u : kUnits) {
    const double bytes = number * static_cast<double>(u.bytes);
    if (error == std::errc() && unit == u.name && bytes >= 1 && bytes <= 1e18)
      return static_cast<uint64_t>(bytes);
  }
  return InvalidArgument("expected a size such as 24GiB, 80GB or bytes, got \"" + std::string(text) + "\"");
}

uint64_t ProcessBytes(uint64_t bytes) { return bytes + CeilDiv(bytes, 10) + kProcessBytes; }

uint64_t RoomIn(uint64_t memory) {
  if (memory <= kProcessBytes) return 0;
  uint64_t room = (memory - kProcessBytes) / 11 * 10;
  while (ProcessBytes(room + 1) <= memory) ++room;  // a few bytes
  return room;
}

ShardFit FitShards(std::vector<uint64_t> sizes, uint64_t memory) {
  CHECK(!sizes.empty());
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  ShardFit fit;
  fit.memory = memory;
  const uint64_t room = RoomIn(memory), count = sizes.size();
  if (sizes.front() > room) return fit;
  const uint64_t total = std::accumulate(sizes.begin(), sizes.end(), uint64_t{0});
  // Exact for experts of one size; else a lower bound from which to search.
  const uint64_t smallest = std::max<uint64_t>(sizes.back(), 1);
  fit.shards = std::max(CeilDiv(total, room), CeilDiv(count, std::max<uint64_t>(room / smallest, 1)));
  fit.shards = std::clamp<uint64_t>(fit.shards, 1, count);
  Load fullest = Fullest(sizes, fit.shards);
  while (fullest.bytes > room) {
    fit.shards = std::min(count, fit.shards + 1 + fit.shards / 100);
    fullest = Fullest(sizes, fit.shards);
  }
  fit.experts_each = fullest.experts;
  fit.bytes_each = fullest.bytes;
  fit.headroom_each = memory - ProcessBytes(fullest.bytes);
  return fit;
}

}  // namespace consilium
