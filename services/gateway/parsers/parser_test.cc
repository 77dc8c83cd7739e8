// What models write, in every format: whole, in any pieces, and broken.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "services/gateway/gateway_fixture.h"
#include "services/gateway/parsers/formats.h"
#include "services/gateway/parsers/parser_table.h"

namespace consilium::gateway {
namespace {

// A format by the names of its parsers; "" as template.
OutputFormat Format(const std::string& tools, const std::string& reasoning) {
  auto format = ChooseFormat(tools, reasoning, "", "", *DemoTokenizer());
  EXPECT_TRUE(format.ok()) << format.status();
  return *std::move(format);
}

MessageDelta Parse(const OutputFormat& format, const std::vector<std::string>& pieces,
                   const ParserContext& context = {}) {
  const auto parser = format.Make(context);
  MessageDelta all;
  const auto add = [&](MessageDelta d) {
    all.content += d.content;
    all.reasoning += d.reasoning;
    for (CallDelta& call : d.calls) {
      EXPECT_TRUE(call.begins || !all.calls.empty());
      all.AddCall(std::move(call));
    }
  };
  for (const std::string& piece : pieces) {
    MessageDelta d;
    parser->Feed(piece, &d);
    add(std::move(d));
  }
  MessageDelta d;
  parser->Flush(&d);
  add(std::move(d));
  return all;
}

// One line: reasoning|content|name(arguments)#id...
std::string Line(const MessageDelta& m) {
  std::string out = m.reasoning + "|" + m.content + "|";
  for (const CallDelta& c : m.calls)
    out += c.name + "(" + c.arguments + ")" + (c.id.empty() ? "" : "#" + c.id);
  return out;
}

struct Case {
  const char *tools, *reasoning;
  std::string text, line;
};

std::vector<Case> WellFormed() {
  const std::string hermes =
      "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"x}\"}}\n</tool_call>";
  return {
      {"hermes", "none", "Let me see. \n" + hermes + "\n" + hermes,
       "|Let me see.|f({\"b\": 1, \"a\": \"x}\"})f({\"b\": 1, \"a\": \"x}\"})"},
      {"hermes", "none", "<tool_call>{\"name\":\"g\"}</tool_call> and", "|and|g({})"},
      {"hermes", "none", "<tool_call>{\"arguments\": {\"a\":1}, \"name\": \"g\"}</tool_call>",
       "||g({\"a\":1})"},
      {"hermes", "none", "<tool_call>{\"name\":\"g\",\"arguments\":{},\"id\":\"}\"}</tool_call>", "||g({})"},
      {"hermes", "none", "<tool_call>{\"name\":\"g\",\"arguments\":\"{\\\"a\\\":1}\"}</tool_call>",
       "||g({\"a\":1})"},
      {"hermes", "think", "<think>\n why <tool_call> \n</think>\n\nyes " + hermes,
       "why <tool_call>|yes|f({\"b\": 1, \"a\": \"x}\"})"},
      {"hermes", "think", "<tool_call>{\"name\":\"g\",\"arguments\":{\"a\":\"<think>\"}}</tool_call>",
       "||g({\"a\":\"<think>\"})"},
      {"none", "think", "<think>a</think>b", "a|b|"},
      {"none", "think", "<think>cut at  ", "cut at  ||"},
      {"none", "think", "no thought < t <thin", "|no thought < t <thin|"},
      {"mistral", "none",
       "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [1, 2]}}, {\"name\": \"g\", \"arguments\": "
       "{}, \"id\": \"x\"}]",
       "||f({\"a\": [1, 2]})g({})"},
      {"mistral", "none", "ok[TOOL_CALLS]f[CALL_ID]abc123xyz[ARGS]{\"a\": 1}[TOOL_CALLS]g{\"b\":{}}",
       "|ok|f({\"a\": 1})#abc123xyzg({\"b\":{}})"},
      {"mistral", "none", "[TOOL_CALLS]f[ARGS]{\"a\": 1}", "||f({\"a\": 1})"},
      {"granite", "none", "<|tool_call|>[{\"arguments\": {\"a\": 1}, \"name\": \"f\"}]", "||f({\"a\":1})"},
      {"deepseek", "none",
       "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": "
       "\"`\"}\n```<｜tool▁call▁end｜>\n"
       "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><"
       "｜tool▁calls▁end｜>",
       "|Hm.|f({\"a\": \"`\"})g({})"},
      {"deepseek", "think",
       "<think>t</"
       "think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\":{\"b\":1}}<｜tool▁call▁end｜>"
       "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
       "t||f({\"a\":{\"b\":1}})g({})"},
      {"kimi", "none",
       "I "
       "look.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": "
       "1}<|tool_call_end|>"
       "<|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_"
       "end|>",
       "|I look.|f({\"a\": 1})#functions.f:0g({})#functions.g:1"},
      {"glm", "think",
       "<think>t</think>\nok\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>1</arg_value>\n<arg_key>n</"
       "arg_key>\n"
       "<arg_value>1</arg_value>\n</tool_call>\n<tool_call>g</tool_call>",
       "t|ok|f({\"s\": \"1\", \"n\": 1})g({})"},
      {"minimax", "none",
       "<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"s\">true</parameter>\n<parameter "
       "name=\"n\">[1, 2]</parameter>\n"
       "</invoke>\n<invoke name=\"g\">\n</invoke>\n</minimax:tool_call>",
       "||f({\"s\": \"true\", \"n\": [1,2]})g({})"},
      {"llama4_pythonic", "none", "[f(a=1, b='it\\'s, (x)', c=[True, None], d={'k': -2.5}), g()]",
       "||f({\"a\": 1, \"b\": \"it's, (x)\", \"c\": [true, null], \"d\": {\"k\": -2.5}})g({})"},
      {"llama4_pythonic", "none", "Sure. <|python_start|>[f(a=\"x\")]<|python_end|>",
       "|Sure.|f({\"a\": \"x\"})"},
      {"llama4_pythonic", "none", "[1, 2] is a list", "|[1, 2] is a list|"},
      {"harmony", "harmony",
       "<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>commentary to=functions.f "
       "<|constrain|>json"
       "<|message|>{\"a\": 1}<|call|>",
       "think||f({\"a\": 1})"},
      {"harmony", "harmony",
       "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
       "<|start|>assistant<|channel|>final<|message|>Hi < there",
       "a\nb|Hi < there|"},
      {"harmony", "harmony", " to=functions.g<|channel|>commentary json<|message|>{}", "||g({})"},
      {"harmony", "harmony",
       "<|channel|>commentary<|message|>I "
       "look.<|end|><|start|>assistant<|channel|>final<|message|>x<|return|>",
       "|I look.\nx|"},
      {"harmony", "harmony", "plain text", "|plain text|"},
  };
}

// Texts that are no call stay content, to the byte.
std::vector<Case> Broken() {
  std::vector<Case> out;
  const auto add = [&](const char* tools, std::string text) {
    out.push_back({tools, "none", text, "|" + text + "|"});
  };
  for (const char* text : {"a <tool_call>not json</tool_call> b", "a <tool_call>{\"name\": 3}</tool_call>",
                           "a <tool_call>{\"na", "just < text <tool", "<tool_call>[]</tool_call>",
                           "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>"})
    add("hermes", text);
  add("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":" + std::string(5000, '[') +
                    std::string(5000, ']') + "}</tool_call>");
  for (const char* text :
       {"[TOOL_CALLS] nothing", "[TOOL_CALLS] [3]", "[TOOL_CALLS", "[TOOL_CALLS] [{\"name\": \"f\""})
    add("mistral", text);
  for (const char* text : {"<｜tool▁calls▁begin｜>text",
                           "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>g", "<｜tool▁"})
    add("deepseek", text);
  for (const char* text :
       {"<|tool_calls_section_begin|>x", "<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_end|>"})
    add("kimi", text);
  for (const char* text : {"<tool_call>f g</tool_call>", "<tool_call>\n", "<tool_call>f"}) add("glm", text);
  for (const char* text : {"<minimax:tool_call> no", "<minimax:tool_call><invoke name=\"f"})
    add("minimax", text);
  for (const char* text : {"[f(a=b)]", "[f(1)]", "[f(a=1", "[f", "[f(a='x)]", "f(a=1)"})
    add("llama4_pythonic", text);
  for (const char* text :
       {"<|channel|>analysis", "<|channel|>analysis<|mess", "assistant is a word", "<|start|>"})
    add("harmony", text);
  return out;
}

std::vector<Case> All() {
  std::vector<Case> all = WellFormed();
  for (Case& c : Broken()) all.push_back(std::move(c));
  return all;
}

ParserContext Context() {
  ParserContext context;
  context.string_parameters = {{"f", "s"}};
  return context;
}
OutputFormat FormatOf(const Case& c) {
  return Format(c.tools, std::string_view(c.tools) == "harmony" ? "auto" : c.reasoning);
}

TEST(Parsers, ReadEveryFormat) {
  for (const Case& c : WellFormed()) {
    EXPECT_EQ(Line(Parse(FormatOf(c), {c.text}, Context())), c.line) << c.tools << ": " << c.text;
  }
}

TEST(Parsers, LeaveWhatIsNoCallInTheContent) {
  for (const Case& c : Broken()) {
    EXPECT_EQ(Line(Parse(FormatOf(c), {c.text}, Context())), c.line) << c.tools;
  }
}

TEST(Parsers, GiveTheSameForAnyPieces) {
  std::mt19937 random(5);
  for (const Case& c : All()) {
    const OutputFormat format = FormatOf(c);
    const std::string whole = Line(Parse(format, {c.text}, Context()));
    for (size_t cut = 0; cut <= std::min<size_t>(c.text.size(), 600); ++cut)
      ASSERT_EQ(Line(Parse(format, {c.text.substr(0, cut), c.text.substr(cut)}, Context())), whole)
          << cut << c.text;
    for (size_t size : {1, 2, 3, 7}) {
      std::vector<std::string> pieces;
      for (size_t at = 0; at < c.text.size(); at += size) pieces.push_back(c.text.substr(at, size));
      ASSERT_EQ(Line(Parse(format, pieces, Context())), whole) << size << c.text;
    }
  }
}

// Random heaps of fragments of all formats, in random pieces, through all parsers.
TEST(Parsers, GiveTheSameForAnyPiecesOfAnything) {
  std::mt19937 random(6);
  std::vector<std::string> fragments = {" ",
                                        "\n",
                                        "{",
                                        "}",
                                        "]",
                                        ",",
                                        "\"",
                                        "f",
                                        "(",
                                        ")",
                                        "a=1",
                                        "text",
                                        "assistant",
                                        "<think>",
                                        "</think>",
                                        "```json\n",
                                        "{\"name\": \"f\", \"arguments\": ",
                                        "{\"a\": 1}",
                                        "[",
                                        "'"};
  for (const std::string& name : ToolParserNames()) {
    if (name == "auto" || name == "none") continue;
    for (const std::string_view marker : Format(name, name == "harmony" ? "auto" : "none").tools->markers)
      fragments.emplace_back(marker);
  }
  const std::vector<Case> cases = All();
  for (int round = 0; round < 6000; ++round) {
    const std::string tools = cases[random() % cases.size()].tools;
    const OutputFormat format = Format(tools, tools == "harmony" ? "auto"
                                              : round % 2 == 0   ? "think"
                                                                 : "none");
    if (tools == "none" && round % 2 != 0) continue;
    std::string text;
    for (unsigned i = 0; i < 1 + random() % 12; ++i) {
      const Case& c = cases[random() % cases.size()];
      if (random() % 4 == 0 && c.tools == tools && c.text.size() < 1000)
        text += c.text.substr(0, random() % 3 == 0 ? random() % c.text.size() : c.text.size());
      else
        text += fragments[random() % fragments.size()];
    }
    ParserContext context = Context();
    context.starts_thinking = random() % 3 == 0;
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + random() % 6;
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    ASSERT_EQ(Line(Parse(format, pieces, context)), Line(Parse(format, {text}, context)))
        << tools << " round " << round << ": " << text;
  }
}

TEST(Parsers, StreamTheArgumentsBeforeTheCallEnds) {
  const auto parser = Format("hermes", "none").Make({});
  MessageDelta d;
  parser->Feed("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"text\": \"once upon", &d);
  ASSERT_EQ(d.calls.size(), 1u);
  EXPECT_EQ(d.calls[0].arguments, "{\"text\": \"once upon");
  d = {};
  parser->Feed(" a time\"}", &d);
  ASSERT_EQ(d.calls.size(), 1u);
  EXPECT_FALSE(d.calls[0].begins);
  EXPECT_EQ(d.calls[0].arguments, " a time\"}");
}

TEST(Parsers, GiveUpOnTextThatNeverBecomesACall) {
  const std::string text = "<tool_call>{\"x\": \"" + std::string(2 * 65536, 'y');
  EXPECT_EQ(Parse(Format("hermes", "none"), {text}).content, text);
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size(); at += 1000) pieces.push_back(text.substr(at, 1000));
  EXPECT_EQ(Parse(Format("hermes", "none"), pieces).content, text);
}

TEST(Parsers, BeginInTheReasoningWhenThePromptEndsThere) {
  const OutputFormat format = Format("hermes", "think");
  EXPECT_TRUE(format.StartsThinking("<|im_start|>assistant\n<think>\n"));
  EXPECT_FALSE(format.StartsThinking("<think>\n\n</think>\n\n"));
  ParserContext context;
  context.starts_thinking = true;
  EXPECT_EQ(Line(Parse(format, {"so\n</think>\n\nHi"}, context)), "so|Hi|");
}

TEST(ParserTable, ChoosesByTheTemplateThenByTheFamily) {
  const auto tools = [](const char* chat_template, const char* type) {
    return std::string(ChooseFormat("auto", "auto", chat_template, type, *DemoTokenizer())->tools->name);
  };
  EXPECT_EQ(tools("<tool_call>{", ""), "hermes");
  EXPECT_EQ(tools("<tool_call>x<arg_key>", ""), "glm");
  EXPECT_EQ(tools("[TOOL_CALLS]", ""), "mistral");
  EXPECT_EQ(tools("'<｜tool▁calls▁begin｜>'", "x"), "deepseek");
  EXPECT_EQ(tools("<|tool_calls_section_begin|>", ""), "kimi");
  EXPECT_EQ(tools("<|start|><|channel|>", ""), "harmony");
  EXPECT_EQ(tools("", "llama4_text"), "llama4_pythonic");
  EXPECT_EQ(tools("", "qwen3_moe"), "hermes");
  EXPECT_EQ(ChooseFormat("auto", "auto", "{{ '</think>' }}", "", *DemoTokenizer())->think_open, "<think>");
  EXPECT_EQ(ChooseFormat("auto", "auto", "[THINK]", "", *DemoTokenizer())->think_close, "[/THINK]");
  EXPECT_EQ(ChooseFormat("auto", "none", "<think>", "", *DemoTokenizer())->think_open, "");
  EXPECT_FALSE(ChooseFormat("martian", "auto", "", "", *DemoTokenizer()).ok());
  EXPECT_FALSE(ChooseFormat("auto", "martian", "", "", *DemoTokenizer()).ok());
  EXPECT_FALSE(ChooseFormat("hermes", "harmony", "", "", *DemoTokenizer()).ok());
}

}  // namespace
}  // namespace consilium::gateway
