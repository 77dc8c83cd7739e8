#include "tests/sim/reference.h"

#include <bit>
#include <cstring>
#include <deque>

#include "common/base/status.h"
#include "services/attention/attention_core.h"

namespace consilium::sim {
namespace {

// A worker with one flight and no prefix cache, and a shard that is a function call.
class Alone {
 public:
  explicit Alone(SimModel* model) : model_(model), experts_(model->NewExperts()) {
    config_.shape = model->shape();
    config_.shape.kv_blocks = 64;
    config_.manifest = model->manifest;
    config_.flights = 1;
    config_.prefix_cache = false;
    if (config_.shape.state_slots > 0) config_.shape.state_slots = 64;
    layers_ = model->NewLayers(
        &pool_, {config_.shape.kv_blocks, config_.shape.state_slots, 1, config_.flight_rows_max});
    core_ = std::make_unique<AttentionCore>(config_, &pool_);
    std::vector<PlacementView::Entry> entries;
    for (const control::MoeLayer& layer : model->moe_layers()) {
      for (uint16_t e = 0; e < layer.experts; ++e) {
        const auto handle = experts_->Load(model->entry(layer.layer, ExpertId(e)), model->store());
        CHECK_MSG(handle.ok(), ToString(handle.status()));
        handles_[{layer.layer, ExpertId(e)}] = *handle;
        entries.push_back({layer.layer, ExpertId(e), {ShardId(1)}});
      }
    }
    events_.push_back(attention_event::PlacementUpdate{
        std::make_shared<PlacementView>(Epoch::Make(1, 1), config_.shape.layers, config_.shape.experts,
                                        std::vector<PlacementShard>{{ShardId(1), "", "", 1}}, entries)});
  }

  Answer Run(const SessionSubmit& submit) {
    prompt_ = static_cast<Position>(submit.prompt.size());
    answer_ = Answer();
    events_.push_back(attention_event::Submit{1, submit});
    while (!events_.empty()) {
      AttentionEvent e = std::move(events_.front());
      events_.pop_front();
      std::vector<AttentionAction> actions;
      core_->Handle(1, std::move(e), &actions);
      for (AttentionAction& a : actions) std::visit([this](auto& x) { Do(x); }, a);
    }
    CHECK_MSG(core_->Leaks().empty(), core_->Leaks());
    return answer_;
  }

 private:
  template <class T>
  void Do(T&) {}
  void Do(attention_action::RunStage& a) {
    layers_->Run(a.job,
                 [this](StageOut out) { events_.push_back(attention_event::StageDone{std::move(out)}); });
  }
  void Do(attention_action::ConnectShard& a) {
    for (Lane lane : {Lane::kDecode, Lane::kBulk}) {
      events_.push_back(attention_event::ChannelUp{a.shard.id, lane, 1, {~0ull >> 1, ~0ull >> 1}});
    }
  }
  void Do(attention_action::SendCall& a) {
    const WireFrame wire = a.body->Frame(a.call, a.options.epoch, a.options.budget_us, a.options.flags);
    frame::View view;
    const absl::Status decoded = frame::Decode(wire, &view);
    CHECK_MSG(decoded.ok(), ToString(decoded));
    CallResult result;
    result.call = a.call;
    // 64 bytes for the range, so that rows are aligned as in a frame.
    result.buffer = pool_.Allocate(64 + view.slots.size() * experts_->row_bytes_out());
    const frame::Range range{0, static_cast<uint32_t>(view.slots.size())};
    std::memcpy(result.buffer.data(), &range, sizeof range);
    result.ranges = {reinterpret_cast<const frame::Range*>(result.buffer.data()), 1};
    result.payload = result.buffer.data() + 64;
    result.payload_bytes = view.slots.size() * experts_->row_bytes_out();
    // One row at a time: nothing is batched.
    for (size_t i = 0; i < view.slots.size(); ++i) {
      const ExpertGroup group{handles_.at({view.header.layer, ExpertId(view.slots[i].expert)}), 0, 1};
      const ExpertRow row{view.payload.data() + size_t{view.slots[i].row} * experts_->row_bytes_in(),
                          result.buffer.data() + 64 + i * experts_->row_bytes_out()};
      experts_->Run({{&group, 1}, {&row, 1}}, [](FfnDone done) { CHECK(done.status.ok()); });
    }
    events_.push_back(attention_event::ChannelResult{a.shard, a.lane, std::move(result)});
  }
  void Do(attention_action::Emit& a) {
    for (const SessionToken& t : a.events.tokens) {
      if (t.position < prompt_)
        answer_.prompt[t.position] = BitsOf(t);
      else
        answer_.tokens[t.choice].push_back(BitsOf(t));
    }
    for (const SessionFinish& f : a.events.finishes) answer_.finishes[f.choice] = f.reason;
    for (const SessionError& e : a.events.errors) answer_.error_code = static_cast<uint32_t>(e.code);
  }

  SimModel* const model_;
  BufferPool pool_;
  AttentionConfig config_;
  std::unique_ptr<ExpertBackend> experts_;
  std::unique_ptr<LayerBackend> layers_;
  std::unique_ptr<AttentionCore> core_;
  std::map<std::pair<LayerId, ExpertId>, ExpertHandle> handles_;
  std::deque<AttentionEvent> events_;
  Position prompt_ = 0;
  Answer answer_;
};

}  // namespace

TokenBits BitsOf(const SessionToken& t) {
  TokenBits bits{t.token, std::bit_cast<uint32_t>(t.logprob), {}};
  for (const TokenLogprob& p : t.top) bits.top.emplace_back(p.id, std::bit_cast<uint32_t>(p.logprob));
  return bits;
}

Answer RunAlone(SimModel* model, const SessionSubmit& submit) { return Alone(model).Run(submit); }

}  // namespace consilium::sim
