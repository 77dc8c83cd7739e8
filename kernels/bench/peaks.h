// What this machine can do at best, measured in the same run as the kernels that are compared with it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace consilium {
class KernelPool;
}

namespace consilium::bench {

// Plain reads of a buffer far beyond the caches, the best of 1, 4 and 8 streams side by side; bytes/s, all
// `threads` together.
double ReadBandwidth(uint32_t threads);
// One such pass over `data` (1 MiB and more, not in the caches) now: on a machine that others use too, the
// peak beside a figure says more than the peak of a quiet moment. bytes/s.
double ReadRate(KernelPool* pool, std::span<const std::byte> data);
// Independent f32 fma chains in registers, flop/s, all `threads` together, widest vectors of the machine.
double FmaPeak(uint32_t threads);

}  // namespace consilium::bench
