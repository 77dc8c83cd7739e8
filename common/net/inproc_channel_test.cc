#include "common/net/inproc_channel.h"

#include "common/net/expert_channel_contract.h"

namespace consilium {
namespace {

struct InprocHarness {
  BufferPool pool;
  ScriptedShard shard{&pool};
  InprocListener listener{&shard};

  std::unique_ptr<ExpertChannel> Connect(ExpertChannel::Sink* sink, Lane lane, RouterHello hello) {
    return std::make_unique<InprocChannel>(std::move(hello), lane, &listener, &pool, sink);
  }
  void BreakStreams() { listener.CloseAll(); }
  void Reconnect(ExpertChannel* channel) { static_cast<InprocChannel*>(channel)->Reconnect(); }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Inproc, ExpertChannelContract, InprocHarness);

}  // namespace
}  // namespace consilium
