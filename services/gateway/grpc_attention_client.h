// A session stream to one attention worker over gRPC. Dials again after 50 ms up to 1 s when it breaks.
#pragma once
#include <memory>
#include <string>

#include "services/gateway/attention_client.h"

namespace consilium::gateway {

// `address`: host:port of a worker's gRPC server.
std::unique_ptr<AttentionClient> MakeGrpcAttentionClient(const std::string& address);

}  // namespace consilium::gateway
