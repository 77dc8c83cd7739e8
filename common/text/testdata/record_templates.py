"""Renders templates/*.jinja with jinja2, set up as transformers does, and writes rendered.json beside this file.

Needs jinja2 3.1. Run it after a template or a chat here has changed; text_test compares our renderer with the result.
"""
import itertools
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

HERE = pathlib.Path(__file__).resolve().parent


class Generation(jinja2.ext.Extension):
    """{% generation %} only marks the assistant's tokens."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_keep"), [], [], body).set_lineno(line)

    def _keep(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.TemplateError(message)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def call(i, **more):
    return {"id": f"functions.get_weather:{i}", "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2.5, **more}}}


SYSTEM = {"role": "system", "content": " Be brief.\n"}
USER = {"role": "user", "content": "Wie ist's in \"Zürich\"? 😀 <b>&amp;</b>"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny.\n"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [call(0)]}
RESULT = {"role": "tool", "content": "{\"t\": 21}", "tool_call_id": "functions.get_weather:0", "name": "get_weather"}
CHATS = [
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, THOUGHT, USER],
    [USER, CALLS, RESULT],
    [SYSTEM, USER, CALLS, RESULT, {"role": "assistant", "content": "21 °C", "reasoning_content": "easy"}, USER],
    [USER, {"role": "assistant", "content": None, "tool_calls": [call(0), call(1, n=None, big=1e16, small=1e-7, deep={"a": [1, [], {}]})],
            "reasoning_content": "two\ncalls"}, RESULT, {**RESULT, "content": "2"}],
    [USER, USER],
    [{"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}],
    [SYSTEM, RESULT],
    [{"role": "banana", "content": "x"}],
]
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Wetter für <Ort> & Co's", "parameters": {
            "type": "object", "required": ["city"], "properties": {
                "city": {"type": "string", "description": "where"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": "number", "default": 1.0, "minimum": 1e-7, "maximum": 1e16},
                "tags": {"type": "array", "items": {"type": "string"}},
                "area": {"type": ["number", "null"]},
                "box": {"type": "object", "properties": {"w": {"type": "integer"}, "h": {"type": "integer"}}}}}}},
    {"type": "function", "function": {"name": "now", "description": "the time", "parameters": {"type": "object", "properties": {}}}},
]
# Beside what is always there: settings some templates look at.
EXTRAS = [{}, {"enable_thinking": False, "reasoning_effort": "high", "thinking": True,
               "documents": [{"doc_id": 7, "text": "a document"}], "controls": {"length": "short"}}]


def main():
    cases, texts = [], {}  # many cases give the same text: each is kept once
    for path in sorted((HERE / "templates").glob("*.jinja")):
        source = path.read_text()
        for chat, tools, prompt, extra in itertools.product(
                range(len(CHATS)), (False, True), (False, True), range(len(EXTRAS))):
            context = dict(EXTRAS[extra], messages=CHATS[chat], tools=TOOLS if tools else None,
                           add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", date_string="1 Jan 2026")
            case = {"template": path.stem, "chat": chat, "tools": tools, "prompt": prompt, "extra": extra}
            try:
                text = environment().from_string(source).render(**context)
                case["text"] = texts.setdefault(text, len(texts))
            except Exception as error:  # whatever jinja2 refuses, ours must refuse too
                raised = type(error) is jinja2.TemplateError
                case["error"] = str(error) if raised else ""
            cases.append(case)
    out = {"jinja2": jinja2.__version__, "chats": CHATS, "tools": TOOLS, "extras": EXTRAS, "texts": list(texts), "cases": cases}
    (HERE / "rendered.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(len(cases), "cases,", sum("error" in c for c in cases), "errors")


if __name__ == "__main__":
    main()
