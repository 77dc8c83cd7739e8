// consilium-expert: options and wiring of one expert shard process.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/config/options.h"
#include "common/model/numerics_choice.h"

namespace consilium {

struct ExpertServiceOptions {
  std::string name = "expert-0";
  std::string listen = "127.0.0.1:0";
  std::string advertise;       // "": the listen address
  std::string controller;      // host:port
  std::string static_experts;  // "all": load everything, without a controller
  std::string model;
  std::string state_dir;
  std::string local_transport = "auto";  // or "off"
  std::string port_file;
  std::string ops = "auto";
  NumericsFlags numerics = {};
  uint32_t threads = 0;
  uint32_t io_threads = 1;
  uint32_t capacity_mb = 0;
  uint32_t drain_ms = 10'000;
  ServiceOptions service;

  void AddTo(Options* options);
};

// A running shard. Stop drains: no new calls, queued ones are answered, then all ends.
class ExpertService {
 public:
  static absl::StatusOr<std::unique_ptr<ExpertService>> Start(const ExpertServiceOptions& options);
  ~ExpertService();
  void Stop();

  struct Impl;

 private:
  explicit ExpertService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium
