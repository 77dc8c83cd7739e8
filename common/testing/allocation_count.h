// Counts every operator new of the program. Include in exactly one file of a test program, since it replaces
// the global operators.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {
std::atomic<uint64_t> allocations{0};
thread_local int uncounted = 0;  // depth of Uncounted on this thread

// What this thread allocates meanwhile is a stand-in's of the test, not ours.
struct Uncounted {
  Uncounted() { ++uncounted; }
  ~Uncounted() { --uncounted; }
};

void* CountedAllocate(size_t size, size_t align) {
  if (uncounted == 0) allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = align <= alignof(std::max_align_t)
                ? std::malloc(size)
                : std::aligned_alloc(align, (size + align - 1) / align * align);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
}  // namespace

#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // new and delete are both replaced here
void* operator new(size_t size) { return CountedAllocate(size, 1); }
void* operator new[](size_t size) { return CountedAllocate(size, 1); }
void* operator new(size_t size, std::align_val_t align) {
  return CountedAllocate(size, static_cast<size_t>(align));
}
void* operator new[](size_t size, std::align_val_t align) {
  return CountedAllocate(size, static_cast<size_t>(align));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }
