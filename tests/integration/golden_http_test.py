"""Every reference checkpoint of tests/golden through the HTTP API, in one process and as real processes with two expert
shards: log probabilities of prompts, the best tokens at each place and greedy continuations are those of the golden file
(computed by Hugging Face Transformers). Each (folder, mode) is a case."""
import array
import functools
import json
import math
import re
import struct
import sys
import unittest

import api
import cluster

GOLDEN = cluster.ROOT / "tests/golden"
# The tokenizer of all of them; GGUF folders have it in the file only.
TOKENIZER = GOLDEN / "mixtral/tokenizer.json"
# Folders with the weights of another folder, whose golden file holds for them: one list for the C++ tests and this one.
GOLDEN_OF = dict(re.findall(r'\{"(\w+)", "(\w+)"\}', (GOLDEN / "golden_pairs.h").read_text()))
TOP = 20
PROMPTS = range(3)


class GoldenFile:
    """The tensors of a golden.safetensors as (shape, flat values)."""

    CODES = {"F32": "f", "I32": "i"}

    def __init__(self, path):
        self.data = path.read_bytes()
        length, = struct.unpack_from("<Q", self.data)
        self.header = json.loads(self.data[8:8 + length])
        self.begin = 8 + length

    def __getitem__(self, name):
        entry = self.header[name]
        values = array.array(self.CODES[entry["dtype"]])
        begin, end = entry["data_offsets"]
        values.frombytes(self.data[self.begin + begin:self.begin + end])
        if sys.byteorder == "big":
            values.byteswap()
        return entry["shape"], values


def log_softmax(logits):
    best = max(logits)
    total = math.log(math.fsum(math.exp(x - best) for x in logits))
    return [x - best - total for x in logits]


@functools.cache
def token_texts(path):
    """What the API calls each token of a byte-level tokenizer.json: its text, or its bytes if they are no whole text."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    file = json.loads(path.read_text())
    texts = {}
    for symbols, token in file["model"]["vocab"].items():
        data = bytes(byte_of[c] for c in symbols)
        try:
            texts[token] = data.decode()
        except UnicodeDecodeError:
            texts[token] = "bytes:" + "".join(f"\\x{b:02x}" for b in data)
    texts.update((t["id"], t["content"]) for t in file["added_tokens"])
    assert len(set(texts.values())) == len(texts), f"{path}: two tokens have one text"
    return texts


class Expected:
    """A golden folder in the API's terms."""

    def __init__(self, folder):
        golden = GoldenFile(folder / "golden.safetensors")
        self.tolerance = json.loads((folder / "golden.json").read_text())["tolerance"]["logprobs"]
        tokenizer = folder / "tokenizer.json"
        self.texts = token_texts(tokenizer if tokenizer.exists() else TOKENIZER)
        self.prompts = [golden[f"prompt.{p}.ids"][1].tolist() for p in PROMPTS]
        self.greedy = [golden[f"prompt.{p}.greedy_ids"][1].tolist() for p in PROMPTS]
        self.greedy_logprobs = [golden[f"prompt.{p}.greedy_logprobs"][1].tolist() for p in PROMPTS]
        self.logprobs = []  # [prompt][place][token]: what follows the place
        for p in PROMPTS:
            (rows, vocab), logits = golden[f"prompt.{p}.logits"]
            self.logprobs.append([log_softmax(logits[r * vocab:(r + 1) * vocab]) for r in range(rows)])


class GoldenHttpTest(unittest.TestCase):
    maxDiff = None

    def ask(self, url, expected):
        """The choices for the three prompts, in one request."""
        _, models, _ = api.call(url, "GET", "/v1/models")
        status, answer, _ = api.post(url, "/v1/completions", {
            "model": models["data"][0]["id"], "prompt": expected.prompts, "max_tokens": len(expected.greedy[0]),
            "temperature": 0, "echo": True, "logprobs": TOP, "ignore_eos": True, "add_special_tokens": False})
        self.assertEqual(status, 200, answer)
        self.assertTrue(answer["system_fingerprint"].startswith("f32-"), answer["system_fingerprint"])
        self.assertEqual(len(answer["choices"]), len(PROMPTS))
        return sorted(answer["choices"], key=lambda c: c["index"])

    def near(self, got, want, expected, what):
        difference = abs(float(got) - want)
        self.assertLessEqual(difference, expected.tolerance, f"{what}: expected {want}, got {got}")
        self.worst = max(self.worst, difference / expected.tolerance)

    def check_top(self, top, golden, expected, what):
        """`top` are the best tokens by `golden`, with its values; `near` decides where two are too close to order."""
        best = sorted(golden, reverse=True)
        got = sorted(top.items(), key=lambda item: -float(item[1]))
        self.assertGreaterEqual(len(got), TOP, what)
        for (text, value), want in zip(got[:TOP], best):
            self.assertIn(text, self.ids, what)
            self.near(value, golden[self.ids[text]], expected, f"{what}, token {text!r}")
            self.near(value, want, expected, f"{what}, {TOP} best")

    def check_prompt(self, p, choice, expected):
        prompt, greedy, golden = expected.prompts[p], expected.greedy[p], expected.logprobs[p]
        logprobs = choice["logprobs"]
        texts = [expected.texts[t] for t in prompt + greedy]
        self.assertEqual(logprobs["tokens"], texts, f"prompt {p}: prompt and greedy continuation")
        values = logprobs["token_logprobs"]
        self.assertEqual(len(values), len(texts))
        self.assertIsNone(values[0])
        for i in range(1, len(prompt)):
            what = f"prompt {p}, token {i}"
            self.near(values[i], golden[i - 1][prompt[i]], expected, what)
            self.check_top(logprobs["top_logprobs"][i], golden[i - 1], expected, what)
        self.check_top(logprobs["top_logprobs"][len(prompt)], golden[-1], expected, f"prompt {p}, first new token")
        for i, want in enumerate(expected.greedy_logprobs[p]):
            self.near(values[len(prompt) + i], want, expected, f"prompt {p}, new token {i}")

    def check_folder(self, folder, inprocess):
        if not (folder / "golden.safetensors").exists():
            self.assertIn(folder.name, GOLDEN_OF, "a GGUF folder without golden file")
        expected = Expected(GOLDEN / GOLDEN_OF.get(folder.name, folder.name))
        self.ids = {text: token for token, text in expected.texts.items()}
        self.worst = 0.0
        model = cluster.model_in(folder)
        with cluster.Cluster("--numerics", "f32", model=model, experts=2, inprocess=inprocess) as c:
            choices = self.ask(c.url, expected)
            if not inprocess:
                self.check_both_shards_work(c)
        for p, choice in enumerate(choices):
            self.check_prompt(p, choice, expected)
        print(f"largest difference / tolerance {self.worst:.2f}", end=" ", flush=True)

    def check_both_shards_work(self, c):
        shards = c.processes("expert")
        self.assertEqual(len(shards), 2)
        for shard in shards:
            self.assertGreater(c.metrics_of(shard).get("consilium_expert_rows_total", 0.0), 0, shard["name"])


def add_cases():
    folders = sorted({f.parent for pattern in ("*/golden.safetensors", "*/*.gguf") for f in GOLDEN.glob(pattern)})
    assert folders, f"no golden folders in {GOLDEN}"
    for folder in folders:
        for mode, inprocess in (("in_one_process", True), ("on_two_shards", False)):
            def case(self, folder=folder, inprocess=inprocess):
                self.check_folder(folder, inprocess)
            setattr(GoldenHttpTest, f"test_{folder.name}_{mode}", case)


add_cases()

if __name__ == "__main__":
    unittest.main()
