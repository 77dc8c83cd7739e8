#include "common/exec/kernel_pool.h"

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "common/base/status.h"

namespace consilium {
namespace {

// About the cost of one wake-up by futex: spinning longer than that loses more than it can win.
constexpr std::chrono::microseconds kSpin{20};

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `word` differs from `old`: spins for kSpin if `spin`, then sleeps in the kernel.
void AwaitChange(const std::atomic<uint32_t>& word, uint32_t old, bool spin) {
  if (spin) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        Pause();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  word.wait(old, std::memory_order_acquire);
}

}  // namespace

// A job is published in `claims` as (generation, items not yet claimed). A thread claims an item by
// compare-and-swap of the whole word, so a thread that slept through a job can never take an item of it
// later, and nobody waits for threads that took nothing. The job's fields stay fixed until every claimed item
// is counted in `done`.
struct KernelPool::Impl {
  alignas(64) std::atomic<uint64_t> claims{0};
  alignas(64) std::atomic<uint32_t> done{0};
  alignas(64) std::atomic<uint32_t> wake{0};  // changes with every job and at the end; workers sleep on it
  std::atomic<bool> stop{false};
  Fn fn = nullptr;
  void* context = nullptr;
  uint32_t items = 0;
  bool spin = false;
  std::vector<std::thread> workers;

  // Runs items until none is left; returns how many this thread ran.
  uint32_t Work(uint32_t thread) {
    uint32_t ran = 0;
    uint64_t word = claims.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(word) != 0) {
      if (!claims.compare_exchange_weak(word, word - 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire)) {
        continue;
      }
      fn(context, items - static_cast<uint32_t>(word), thread);
      ++ran;
      word = claims.load(std::memory_order_acquire);
    }
    return ran;
  }

  void Loop(uint32_t thread) {
    while (true) {
      const uint32_t seen = wake.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      if (const uint32_t ran = Work(thread); ran > 0) {
        done.fetch_add(ran, std::memory_order_acq_rel);
        done.notify_one();
      }
      AwaitChange(wake, seen, spin);
    }
  }
};

KernelPool::KernelPool(uint32_t threads) : impl_(std::make_unique<Impl>()) {
  const uint32_t cores = AvailableCores();
  if (threads == 0) threads = cores;
  impl_->spin = threads <= cores;
  for (uint32_t i = 1; i < threads; ++i)
    impl_->workers.emplace_back([impl = impl_.get(), i] { impl->Loop(i); });
}

KernelPool::~KernelPool() {
  impl_->stop.store(true, std::memory_order_release);
  impl_->wake.fetch_add(1, std::memory_order_acq_rel);
  impl_->wake.notify_all();
  for (std::thread& t : impl_->workers) t.join();
}

uint32_t KernelPool::threads() const { return static_cast<uint32_t>(impl_->workers.size()) + 1; }

void KernelPool::Run(size_t items, Fn fn, void* context) {
  Impl& p = *impl_;
  if (p.workers.empty() || items <= 1) {
    for (size_t i = 0; i < items; ++i) fn(context, i, 0);
    return;
  }
  CHECK_MSG(items <= UINT32_MAX, std::to_string(items) + " items");
  p.fn = fn;
  p.context = context;
  p.items = static_cast<uint32_t>(items);
  p.done.store(0, std::memory_order_relaxed);
  const uint64_t generation = (p.claims.load(std::memory_order_relaxed) >> 32) + 1;
  p.claims.store((generation << 32) | p.items, std::memory_order_release);
  p.wake.fetch_add(1, std::memory_order_acq_rel);
  if (items - 1 < p.workers.size()) {
    for (size_t i = 0; i + 1 < items; ++i) p.wake.notify_one();
  } else {
    p.wake.notify_all();
  }
  const uint32_t own = p.Work(0);
  uint32_t done = p.done.fetch_add(own, std::memory_order_acq_rel) + own;
  while (done != p.items) {
    AwaitChange(p.done, done, p.spin);
    done = p.done.load(std::memory_order_acquire);
  }
}

}  // namespace consilium
