"""Golden outputs of a GGUF model of architecture llama (with experts) or qwen3moe: the gguf package's dequantisation and
a forward pass in double, whole sequences at once, in llama.cpp's order of rotary lanes. Shares nothing with the engine.
make_quantised.py gives it dequantised weights of Mixtral and Qwen3-MoE folders, in the order of the hub.

    python tests/golden/gguf_oracle.py FOLDER    # compares with FOLDER/golden.safetensors, to judge this file
"""
import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

LENGTHS, GREEDY = (1, 17, 45), 16
ROUTER_GAP, GREEDY_GAP = 1e-4, 1e-3  # a golden that is nearer to a tie would ask for luck


def write_safetensors(path, tensors):
    header, blobs, at = {}, [], 0
    for name, data in tensors.items():
        kind = "I32" if data.dtype.kind == "i" else "F32"
        raw = np.ascontiguousarray(data, "<i4" if kind == "I32" else "<f4").tobytes()
        header[name] = {"dtype": kind, "shape": list(data.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


class Oracle:
    def __init__(self, file, dtype=np.float64):
        read = gguf.GGUFReader(file)
        self.take(
            {k: f.contents() for k, f in read.fields.items() if len(f.types) == 1},
            {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(dtype) for t in read.tensors}, dtype)  # fmt: skip

    @classmethod
    def of(cls, meta, weights, dtype):
        """Metadata and names as a GGUF file has them; an architecture of the hub's name has the hub's rotary lanes."""
        self = cls.__new__(cls)
        self.take(meta, weights, dtype)
        return self

    def take(self, meta, weights, dtype):
        self.meta, self.w, self.dtype = meta, weights, dtype
        self.arch = self.meta["general.architecture"]
        assert self.arch in ("llama", "qwen3moe", "mixtral", "qwen3_moe"), self.arch
        self.layers, self.heads, self.kv = self["block_count"], self["attention.head_count"], self["attention.head_count_kv"]
        self.dim, self.top = self["attention.key_length"], self["expert_used_count"]
        self.eps = dtype(self["attention.layer_norm_rms_epsilon"])

    def __getitem__(self, key):
        return self.meta[f"{self.arch}.{key}"]

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self.w[name]

    def rotate(self, x):  # [T, heads, dim]
        half = self.dim // 2
        angle = np.arange(len(x))[:, None] * self["rope.freq_base"] ** (-np.arange(half) / half)
        cos, sin = (f(angle)[:, None].astype(self.dtype) for f in (np.cos, np.sin))
        if self.arch == "llama":  # adjacent pairs
            a, b = x[..., 0::2], x[..., 1::2]
            return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def attend(self, x, p):
        n = len(x)
        q = (x @ self.w[p + "attn_q.weight"].T).reshape(n, self.heads, self.dim)
        k = (x @ self.w[p + "attn_k.weight"].T).reshape(n, self.kv, self.dim)
        v = (x @ self.w[p + "attn_v.weight"].T).reshape(n, self.kv, self.dim)
        if self.arch in ("qwen3moe", "qwen3_moe"):
            q, k = self.norm(q, p + "attn_q_norm.weight"), self.norm(k, p + "attn_k_norm.weight")
        q, k = self.rotate(q), self.rotate(k)
        k, v = (np.repeat(t, self.heads // self.kv, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(self.dtype(self.dim))
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1) @ self.w[p + "attn_output.weight"].T

    def experts(self, x, p, router):
        logits = x @ self.w[p + "ffn_gate_inp.weight"].T
        ids = np.argsort(-logits, axis=-1, kind="stable")[:, : self.top]
        ordered = -np.sort(-logits, axis=-1)
        self.router_gap = min(self.router_gap, (ordered[:, :-1] - ordered[:, 1:])[:, : self.top].min())
        chosen = np.take_along_axis(logits, ids, axis=-1)
        weights = np.exp(chosen - chosen.max(axis=-1, keepdims=True))  # both divide by the sum of the chosen
        weights /= weights.sum(axis=-1, keepdims=True)
        router.append((logits, ids, weights))
        gate, up, down = (self.w[p + f"ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        out = np.zeros_like(x)
        for t, row in enumerate(x):
            for e, scale in zip(ids[t], weights[t]):
                g = gate[e] @ row
                out[t] += scale * (down[e] @ (g / (1 + np.exp(-g)) * (up[e] @ row)))
        return out

    def forward(self, ids):
        """logits [T, V], hidden [layers + 1, T, H], of each layer router logits, ids, weights."""
        self.router_gap = np.inf
        x = self.w["token_embd.weight"][ids]
        hidden, router = [x], []
        for i in range(self.layers):
            p = f"blk.{i}."
            x = x + self.attend(self.norm(x, p + "attn_norm.weight"), p)
            x = x + self.experts(self.norm(x, p + "ffn_norm.weight"), p, router)
            hidden.append(x)
        return self.norm(x, "output_norm.weight") @ self.w["output.weight"].T, np.stack(hidden), router

    def greedy(self, ids):
        ids, out, gap = list(ids), [], np.inf
        for _ in range(GREEDY):
            logits = self.forward(np.array(ids))[0][-1]
            order = np.argsort(-logits, kind="stable")
            gap = min(gap, logits[order[0]] - logits[order[1]], self.router_gap)
            log_sum = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
            out.append((order[0], logits[order[0]] - log_sum))
            ids.append(order[0])
        return np.array([t for t, _ in out], np.int32), np.array([p for _, p in out]), gap


def compute(oracle, prompts):
    out, gaps = {}, []
    for p, ids in enumerate(prompts):
        logits, hidden, router = oracle.forward(ids)
        gaps.append(oracle.router_gap)
        tokens, logprobs, gap = oracle.greedy(ids)
        gaps.append(gap / 10)
        base = f"prompt.{p}."
        out |= {base + "ids": ids.astype(np.int32), base + "logits": logits, base + "greedy_ids": tokens,
                base + "greedy_logprobs": logprobs}  # fmt: skip
        if p == 1:
            out[base + "hidden"] = hidden
        if p == 2:
            for i, (raw, chosen, weights) in enumerate(router):
                out |= {f"{base}router.{i}.logits": raw, f"{base}router.{i}.ids": chosen.astype(np.int32),
                        f"{base}router.{i}.weights": weights}  # fmt: skip
    return out, min(gaps)


def choose_prompts(oracle):
    """The first seed whose three prompts, and what follows them, hold no near tie and no special token."""
    special = oracle.meta["tokenizer.ggml.padding_token_id"] + 8  # the reference vocabulary begins with 8 of them
    for seed in range(200):
        random = np.random.default_rng(seed)
        prompts = [random.integers(special, oracle["vocab_size"], n) for n in LENGTHS]
        out, gap = compute(oracle, prompts)
        if gap >= ROUTER_GAP and min(out[f"prompt.{p}.greedy_ids"].min() for p in range(3)) >= special:
            return prompts, out, gap, seed
    raise ValueError("no prompts without near ties; choose other weights")


def write_golden(folder, make=None):
    make = make or (lambda dtype: Oracle(folder / "model.gguf", dtype))
    prompts, exact, gap, seed = choose_prompts(make(np.float64))
    single, _ = compute(make(np.float32), prompts)
    write_floor(folder, exact, single, {"oracle": "gguf_oracle.py", "gguf": "0.19.0", "prompt_seed": seed,
                                        "smallest_gap": float(gap)})  # fmt: skip


def write_floor(folder, exact, single, facts):
    """The golden file and what is known of it; `single` is `exact` in the other precision."""
    floor = {k: max(float(abs(exact[f"prompt.{p}.{k}"] - single[f"prompt.{p}.{k}"]).max()) for p in at)
             for k, at in (("logits", range(3)), ("hidden", (1,)))}  # fmt: skip
    write_safetensors(folder / "golden.safetensors", exact)
    tolerance = {k: max(1e-4, 10 * v) for k, v in floor.items()}
    tolerance |= {"logprobs": max(1e-4, 20 * floor["logits"]), "router_weights": 1e-4, "router_ids": "exact",
                  "greedy_ids": "exact"}  # fmt: skip
    (folder / "golden.json").write_text(json.dumps({
        "name": folder.name, **facts, "noise_floor": {k + "_fp32_vs_fp64": v for k, v in floor.items()},
        "tolerance": tolerance}, indent=2) + "\n")  # fmt: skip


def main():
    from make_gguf import read_safetensors

    folder = Path(sys.argv[1])
    golden = read_safetensors(folder / "golden.safetensors")
    got, gap = compute(Oracle(folder / "model.gguf"), [golden[f"prompt.{p}.ids"] for p in range(3)])
    for name, data in golden.items():
        print(f"{name}: largest difference {np.abs(got[name].astype(float) - data).max():.3g}")
    print(f"smallest gap {gap:.3g}")


if __name__ == "__main__":
    main()
