// Expert compute: grouped FFNs over rows of many requests. Row-invariant. Implementations: cpu, ref, hash.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/model/model_store.h"

namespace consilium {

using ExpertHandle = uint32_t;  // of a loaded expert; 0 is none

// Group g computes rows [first, first + count) with one expert.
struct ExpertGroup {
  ExpertHandle expert = 0;
  uint32_t first = 0;
  uint32_t count = 0;
};
struct ExpertRow {
  const std::byte* in;  // row_bytes_in, inside a call's payload
  std::byte* out;       // row_bytes_out, inside the result's payload
};
// Spans stay valid until done.
struct GroupedFfnJob {
  std::span<const ExpertGroup> groups;
  std::span<const ExpertRow> rows;
};
struct FfnDone {
  absl::Status status;
  uint32_t compute_us = 0;
};

class ExpertBackend {
 public:
  virtual ~ExpertBackend() = default;
  virtual uint32_t row_bytes_in() const = 0;
  virtual uint32_t row_bytes_out() const = 0;
  // Reads, verifies (checksum) and packs one expert; blocks, so it runs on a loader thread. DATA_LOSS on a
  // bad checksum.
  virtual absl::StatusOr<ExpertHandle> Load(const ExpertEntry& entry, ModelStore* store) = 0;
  virtual void Drop(ExpertHandle expert) = 0;
  virtual uint64_t loaded_bytes() const = 0;
  // Starts a job; `done` is called once, on the shell's strand. One job at a time. Never blocks.
  virtual void Run(const GroupedFfnJob& job, std::function<void(FfnDone)> done) = 0;
};

}  // namespace consilium
