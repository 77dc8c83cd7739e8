// The gated delta rule of many heads over the pool: a head is one item, so every cut gives the same bits.
#include "common/exec/kernel_pool.h"
#include "kernels/api/kernels.h"

namespace consilium::kernels {

void ApplyDeltaRule(const Ops& ops, KernelPool* pool, std::span<const DeltaRule> heads) {
  constexpr size_t kInlineFmas = size_t{1} << 17;  // as in drivers.cc
  size_t fmas = 0;
  for (const DeltaRule& d : heads) fmas += 3 * d.tokens * d.state_floats();
  if (pool == nullptr || pool->threads() < 2 || fmas < kInlineFmas) {
    for (const DeltaRule& d : heads) ops.delta(d);
    return;
  }
  pool->ParallelFor(heads.size(), [&](size_t i, uint32_t) { ops.delta(heads[i]); });
}

}  // namespace consilium::kernels
