#include "common/testing/tiny_checkpoint.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/base/status.h"
#include "common/model/files.h"
#include "common/model/model_store.h"
#include "common/text/text.h"

namespace consilium {
namespace {

std::string Slurp(const std::string& path) { return *ReadTextFile(path, 1 << 26); }

TEST(TinyCheckpoint, TheSameConfigGivesTheSameBytesAndAnotherSeedOthers) {
  const TemporaryFolder a, b;
  TinyConfig config;
  ASSERT_TRUE(WriteTinyCheckpoint(config, a.path()).ok());
  ASSERT_TRUE(WriteTinyCheckpoint(config, b.path()).ok());
  EXPECT_EQ(Slurp(a.path() + "/model.safetensors"), Slurp(b.path() + "/model.safetensors"));
  config.seed = 2;
  ASSERT_TRUE(WriteTinyCheckpoint(config, b.path()).ok());
  EXPECT_NE(Slurp(a.path() + "/model.safetensors"), Slurp(b.path() + "/model.safetensors"));
}

TEST(TinyCheckpoint, ItsTokenizerAndTemplateServeChats) {
  const TemporaryFolder folder;
  ASSERT_TRUE(WriteTinyCheckpoint(TinyConfig{}, folder.path()).ok());
  const auto tokenizer = Tokenizer::FromJson(Slurp(folder.path() + "/tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok()) << ToString(tokenizer.status());
  const std::string text = "<|im_start|>Grüße, 你好!\n<|im_end|>";
  const auto ids = (*tokenizer)->Encode(text, false);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->front(), 257u);
  EXPECT_EQ(ids->back(), 258u);
  EXPECT_EQ(*(*tokenizer)->Decode(*ids, false), text);
  EXPECT_EQ((*tokenizer)->vocab_size(), 259u);

  const auto config = nlohmann::json::parse(Slurp(folder.path() + "/tokenizer_config.json"));
  const auto chat = ChatTemplate::FromSource(config["chat_template"].get<std::string>());
  ASSERT_TRUE(chat.ok()) << ToString(chat.status());
  const auto rendered =
      (*chat)->Render(R"({"messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":true})");
  ASSERT_TRUE(rendered.ok()) << ToString(rendered.status());
  EXPECT_EQ(*rendered, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

}  // namespace
}  // namespace consilium
