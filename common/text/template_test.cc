// Chat templates render as jinja2 does: testdata/rendered.json holds what it made of testdata/templates
// (record_templates.py).
#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/text/text.h"

namespace consilium {
namespace {

using json = nlohmann::ordered_json;
const std::string kData = CONSILIUM_SOURCE_DIR "/common/text/testdata/";

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

absl::StatusOr<std::string> Render(const std::string& source, const json& context) {
  const auto chat = ChatTemplate::FromSource(source);
  return chat.ok() ? (*chat)->Render(context.dump()) : chat.status();
}

class Templates : public ::testing::TestWithParam<std::string> {};

TEST_P(Templates, RenderEveryChatAsJinja2Does) {
  static const json recorded = json::parse(ReadFile(kData + "rendered.json"));
  const auto chat = ChatTemplate::FromSource(ReadFile(kData + "templates/" + GetParam() + ".jinja"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  int cases = 0;
  for (const json& c : recorded["cases"]) {
    if (c["template"] != GetParam()) continue;
    ++cases;
    json context = recorded["extras"][c["extra"].get<size_t>()];
    context["messages"] = recorded["chats"][c["chat"].get<size_t>()];
    context["tools"] = c["tools"] ? recorded["tools"] : json();
    context["add_generation_prompt"] = c["prompt"];
    context["bos_token"] = "<s>";
    context["eos_token"] = "</s>";
    context["date_string"] = "1 Jan 2026";
    const auto text = (*chat)->Render(context.dump());
    if (c.contains("error")) {
      EXPECT_FALSE(text.ok()) << c;
      const std::string message(text.status().message());
      EXPECT_NE(message.find(c["error"].get<std::string>()), std::string::npos) << message;
    } else {
      ASSERT_TRUE(text.ok()) << c << text.status();
      EXPECT_EQ(*text, recorded["texts"][c["text"].get<size_t>()].get<std::string>()) << c;
    }
  }
  EXPECT_GE(cases, 80);
}

INSTANTIATE_TEST_SUITE_P(All, Templates,
                         ::testing::Values("chatml_tools", "dbrx", "deepseek_v3", "ernie4_5", "glm4_5",
                                           "gpt_oss", "granite3", "hunyuan", "kimi_k2", "llama3_1", "llama4",
                                           "minimax_m2", "mistral_v3", "mistral_v7", "odds", "olmoe",
                                           "phi3_5_moe"),
                         [](const auto& tested) { return tested.param; });

TEST(Template, SaysTheTimeAsStrftimeDoes) {
  const auto now = [](const char* format) {
    const std::time_t t = std::time(nullptr);
    std::tm tm{};
    localtime_r(&t, &tm);
    char text[64];
    return std::string(text, std::strftime(text, sizeof text, format, &tm));
  };
  const char* format = "%d %b %Y %H:%M";
  const std::string before = now(format);
  const auto text = Render("{{ strftime_now('%d %b %Y %H:%M') }}", json::object());
  const std::string after = now(format);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_TRUE(*text == before || *text == after) << *text;
}

TEST(Template, RefusesWhatJinja2Refuses) {
  for (const char* source : {"{% frobnicate %}", "{{ 1 + }}", "{% for x in y %}", "{{ x.missing.deeper }}",
                             "{{ 'a' + none }}", "{{ 1 + 'a' }}", "{{ none() }}", "{{ x | nofilter }}"}) {
    EXPECT_FALSE(Render(source, {{"x", json::object()}}).ok()) << source;
  }
}

}  // namespace
}  // namespace consilium
