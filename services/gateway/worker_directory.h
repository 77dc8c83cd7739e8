// Which attention workers there are: keeps the router's workers equal to the controller's view.
#pragma once
#include <memory>
#include <string>
#include <vector>

namespace consilium::gateway {

class StreamRouter;

struct DirectoryOptions {
  std::string gateway_name;
  std::string controller;              // host:port; empty: none
  std::vector<std::string> attention;  // host:port of workers that are always dialled
};

// While the controller is away, and for workers whose session is open though the view lacks them (a
// controller that has just restarted), the last state stays.
class WorkerDirectory {
 public:
  WorkerDirectory(DirectoryOptions options, StreamRouter* router);
  ~WorkerDirectory();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace consilium::gateway
