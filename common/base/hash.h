// Hashes: XXH3 for checks at memory speed, SHA-256 for identities (digests of experts and models).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace consilium {

using Digest = std::array<uint8_t, 32>;

uint64_t Xxh3(std::span<const std::byte> bytes, uint64_t seed = 0);
// Low half of XXH3-64, as frames carry it.
inline uint32_t Xxh3Low(std::span<const std::byte> bytes) { return static_cast<uint32_t>(Xxh3(bytes)); }

// The same over bytes that come in pieces.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  void Update(std::span<const std::byte> bytes);
  uint64_t value() const;

 private:
  void* state_;
};

// Order-sensitive mix of two words (splitmix64 finalizer); used by the hash backend and block hashes.
constexpr uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t z = a * 0x9E3779B97F4A7C15ull + b + 0x632BE59BD9B4E019ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Incremental SHA-256.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view text);
  Digest Finish();  // once

 private:
  void* context_;
};

std::string Hex(std::span<const uint8_t> bytes);

}  // namespace consilium
