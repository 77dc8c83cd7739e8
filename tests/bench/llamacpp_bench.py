#!/usr/bin/env python3
"""Decode speed beside llama.cpp: the same random GGUF model (Qwen3-MoE's architecture) on the same cores.

Question: tokens/s that streams get together, at 1, 4 and 16 streams, of `consilium up --inprocess` through its HTTP API
(`consilium bench`: all of a request's time, prompts of 8 tokens, greedy) and of llama.cpp's llama-batched-bench (S_TG: decoding
alone), in turn, medians of the rounds. Classes: i8g32 computes as llama.cpp does (rows quantised to 8 bits, integer dots); f32 is exact.
Bound: >= 1 at 1, 4 and 16 streams in class i8g32.

  python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy 'gguf==0.19.0'
  /tmp/venv/bin/python tests/bench/llamacpp_bench.py --opponent PATH/llama-batched-bench [--type q8_0|q4_0] [--rounds 3]
                                                    [--threads 2] [--folder DIR]        (after scripts/test)
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
from cluster import BIN, Cluster  # noqa: E402

STREAMS = (1, 4, 16)
PROMPT, OUTPUT = 8, 64
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER, EXPERTS, TOP_K, VOCAB = 2048, 16, 4, 128, 768, 64, 8, 32000
TYPES = {"q8_0": (gguf.GGMLQuantizationType.Q8_0, 34, 0.02 / 64), "q4_0": (gguf.GGMLQuantizationType.Q4_0, 18, 0.02 / 4)}


def write_model(path, kind, layers, seed=1):
    """Random blocks whose weights have a spread of about 0.02."""
    rng = np.random.default_rng(seed)
    ggml_type, block, scale = TYPES[kind]
    w = gguf.GGUFWriter(str(path), "qwen3moe")
    w.add_name("random")
    w.add_block_count(layers)
    w.add_context_length(4096)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(INTER)
    w.add_expert_feed_forward_length(INTER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_rope_freq_base(1e6)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_expert_count(EXPERTS)
    w.add_expert_used_count(TOP_K)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = spelled + [spelled[0] + spelled[1]] + [f"<{i}>" for i in range(257, VOCAB)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types([1] * 257 + [3] * (VOCAB - 257))
    w.add_token_merges([spelled[0] + " " + spelled[1]])
    w.add_eos_token_id(VOCAB - 1)

    def quantised(name, *shape):
        blocks = int(np.prod(shape)) // 32
        data = rng.integers(0, 256, (blocks, block), np.uint8)
        if kind == "q8_0":
            data[:, 2:][data[:, 2:] == 128] = 127
        data[:, :2] = np.full(1, scale, "<f2").view(np.uint8)
        w.add_tensor(name, data.reshape(*shape[:-1], shape[-1] // 32 * block), raw_dtype=ggml_type)

    def ones(name, n):
        w.add_tensor(name, np.ones(n, np.float32))

    quantised("token_embd.weight", VOCAB, HIDDEN)
    ones("output_norm.weight", HIDDEN)
    quantised("output.weight", VOCAB, HIDDEN)
    for i in range(layers):
        at = f"blk.{i}."
        ones(at + "attn_norm.weight", HIDDEN)
        ones(at + "ffn_norm.weight", HIDDEN)
        ones(at + "attn_q_norm.weight", HEAD_DIM)
        ones(at + "attn_k_norm.weight", HEAD_DIM)
        quantised(at + "attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        quantised(at + "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        quantised(at + "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        quantised(at + "attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        w.add_tensor(at + "ffn_gate_inp.weight", rng.standard_normal((EXPERTS, HIDDEN), np.float32) * np.float32(0.02))
        quantised(at + "ffn_gate_exps.weight", EXPERTS, INTER, HIDDEN)
        quantised(at + "ffn_up_exps.weight", EXPERTS, INTER, HIDDEN)
        quantised(at + "ffn_down_exps.weight", EXPERTS, HIDDEN, INTER)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def active_bytes(kind, layers):
    """Weights that one token reads."""
    attention = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)
    weights = layers * (attention + TOP_K * 3 * HIDDEN * INTER) + VOCAB * HIDDEN
    return weights * TYPES[kind][1] / 32 + layers * EXPERTS * HIDDEN * 4


def ours(model, threads, numerics):
    with Cluster("--threads", str(threads), "--numerics", numerics, model=model, experts=1, inprocess=True) as c, \
            tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([str(BIN / "consilium"), "bench", "--url", c.url, "--concurrency", ",".join(map(str, STREAMS)),
                        "--prompt-tokens", str(PROMPT), "--output-tokens", str(OUTPUT), "--requests", "16", "--temperature", "0", "--json", out.name],
                       check=True, stdout=subprocess.DEVNULL)
        levels = json.load(open(out.name))["levels"]
    return {level["concurrency"]: level["output_tokens_per_s"] for level in levels}


def theirs(program, model, threads):
    """The table of llama-batched-bench: | PP | TG | B | N_KV | T_PP | S_PP | T_TG | S_TG | ..."""
    text = subprocess.run([program, "-m", str(model), "-c", "4096", "-b", "512", "-ub", "512", "-npp", str(PROMPT), "-ntg",
                           str(OUTPUT), "-npl", ",".join(map(str, STREAMS)), "-t", str(threads), "-tb", str(threads), "-ngl", "0"],
                          check=True, capture_output=True, text=True).stdout
    rows = re.findall(rf"^\|\s*{PROMPT} \|\s*{OUTPUT} \|\s*(\d+) \|(.*)\|$", text, re.M)
    return {int(b): float(rest.split("|")[4]) for b, rest in rows}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--opponent", required=True, help="llama-batched-bench, built for this CPU")
    p.add_argument("--type", choices=TYPES, default="q8_0")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--folder", help="keeps the model there")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = pathlib.Path(a.folder or temporary) / f"random-{a.type}-{a.layers}.gguf"
        if not model.exists():
            model.parent.mkdir(parents=True, exist_ok=True)
            write_model(model, a.type, a.layers)
        print(f"{model.stat().st_size / 1e6:.0f} MB, a token reads {active_bytes(a.type, a.layers) / 1e6:.0f} MB; "
              f"{a.threads} threads, medians of {a.rounds} rounds")
        rounds = {"llama.cpp": [], "consilium i8g32": [], "consilium f32": []}
        for _ in range(a.rounds):
            rounds["llama.cpp"].append(theirs(a.opponent, model, a.threads))
            rounds["consilium i8g32"].append(ours(model, a.threads, "i8g32"))
            rounds["consilium f32"].append(ours(model, a.threads, "f32"))
    median = {name: {s: statistics.median(r[s] for r in runs) for s in STREAMS} for name, runs in rounds.items()}
    print("| decode, tokens/s | " + " | ".join(f"{s} streams" for s in STREAMS) + " |\n" + "|---" * (1 + len(STREAMS)) + "|")
    for name, speed in median.items():
        ratio = "" if name == "llama.cpp" else " ({:.2f})"
        print(f"| {name} | " + " | ".join(f"{speed[s]:.1f}" + ratio.format(speed[s] / median["llama.cpp"][s]) for s in STREAMS) + " |")


if __name__ == "__main__":
    main()
