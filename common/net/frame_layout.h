// The header as it lies in memory and helpers shared by encoder and decoder. Private to common/net.
#pragma once
#include <bit>
#include <cstring>

#include "common/base/hash.h"
#include "common/net/frame.h"

namespace consilium::frame {

static_assert(std::endian::native == std::endian::little, "frames are little endian and are read in place");

struct RawHeader {
  uint32_t magic = kMagic;
  uint8_t version = kVersion;
  uint8_t kind = 0;
  uint16_t header_bytes = kHeaderBytes;
  uint64_t call = 0;
  uint64_t epoch = 0;
  uint32_t model = 0;
  uint16_t layer = 0;
  uint16_t class_ix = 0;
  uint32_t budget_us = 0;
  uint16_t flags = 0;
  uint8_t dtype_in = 0;
  uint8_t dtype_out = 0;
  uint32_t hidden = 0;
  uint16_t n_rows = 0;
  uint16_t n_segments = 0;
  uint32_t n_slots = 0;
  uint32_t payload_bytes = 0;
  uint32_t tables_sum = 0;
  uint32_t payload_sum = 0;
};
static_assert(sizeof(RawHeader) == kHeaderBytes);
static_assert(offsetof(RawHeader, tables_sum) == 56);

inline Header ToHeader(const RawHeader& raw) {
  Header h;
  h.version = raw.version;
  h.kind = static_cast<Kind>(raw.kind);
  h.call = CallId{raw.call};
  h.epoch = Epoch{raw.epoch};
  h.model = ModelIx{raw.model};
  h.layer = LayerId{raw.layer};
  h.class_ix = raw.class_ix;
  h.budget_us = raw.budget_us;
  h.flags = raw.flags;
  h.dtype_in = static_cast<DtypeCode>(raw.dtype_in);
  h.dtype_out = static_cast<DtypeCode>(raw.dtype_out);
  h.hidden = raw.hidden;
  h.n_rows = raw.n_rows;
  h.n_segments = raw.n_segments;
  h.n_slots = raw.n_slots;
  h.payload_bytes = raw.payload_bytes;
  return h;
}

// Head of a REJECT's table; the text follows.
struct RawReject {
  uint16_t code = 0;
  uint16_t text_bytes = 0;
  uint32_t arg = 0;
};
static_assert(sizeof(RawReject) == 8);

struct RawCredit {
  uint64_t rows = 0;
  uint64_t bytes = 0;
};
static_assert(sizeof(RawCredit) == 16);

constexpr size_t Pad64(size_t n) { return (n + 63) & ~size_t{63}; }

// XXH3-64 of all bytes between the first 64 and the payload: the seed of the header's sum.
inline uint64_t TablesHash(std::span<const std::byte> between) { return Xxh3(between); }

// tables_sum: low half of XXH3-64 over the first 64 bytes, the field itself zero, seeded with TablesHash. So
// a body's tables are hashed once, whatever the number of sends.
inline uint32_t HeaderSum(RawHeader header, uint64_t tables_hash) {
  header.tables_sum = 0;
  return static_cast<uint32_t>(Xxh3(std::as_bytes(std::span(&header, 1)), tables_hash));
}

inline uint32_t PayloadSum(std::span<const std::byte> payload) { return Xxh3Low(payload); }

}  // namespace consilium::frame
