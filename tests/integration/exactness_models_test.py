"""The promise for one model of each attention kind and each weight format, through the HTTP API: the answers of one request
at a time on two shards are those of a crowd with a warm cache, in one process, on one shard and with replicas, whatever the
prompt chunks, threads, flights and kernels. Each (model, way) is a case; every way changes several things at once."""
import array
import functools
import json
import pathlib
import shutil
import struct
import sys
import tempfile
import unittest

import api
import cluster

GOLDEN = cluster.ROOT / "tests/golden"
VOCAB = 512
LENGTHS = (1, 2, 15, 16, 17, 33, 63, 64, 65, 100, 150)
REQUESTS = 20

# Folder of tests/golden and what it is the example of.
KINDS = {
    "mixtral": "grouped queries, bf16",
    "glm4_moe": "norms of heads, biases, part of a head rotated",
    "qwen2_moe": "biases, shared expert behind a gate",
    "ernie4_5_moe": "pairs side by side rotated",
    "hunyuan_v1_moe": "norms after rotation",
    "minimax_m2": "norms of whole projections",
    "gpt_oss": "sinks, sliding windows",
    "llama4": "chunks, layers without rotation, queries tuned",
    "grok1": "soft-capped scores",
    "dbrx": "clamped projections",
    "phimoe": "longrope",
    "qwen3_next": "gated delta net, a state beside the KV cache; gated attention",
    "granitemoeshared": "multipliers",
    "deepseek_v3": "latent attention",
    "deepseek_v2_lite": "latent attention without query rank",
    "mistral4": "latent attention, queries scaled with position",
    "lfm2_moe": "short convolutions, a state beside the KV cache",
    "deepseek_v3_fp8": "fp8 in blocks",
    "kimi_k2_int4": "packed int4 in groups",
    "gpt_oss_mxfp4": "mxfp4",
    "qwen3_moe_gptq": "GPTQ, int4 with zero points",
    "qwen3_moe_awq": "AWQ",
    "mixtral_w8a8": "int8 rows",
    "qwen3_moe_fp8_dynamic": "fp8 rows",
    "qwen3_moe_fused": "stacked bf16",
    "gguf_mixtral_q8_0": "Q8_0",
    "gguf_olmoe_q4_0": "Q4_0",
    "gguf_mixtral_q4_1": "Q4_1",
    "gguf_mixtral_q5_0": "Q5_0",
    "gguf_mixtral_q5_1": "Q5_1",
    "gguf_qwen3moe_q4_k_q6_k": "Q4_K, Q6_K",
    "gguf_qwen3moe_q5_k": "Q5_K",
    "gguf_qwen3moe_q2_k_iq4": "Q2_K, Q3_K, IQ4_NL, IQ4_XS",
    "gguf_gpt_oss_mxfp4": "MXFP4 in GGUF",
    "gguf_deepseek2_bf16": "BF16 in GGUF",
}

# Models whose weights class i8g32 computes with as integers, or with --weights-as does.
INTEGER_KINDS = {
    "kimi_k2_int4": (), "gpt_oss_mxfp4": (), "gguf_mixtral_q8_0": (), "gguf_mixtral_q4_1": (), "gguf_olmoe_q4_0": (),
    "gguf_qwen3moe_q4_k_q6_k": (), "gguf_qwen3moe_q5_k": (), "gguf_qwen3moe_q2_k_iq4": (),
    "qwen3_moe_awq": (), "mixtral_w8a8": (),
    "demo_int8": ("--weights-as", "int8"), "demo_int4": ("--weights-as", "int4"),
}

# Name: kernels, other flags, arguments of Cluster.
WAYS = {
    "in_one_process_chunk_1": ("scalar", ("--prefill-chunk", "1", "--no-prefix-cache"), {"inprocess": True}),
    "one_shard_chunk_7_two_threads": ("avx2", ("--prefill-chunk", "7", "--threads", "2"), {"experts": 1}),
    "replicas_whole_prompts_three_flights": (
        "avx512", ("--prefill-chunk", "0", "--threads", "1", "--flights", "3", "--replicas", "2"), {"experts": 2}),
}


def model_path(name):
    """What --model takes for a name of the tables."""
    return cluster.DEMO if name.startswith("demo") else cluster.model_in(GOLDEN / name)


def copy_as(source, target, dtype):
    """A checkpoint in bf16 with every tensor as F32 (exactly the same numbers) or F16 (rounded)."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, target)
    data = (source / "model.safetensors").read_bytes()
    length, = struct.unpack_from("<Q", data)
    header, body, at = json.loads(data[8:8 + length]), [], 0
    header.pop("__metadata__", None)
    for entry in header.values():
        assert entry["dtype"] == "BF16", entry
        begin, end = entry["data_offsets"]
        halves = array.array("H", data[8 + length + begin:8 + length + end])
        if sys.byteorder == "big":
            halves.byteswap()
        words = struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves))
        if dtype == "F16":
            words = struct.pack(f"<{len(halves)}e", *struct.unpack(f"<{len(halves)}f", words))
        entry.update(dtype=dtype, data_offsets=[at, at + len(words)])
        at += len(words)
        body.append(words)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (target / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(body))


def requests_for(c):
    """Requests like the exactness test's, within the small models' vocabulary and context."""
    _, models, _ = api.call(c.url, "GET", "/v1/models")
    return api.exactness_requests(REQUESTS, max_tokens=16, model=models["data"][0]["id"], ids=range(3, VOCAB),
                                  lengths=LENGTHS, chat=False)


def fingerprint(c):
    _, models, _ = api.call(c.url, "GET", "/v1/models")
    _, answer, _ = api.post(c.url, "/v1/completions", {"model": models["data"][0]["id"], "prompt": [5], "max_tokens": 1})
    return answer["system_fingerprint"]


class Truth:
    """Answers on two shards: one by one, then to all at once with a warm cache."""

    def __init__(self, model, *flags):
        with cluster.Cluster(*flags, model=model, experts=2) as c:
            self.requests = requests_for(c)
            self.alone = api.one_by_one(c.url, self.requests)
            self.crowd = api.all_at_once(c.url, self.requests, within_s=0.05)
            self.fingerprint = fingerprint(c)


truth = functools.cache(Truth)


class ExactnessModelsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        for dtype in ("F32", "F16"):
            copy_as(GOLDEN / "mixtral", cls.copy(dtype), dtype)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def copy(cls, dtype):
        return pathlib.Path(cls.folder.name) / f"mixtral_{dtype.lower()}"

    def compare(self, requests, want, got, what):
        differs = api.difference(requests, want, got)
        if differs:
            self.fail(f"{what}: {differs}")

    def check_crowd(self, model, numerics, *flags):
        want = truth(model, "--numerics", numerics, *flags)
        self.assertRegex(want.fingerprint, rf"^{numerics}\b")
        self.assertGreater(len({json.dumps(a) for a in want.alone}), REQUESTS * 3 // 4)
        self.compare(want.requests, want.alone, want.crowd, "all at once with a warm cache")

    def check_way(self, model, way, numerics, *flags):
        ops, way_flags, arguments = WAYS[way]
        if ops not in cluster.ops_here():
            self.skipTest(f"this CPU has no {ops}")
        want = truth(model, "--numerics", numerics, *flags)
        with cluster.Cluster("--numerics", numerics, *flags, "--ops", ops, *way_flags, model=model, **arguments) as c:
            self.compare(want.requests, want.alone, api.all_at_once(c.url, want.requests, within_s=0.05),
                         f"{way}, {ops}, all at once")
            if "--no-prefix-cache" not in way_flags:
                self.compare(want.requests[:4], want.alone[:4], api.one_by_one(c.url, want.requests[:4]),
                             f"{way}, {ops}, warm")
            self.assertEqual(fingerprint(c), want.fingerprint)

    def test_f32_weights_answer_as_the_bf16_they_were_made_from(self):
        bf16, f32 = truth(GOLDEN / "mixtral", "--numerics", "f32"), truth(self.copy("F32"), "--numerics", "f32")
        self.assertNotEqual(bf16.fingerprint, f32.fingerprint, "two models")
        # The names of the models are all that differs in the requests.
        self.assertEqual(bf16.alone, f32.alone)

    def test_integer_dots_answer_other_than_class_f32(self):
        model = model_path("gguf_mixtral_q8_0")
        self.assertNotEqual(truth(model, "--numerics", "f32").alone, truth(model, "--numerics", "i8g32").alone)

    def test_auto_takes_integer_dots_for_integer_formats_only(self):
        for name, numerics in (("gguf_mixtral_q8_0", "i8g32"), ("mixtral", "f32"), ("deepseek_v3_fp8", "f32")):
            with cluster.Cluster("--numerics", "auto", model=model_path(name), experts=2) as c:
                self.assertEqual(fingerprint(c), truth(model_path(name), "--numerics", numerics).fingerprint)


def add_case(name, path, numerics, *flags):
    def crowd(self):
        self.check_crowd(path(self), numerics, *flags)
    setattr(ExactnessModelsTest, f"test_{name}_{numerics}_crowd", crowd)
    for way in WAYS:
        def case(self, way=way):
            self.check_way(path(self), way, numerics, *flags)
        setattr(ExactnessModelsTest, f"test_{name}_{numerics}_{way}", case)


def add_cases():
    for name in KINDS:
        add_case(name, lambda test, name=name: model_path(name), "f32")
    for dtype in ("F32", "F16"):
        add_case(f"mixtral_{dtype.lower()}", lambda test, dtype=dtype: test.copy(dtype), "f32")
    for name, flags in INTEGER_KINDS.items():
        add_case(name, lambda test, name=name: model_path(name), "i8g32", *flags)


add_cases()

if __name__ == "__main__":
    unittest.main()
