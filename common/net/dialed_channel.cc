#include "common/net/dialed_channel.h"

#include <algorithm>
#include <utility>

#include "common/base/status.h"

namespace consilium {
namespace {
constexpr int64_t kBackoffMinMs = 50;
constexpr int64_t kBackoffMaxMs = 1000;
}  // namespace

DialedChannel::DialedChannel(std::vector<std::unique_ptr<LinkOpener>> openers, Lane lane, RouterHello hello,
                             IoLoop* loop, BufferPool* pool, Sink* sink)
    : openers_(std::move(openers)), loop_(loop), session_(std::move(hello), lane, pool, sink) {
  CHECK(!openers_.empty());
  std::lock_guard lock(mutex_);
  Dial();
}

DialedChannel::~DialedChannel() {
  std::unique_lock lock(mutex_);
  closing_ = true;
  if (const std::shared_ptr<FrameLink> current = link_; current != nullptr) {
    lock.unlock();
    current->Close(Cancelled("the channel was closed"));
    lock.lock();
  }
  if (timer_.has_value() && loop_->Cancel(*timer_)) timer_.reset();
  done_.wait(lock, [this] { return link_ == nullptr && !timer_.has_value(); });
}

void DialedChannel::Dial() {
  for (size_t i = std::exchange(first_, 0); i < openers_.size(); ++i) {
    used_ = i;
    auto link = openers_[i]->Open(&session_, [this](const absl::Status& why) { Ended(why); });
    if (!link.ok()) continue;
    link_ = std::move(*link);
    return;
  }
  WaitAndDial();
}

void DialedChannel::Ended(const absl::Status& why) {
  const bool was_up = session_.up();
  session_.OnLinkDown(why);
  std::lock_guard lock(mutex_);
  link_.reset();
  if (was_up) backoff_ms_ = 0;
  first_ = was_up ? 0 : (used_ + 1) % openers_.size();
  if (closing_)
    done_.notify_all();
  else
    WaitAndDial();
}

void DialedChannel::WaitAndDial() {
  backoff_ms_ = std::clamp(2 * backoff_ms_, kBackoffMinMs, kBackoffMaxMs);
  timer_ = loop_->RunAfter(1000 * backoff_ms_, [this] {
    std::lock_guard lock(mutex_);
    timer_.reset();
    if (closing_)
      done_.notify_all();
    else
      Dial();
  });
}

absl::Status DialedChannel::Send(CallId call, std::shared_ptr<const CallBody> body,
                                 const CallOptions& options) {
  return session_.Send(call, *body, options);
}

void DialedChannel::Cancel(CallId call) { session_.Cancel(call); }

const char* DialedChannel::transport() const { return session_.up() ? openers_[used_]->transport() : ""; }

}  // namespace consilium
