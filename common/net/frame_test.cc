// The codec: golden bytes, round trips, every single-byte mutation, random bytes.
#include "common/net/frame.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "common/base/limits.h"
#include "common/net/frame_layout.h"
#include "common/net/frame_samples.h"

namespace consilium {
namespace {

using frame::Kind;

std::string GoldenPath(const std::string& name) {
  return std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/frames/" + name + ".hex";
}

uint32_t Word(std::mt19937& rng) { return static_cast<uint32_t>(rng()); }

// 16 bytes a line.
std::string ToHex(std::span<const std::byte> bytes) {
  static const char* digits = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto b = static_cast<uint8_t>(bytes[i]);
    text += digits[b >> 4];
    text += digits[b & 15];
    text += i % 16 == 15 || i + 1 == bytes.size() ? '\n' : ' ';
  }
  return text;
}

TEST(FrameGolden, EveryKindHasTheBytesOfItsGoldenFile) {
  BufferPool pool;
  const bool write = std::getenv("CONSILIUM_WRITE_GOLDEN") != nullptr;
  for (const auto& [name, buffer] : SampleFrames(&pool)) {
    SCOPED_TRACE(name);
    if (write) std::ofstream(GoldenPath(name)) << ToHex(buffer.bytes());
    std::ifstream file(GoldenPath(name));
    ASSERT_TRUE(file.good()) << GoldenPath(name);
    std::stringstream golden;
    golden << file.rdbuf();
    EXPECT_EQ(ToHex(buffer.bytes()), golden.str());
    frame::View view;
    EXPECT_TRUE(frame::Decode(buffer.bytes(), &view).ok()) << frame::Decode(buffer.bytes(), &view);
  }
}

// The table of WIRE.md, read by hand.
TEST(FrameGolden, TheCallHeaderHasItsFieldsAtTheDocumentedOffsets) {
  BufferPool pool;
  const BufferRef call =
      Join(SampleBody(&pool)->Frame(CallId{42}, Epoch::Make(1, 9), 5000, frame::kRetry), &pool);
  const auto at = [&](size_t offset, size_t size) {
    uint64_t v = 0;
    std::memcpy(&v, call.data() + offset, size);
    return v;
  };
  EXPECT_EQ(std::memcmp(call.data(), "CNS1", 4), 0);
  EXPECT_EQ(at(4, 1), 1u);
  EXPECT_EQ(at(5, 1), 4u);
  EXPECT_EQ(at(6, 2), 64u);
  EXPECT_EQ(at(8, 8), 42u);
  EXPECT_EQ(at(16, 8), (uint64_t{1} << 40) + 9);
  EXPECT_EQ(at(24, 4), 3u);
  EXPECT_EQ(at(28, 2), 4u);
  EXPECT_EQ(at(30, 2), 1u);
  EXPECT_EQ(at(32, 4), 5000u);
  EXPECT_EQ(at(36, 2), 1u + 4u);
  EXPECT_EQ(at(38, 1), 2u);
  EXPECT_EQ(at(39, 1), 2u);
  EXPECT_EQ(at(40, 4), 4u);
  EXPECT_EQ(at(44, 2), 2u);
  EXPECT_EQ(at(46, 2), 2u);
  EXPECT_EQ(at(48, 4), 3u);
  EXPECT_EQ(at(52, 4), 32u);
  EXPECT_EQ(at(64, 4), 7u);       // first segment's tenant
  EXPECT_EQ(at(64 + 32, 2), 2u);  // first slot's expert
  EXPECT_EQ(call.size(), 64u + 64 + 32);
  float first = 0;
  std::memcpy(&first, call.data() + 128, 4);
  EXPECT_EQ(first, 1.0f);
}

TEST(FrameDecode, GivesBackWhatACallSays) {
  BufferPool pool;
  const auto body = SampleBody(&pool);
  frame::View view;
  ASSERT_TRUE(frame::Decode(body->Frame(CallId{7}, Epoch{5}, 99, frame::kHedge), &view).ok());
  EXPECT_EQ(view.header.call.value, 7u);
  EXPECT_EQ(view.header.epoch.value, 5u);
  EXPECT_EQ(view.header.budget_us, 99u);
  EXPECT_EQ(view.header.flags, frame::kPayloadSum | frame::kHedge);
  ASSERT_EQ(view.segments.size(), 2u);
  EXPECT_EQ(view.segments[1].request_tag, 0xA2u);
  ASSERT_EQ(view.slots.size(), 3u);
  EXPECT_EQ(view.slots[2].expert, 5u);
  EXPECT_EQ(view.payload.size(), 32u);
  EXPECT_EQ(body->result_bytes(), 48u);
}

TEST(FrameDecode, GivesBackAResultsRangesTimingAndShares) {
  BufferPool pool;
  const BufferRef result = SampleResult(&pool);
  frame::View view;
  ASSERT_TRUE(frame::Decode(result.bytes(), &view).ok());
  EXPECT_EQ(view.header.flags, frame::kPayloadSum | frame::kLast);
  ASSERT_EQ(view.ranges.size(), 1u);
  EXPECT_EQ(view.ranges[0].n_slots, 3u);
  EXPECT_EQ(view.timing.progress, 66u);
  ASSERT_EQ(view.share_us.size(), 2u);
  EXPECT_EQ(view.share_us[1], 7u);
}

// Every single-byte change of every kind is refused: header and tables by their sum, payload by its own.
TEST(FrameMutation, NoFlippedByteIsEverAccepted) {
  BufferPool pool;
  for (const auto& [name, buffer] : SampleFrames(&pool)) {
    if (name == "call_no_sum") continue;  // its payload is not covered, on purpose
    for (size_t i = 0; i < buffer.size(); ++i) {
      for (const uint8_t flip : {0x01, 0x80, 0xFF}) {
        buffer.data()[i] ^= std::byte{flip};
        frame::View view;
        EXPECT_FALSE(frame::Decode(buffer.bytes(), &view).ok())
            << name << " byte " << i << " ^ " << int{flip};
        buffer.data()[i] ^= std::byte{flip};
      }
    }
  }
}

// A hostile peer makes right sums. Whatever the header says then, decoding stays in bounds and what it
// accepts is consistent.
TEST(FrameMutation, MutatedHeadersWithRightSumsAreRefusedOrConsistent) {
  BufferPool pool;
  std::mt19937 rng(1);
  uint64_t accepted = 0;
  for (const auto& [name, original] : SampleFrames(&pool)) {
    for (int round = 0; round < 4000; ++round) {
      BufferRef copy = pool.Allocate(original.size());
      std::memcpy(copy.data(), original.data(), original.size());
      const size_t mutable_bytes = original.size() - 8;
      for (uint32_t k = 1 + rng() % 3; k > 0; --k) {
        size_t i = rng() % mutable_bytes;
        if (i >= 56) i += 8;  // not the sums
        copy.data()[i] = static_cast<std::byte>(rng() % 4 == 0 ? rng() : rng() % 4);
      }
      frame::RawHeader raw;
      std::memcpy(&raw, copy.data(), sizeof(raw));
      const size_t rest = copy.size() - frame::kHeaderBytes;
      if (raw.payload_bytes <= rest) {
        const auto all = copy.bytes();
        raw.payload_sum =
            (raw.flags & frame::kPayloadSum) != 0 ? frame::PayloadSum(all.last(raw.payload_bytes)) : 0;
        raw.tables_sum = frame::HeaderSum(raw, frame::TablesHash(all.subspan(64, rest - raw.payload_bytes)));
        std::memcpy(copy.data(), &raw, sizeof(raw));
      }
      frame::View view;
      if (!frame::Decode(copy.bytes(), &view).ok()) continue;
      ++accepted;
      for (const frame::Slot& s : view.slots) EXPECT_LT(s.row, view.header.n_rows);
      if (view.header.kind == Kind::kCall) {
        EXPECT_GT(view.header.budget_us, 0u);
        EXPECT_EQ(view.payload.size(),
                  view.header.n_rows * frame::RowBytes(view.header.dtype_in, view.header.hidden));
      }
    }
  }
  EXPECT_GT(accepted, 100u) << "the test must also reach the accepting paths";
}

TEST(FrameMutation, TruncatedAndRandomBytesAreRefused) {
  BufferPool pool;
  for (const auto& [name, buffer] : SampleFrames(&pool)) {
    for (size_t n = 0; n < buffer.size(); ++n) {
      frame::View view;
      EXPECT_FALSE(frame::Decode(buffer.bytes().first(n), &view).ok()) << name << " cut to " << n;
    }
  }
  std::mt19937 rng(2);
  BufferRef noise = pool.Allocate(512);
  for (int i = 0; i < 2000; ++i) {
    for (std::byte& b : noise.bytes()) b = static_cast<std::byte>(rng());
    frame::View view;
    EXPECT_FALSE(frame::Decode(noise.bytes().first(rng() % 513), &view).ok());
  }
}

struct Sealed {
  BufferPool pool;
  BufferRef buffer;
  explicit Sealed(const char* name) {
    for (auto& [n, b] : SampleFrames(&pool)) {
      if (n == name) buffer = b;
    }
  }
  // Changes the header, makes the sums right, decodes.
  template <class F>
  absl::Status Edit(F&& edit, frame::View* view) {
    frame::RawHeader raw;
    std::memcpy(&raw, buffer.data(), sizeof(raw));
    edit(&raw, buffer.data());
    const auto between = buffer.bytes().subspan(64, buffer.size() - 64 - raw.payload_bytes);
    raw.tables_sum = frame::HeaderSum(raw, frame::TablesHash(between));
    std::memcpy(buffer.data(), &raw, sizeof(raw));
    return frame::Decode(buffer.bytes(), view);
  }
};

TEST(FrameRules, BadFieldsNameTheirOffsetAndTheStreamMayLive) {
  struct Case {
    const char* what;
    std::function<void(frame::RawHeader*, std::byte*)> edit;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"budget 0", [](auto* h, auto*) { h->budget_us = 0; }, "offset 32"},
      {"reserved flag", [](auto* h, auto*) { h->flags |= 0x80; }, "offset 36"},
      {"dtype 6", [](auto* h, auto*) { h->dtype_in = 6; }, "offset 38"},
      {"hidden 0", [](auto* h, auto*) { h->hidden = 0; }, "offset 40"},
      {"no rows", [](auto* h, auto*) { h->n_rows = 0; }, "offset 44"},
      {"too many slots", [](auto* h, auto*) { h->n_slots = kCallSlotsMax + 1; }, "offset 48"},
      {"more slots than tables", [](auto* h, auto*) { h->n_slots = 9; }, "offset 48"},
      {"reserved segment byte", [](auto*, auto* b) { b[64 + 9] = std::byte{1}; }, "offset 73"},
      {"first_row gap", [](auto*, auto* b) { b[64 + 16 + 4] = std::byte{2}; }, "offset 84"},
      {"row too high", [](auto*, auto* b) { b[96 + 2] = std::byte{2}; }, "offset 98"},
      {"unsorted slots", [](auto*, auto* b) { b[96] = std::byte{7}; }, "offset 104"},
      {"padding", [](auto*, auto* b) { b[127] = std::byte{1}; }, "offset 127"},
  };
  for (const Case& c : cases) {
    Sealed f("call");
    frame::View view;
    const absl::Status status = f.Edit(c.edit, &view);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.what;
    EXPECT_NE(std::string(status.message()).find(c.expected), std::string::npos) << c.what << ": " << status;
    EXPECT_TRUE(view.trusted) << c.what;
    EXPECT_EQ(view.header.call.value, 42u);
  }
}

TEST(FrameRules, AnUnknownVersionOrKindEndsTheStreamUnlessIgnorable) {
  frame::View view;
  Sealed version("call");
  EXPECT_EQ(version.Edit([](auto* h, auto*) { h->version = 2; }, &view).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(view.trusted);
  Sealed kind("drain");
  EXPECT_FALSE(kind.Edit([](auto* h, auto*) { h->kind = 12; }, &view).ok());
  EXPECT_FALSE(view.trusted);
  Sealed ignorable("drain");
  const absl::Status status = ignorable.Edit(
      [](auto* h, auto*) {
        h->kind = 200;
        h->flags = frame::kIgnorable;
      },
      &view);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(view.trusted);
}

TEST(FrameRules, ALongerHeaderIsSkipped) {
  BufferPool pool;
  const BufferRef call = Join(SampleBody(&pool)->Frame(CallId{42}, Epoch{}, 5, 0), &pool);
  BufferRef longer = pool.Allocate(call.size() + 64);
  std::memcpy(longer.data(), call.data(), 64);
  std::memset(longer.data() + 64, 0xEE, 64);
  std::memcpy(longer.data() + 128, call.data() + 64, call.size() - 64);
  frame::RawHeader raw;
  std::memcpy(&raw, longer.data(), sizeof(raw));
  raw.header_bytes = 128;
  raw.tables_sum =
      frame::HeaderSum(raw, frame::TablesHash(longer.bytes().subspan(64, longer.size() - 64 - 32)));
  std::memcpy(longer.data(), &raw, sizeof(raw));
  frame::View view;
  ASSERT_TRUE(frame::Decode(longer.bytes(), &view).ok()) << frame::Decode(longer.bytes(), &view);
  EXPECT_EQ(view.slots.size(), 3u);
}

TEST(FrameRules, AResultIsEitherPartialOrLast) {
  frame::View view;
  Sealed both("result"), none("result");
  EXPECT_FALSE(both.Edit([](auto* h, auto*) { h->flags |= frame::kPartial; }, &view).ok());
  EXPECT_FALSE(
      none.Edit([](auto* h, auto*) { h->flags &= static_cast<uint16_t>(~frame::kLast); }, &view).ok());
}

// Random calls: whatever is built is decoded to the same tables and rows; the sum does not depend on how
// often.
TEST(FrameProperty, EncodedCallsDecodeToThemselves) {
  BufferPool pool;
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    const uint32_t hidden = 1 + Word(rng) % 70, n_rows = 1 + Word(rng) % 40,
                   n_source = n_rows + Word(rng) % 10;
    std::vector<float> source(size_t{hidden} * n_source);
    for (float& x : source) x = static_cast<float>(rng());
    std::vector<uint32_t> rows;
    std::vector<frame::Segment> segments;
    std::vector<frame::Slot> slots;
    for (uint16_t r = 0; r < n_rows; ++r) {
      rows.push_back(Word(rng) % n_source);
      if (r == 0 || rng() % 3 == 0)
        segments.push_back({Word(rng), r, 0, static_cast<uint8_t>(rng() % 3), 0, 0, Word(rng)});
      ++segments.back().n_rows;
    }
    for (uint16_t e = 0; e < 6; ++e) {
      for (uint16_t r = 0; r < n_rows; ++r) {
        if (rng() % 3 == 0) slots.push_back({e, r, static_cast<uint8_t>(rng() % 8), 0, 0});
      }
    }
    if (slots.empty()) continue;
    CallBody::Plan plan;
    plan.hidden = hidden;
    plan.segments = segments;
    plan.slots = slots;
    plan.source_rows = rows;
    plan.source = reinterpret_cast<const std::byte*>(source.data());
    plan.payload_sum = rng() % 2 == 0;
    const auto body = CallBody::Build(plan, &pool);
    frame::View view;
    const WireFrame wire = body->Frame(CallId{1}, Epoch{}, 1, 0);
    ASSERT_TRUE(frame::Decode(wire, &view).ok()) << frame::Decode(wire, &view);
    ASSERT_EQ(view.segments.size(), segments.size());
    EXPECT_EQ(std::memcmp(view.segments.data(), segments.data(), view.segments.size_bytes()), 0);
    ASSERT_EQ(view.slots.size(), slots.size());
    EXPECT_EQ(std::memcmp(view.slots.data(), slots.data(), view.slots.size_bytes()), 0);
    for (uint32_t r = 0; r < n_rows; ++r) {
      EXPECT_EQ(
          std::memcmp(view.payload.data() + r * hidden * 4, &source[size_t{rows[r]} * hidden], hidden * 4),
          0);
    }
  }
  EXPECT_EQ(pool.live_buffers(), 0u);
}

TEST(FrameSizes, RowBytesOfEveryCode) {
  EXPECT_EQ(frame::RowBytes(frame::DtypeCode::kBf16, 256), 512u);
  EXPECT_EQ(frame::RowBytes(frame::DtypeCode::kF32, 256), 1024u);
  EXPECT_EQ(frame::RowBytes(frame::DtypeCode::kF8Scale128, 256), 264u);
  EXPECT_EQ(frame::RowBytes(frame::DtypeCode::kF8Scale128, 130), 132u + 8);
  EXPECT_EQ(frame::RowBytes(frame::DtypeCode::kI8Scale32, 256), 256u + 32);
  EXPECT_EQ(frame::RowBytes(frame::DtypeCode::kU64, 1), 8u);
}

TEST(FrameSizes, TheLargestCallOfRowsPerCallMaxFitsTheCap) {
  BufferPool pool;
  for (const uint32_t hidden : {1u, 256u, 1024u, 7168u}) {
    const uint32_t n = frame::RowsPerCallMax(frame::DtypeCode::kF32, hidden, 8);
    const size_t tables = n * (sizeof(frame::Segment) + 8 * sizeof(frame::Slot));
    EXPECT_LE(64 + frame::Pad64(tables) + n * frame::RowBytes(frame::DtypeCode::kF32, hidden), kFrameBytesMax)
        << hidden;
    EXPECT_LE(n, kCallRowsMax);
    EXPECT_LE(n * 8, kCallSlotsMax);
  }
}

}  // namespace
}  // namespace consilium
