#include "common/model/stored_matrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "common/base/status.h"
#include "common/model/stored_tensor_for_test.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Bytes in memory as a store.
class MemoryStore final : public ModelStore {
 public:
  std::vector<std::byte> bytes;
  std::vector<uint64_t> reads;  // lengths
  absl::Status Read(const ByteRange& range, std::span<std::byte> out) override {
    if (range.offset + range.length > bytes.size()) return DataLoss("short");
    std::memcpy(out.data(), bytes.data() + range.offset, out.size());
    reads.push_back(range.length);
    return absl::OkStatus();
  }
  TensorInfo AddF32(std::vector<uint64_t> shape, float first) {
    TensorInfo t = Stored("t", DType::kF32, std::move(shape));
    t.range.offset = bytes.size();
    for (uint64_t i = 0; i < t.elements(); ++i) {
      const float v = first + static_cast<float>(i);
      const auto* p = reinterpret_cast<const std::byte*>(&v);
      bytes.insert(bytes.end(), p, p + 4);
    }
    return t;
  }
};

TEST(StoredMatrix, SlicesOrdersAndColumnsGiveTheRowsMeant) {
  MemoryStore store;
  TensorInfo t = store.AddF32({6, 2}, 0);
  EXPECT_THAT(*LoadFloats(t, &store), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
  TensorInfo odd = t;  // up rows of an interleaved stack
  odd.shape = {3, 2};
  odd.first_row = 1;
  odd.row_step = 2;
  EXPECT_THAT(*LoadFloats(odd, &store), ElementsAre(2, 3, 6, 7, 10, 11));
  TensorInfo columns = t;  // stored [in 3, out 4]; the second half of the outputs
  columns.shape = {2, 3};
  columns.first_row = 2;
  columns.transposed = true;
  EXPECT_THAT(*LoadFloats(columns, &store), ElementsAre(2, 6, 10, 3, 7, 11));
  TensorInfo bias = t;  // of an interleaved vector
  bias.shape = {6};
  bias.row_step = 2;
  EXPECT_THAT(*LoadFloats(bias, &store), ElementsAre(0, 2, 4, 6, 8, 10));
  TensorInfo rotary = t;  // one head of 6 lanes: pairs side by side become halves
  rotary.rotary_head = 6;
  EXPECT_THAT(*LoadFloats(rotary, &store), ElementsAre(0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11));
  odd.first_row = 2;
  EXPECT_THAT(ToString(LoadFloats(odd, &store).status()), HasSubstr("rows beyond the 6 stored"));
}

TEST(StoredMatrix, LargeMatricesAreReadInPiecesThatPackAsTheWhole) {
  MemoryStore store;
  const TensorInfo t = store.AddF32({1040, 8192}, 1);  // 34 MB
  const auto packed = LoadMatrix(t, &store);
  ASSERT_TRUE(packed.ok()) << ToString(packed.status());
  EXPECT_EQ(store.reads.size(), (t.bytes() + kStagingBytes - 1) / kStagingBytes);
  for (uint64_t n : store.reads) EXPECT_LE(n, kStagingBytes);
  for (uint32_t row : {0u, 511u, 512u, 1039u})
    EXPECT_EQ(kernels::WeightValue(*packed, row, 5), 1.0f + static_cast<float>(row * 8192 + 5));
}

TEST(StoredMatrix, PiecesOfALargeFp8MatrixShareItsOneScale) {
  MemoryStore store;
  TensorInfo t = Stored("q", DType::kF8E4m3, {kStagingBytes / 4096 + 16, 4096});
  t.coding = Coding::kFp8Block;
  t.range.offset = 0;
  store.bytes.assign(t.range.length, std::byte{0x38});  // ones
  t.scales = ByteRange{0, store.bytes.size(), 4};
  const float scale = 3;
  const auto* p = reinterpret_cast<const std::byte*>(&scale);
  store.bytes.insert(store.bytes.end(), p, p + 4);
  const auto packed = LoadMatrix(t, &store);
  ASSERT_TRUE(packed.ok()) << ToString(packed.status());
  for (uint32_t row : {0u, static_cast<uint32_t>(t.rows()) - 1})
    EXPECT_EQ(kernels::WeightValue(*packed, row, 5), 3.0f);
}

// Gate and up interleaved in one range (read whole), down in MXFP4 with scales, in pieces.
TEST(StoredMatrix, ALargeExpertIsReadInPiecesAndItsChecksumIsThatOfItsRanges) {
  MemoryStore store;
  ExpertEntry entry;
  TensorInfo& gate = entry.parts[0];
  gate = store.AddF32({64, 96}, 1);
  gate.shape[0] = 32;
  gate.row_step = 2;
  entry.parts[1] = gate;
  entry.parts[1].first_row = 1;
  TensorInfo& down = entry.parts[2];
  down.name = "down";
  down.coding = Coding::kMxfp4;
  down.dtype = DType::kU8;
  down.shape = {192 * 1024, 64};
  down.range = {0, store.bytes.size(), 192 * 1024 * 32};
  for (uint64_t i = 0; i < down.range.length; ++i) store.bytes.push_back(static_cast<std::byte>(Mix(i, 1)));
  down.scales = {0, store.bytes.size(), 192 * 1024 * 2};
  for (uint64_t i = 0; i < down.scales.length; ++i)
    store.bytes.push_back(static_cast<std::byte>(120 + Mix(i, 2) % 8));
  ASSERT_EQ(entry.bytes(), store.bytes.size());
  entry.checksum = Xxh3(store.bytes);
  ASSERT_GT(down.range.length, kStagingBytes);

  const auto weights = LoadExpert(entry, &store);
  ASSERT_TRUE(weights.ok()) << ToString(weights.status());
  for (uint64_t n : store.reads) EXPECT_LE(n, kStagingBytes);
  EXPECT_EQ(kernels::WeightValue(weights->up, 3, 5), 1.0f + 7 * 96 + 5);
  OwnedTensor whole;
  ASSERT_TRUE(whole.Read(down, ReaderOf(&store)).ok());
  std::vector<uint32_t> order;
  const auto packed = kernels::Pack(*SourceOf(down, whole.bytes(), &order));
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ(std::memcmp(packed->data.get(), weights->down.data.get(), packed->bytes()), 0);

  // A damaged byte is named as that, also where it is no number; a damaged value at the very end, too.
  for (const uint64_t at : {uint64_t{3}, down.scales.offset + 9, down.range.offset + down.range.length - 1}) {
    const std::byte old = std::exchange(store.bytes[at], std::byte{0xFF});
    EXPECT_EQ(LoadExpert(entry, &store).status().code(), absl::StatusCode::kDataLoss) << at;
    store.bytes[at] = old;
  }
}

// A GPTQ and an AWQ matrix of the same codes, larger than what is read at a time, as one expert's parts.
TEST(StoredMatrix, WordsAreReadInPiecesOfInputsAndAwqIsPackedAsGptq) {
  constexpr uint32_t kOut = 4096, kIn = 4096, kGroupSize = 128;
  constexpr size_t kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  const auto code = [](uint64_t o, uint64_t i) { return static_cast<uint32_t>(Mix(o * kIn + i, 3)) & 15; };
  const auto zero = [](uint64_t o, uint64_t g) { return static_cast<uint32_t>(1 + Mix(o * 64 + g, 4) % 15); };
  MemoryStore store;
  const auto add = [&](size_t words, auto at) {
    const ByteRange range{0, store.bytes.size(), words * 4};
    store.bytes.resize(store.bytes.size() + words * 4);
    for (size_t i = 0; i < words; ++i) {
      const uint32_t word = at(i);
      std::memcpy(store.bytes.data() + range.offset + 4 * i, &word, 4);
    }
    return range;
  };
  const auto eight = [](auto nibble) {
    uint32_t w = 0;
    for (size_t n = 0; n < 8; ++n) w |= nibble(n) << (4 * n);
    return w;
  };
  constexpr size_t kRow = kOut / 8, kGroups = kIn / kGroupSize;
  ExpertEntry entry;
  for (TensorInfo& t : entry.parts) {
    const bool awq = &t != &entry.parts[0];
    t = Stored("w", DType::kI32, {kOut, kIn});
    t.coding = awq ? Coding::kAwq : Coding::kGptq4;
    t.block_rows = 1, t.block_columns = kGroupSize, t.scale_dtype = DType::kF32;
    t.zeros_minus_one = !awq;
    t.range = add(size_t{kIn} * kRow, [&](size_t i) {
      return eight([&](size_t n) {
        return awq ? code(i % kRow * 8 + kOrder[n], i / kRow) : code(i % kOut, i / kOut * 8 + n);
      });
    });
    t.scales = add(kGroups * kOut,
                   [&](size_t i) { return __builtin_bit_cast(uint32_t, 1.0f + static_cast<float>(i)); });
    t.zeros = add(kGroups * kRow, [&](size_t i) {
      return eight(
          [&](size_t n) { return zero(i % kRow * 8 + (awq ? kOrder[n] : n), i / kRow) - (awq ? 0 : 1); });
    });
  }
  entry.checksum = Xxh3(store.bytes);
  const auto weights = LoadExpert(entry, &store);
  ASSERT_TRUE(weights.ok()) << ToString(weights.status());
  for (uint64_t n : store.reads) EXPECT_LE(n, kStagingBytes);
  for (const auto& [o, i] : {std::pair{0u, 0u}, {7u, 129u}, {4095u, 4095u}, {1234u, 2047u}, {17u, 2048u}}) {
    const float want = (static_cast<float>(code(o, i)) - static_cast<float>(zero(o, i / kGroupSize))) *
                       (1.0f + static_cast<float>(i / kGroupSize * kOut + o));
    EXPECT_EQ(kernels::WeightValue(weights->gate, o, i), want) << o << " " << i;
  }
  EXPECT_EQ(weights->gate.format, kernels::WeightFormat::kInt4Zero);
  EXPECT_EQ(std::memcmp(weights->gate.data.get(), weights->up.data.get(), weights->gate.bytes()), 0);
  // Zero points that the configuration calls symmetric must be.
  TensorInfo centred = entry.parts[1];
  centred.centred = true;
  EXPECT_THAT(ToString(LoadMatrix(centred, &store).status()), HasSubstr("zero points other than the middle"));
}

TEST(StoredMatrix, AnExpertQuantisedInPiecesIsThatOfTheWhole) {
  MemoryStore store;
  ExpertEntry entry;
  for (TensorInfo& t : entry.parts) t = store.AddF32({48, 32 * 1024}, -3000);
  entry.checksum = Xxh3(store.bytes);
  kernels::QuantError in_pieces, whole;
  const auto weights = LoadExpert(entry, &store, WeightsAs::kInt8, &in_pieces);
  ASSERT_TRUE(weights.ok()) << ToString(weights.status());
  const kernels::PackedMatrix* matrices[] = {&weights->gate, &weights->up, &weights->down};
  for (int i = 0; i < 3; ++i) {
    OwnedTensor owned;
    ASSERT_TRUE(owned.Read(entry.parts[i], ReaderOf(&store)).ok());
    std::vector<uint32_t> order;
    const auto packed = kernels::PackQuantized(*SourceOf(entry.parts[i], owned.bytes(), &order),
                                               kernels::WeightFormat::kInt8, kQuantScale, &whole);
    ASSERT_TRUE(packed.ok());
    ASSERT_EQ(packed->bytes(), matrices[i]->bytes());
    EXPECT_EQ(std::memcmp(packed->data.get(), matrices[i]->data.get(), packed->bytes()), 0);
  }
  EXPECT_NEAR(in_pieces.relative(), whole.relative(), 1e-12);  // summed in another order
}

TEST(StoredMatrix, LatentHeadsOfQuantisedAndPlainFormsAgree) {
  // kv_b of 2 heads, nope 3, v 2, kv_lora 4.
  MemoryStore store;
  const TensorInfo t = store.AddF32({10, 4}, 0);
  const auto heads = LoadLatentHeads(t, 2, 3, 2, &store);
  ASSERT_TRUE(heads.ok()) << ToString(heads.status());
  ASSERT_EQ(heads->absorb_k.size(), 2u);
  EXPECT_EQ(heads->absorb_k[1].out, 4u);
  EXPECT_EQ(heads->absorb_k[1].in, 3u);
  EXPECT_EQ(kernels::WeightValue(heads->absorb_k[1], 2, 1), 26.0f);  // row 6, column 2
  EXPECT_EQ(kernels::WeightValue(heads->expand_v[1], 1, 3), 39.0f);  // row 9, column 3
  // FP8 of ones: 0x38 is 1.0; scales 2 and 3 for the two blocks of rows.
  TensorInfo fp8 = Stored("q", DType::kF8E4m3, {10, 4});
  fp8.coding = Coding::kFp8Block;
  fp8.block_rows = fp8.block_columns = 128;
  fp8.range.offset = store.bytes.size();
  store.bytes.insert(store.bytes.end(), 40, std::byte{0x38});
  fp8.scales = ByteRange{0, store.bytes.size(), 4};
  const float scale = 2;
  const auto* p = reinterpret_cast<const std::byte*>(&scale);
  store.bytes.insert(store.bytes.end(), p, p + 4);
  const auto quantised = LoadLatentHeads(fp8, 2, 3, 2, &store);
  ASSERT_TRUE(quantised.ok()) << ToString(quantised.status());
  EXPECT_EQ(kernels::WeightValue(quantised->absorb_k[1], 3, 2), 2.0f);
  EXPECT_EQ(kernels::WeightValue(quantised->expand_v[0], 1, 3), 2.0f);
  EXPECT_EQ(quantised->expand_v[0].format, kernels::WeightFormat::kFp8);
}

TEST(Manifest, AQuantisedExpertsRangesSurviveTheCache) {
  const std::string dir = std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/gpt_oss_mxfp4";
  const std::string state = ::testing::TempDir() + "/quant_manifest_state";
  const auto first = OpenManifest(dir, state), second = OpenManifest(dir, state);
  ASSERT_TRUE(first.ok()) << ToString(first.status());
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(Hex(first->digest), Hex(second->digest));
  for (const Manifest* m : {&*first, &*second}) {
    const ExpertEntry& e = m->experts[3];
    // Gate and up share blocks and scales, and the bias vector; down has its own.
    EXPECT_EQ(e.Ranges().size(), 6u);
    EXPECT_EQ(e.parts[1].first_row, 1u);
    EXPECT_EQ(e.parts[1].row_step, 2u);
    EXPECT_EQ(e.bytes(), 128u * 48 + 128 * 3 + 96 * 32 + 96 * 2 + 128 * 2 + 96 * 2);
    const auto store = OpenFolderStore(*m);
    const auto weights = LoadExpert(e, store.get());
    ASSERT_TRUE(weights.ok()) << ToString(weights.status());
    EXPECT_EQ(weights->gate_bias.size(), 64u);
    EXPECT_EQ(weights->up.format, kernels::WeightFormat::kMxfp4);
  }
}

}  // namespace
}  // namespace consilium
