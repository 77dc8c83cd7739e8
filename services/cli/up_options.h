// What `consilium up` was asked to start.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/options.h"
#include "common/model/numerics_choice.h"

namespace consilium {

struct UpOptions {
  std::string model;       // folder; empty: models/demo of this checkout
  std::string model_name;  // as the API shows it; empty: the folder's name
  uint32_t attention = 1;  // attention workers
  uint32_t experts = 0;    // expert shards; 0: 3, or 1 in one process, where more only share its cores
  uint32_t replicas = 1;   // copies of each expert
  std::string tool_parser = "auto", reasoning_parser = "auto";
  std::string host = "127.0.0.1";
  uint32_t port = 8080;  // of the gateway; 0: any free port
  std::string state_dir;
  uint32_t threads = 0;  // kernel threads a process; 0: cores / compute processes, at least 1
  NumericsFlags numerics = {};
  std::string ops = "auto";
  std::vector<std::string> api_keys;
  bool inprocess = false;
  uint32_t kv_mb = 256;
  uint32_t capacity_mb = 65536;
  uint32_t prefill_chunk = 64;     // prompt tokens a step takes of one request
  uint32_t max_flight_rows = 256;  // rows of one micro-batch
  uint32_t flights = 2;            // micro-batches at a time
  bool prefix_cache = true;
  uint32_t lease_ms = 2000;
  uint32_t start_timeout_s = 300;
  std::string ask;                       // asked and answered on stdout once ready
  bool once = false;                     // stop after that answer
  std::string local_transport = "auto";  // between workers and shards; or "off"
  std::string log_level = "info";
  std::string log_format = "text";

  void AddTo(Options* options);
  // Fills what was left empty from the machine and the model folder.
  void Complete();
};

}  // namespace consilium
