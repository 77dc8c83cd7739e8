#include "common/net/expert_dialer.h"

#include <utility>
#include <vector>

#include "common/net/local_channel.h"

namespace consilium {

std::unique_ptr<ExpertChannel> ExpertDialer::Connect(const std::string& address, Lane lane, RouterHello hello,
                                                     ExpertChannel::Sink* sink) {
  std::vector<std::unique_ptr<LinkOpener>> openers;
  if (local_) openers.push_back(std::make_unique<LocalOpener>(address, &loop_, pool_));
  openers.push_back(std::make_unique<GrpcOpener>(address, lane, &grpc_, pool_));
  return std::make_unique<DialedChannel>(std::move(openers), lane, std::move(hello), &loop_, pool_, sink);
}

}  // namespace consilium
