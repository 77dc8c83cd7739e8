// Shared by openai_parse.cc and prompt_parse.cc only.
#pragma once
#include "services/gateway/json_in.h"

namespace consilium::gateway {

void CheckModel(Fields* f, const ModelInfo& model, bool required);
// Renders the messages and tokenizes; used by chat and by /tokenize. *parser: what the answer's parser must
// know.
std::optional<Prompt> ChatPrompt(Fields* f, Json* body, const ModelInfo& model, const ParseLimits& limits,
                                 ParserContext* parser);
// "prompt" of completions in its four forms.
void ReadPrompts(Fields* f, const ModelInfo& model, const ParseLimits& limits, ApiRequest* out);

}  // namespace consilium::gateway
