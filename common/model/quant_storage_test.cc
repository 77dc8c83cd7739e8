#include "common/model/quant_storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status.h"
#include "common/model/model_spec.h"
#include "common/model/stored_matrix.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;
using Method = QuantConfig::Method;

const char* kInt4 =
    R"({"quant_method":"compressed-tensors","format":"pack-quantized","ignore":["lm_head","re:.*attn.*"],
  "config_groups":{"g":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","symmetric":true,"strategy":"group",
  "group_size":32,"actorder":null}}}})";

absl::StatusOr<QuantConfig> Parse(const Json& section) {
  return ParseQuantConfig(Json{{"quantization_config", section}}.dump(), "config.json");
}
std::string Error(const Json& section) { return ToString(Parse(section).status()); }

TEST(QuantConfig, KnownMethodsAreRead) {
  EXPECT_EQ(ParseQuantConfig("{}", "c")->method, Method::kNone);
  const auto fp8 = Parse(Json::parse(R"({"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,64]})"));
  ASSERT_TRUE(fp8.ok()) << ToString(fp8.status());
  EXPECT_EQ(fp8->method, Method::kFp8);
  EXPECT_EQ(fp8->block_rows, 128u);
  EXPECT_EQ(fp8->block_columns, 64u);
  const auto int4 = Parse(Json::parse(kInt4));
  ASSERT_TRUE(int4.ok()) << ToString(int4.status());
  EXPECT_EQ(int4->method, Method::kPackedInt4);
  EXPECT_EQ(int4->group, 32u);
  EXPECT_THAT(int4->ignore, ElementsAre("lm_head", "re:.*attn.*"));
  EXPECT_EQ(Parse({{"quant_method", "mxfp4"}})->method, Method::kMxfp4);
}

TEST(QuantConfig, EverythingElseIsRefusedByName) {
  EXPECT_THAT(Error({{"quant_method", "gptq"}}), HasSubstr("\"gptq\" is not supported; supported: fp8"));
  EXPECT_THAT(Error({{"quant_method", "fp8"}, {"fmt", "e5m2"}}), HasSubstr("fmt: \"e5m2\""));
  const auto native = [](const char* text) { return ParseQuantConfig(text, "params.json"); };
  EXPECT_EQ(native(R"({"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}})")->method,
            Method::kFp8);
  EXPECT_THAT(ToString(native(R"({"quantization": {"group_size": 64, "bits": 4}})").status()),
              HasSubstr("params.json: quantization.qformat_weight: \"\" is not supported"));
  EXPECT_THAT(Error({{"quant_method", "fp8"}, {"weight_block_size", {0, 128}}}),
              HasSubstr("expected a number in 1.."));
  const auto changed = [](const char* path, const Json& value) {
    Json j = Json::parse(kInt4);
    j[Json::json_pointer(path)] = value;
    return Error(j);
  };
  EXPECT_THAT(changed("/format", "marlin-24"), HasSubstr("\"marlin-24\" is not supported"));
  EXPECT_THAT(changed("/config_groups/g/weights/num_bits", 3), HasSubstr("num_bits: 3 is not supported"));
  EXPECT_THAT(changed("/config_groups/g/weights/symmetric", false), HasSubstr("symmetric: false"));
  EXPECT_THAT(changed("/config_groups/g/weights/actorder", "group"), HasSubstr("actorder"));
  EXPECT_THAT(changed("/config_groups/g/weights/group_size", 48), HasSubstr("multiples of 32"));
  EXPECT_THAT(changed("/config_groups/h", 1), HasSubstr("exactly one group"));
  EXPECT_THAT(changed("/ignore", {"re:(?=x)"}), HasSubstr("pattern \"re:(?=x)\" is not supported"));
}

// A little set of stored tensors; ranges do not matter here.
TensorInfo Stored(const std::string& name, DType dtype, std::vector<uint64_t> shape) {
  TensorInfo t;
  t.name = name;
  t.dtype = dtype;
  t.shape = std::move(shape);
  t.range = ByteRange{0, 100, t.elements() * DTypeBytes(dtype)};
  return t;
}
std::string JoinError(const QuantConfig& config, std::vector<TensorInfo> tensors) {
  return ToString(JoinQuantised(config, {"f"}, &tensors));
}

TEST(JoinQuantised, Fp8WithoutBlocksHasOneScaleForEachMatrix) {
  QuantConfig config;
  config.method = Method::kFp8;
  std::vector<TensorInfo> tensors = {Stored("a.weight", DType::kF8E4m3, {300, 129}),
                                     Stored("a.weight_scale_inv", DType::kBf16, {}),
                                     Stored("a.activation_scale", DType::kBf16, {}),
                                     Stored("w.weight", DType::kF8E4m3, {300, 129}),
                                     Stored("w.qscale_weight", DType::kF32, {1}),
                                     Stored("w.qscale_act", DType::kF32, {1}),
                                     Stored("e.down_proj", DType::kF8E4m3, {4, 30, 129}),
                                     Stored("e.down_proj_scale_inv", DType::kBf16, {4, 1, 1}),
                                     Stored("e.down_proj_activation_scale", DType::kBf16, {4})};
  const absl::Status status = JoinQuantised(config, {"f"}, &tensors);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].scales.length, 2u);
  EXPECT_EQ(tensors[1].scales.length, 4u);
  EXPECT_EQ(tensors[2].scales.length, 8u);
  EXPECT_THAT(JoinError(config, {Stored("e.down_proj", DType::kF8E4m3, {4, 30, 129}),
                                 Stored("e.down_proj_scale_inv", DType::kBf16, {3, 1, 1})}),
              HasSubstr("expected shape [4, 1, 1]"));
}

TEST(JoinQuantised, Fp8TakesItsRaggedBlocks) {
  QuantConfig config;
  config.method = Method::kFp8;
  config.block_rows = config.block_columns = 128;
  std::vector<TensorInfo> tensors = {Stored("a.weight", DType::kF8E4m3, {300, 129}),
                                     Stored("a.weight_scale_inv", DType::kF32, {3, 2}),
                                     Stored("n.weight", DType::kBf16, {4})};
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].coding, Coding::kFp8Block);
  EXPECT_EQ(tensors[0].scales.length, 24u);
  EXPECT_THAT(JoinError(config, {Stored("a.weight", DType::kF8E4m3, {300, 129})}),
              HasSubstr("\"a.weight_scale_inv\" is missing"));
  EXPECT_THAT(JoinError(config, {Stored("a.weight", DType::kF8E4m3, {300, 129}),
                                 Stored("a.weight_scale_inv", DType::kF32, {2, 2})}),
              HasSubstr("expected shape [3, 2] beside [300, 129], got [2, 2]"));
  EXPECT_THAT(JoinError({}, {Stored("a.weight", DType::kF8E4m3, {300, 129})}), HasSubstr("does not say how"));
}

TEST(JoinQuantised, PackedInt4TakesScaleAndShapeUnlessIgnored) {
  const QuantConfig config = *Parse(Json::parse(kInt4));
  const auto module = [](const std::string& name) {
    return std::vector<TensorInfo>{Stored(name + ".weight_packed", DType::kI32, {8, 8}),
                                   Stored(name + ".weight_scale", DType::kBf16, {8, 2}),
                                   Stored(name + ".weight_shape", DType::kI64, {2})};
  };
  std::vector<TensorInfo> tensors = module("x.experts.0.up_proj");
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "x.experts.0.up_proj.weight");
  EXPECT_THAT(tensors[0].shape, ElementsAre(8, 64));
  EXPECT_EQ(tensors[0].coding, Coding::kInt4Group);
  EXPECT_THAT(JoinError(config, module("x.self_attn.q")), HasSubstr("lists x.self_attn.q as not quantised"));
  tensors = module("x");
  tensors.push_back(Stored("x.weight_g_idx", DType::kI32, {64}));
  EXPECT_THAT(JoinError(config, tensors), HasSubstr("weight_g_idx is not supported"));
  tensors = module("x");
  tensors[1].shape = {8, 3};
  EXPECT_THAT(JoinError(config, tensors), HasSubstr("expected 2 groups of 32"));
}

TEST(JoinQuantised, Mxfp4StacksTakeTheirScales) {
  QuantConfig config;
  config.method = Method::kMxfp4;
  std::vector<TensorInfo> tensors = {Stored("e.gate_up_proj_blocks", DType::kU8, {2, 6, 3, 16}),
                                     Stored("e.gate_up_proj_scales", DType::kU8, {2, 6, 3})};
  ASSERT_TRUE(JoinQuantised(config, {"f"}, &tensors).ok());
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "e.gate_up_proj");
  EXPECT_THAT(tensors[0].shape, ElementsAre(2, 6, 96));
}

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
