#!/usr/bin/env python3
"""Records how the pre-tokenizers of GGUF files cut awkward text: pretokenizers.json, for gguf_text_test.cc. Not run by any
test. The cuts come from the `regex` package (another engine than ours) with the families' own expressions; those of
gpt-2 and gpt-4o are read from tiktoken.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install regex tiktoken
    /tmp/venv/bin/python common/text/testdata/record_pretokenizers.py
"""
import json
import unicodedata
from pathlib import Path

import regex
import tiktoken_ext.openai_public as openai

CORPUS = [
    "Hello, world!  It's we'll I'M they'RE you'Ve he'd o'clock 'tis 'S 'ſ",
    "  leading and trailing   ",
    "tabs\tand\t\tmore \t mixed\t ",
    "one\ntwo\n\nthree\r\nfour\n \n  five\n\n\n",
    " \n\t \r\n x",
    "\n",
    "   ",
    "a",
    "",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F ٣٤٥ ⅷ ½ ① ²³",
    "v1.2.3-rc4 2024-02-29T12:34:56Z 50% $9.99 #42 C++17 a1b2c3",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case HTTPServer iPhone",
    "if (a[i] != b->c) { return x**2 // y; }  # done\n\tfor(;;){}\n",
    "path/to/file.txt C:\\dir\\x https://example.org/a?b=c&d=%20#e user@host",
    "...!!!???---___~~~```'''\"\"\"<<<>>>|||^^^+++===",
    "naïve café Ångström Straße ĲSSEL ŒUVRE ǅungla ʻokina",
    "cafe\u0301 A\u030angstro\u0308m \u1112\u1161\u11ab \ufb01",
    "Привет, мир! Ёлка ЁЖ съешь",
    "Καλημέρα κόσμε ΑΒΓ ἀρχή ᾳ",
    "שלום עולם מַה نص عربي مَرْحَبًا",
    "नमस्ते दुनिया क्षत्रिय ไทยไม่มีช่องว่าง",
    "你好，世界！中文English混合123数字。《书名》、“引号”‘单’",
    "日本語のテキスト、カタカナ・ひらがな。ー々〆〇 ｶﾀｶﾅ ＡＢＣ１２３！？",
    "한국어 텍스트 가나다 ㄱㄴㄷ 123번",
    "漢字かな交じり文とEnglishと한글",
    "𠮷野家 㐀㐁 豈 ⼀",
    "emoji 😀😃 👨‍👩‍👧‍👦 🇩🇪 ✈️ 👍🏽 ❤️‍🔥!",
    "zero\u200bwidth\u00a0nbsp\u2003em\u3000ideographic\ufeffbom",
    "a\u2028b\u2029c\u0085d\u000be\u000cf",
    "control\u0000\u0001\u001b[31m\u007f",
    "math ∑∫√≤≠∞ αβγ ℝ𝔸𝒳 x²+y²=z²",
    "money € £ ¥ ₹ ฿ ©®™ §¶ °C µm",
    "ªº ƻ ǀǃ ʔ ა ჺ Ა Ⴀ Ꭰ ꭰ Ꞌ ꞌ Ꞑ 𐐀 𞤀 Ⅷ",
    "'s't're've'm'll'd 'S'T'RE'VE'M'LL'D ’s ’t",
    "word's Word'S wORD'll x'ss 1's",
    "    indented\n        more\n\n    back",
    "end with newline \n",
    "end with space ",
    "\u3000全角空白　二つ　　",
    "<|im_start|>system <s> </s> [INST] <0x0A> ▁under",
]

openai.load_tiktoken_bpe = lambda *_, **__: {}  # the expressions only, without the vocabularies
GPT2 = openai.r50k_base()["pat_str"]
O200K = openai.o200k_base()["pat_str"]
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER_K, LOWER_K = (c[:-1] + r"&&[^\p{Han}]]" for c in (UPPER, LOWER))
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{UPPER_K}*{LOWER_K}+{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{UPPER_K}+{LOWER_K}*{SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[一-龥\u0800-一가-\ud7ff]+"


def deepseek_llm_letters():
    """The class of letters, which is no Unicode class: the copy in common/model/gguf_pretokenizers.cc."""
    source = (Path(__file__).resolve().parents[2] / "model/gguf_pretokenizers.cc").read_text()
    table = source[source.index("kDeepseekLetters =") : source.index("kDeepseekMarks =")]
    text = "".join(regex.findall(r'R"\((.*?)\)"', table))
    return regex.sub(r"\\x\{(\w+)\}", lambda m: f"\\U{int(m[1], 16):08x}", text)


def cut(text, expressions):
    pieces = [text] if text else []
    for expression in expressions:
        compiled, out = regex.compile(expression, regex.V1), []
        for piece in pieces:
            at = 0
            for match in compiled.finditer(piece):
                if match.start() > at:
                    out.append(piece[at : match.start()])
                if match.end() > match.start():
                    out.append(match[0])
                at = match.end()
            if at < len(piece):
                out.append(piece[at:])
        pieces = out
    assert "".join(pieces) == text
    return pieces


def main():
    marks = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
    kinds = {
        "gpt-2": [GPT2],
        "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        "olmo": [GPT2],
        "refact": [r"\p{N}", GPT2],
        "qwen2": [QWEN2],
        "grok-2": [QWEN2],
        "llama-bpe": [LLAMA3],
        "glm4": [LLAMA3],
        "deepseek-llm": [r"[\r\n]", deepseek_llm_letters(), marks, r"\s+$", CJK, r"\p{N}"],
        "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
        "deepseek-v3": [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        "gpt-4o": [O200K],
        "tekken": [TEKKEN],
        "kimi-k2": [KIMI],
    }
    composed = {"olmo", "qwen2"}
    out = {"texts": CORPUS, "pieces": {}}
    for name, expressions in kinds.items():
        out["pieces"][name] = [
            cut(unicodedata.normalize("NFC", t) if name in composed else t, expressions) for t in CORPUS
        ]
    lines = [json.dumps("texts") + ": " + json.dumps(out["texts"])]
    lines += [json.dumps(k) + ": " + json.dumps(v) for k, v in out["pieces"].items()]
    text = "{" + lines[0] + ',\n"pieces": {\n' + ",\n".join(lines[1:]) + "}}\n"
    assert json.loads(text) == out
    Path(__file__).with_name("pretokenizers.json").write_text(text)


if __name__ == "__main__":
    main()
