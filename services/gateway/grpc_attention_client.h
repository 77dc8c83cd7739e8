// The gateway's gRPC: one session stream for each attention worker, and the controller's view of who they
// are. Both dial again after 50 ms up to 1 s when a stream breaks.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "services/gateway/attention_client.h"

namespace consilium::gateway {

class StreamRouter;

// `address`: host:port of a worker's gRPC server.
std::unique_ptr<AttentionClient> MakeGrpcAttentionClient(const std::string& address);

struct DirectoryOptions {
  std::string gateway_name;
  std::string controller;              // host:port; empty: none
  std::vector<std::string> attention;  // host:port of workers that are always dialled
};

// Keeps the router's workers equal to the controller's view. While the controller is away, and for workers
// whose session is open though the view lacks them (a controller that has just restarted), the last state
// stays.
class WorkerDirectory {
 public:
  WorkerDirectory(DirectoryOptions options, StreamRouter* router);
  ~WorkerDirectory();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium::gateway
