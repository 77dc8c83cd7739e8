// The formats, one file each; their names and markers: parser_table.h.
#pragma once
#include "services/gateway/parsers/output_parser.h"

namespace consilium::gateway {

std::unique_ptr<OutputParser> MakePlain(const ParserContext& context);  // all is content
std::unique_ptr<OutputParser> MakeHermes(const ParserContext& context);
std::unique_ptr<OutputParser> MakeMistral(const ParserContext& context);
std::unique_ptr<OutputParser> MakeGranite(const ParserContext& context);
std::unique_ptr<OutputParser> MakeDeepSeek(const ParserContext& context);
std::unique_ptr<OutputParser> MakeKimi(const ParserContext& context);
std::unique_ptr<OutputParser> MakeGlm(const ParserContext& context);
std::unique_ptr<OutputParser> MakeMiniMax(const ParserContext& context);
std::unique_ptr<OutputParser> MakePythonic(const ParserContext& context);
std::unique_ptr<OutputParser> MakeHarmony(const ParserContext& context);  // reasoning too
// Reasoning between `open` and `close`; what is outside goes to `inner`.
std::unique_ptr<OutputParser> MakeThink(std::string_view open, std::string_view close,
                                        const ParserContext& context, std::unique_ptr<OutputParser> inner);

}  // namespace consilium::gateway
