#include "common/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/gguf_model.h"
#include "common/model/gguf_tokenizer.h"
#include "common/model/model_files.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/model/stored_matrix.h"
#include "tests/golden/golden_pairs.h"

namespace consilium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// Writes GGUF bytes piece by piece.
class Builder {
 public:
  template <class T>
  Builder& Put(T v) {
    bytes_.append(reinterpret_cast<const char*>(&v), sizeof v);
    return *this;
  }
  Builder& Text(const std::string& t) {
    Put<uint64_t>(t.size());
    bytes_ += t;
    return *this;
  }
  Builder& Header(uint64_t tensors, uint64_t pairs, uint32_t version = 3) {
    bytes_ += "GGUF";
    return Put(version).Put(tensors).Put(pairs);
  }
  Builder& U32(const std::string& key, uint32_t v) { return Text(key).Put<uint32_t>(4).Put(v); }
  Builder& Tensor(const std::string& name, std::vector<uint64_t> ne, uint32_t type, uint64_t offset) {
    Text(name).Put<uint32_t>(static_cast<uint32_t>(ne.size()));
    for (uint64_t n : ne) Put(n);
    return Put(type).Put(offset);
  }
  Builder& Data(size_t bytes, size_t alignment = 32) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
    bytes_.resize(bytes_.size() + bytes);
    return *this;
  }
  absl::StatusOr<Gguf> Parse() const {
    return ParseGguf(std::as_bytes(std::span(bytes_)), bytes_.size(), 5, "x");
  }
  std::string Error() const { return ToString(Parse().status()); }
  std::string bytes_;
};

TEST(Gguf, ReadsMetadataOfEveryTypeAndTensorsOfEveryFormat) {
  Builder b;
  b.Header(3, 6).U32("a", 7);
  b.Text("b").Put<uint32_t>(8).Text("word");
  b.Text("c").Put<uint32_t>(9).Put<uint32_t>(5).Put<uint64_t>(2).Put<int32_t>(-1).Put<int32_t>(2);
  b.Text("d").Put<uint32_t>(6).Put<float>(0.5f);
  b.Text("e").Put<uint32_t>(7).Put<uint8_t>(1);
  b.Text("f").Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(1).Text("x");
  b.Tensor("plain", {3, 2}, 0, 0).Tensor("k", {256, 2, 4}, 12, 32).Tensor("q8", {64}, 8, 32 + 8 * 144);
  b.Data(32 + 8 * 144 + 68);
  const auto g = b.Parse();
  ASSERT_TRUE(g.ok()) << ToString(g.status());
  EXPECT_EQ(**g->Integer("a"), 7);
  EXPECT_EQ(**g->Text("b"), "word");
  EXPECT_THAT(*g->Integers("c"), ElementsAre(-1, 2));
  EXPECT_EQ(**g->Number("d"), 0.5);
  EXPECT_EQ(**g->Bool("e"), true);
  EXPECT_THAT(*g->Texts("f"), ElementsAre("x"));
  EXPECT_FALSE((*g->Integer("missing")).has_value());
  EXPECT_FALSE(g->Integer("b").ok());
  ASSERT_EQ(g->tensors.size(), 3u);
  EXPECT_THAT(g->tensors[0].shape, ElementsAre(2, 3));  // slowest first
  EXPECT_EQ(g->tensors[0].coding, Coding::kPlain);
  EXPECT_THAT(g->tensors[1].shape, ElementsAre(4, 2, 256));
  EXPECT_EQ(g->tensors[1].coding, Coding::kQ4K);
  EXPECT_EQ(g->tensors[1].range.length, 8u * 144);
  EXPECT_EQ(g->tensors[1].range.file, 5u);
  EXPECT_EQ(g->tensors[1].range.offset, g->tensors[0].range.offset + 32);
}

TEST(Gguf, RefusesWhatDoesNotFitWithTheReason) {
  EXPECT_THAT(Builder().Put<uint32_t>(1).Put<uint32_t>(3).Error(),
              HasSubstr("expected it to begin with \"GGUF\""));
  EXPECT_THAT(Builder().Header(0, 0, 2).Error(), HasSubstr("GGUF version 2; expected 3"));
  EXPECT_THAT(Builder().Header(0, uint64_t{1} << 60).Error(),
              HasSubstr("metadata entries; the file has 0 bytes"));
  EXPECT_THAT(Builder().Header(uint64_t{1} << 60, 0).Error(), HasSubstr("tensors; the file has 0 bytes"));
  EXPECT_THAT(Builder().Header(0, 1).Text("k").Put<uint32_t>(13).Error(), HasSubstr("key \"k\""));
  EXPECT_THAT(Builder().Header(0, 2).U32("k", 1).U32("k", 2).Error(), HasSubstr("comes twice"));
  EXPECT_THAT(Builder().Header(0, 1).Text("k").Put<uint32_t>(7).Put<uint8_t>(2).Error(),
              HasSubstr("truth value of 2"));
  EXPECT_THAT(Builder()
                  .Header(0, 1)
                  .Text("k")
                  .Put<uint32_t>(9)
                  .Put<uint32_t>(0)
                  .Put<uint64_t>(uint64_t{1} << 50)
                  .Error(),
              HasSubstr("array items"));
  EXPECT_THAT(Builder().Header(0, 1).Text("k").Put<uint32_t>(9).Put<uint32_t>(9).Put<uint64_t>(1).Error(),
              HasSubstr("an array of type 9"));
  EXPECT_THAT(Builder().Header(0, 1).Text("k").Put<uint32_t>(8).Put<uint64_t>(9).Error(),
              HasSubstr("truncated"));
  EXPECT_THAT(Builder().Header(0, 1).U32("general.alignment", 48).Data(0).Error(), HasSubstr("power of two"));
  EXPECT_THAT(Builder().Header(1, 0).Tensor("t", {32}, 16, 0).Data(99).Error(),
              HasSubstr("type 16 is not supported"));
  EXPECT_THAT(Builder().Header(1, 0).Tensor("t", {33}, 8, 0).Data(99).Error(),
              HasSubstr("no multiple of 32"));
  EXPECT_THAT(
      Builder().Header(1, 0).Tensor("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0).Data(9).Error(),
      HasSubstr("too large"));
  EXPECT_THAT(Builder().Header(1, 0).Tensor("t", {8}, 0, 4).Data(99).Error(), HasSubstr("no multiple of 32"));
  EXPECT_THAT(Builder().Header(1, 0).Tensor("t", {8}, 0, 0).Data(31).Error(),
              HasSubstr("truncated or wrong"));
  EXPECT_THAT(Builder().Header(1, 0).Tensor("t", {8}, 0, 0).Data(65).Error(),
              HasSubstr("tensors end at byte"));
  EXPECT_THAT(Builder().Header(2, 0).Tensor("t", {8}, 0, 0).Tensor("u", {8}, 0, 0).Data(64).Error(),
              HasSubstr("must tile the data"));
  EXPECT_THAT(Builder().Header(2, 0).Tensor("t", {8}, 0, 0).Tensor("t", {8}, 0, 32).Data(64).Error(),
              HasSubstr("comes twice"));
}

TEST(Gguf, AsksForMoreWhereTheHeaderReachesBeyondWhatWasRead) {
  Builder b;
  b.Header(1, 1).U32("a", 1).Tensor("t", {8}, 0, 0).Data(32);
  for (size_t n = 0; n < b.bytes_.size(); ++n) {
    const auto part = ParseGguf(std::as_bytes(std::span(b.bytes_).first(n)), b.bytes_.size(), 0, "x");
    if (part.ok()) continue;
    EXPECT_TRUE(n < 4 || part.status().code() == absl::StatusCode::kOutOfRange)
        << n << ToString(part.status());
  }
}

std::string Golden(const std::string& name) {
  return std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/" + name;
}
Json TextsJson(const std::optional<std::string>& text) { return Json::parse(text.value_or("null")); }

TEST(GgufModel, MetadataGiveTheTokenizerThatTheFolderHad) {
  const auto from_file = ReadModelTexts(Golden("gguf_mixtral_q8_0")),
             from_folder = ReadModelTexts(Golden("mixtral"));
  ASSERT_TRUE(from_file.ok()) << ToString(from_file.status());
  Json a = TextsJson(from_file->tokenizer), b = TextsJson(from_folder->tokenizer);
  EXPECT_EQ(a["model"]["vocab"], b["model"]["vocab"]);
  EXPECT_EQ(a["model"]["merges"], b["model"]["merges"]);
  EXPECT_EQ(a["added_tokens"], b["added_tokens"]);
  EXPECT_EQ(a["pre_tokenizer"], b["pre_tokenizer"]);
  a["model"] = b["model"] = nullptr;
  EXPECT_EQ(a, b);
  const Json config = TextsJson(from_file->tokenizer_config),
             golden = TextsJson(from_folder->tokenizer_config);
  for (const char* key : {"bos_token", "eos_token", "chat_template", "add_bos_token"})
    EXPECT_EQ(config[key], golden[key]);
}

TEST(GgufModel, ATokenizerBesideTheFileWins) {
  const auto all = ReadModelTexts(Golden("gguf_mixtral_q8_0") + "/model.gguf");
  ASSERT_TRUE(all.ok());
  EXPECT_TRUE(all->generation_config.has_value());
  EXPECT_TRUE(all->tokenizer.has_value());
}

TEST(GgufModel, EveryReferenceFileIsDescribedAndClaimed) {
  for (const char* name : {"gguf_deepseek2_bf16", "gguf_gpt_oss_mxfp4", "gguf_mixtral_q8_0",
                           "gguf_olmoe_q4_0", "gguf_qwen3moe_q4_k_q6_k", "gguf_dbrx",
                           "gguf_deepseek2_lite_old", "gguf_granitemoe_shared", "gguf_grok"}) {
    const auto spec = ReadModelSpec(Golden(name));
    ASSERT_TRUE(spec.ok()) << ToString(spec.status());
    EXPECT_THAT(spec->eos_ids, ElementsAre(2, 4)) << name;
    const auto manifest = OpenManifest(Golden(name), "");
    ASSERT_TRUE(manifest.ok()) << ToString(manifest.status());
    EXPECT_EQ(manifest->experts.size(), spec->experts_total());
    EXPECT_EQ(manifest->id, name);
    const auto by_file = OpenManifest(Golden(name) + "/model.gguf", "");
    ASSERT_TRUE(by_file.ok());
    EXPECT_EQ(by_file->id, "model");
    EXPECT_EQ(Hex(by_file->digest), Hex(manifest->digest));
  }
}

TEST(GgufModel, MlaRanksAndScalingComeThroughAsInTheConfig) {
  const auto spec = ReadModelSpec(Golden("gguf_deepseek2_bf16"));
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  EXPECT_EQ(spec->family, "deepseek_v3");
  EXPECT_EQ(spec->mla.q_lora, 24u);
  EXPECT_EQ(spec->mla.nope, 16u);
  EXPECT_EQ(spec->mla.rope, 8u);
  EXPECT_EQ(spec->mla.v_dim, 16u);
  EXPECT_EQ(spec->gate.groups, 4u);
  EXPECT_EQ(spec->gate.groups_kept, 2u);
  EXPECT_FLOAT_EQ(spec->gate.scale, 2.5f);
  // (nope + rope)^-0.5 times (0.1 ln 8 + 1)^2
  EXPECT_NEAR(spec->mla.scale, 0.20412415 * 1.2079442 * 1.2079442, 1e-6);
  EXPECT_FLOAT_EQ(spec->rope.attention_scaling, 1.0f);
}

// Every number that the metadata can say is the one in the config.json they were made from.
TEST(GgufModel, ArchitecturesAreDescribedAsTheirConfigs) {
  for (const auto& [file, folder] : kGgufPairs) {
    const auto a = ReadModelSpec(Golden(file)), b = ReadModelSpec(Golden(folder));
    ASSERT_TRUE(a.ok() && b.ok()) << file << ToString(a.status()) << ToString(b.status());
    EXPECT_EQ(a->family, b->family);
    EXPECT_EQ(a->context, b->context) << file;
    EXPECT_EQ(a->tied_embeddings, b->tied_embeddings) << file;
    EXPECT_EQ(a->gate.top_k, b->gate.top_k) << file;
    EXPECT_EQ(a->gate.groups, b->gate.groups) << file;
    EXPECT_EQ(a->gate.renormalize, b->gate.renormalize) << file;
    EXPECT_EQ(a->gate.scale, b->gate.scale) << file;
    EXPECT_EQ(a->expert_inter, b->expert_inter) << file;
    EXPECT_EQ(a->norm_eps, b->norm_eps) << file;
    EXPECT_EQ(a->rope.dims, b->rope.dims) << file;
    EXPECT_EQ(a->rope.interleaved, b->rope.interleaved) << file;
    EXPECT_EQ(a->rope.inv_freq, b->rope.inv_freq) << file;
    EXPECT_EQ(a->logit_scale, b->logit_scale) << file;
    EXPECT_EQ(a->embed_scale, b->embed_scale) << file;
    EXPECT_EQ(a->activation, b->activation) << file;
    EXPECT_EQ(a->eos_ids, b->eos_ids) << file;
  }
}

// Embeddings and heads are held in the form of the file; looking up a row widens that row.
TEST(GgufModel, QuantisedEmbeddingsStayAsTheyAre) {
  for (const char* name : {"gguf_gpt_oss_mxfp4", "gguf_mixtral_q8_0", "gguf_olmoe_q4_0", "gguf_mixtral_q4_1",
                           "gguf_mixtral_q5_0", "gguf_mixtral_q5_1", "gguf_qwen3moe_q4_k_q6_k",
                           "gguf_qwen3moe_q5_k", "gguf_granitemoe"}) {
    const auto manifest = OpenManifest(Golden(name), "");
    ASSERT_TRUE(manifest.ok()) << ToString(manifest.status());
    const auto store = OpenFolderStore(*manifest);
    for (const char* role : {"embed", "head"}) {
      const TensorInfo* t = manifest->FindDense(role);
      if (t == nullptr) continue;  // tied
      const auto packed = LoadMatrix(*t, store.get());
      ASSERT_TRUE(packed.ok()) << ToString(packed.status());
      EXPECT_LE(packed->bytes(), t->bytes() * 115 / 100) << name << " " << role << " " << FormatName(*t);
      EXPECT_LT(packed->bytes(), t->elements() * sizeof(float)) << name << " " << role;
    }
  }
}

Gguf SmallLlama() {
  Gguf g;
  g.metadata["general.architecture"] = std::string("llama");
  for (const auto& [key, v] : {std::pair<const char*, int64_t>{"block_count", 1},
                               {"embedding_length", 8},
                               {"attention.head_count", 2},
                               {"attention.head_count_kv", 1},
                               {"expert_count", 2}})
    g.metadata["llama." + std::string(key)] = v;
  return g;
}

TEST(GgufModel, ControlTokensThatEndAnswersAreStopIds) {
  const auto stops = [](std::vector<std::string> tokens, std::vector<int64_t> types, int64_t eos) {
    Gguf g = SmallLlama();
    g.metadata["llama.expert_used_count"] = g.metadata["llama.context_length"] = int64_t{1};
    g.metadata["tokenizer.ggml.tokens"] = std::move(tokens);
    g.metadata["tokenizer.ggml.token_type"] = std::move(types);
    g.metadata["tokenizer.ggml.eos_token_id"] = eos;
    const auto config = GgufConfigJson(g, "f");
    EXPECT_TRUE(config.ok()) << ToString(config.status());
    return Json::parse(config.value_or("{}"))["eos_token_id"].get<std::vector<int>>();
  };
  // gpt-oss: a tool call ends an answer too, the end of a message does not.
  EXPECT_THAT(stops({"<|endoftext|>", "<|return|>", "<|end|>", "<|call|>"}, {3, 3, 3, 3}, 1),
              ElementsAre(0, 1, 3));
  EXPECT_THAT(stops({"<|im_end|>", "<|im_end|>x", "a"}, {1, 3, 1}, 2),
              ElementsAre(2));  // plain text is no stop
  EXPECT_THAT(stops({"<|user|>", "<|observation|>", "</s>"}, {3, 3, 3}, 2), ElementsAre(2));
  EXPECT_THAT(stops({"<|user|>", "<|observation|>", "[gMASK]", "<|endoftext|>"}, {3, 3, 3, 3}, 3),
              ElementsAre(0, 1, 3));
  EXPECT_THAT(stops({"<\uff5cend\u2581of\u2581sentence\uff5c>", "b"}, {3, 1}, 1), ElementsAre(0, 1));
}

// llama.cpp divides each frequency by a tensor's values; the bf16 folder has the rule they came from.
TEST(GgufModel, FrequencyDivisorsOfLlama4AreItsScaling) {
  const auto a = ReadModelSpec(Golden("gguf_llama4")), b = ReadModelSpec(Golden("llama4"));
  ASSERT_TRUE(a.ok() && b.ok()) << ToString(a.status()) << ToString(b.status());
  ASSERT_EQ(a->rope.inv_freq.size(), b->rope.inv_freq.size());
  for (size_t i = 0; i < a->rope.inv_freq.size(); ++i)
    EXPECT_FLOAT_EQ(a->rope.inv_freq[i], b->rope.inv_freq[i]) << i;
  EXPECT_EQ(a->layers[0].chunk, 8192u);
  EXPECT_FALSE(a->layers[3].rotates);
  EXPECT_EQ(a->tuning.floor, 8192u);
  EXPECT_EQ(a->gqa.qk_norm, b->gqa.qk_norm);
  EXPECT_EQ(a->layers[0].dense_inter, b->layers[0].dense_inter);
  EXPECT_EQ(a->layers[1].shared_inter, b->layers[1].shared_inter);
  Gguf g = SmallLlama();
  g.metadata["llama.expert_used_count"] = g.metadata["llama.context_length"] = int64_t{1};
  g.metadata["rope_freqs.weight"] = std::vector<double>{1, 2, 3};  // for heads of 4 lanes: 2
  const auto config = GgufConfigJson(g, "f");
  ASSERT_TRUE(config.ok()) << ToString(config.status());
  Json j = Json::parse(*config);
  j["vocab_size"] = j["intermediate_size"] = 8;
  EXPECT_THAT(ToString(ParseModelSpec(j.dump(), "f").status()),
              HasSubstr("factors: expected 2 numbers, got 3"));
  g.metadata["llama.rope.scaling.type"] = std::string("yarn");
  EXPECT_THAT(ToString(GgufConfigJson(g, "f").status()), HasSubstr("together with rope_freqs.weight"));
}

Gguf SmallDeepseek(int64_t experts, int64_t gating) {
  Gguf g;
  g.metadata["general.architecture"] = std::string("deepseek2");
  const auto set = [&](const std::string& key, int64_t v) { g.metadata["deepseek2." + key] = v; };
  for (const char* key : {"embedding_length", "feed_forward_length", "expert_feed_forward_length",
                          "attention.kv_lora_rank", "vocab_size", "context_length"})
    set(key, 64);
  set("block_count", 2);
  set("attention.head_count", 4);
  set("attention.head_count_kv", 4);
  set("attention.key_length", 24);
  set("attention.value_length", 16);
  set("rope.dimension_count", 8);
  set("expert_count", experts);
  set("expert_used_count", 4);
  set("expert_gating_func", gating);
  return g;
}

TEST(GgufModel, DeepseekFilesWithoutGroupCountsHaveThoseOfTheReleases) {
  const auto groups = [](const Gguf& g) {
    const auto config = GgufConfigJson(g, "f");
    EXPECT_TRUE(config.ok()) << ToString(config.status());
    const Json j = Json::parse(config.value_or("{}"));
    return std::pair(j["n_group"].get<int>(), j["topk_group"].get<int>());
  };
  EXPECT_EQ(groups(SmallDeepseek(256, 2)), std::pair(8, 4));  // V3, R1
  EXPECT_EQ(groups(SmallDeepseek(160, 1)), std::pair(8, 3));  // V2
  EXPECT_EQ(groups(SmallDeepseek(64, 1)), std::pair(1, 1));   // V2-Lite
  EXPECT_EQ(groups(SmallDeepseek(384, 2)), std::pair(1, 1));  // Kimi K2
  Gguf said = SmallDeepseek(256, 2);
  said.metadata["deepseek2.expert_group_count"] = int64_t{1};
  EXPECT_EQ(groups(said), std::pair(1, 1));
}

TEST(GgufModel, WhatMetadataSayOtherwiseIsRefused) {
  const auto error = [](const Gguf& g) { return ToString(GgufConfigJson(g, "f").status()); };
  EXPECT_THAT(error(SmallDeepseek(16, 3)), HasSubstr("deepseek2.expert_gating_func: expected 1"));
  Gguf mistral = SmallDeepseek(16, 1);
  mistral.metadata["deepseek2.attention.temperature_scale"] = 0.1;
  EXPECT_THAT(error(mistral), HasSubstr("Mistral Large 3 is supported in its own format only"));
  Gguf absorbed = SmallDeepseek(16, 1);
  absorbed.tensors.emplace_back().name = "blk.0.attn_k_b.weight";
  EXPECT_THAT(error(absorbed), HasSubstr("key_length_mla: missing"));
  Gguf huge = SmallDeepseek(16, 1);
  huge.metadata["deepseek2.nextn_predict_layers"] = INT64_MIN;
  EXPECT_THAT(error(huge), HasSubstr("nextn_predict_layers: expected a number up to 2^40, got -9223"));
  Gguf lacking = SmallDeepseek(16, 1);
  lacking.metadata.erase("deepseek2.context_length");
  EXPECT_THAT(error(lacking), HasSubstr("deepseek2.context_length: missing; expected an integer"));
}

TensorInfo Stored(const std::string& name, std::vector<uint64_t> shape, uint64_t offset) {
  TensorInfo t;
  t.name = name;
  t.shape = std::move(shape);
  t.range = ByteRange{0, offset, 4 * t.elements()};
  return t;
}

TEST(GgufModel, ExpertsMayBeSingleTensors) {
  Gguf g = SmallLlama();
  g.tensors = {Stored("blk.0.ffn_gate.0.weight", {6, 8}, 0), Stored("blk.0.ffn_down.1.weight", {8, 6}, 192),
               Stored("blk.0.ffn_up.x.weight", {6, 8}, 384)};
  const auto tensors = GgufTensors(g, "f");
  ASSERT_TRUE(tensors.ok()) << ToString(tensors.status());
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[0].role, "layers.0.experts.0.gate");
  EXPECT_EQ((*tensors)[1].role, "layers.0.experts.1.down");
  EXPECT_EQ((*tensors)[2].role, "");  // nobody's: refused by name when roles are claimed
}

TEST(GgufModel, FusedQueriesKeysAndValuesAreCutByRows) {
  Gguf g = SmallLlama();
  g.tensors = {Stored("blk.0.attn_qkv.weight", {16, 8}, 64), Stored("blk.0.attn_qkv.bias", {16}, 1000)};
  const auto tensors = GgufTensors(g, "f");
  ASSERT_TRUE(tensors.ok()) << ToString(tensors.status());
  ASSERT_EQ(tensors->size(), 6u);
  EXPECT_EQ((*tensors)[0].role, "layers.0.q");
  EXPECT_THAT((*tensors)[0].shape, ElementsAre(8, 8));
  EXPECT_EQ((*tensors)[0].rotary_head, 4u);
  EXPECT_EQ((*tensors)[1].role, "layers.0.k");
  EXPECT_EQ((*tensors)[1].range, (ByteRange{0, 64 + 8 * 32, 4 * 32}));
  EXPECT_EQ((*tensors)[2].role, "layers.0.v");
  EXPECT_EQ((*tensors)[2].rotary_head, 0u);
  EXPECT_EQ((*tensors)[5].role, "layers.0.v_bias");
  EXPECT_EQ((*tensors)[5].range, (ByteRange{0, 1000 + 12 * 4, 16}));
  g.tensors[0].shape = {15, 8};
  EXPECT_THAT(ToString(GgufTensors(g, "f").status()),
              HasSubstr("expected 16 rows of q, k and v, got [15, 8]"));
}

// A head that lies in a later file is seen: embeddings are not tied.
TEST(GgufModel, TheConfigOfASplitModelKnowsTheTensorsOfAllFiles) {
  const std::string dir = ::testing::TempDir() + "gguf_split";
  std::filesystem::create_directories(dir);
  const auto write = [&](int number, const Builder& b) {
    std::ofstream(dir + "/m-0000" + std::to_string(number) + "-of-00002.gguf", std::ios::binary) << b.bytes_;
  };
  Builder first, second;
  first.Header(1, 10).U32("split.count", 2).U32("split.no", 0).Text("general.architecture");
  first.Put<uint32_t>(8).Text("llama");
  for (const auto& [key, v] : {std::pair<const char*, uint32_t>{"block_count", 1},
                               {"embedding_length", 8},
                               {"attention.head_count", 2},
                               {"attention.head_count_kv", 1},
                               {"expert_count", 2},
                               {"expert_used_count", 1},
                               {"context_length", 16}})
    first.U32("llama." + std::string(key), v);
  first.Tensor("token_embd.weight", {8, 4}, 0, 0).Data(128);
  second.Header(1, 1).U32("split.no", 1).Tensor("output.weight", {8, 4}, 0, 0).Data(128);
  write(1, first);
  write(2, second);
  const auto place = FindModel(dir);
  ASSERT_TRUE(place.ok()) << ToString(place.status());
  const auto config = ReadConfigText(*place);
  ASSERT_TRUE(config.ok()) << ToString(config.status());
  EXPECT_FALSE(Json::parse(config->text)["tie_word_embeddings"].get<bool>());
}

TEST(GgufModel, UnknownArchitecturesAndTokenizersAreNamed) {
  Gguf g;
  g.metadata["general.architecture"] = std::string("rwkv");
  EXPECT_THAT(ToString(GgufConfigJson(g, "f").status()),
              HasSubstr("architecture \"rwkv\" is not known; known: llama"));
  g.metadata["general.architecture"] = std::string("llama");
  EXPECT_THAT(ToString(GgufConfigJson(g, "f").status()), HasSubstr("without experts"));
  g.metadata["tokenizer.ggml.tokens"] = std::vector<std::string>{"a", "b", "ab"};
  g.metadata["tokenizer.ggml.model"] = std::string("rwkv");
  EXPECT_THAT(ToString(GgufTokenizerJson(g, "f").status()),
              HasSubstr("put a tokenizer.json beside the file"));
  g.metadata["tokenizer.ggml.model"] = std::string("gpt2");
  g.metadata["tokenizer.ggml.pre"] = std::string("sphinx");
  EXPECT_THAT(ToString(GgufTokenizerJson(g, "f").status()), HasSubstr("\"sphinx\" is not known"));
  g.metadata["tokenizer.ggml.pre"] = std::string("qwen2");
  g.metadata["tokenizer.ggml.merges"] = std::vector<std::string>{"a c"};
  EXPECT_THAT(ToString(GgufTokenizerJson(g, "f").status()), HasSubstr("\"a c\" is not of tokens"));
}

TEST(GgufTokenizer, MergesOfSentencePieceFollowFromScores) {
  Gguf g;
  g.metadata["tokenizer.ggml.model"] = std::string("llama");
  g.metadata["tokenizer.ggml.tokens"] =
      std::vector<std::string>{"<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "\u2581", "\u2581a", "aab"};
  g.metadata["tokenizer.ggml.token_type"] = std::vector<int64_t>{2, 3, 3, 6, 1, 1, 1, 1, 1, 1};
  g.metadata["tokenizer.ggml.scores"] = std::vector<double>{0, 0, 0, 0, -10, -11, -1, -12, -2, -3};
  g.metadata["tokenizer.ggml.bos_token_id"] = int64_t{1};
  const auto text = GgufTokenizerJson(g, "f");
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  const Json j = Json::parse(*text);
  EXPECT_EQ(j["model"]["merges"], Json::parse(R"([["a","b"],["▁","a"],["a","ab"]])"));
  EXPECT_TRUE(j["model"]["byte_fallback"].get<bool>());
  EXPECT_EQ(j["post_processor"]["special_tokens"]["<s>"]["ids"],
            Json::parse("[1]"));  // on unless the file says no
  EXPECT_EQ(j["added_tokens"].size(), 3u);
}

}  // namespace
}  // namespace consilium
