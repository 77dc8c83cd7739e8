#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/inspect.h"
#include "common/model/model_spec.h"
#include "common/model/model_store.h"
#include "common/testing/tiny_checkpoint.h"

namespace consilium {
namespace {

using ::testing::HasSubstr;

// A tiny model folder and the means to damage it.
class ManifestTest : public ::testing::Test {
 protected:
  void Make(const TinyConfig& config = {}) {
    const auto status = WriteTinyCheckpoint(config, dir_);
    ASSERT_TRUE(status.ok()) << ToString(status);
  }
  Manifest Open() {
    auto m = OpenManifest(dir_, state_);
    CHECK_MSG(m.ok(), ToString(m.status()));
    return *std::move(m);
  }
  std::string Error() { return ToString(OpenManifest(dir_, "").status()); }
  std::string Slurp(const std::string& name) { return *ReadTextFile(dir_ + "/" + name, 1 << 30); }
  void Spill(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name, std::ios::binary | std::ios::trunc) << text;
  }
  // Replaces one text of the same length in the safetensors header.
  void Rename(const std::string& from, const std::string& to) {
    ASSERT_EQ(from.size(), to.size());
    std::string file = Slurp("model.safetensors");
    const size_t at = file.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    Spill("model.safetensors", file.replace(at, from.size(), to));
  }

  TemporaryFolder root_;
  const std::string dir_ = root_.path() + "/tiny";
  const std::string state_ = root_.path() + "/state";
};

TEST_F(ManifestTest, ClaimsEveryTensorOnceInOneFileOrInShards) {
  Make();
  const Manifest one = Open();
  EXPECT_EQ(one.id, "tiny");
  EXPECT_EQ(one.experts.size(), 16u);
  std::filesystem::remove(dir_ + "/model.safetensors");
  TinyConfig sharded;
  sharded.shards = 3;
  Make(sharded);
  const Manifest three = Open();
  EXPECT_EQ(three.files.size(), 3u);
  EXPECT_EQ(Hex(one.digest), Hex(three.digest));
  EXPECT_EQ(one.FindExpert(LayerId(2), ExpertId(7))->checksum,
            three.FindExpert(LayerId(2), ExpertId(7))->checksum);
  EXPECT_EQ(one.FindExpert(LayerId(0), ExpertId(0)), nullptr);  // dense layer
  EXPECT_NE(one.FindDense("layers.1.kv_b"), nullptr);
  EXPECT_EQ(one.FindDense("layers.9.kv_b"), nullptr);
}

TEST_F(ManifestTest, AnIdentityChangesWithOneBitOfOneExpertOnly) {
  Make();
  const Manifest before = Open();
  const ByteRange up = before.FindExpert(LayerId(1), ExpertId(3))->parts[1].range;
  std::string file = Slurp("model.safetensors");
  file[up.offset + 5] ^= 1;
  Spill("model.safetensors", file);
  const auto after = OpenManifest(dir_, "");
  ASSERT_TRUE(after.ok());
  EXPECT_NE(Hex(after->digest), Hex(before.digest));
  for (size_t i = 0; i < before.experts.size(); ++i) {
    const bool same = before.experts[i].digest == after->experts[i].digest;
    EXPECT_EQ(same, before.experts[i].layer != LayerId(1) || before.experts[i].expert != ExpertId(3)) << i;
    EXPECT_EQ(same, before.experts[i].checksum == after->experts[i].checksum) << i;
  }
}

TEST_F(ManifestTest, IsKeptInTheStateFolderUntilAFileChanges) {
  Make();
  const Manifest first = Open();
  size_t kept = 0;
  std::string cache;
  for (const auto& f : std::filesystem::directory_iterator(state_ + "/manifests")) ++kept, cache = f.path();
  EXPECT_EQ(kept, 1u);
  // One character of its digest changed: a damaged one is made anew.
  std::string text = *ReadTextFile(cache, 1 << 30);
  const size_t at = text.find(Hex(first.digest));
  ASSERT_NE(at, std::string::npos);
  text[at] = text[at] == '0' ? '1' : '0';
  std::ofstream(cache, std::ios::trunc) << text;
  const Manifest again = Open();
  EXPECT_EQ(Hex(again.digest), Hex(first.digest));
  // Untouched: no rewrite.
  const auto stamp = StampFile(cache);
  const Manifest third = Open();
  EXPECT_EQ(*StampFile(cache), *stamp);
  EXPECT_EQ(third.experts.size(), first.experts.size());
  EXPECT_EQ(third.experts[5].parts[2].range.offset, first.experts[5].parts[2].range.offset);
  EXPECT_EQ(third.dense.size(), first.dense.size());
  // A changed weight file.
  TinyConfig other;
  other.seed = 2;
  Make(other);
  EXPECT_NE(Hex(Open().digest), Hex(first.digest));
}

// `consilium import`: beside the model, so that whoever is given the model finds it, wherever it is mounted.
TEST_F(ManifestTest, AnImportBesideTheModelIsFoundUnderAnyPath) {
  Make();
  const auto made = ImportModel(dir_, "");
  ASSERT_TRUE(made.ok()) << ToString(made.status());
  EXPECT_TRUE(made->made);
  EXPECT_EQ(made->kept, dir_ + "/consilium-manifest.json");
  const auto again = ImportModel(dir_, "");
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again->made);
  const std::string moved = root_.path() + "/moved";
  std::filesystem::rename(dir_, moved);
  const auto opened = OpenManifest(moved, state_);
  ASSERT_TRUE(opened.ok()) << ToString(opened.status());
  EXPECT_EQ(Hex(opened->digest), Hex(made->manifest.digest));
  EXPECT_EQ(opened->id, "moved");
  EXPECT_EQ(opened->files[0], moved + "/model.safetensors");
  EXPECT_FALSE(FileExists(state_ + "/manifests"));  // nothing was made
}

TEST_F(ManifestTest, AnImportBesideAChangedModelIsMadeAnew) {
  Make();
  const auto first = ImportModel(dir_, "");
  TinyConfig other;
  other.seed = 2;
  Make(other);
  const auto second = ImportModel(dir_, "");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE(second->made);
  EXPECT_NE(Hex(first->manifest.digest), Hex(second->manifest.digest));
}

TEST_F(ManifestTest, AnImportThatCannotBeKeptSaysWhereAndLeavesNothing) {
  Make();
  std::ofstream(root_.path() + "/file") << "no folder";
  EXPECT_THAT(ToString(ImportModel(dir_, root_.path() + "/file").status()),
              HasSubstr(root_.path() + "/file/manifests/"));
  Rename("model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.7.mlp.experts.3.up_proj.weight");
  EXPECT_FALSE(ImportModel(dir_, "").ok());
  EXPECT_FALSE(FileExists(dir_ + "/consilium-manifest.json"));
}

// Processes that start together: one hashes, the others wait for what it stores.
TEST_F(ManifestTest, WaitsForAnImportUnderWayAndTakesItsResult) {
  Make();
  std::optional<FileLock> other;
  {
    auto lock = FileLock::Acquire(state_ + "/import.lock", "is the test");
    ASSERT_TRUE(lock.ok()) << ToString(lock.status());
    other.emplace(*std::move(lock));
  }
  std::promise<std::string> digest;
  std::thread waits([&] { digest.set_value(Hex(Open().digest)); });
  std::future<std::string> got = digest.get_future();
  EXPECT_EQ(got.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
  const auto imported = OpenManifest(dir_, root_.path() + "/elsewhere");
  ASSERT_TRUE(imported.ok());
  std::filesystem::copy(root_.path() + "/elsewhere/manifests", state_ + "/manifests");
  const std::string cache = std::filesystem::directory_iterator(state_ + "/manifests")->path();
  const auto stamp = StampFile(cache);
  other.reset();
  waits.join();
  EXPECT_EQ(got.get(), Hex(imported->digest));
  EXPECT_EQ(*StampFile(cache), *stamp);
}

TEST_F(ManifestTest, MissingTensor) {
  Make();
  Rename("model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.7.mlp.experts.3.up_proj.weight");
  EXPECT_THAT(Error(),
              HasSubstr("tensor \"model.layers.1.mlp.experts.3.up_proj.weight\" [16, 32] is missing"));
}

TEST_F(ManifestTest, WrongShape) {
  Make();
  std::string file = Slurp("model.safetensors");
  const size_t at = file.find("[8,32]", file.find("\"model.layers.1.mlp.gate.weight\""));
  Spill("model.safetensors", file.replace(at, 6, "[32,8]"));
  EXPECT_THAT(Error(),
              HasSubstr("tensor \"model.layers.1.mlp.gate.weight\": expected shape [8, 32], got [32, 8]"));
}

TEST_F(ManifestTest, WrongType) {
  TinyConfig config;
  config.dtype = DType::kF32;
  Make(config);
  std::string file = Slurp("model.safetensors");
  const size_t at = file.find("\"F32\"", file.find("\"model.norm.weight\""));
  Spill("model.safetensors", file.replace(at, 5, "\"I32\""));
  EXPECT_THAT(Error(), HasSubstr("tensor \"model.norm.weight\": expected dtype F32, F16 or BF16, got I32"));
}

TEST_F(ManifestTest, UnknownTensor) {
  Make();
  Rename("model.norm.weight", "model.norm.weighs");
  EXPECT_THAT(Error(), HasSubstr("\"model.norm.weight\" [32] is missing"));
  TinyConfig wide;
  wide.shared_experts = 1;
  Make(wide);
  auto config = nlohmann::json::parse(Slurp("config.json"));
  config["n_shared_experts"] = 0;
  Spill("config.json", config.dump());
  EXPECT_THAT(Error(), HasSubstr("unknown tensor \"model.layers.1.mlp.shared_experts."));
}

TEST_F(ManifestTest, PredictionLayersBehindTheLastAreIgnored) {
  TinyConfig four;
  four.layers = 4;
  Make(four);
  auto config = nlohmann::json::parse(Slurp("config.json"));
  config["num_hidden_layers"] = 3;
  Spill("config.json", config.dump());
  EXPECT_EQ(Open().experts.size(), 16u);
}

TEST_F(ManifestTest, TruncatedFile) {
  Make();
  const std::string file = Slurp("model.safetensors");
  for (size_t bytes : {size_t{0}, size_t{7}, size_t{100}, file.size() / 2, file.size() - 1}) {
    Spill("model.safetensors", file.substr(0, bytes));
    EXPECT_THAT(Error(), HasSubstr("INVALID_ARGUMENT: " + dir_ + "/model.safetensors")) << bytes;
  }
}

TEST_F(ManifestTest, MissingFiles) {
  EXPECT_THAT(Error(), HasSubstr("NOT_FOUND: " + dir_ + ": no such folder"));
  Make();
  std::filesystem::remove(dir_ + "/tokenizer.json");
  EXPECT_THAT(Error(), HasSubstr("NOT_FOUND: " + dir_ + "/tokenizer.json: missing"));
  Make();
  std::filesystem::remove(dir_ + "/model.safetensors");
  EXPECT_THAT(Error(), HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
  std::filesystem::remove(dir_ + "/config.json");
  EXPECT_THAT(Error(), HasSubstr("config.json"));
}

TEST_F(ManifestTest, IndexThatDoesNotFitItsShards) {
  TinyConfig config;
  config.shards = 2;
  Make(config);
  const std::string index = Slurp("model.safetensors.index.json");
  auto tree = nlohmann::json::parse(index);
  tree["weight_map"]["model.norm.weight"] = "../model.safetensors";
  Spill("model.safetensors.index.json", tree.dump());
  EXPECT_THAT(Error(), HasSubstr("expected a .safetensors file name, got \"../model.safetensors\""));
  tree["weight_map"].erase("model.norm.weight");
  Spill("model.safetensors.index.json", tree.dump());
  EXPECT_THAT(Error(), HasSubstr("weight_map lacks tensor \"model.norm.weight\""));
  tree = nlohmann::json::parse(index);
  tree["weight_map"]["ghost"] = "model-00001-of-00002.safetensors";
  Spill("model.safetensors.index.json", tree.dump());
  EXPECT_THAT(Error(), HasSubstr("tensor \"ghost\" is not in model-00001-of-00002.safetensors"));
  Spill("model.safetensors.index.json", index);
  std::filesystem::remove(dir_ + "/model-00002-of-00002.safetensors");
  EXPECT_THAT(Error(), HasSubstr("NOT_FOUND: " + dir_ + "/model-00002-of-00002.safetensors"));
}

TEST_F(ManifestTest, StoreReadsRangesAndNamesAShortFile) {
  Make();
  const Manifest m = Open();
  const auto store = OpenFolderStore(m);
  const ByteRange range = m.FindExpert(LayerId(1), ExpertId(0))->parts[0].range;
  std::vector<std::byte> bytes(range.length);
  ASSERT_TRUE(store->Read(range, bytes).ok());
  EXPECT_EQ(std::string(reinterpret_cast<char*>(bytes.data()), bytes.size()),
            Slurp("model.safetensors").substr(range.offset, range.length));
  EXPECT_THAT(ToString(store->Read(range, std::span(bytes).first(1))), HasSubstr("expected a buffer of"));
  std::filesystem::resize_file(m.files[0], range.offset + 3);
  EXPECT_THAT(ToString(store->Read(range, bytes)),
              HasSubstr("DATA_LOSS: " + dir_ + "/model.safetensors: file ends at byte " +
                        std::to_string(range.offset + 3)));
}

TEST_F(ManifestTest, InspectSumsToTheFile) {
  const auto text = DescribeModel(std::string(CONSILIUM_SOURCE_DIR) + "/models/demo", {.json = true});
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  const auto j = nlohmann::json::parse(*text);
  EXPECT_EQ(j["params_total"], 9773248 + 5 * 32);  // the model card, which leaves the correction biases out
  EXPECT_EQ(j["experts_total"], 160);
  EXPECT_EQ(j["kv_bytes_per_token"], (80 + 64) * 4 * 6);
  uint64_t sum = 0;
  for (const auto& [part, bytes] : j["bytes_by_part"].items()) sum += bytes.get<uint64_t>();
  EXPECT_EQ(sum, j["bytes_total"].get<uint64_t>());
  EXPECT_THAT(*DescribeModel(std::string(CONSILIUM_SOURCE_DIR) + "/tests/golden/mixtral"),
              HasSubstr("GQA, 4 heads over 2 of 16 lanes"));
}

}  // namespace
}  // namespace consilium
