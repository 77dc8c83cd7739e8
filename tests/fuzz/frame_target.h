// What the fuzzer does with one input; also run over its corpus by an ordinary test.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "common/base/status.h"
#include "common/net/frame.h"
#include "common/net/frame_layout.h"
#include "common/net/session.h"

namespace consilium {

// The bytes as they are, then again with right sums (the fuzzer cannot guess a hash).
inline void FuzzFrame(const uint8_t* data, size_t size, BufferPool* pool) {
  BufferRef buffer = pool->Allocate(size);
  if (size > 0) std::memcpy(buffer.data(), data, size);
  for (int round = 0; round < 2; ++round) {
    frame::View view;
    if (frame::Decode(buffer.bytes(), &view).ok()) {
      CHECK(view.trusted);
      uint64_t touched = 0;  // every byte a reader may touch
      for (const frame::Slot& s : view.slots) {
        CHECK(s.row < view.header.n_rows);
        touched += static_cast<uint8_t>(
            view.payload[s.row * frame::RowBytes(view.header.dtype_in, view.header.hidden)]);
      }
      for (const std::byte b : view.payload) touched += static_cast<uint8_t>(b);
      for (const uint32_t share : view.share_us) touched += share;
      for (const char c : view.reject_text) touched += static_cast<uint8_t>(c);
      RouterHello hello;
      Lane lane = Lane::kDecode;
      WelcomeInfo info;
      if (view.header.kind == frame::Kind::kHello) (void)ParseHello(view.payload, &hello, &lane);
      if (view.header.kind == frame::Kind::kWelcome) (void)ParseWelcome(view.payload, &info);
      if (touched == 0xFFFFFFFFFFFFFFFFull) std::abort();  // keeps the reads
    }
    if (size < frame::kHeaderBytes) return;
    frame::RawHeader raw;
    std::memcpy(&raw, buffer.data(), sizeof(raw));
    if (raw.payload_bytes > size - frame::kHeaderBytes) return;
    raw.payload_sum =
        (raw.flags & frame::kPayloadSum) != 0 ? frame::PayloadSum(buffer.bytes().last(raw.payload_bytes)) : 0;
    const auto between =
        buffer.bytes().subspan(frame::kHeaderBytes, size - frame::kHeaderBytes - raw.payload_bytes);
    raw.tables_sum = frame::HeaderSum(raw, frame::TablesHash(between));
    std::memcpy(buffer.data(), &raw, sizeof(raw));
  }
}

}  // namespace consilium
