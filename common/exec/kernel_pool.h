// The threads that run kernels. Work is split into items that any thread takes (no static partition: one
// stolen core must not stall a step); a short spin, then futex; no spinning when threads outnumber cores.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace consilium {

class KernelPool {
 public:
  // `threads` >= 1 counts the caller: KernelPool(1) runs everything inline. 0: the cores of this process
  // (affinity mask and cgroup quota).
  explicit KernelPool(uint32_t threads);
  ~KernelPool();
  KernelPool(const KernelPool&) = delete;
  KernelPool& operator=(const KernelPool&) = delete;

  uint32_t threads() const;

  // Calls fn(context, item, thread) for every item in [0, items), on the pool and the caller; returns when
  // all are done. thread < threads(). One ParallelFor at a time per pool; not re-entrant. Does not allocate.
  using Fn = void (*)(void* context, size_t item, uint32_t thread);
  void Run(size_t items, Fn fn, void* context);

  template <class F>
  void ParallelFor(size_t items, F&& f) {
    Run(
        items,
        [](void* c, size_t item, uint32_t thread) {
          (*static_cast<std::remove_reference_t<F>*>(c))(item, thread);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Cores this process may use: min(affinity, cgroup quota rounded up), at least 1.
uint32_t AvailableCores();

}  // namespace consilium
