#!/usr/bin/env python3
"""Makes the safetensors folders of tests/golden that hold quantised weights, except those of the reference set. Not run by any test.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy 'gguf==0.19.0'
    /tmp/venv/bin/python tests/golden/make_quantised.py [NAME...]

Random weights are quantised once; the folders of a family of formats hold the same codes, scales and zero points, each in the
layout of its format. The golden of the first one, which holds for all of them, comes from gguf_oracle.py: codes minus zero points
times scales, and a forward pass in double.
"""
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

import gguf_oracle

HERE = Path(__file__).resolve().parent
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble n of a word is this one of its eight outputs
DTYPES = {"F64": None, "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "<i1", "U8": "<u1",
          "F8_E4M3": "<u1"}  # fmt: skip


def bf16(x):
    """Bits of the nearest bf16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def fp8_values():
    code = np.arange(256)
    e, m = code >> 3 & 15, code & 7
    value = np.where(e == 0, m * 2.0**-9, (8 + m) * 2.0 ** (e.astype(float) - 10))
    value[(code & 127) == 127] = np.nan
    return np.where(code >> 7, -value, value)


def write_checkpoint(path, tensors):
    """tensors: name -> (dtype, array of the bits)."""
    header, blobs, at = {}, [], 0
    for name, (kind, data) in tensors.items():
        raw = np.ascontiguousarray(data).astype(DTYPES[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(data.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


# ---- quantising


class Integers:
    """w[o, i] = (q[o, i] - z[o, g]) * s[o, g], q in 0 .. 2^bits - 1."""

    def __init__(self, w, bits, group, symmetric, scale=np.float16):
        out, width = w.shape
        self.bits, self.group = bits, group or width
        groups = w.reshape(out, -1, min(self.group, width)).astype(np.float64)
        top = 2**bits - 1
        if symmetric:
            s = np.abs(groups).max(axis=2) / (top // 2)
            z = np.full(s.shape, top // 2 + 1)
        else:
            low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
            s = (high - low) / top
            z = np.clip(np.rint(-low / s), 1, top).astype(int)  # 0 does not survive GPTQ's first format
        self.kind = {np.float16: "F16", np.float32: "F32", "bf16": "BF16"}[scale]
        self.s = from_bf16(bf16(s)) if scale == "bf16" else s.astype(scale)
        self.z = z
        self.q = np.clip(np.rint(groups / self.s[:, :, None]) + z[:, :, None], 0, top).astype(np.uint32)

    def values(self):
        w = (self.q.astype(float) - self.z[:, :, None]) * self.s.astype(float)[:, :, None]
        return w.reshape(len(w), -1)

    @property
    def codes(self):
        return self.q.reshape(len(self.q), -1)

    def scales(self, transposed=False):
        s = self.s.T if transposed else self.s
        return self.kind, bf16(s) if self.kind == "BF16" else s


class Fp8:
    """w[o, i] = e4m3[o, i] * s[o] (or of the matrix)."""

    def __init__(self, w, whole):
        table = fp8_values()
        positive = table[:127]
        s = np.abs(w).max(axis=None if whole else 1) / 448
        self.s = np.float32(s) if whole else from_bf16(bf16(s))
        scaled = w / (self.s if whole else self.s[:, None]).astype(np.float64)
        middle = (positive[1:] + positive[:-1]) / 2
        self.q = (np.searchsorted(middle, np.abs(scaled)) | (scaled < 0) << 7).astype(np.uint8)
        self.whole = whole

    def values(self):
        return fp8_values()[self.q] * (self.s if self.whole else self.s[:, None]).astype(np.float64)


class Mxfp4:
    """w[o, i] = e2m1[o, i] * 2^(e[o, g] - 127), groups of 32."""

    TABLE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def __init__(self, w):
        groups = w.reshape(len(w), -1, 32)
        self.e = (np.floor(np.log2(np.abs(groups).max(axis=2))) - 2 + 127).astype(np.uint8)
        scaled = groups / 2.0 ** (self.e.astype(float) - 127)[:, :, None]
        self.q = np.abs(np.abs(scaled)[..., None] - self.TABLE).argmin(axis=-1) | (scaled < 0) << 3

    def values(self):
        w = np.where(self.q >> 3, -1, 1) * self.TABLE[self.q & 7] * 2.0 ** (self.e.astype(float) - 127)[:, :, None]
        return w.reshape(len(w), -1)


# ---- layouts


def pack(codes, bits, axis):
    """Codes along an axis into 32-bit words, the first one lowest."""
    per = 32 // bits
    codes = np.moveaxis(codes.astype(np.uint64), axis, -1)
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per)])
    words = (codes.reshape(*codes.shape[:-1], -1, per) << (np.arange(per, dtype=np.uint64) * bits)).sum(axis=-1)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis)


def gptq(module, m, first=True):
    width = m.codes.shape[1]
    return {module + ".qweight": ("I32", pack(m.codes.T, m.bits, 0)),
            module + ".qzeros": ("I32", pack(m.z.T - first, m.bits, 1)), module + ".scales": m.scales(True),
            module + ".g_idx": ("I32", np.arange(width) // m.group)}  # fmt: skip


def awq(module, m):
    def words(codes):  # [.., out]
        rows = codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER]
        return pack(rows.reshape(len(codes), -1), 4, 1)

    return {module + ".qweight": ("I32", words(m.codes.T)), module + ".qzeros": ("I32", words(m.z.T)),
            module + ".scales": m.scales(True)}  # fmt: skip


def compressed(module, m):
    out = {module + ".weight_packed": ("I32", pack(m.codes, m.bits, 1)), module + ".weight_scale": m.scales(),
           module + ".weight_shape": ("I64", np.array(m.codes.shape))}  # fmt: skip
    if (m.z != 2 ** (m.bits - 1)).any():
        out[module + ".weight_zero_point"] = ("I32", pack(m.z, m.bits, 0))
    return out


def int8(module, m):
    return {module + ".weight": ("I8", m.codes.astype(int) - 128), module + ".weight_scale": m.scales()}


def mxfp4(module, m):
    q = m.q.reshape(len(m.q), -1)
    return {module + ".weight_packed": ("U8", q[:, ::2] | q[:, 1::2] << 4), module + ".weight_scale": ("U8", m.e)}


def fp8_rows(module, m):
    return {module + ".weight": ("F8_E4M3", m.q), module + ".weight_scale": ("BF16", bf16(m.s)[:, None])}


def fp8_or_integers(module, m):
    return (fp8_rows if isinstance(m, Fp8) else compressed)(module, m)


def fp8_whole(module, m):
    out = {module + ".weight": ("F8_E4M3", m.q), module + ".weight_scale": ("F32", np.array(m.s)),
           module + ".input_scale": ("F32", np.array(0.01))}  # fmt: skip
    if module.endswith("k_proj"):
        out[module.replace("k_proj", "k_scale")] = ("F32", np.array(0.5))
    return out


# ---- models


class Model:
    """A small Mixtral or Qwen3-MoE: hub names, names of the oracle, random weights."""

    def __init__(self, family, hidden=64, inter=32, heads=4, kv=2, dim=16, experts=6, top=2, layers=2, vocab=512, seed=1):
        self.family, self.config = family, json.loads((HERE / family / "config.json").read_text())
        width = "moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"
        self.config |= {"hidden_size": hidden, width: inter, "num_attention_heads": heads, "num_key_value_heads": kv,
                        "head_dim": dim, "num_local_experts": experts, "num_experts_per_tok": top,
                        "num_hidden_layers": layers, "vocab_size": vocab}  # fmt: skip
        theta = (self.config.get("rope_parameters") or self.config)["rope_theta"]
        self.meta = {f"{family}.{k}": v for k, v in {
            "block_count": layers, "attention.head_count": heads, "attention.head_count_kv": kv, "vocab_size": vocab,
            "attention.key_length": dim, "expert_used_count": top, "rope.freq_base": theta,
            "attention.layer_norm_rms_epsilon": self.config["rms_norm_eps"]}.items()}  # fmt: skip
        self.meta |= {"general.architecture": family, "tokenizer.ggml.padding_token_id": 0}
        random = np.random.default_rng(seed)
        self.matrices, self.plain, self.names = {}, {}, {}

        def matrix(hub, own, out, width, plain=False):
            w = random.normal(0, 1 / np.sqrt(width), (out, width)) * (1 + random.random((out, 1)))
            (self.plain if plain else self.matrices)[hub] = w
            self.names[hub] = own

        def vector(hub, own, n):
            self.plain[hub], self.names[hub] = 1 + random.normal(0, 0.1, n), own

        self.plain["model.embed_tokens"], self.names["model.embed_tokens"] = random.normal(0, 1, (vocab, hidden)), "token_embd"
        moe = "mlp" if family == "qwen3_moe" else "block_sparse_moe"
        parts = ("gate_proj", "up_proj", "down_proj") if family == "qwen3_moe" else ("w1", "w3", "w2")
        for i in range(layers):
            p, o = f"model.layers.{i}.", f"blk.{i}."
            vector(p + "input_layernorm", o + "attn_norm", hidden)
            vector(p + "post_attention_layernorm", o + "ffn_norm", hidden)
            for name, own, rows in (("q", "q", heads), ("k", "k", kv), ("v", "v", kv)):
                matrix(f"{p}self_attn.{name}_proj", f"{o}attn_{own}", rows * dim, hidden)
            matrix(p + "self_attn.o_proj", o + "attn_output", hidden, heads * dim)
            if family == "qwen3_moe":
                vector(p + "self_attn.q_norm", o + "attn_q_norm", dim)
                vector(p + "self_attn.k_norm", o + "attn_k_norm", dim)
            matrix(p + moe + ".gate", o + "ffn_gate_inp", experts, hidden, plain=True)
            for e in range(experts):
                for part, own in zip(parts, ("gate", "up", "down")):
                    sizes = (hidden, inter) if own == "down" else (inter, hidden)
                    matrix(f"{p}{moe}.experts.{e}.{part}", f"{o}ffn_{own}_exps.{e}", *sizes)
        vector("model.norm", "output_norm", hidden)
        matrix("lm_head", "output", vocab, hidden)
        for name, data in self.plain.items():
            self.plain[name] = from_bf16(bf16(data))

    def oracle(self, quantised, dtype):
        own = {self.names[k] + ".weight": v for k, v in self.plain.items()}
        for name, m in quantised.items():
            own[self.names[name] + ".weight"] = m.values()
        stacks = {}
        for name in [n for n in own if "_exps." in n]:
            stacks.setdefault(name.split("_exps.")[0] + "_exps.weight", []).append(own.pop(name))
        own |= {k: np.stack(v) for k, v in stacks.items()}
        return gguf_oracle.Oracle.of(self.meta, {k: v.astype(dtype) for k, v in own.items()}, dtype)

    def write(self, name, quantised, layout, section):
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        tensors = {k + ".weight": ("BF16", bf16(v)) for k, v in self.plain.items()}
        for module, m in quantised.items():
            tensors |= layout(module, m)
        write_checkpoint(folder / "model.safetensors", dict(sorted(tensors.items())))
        (folder / "config.json").write_text(json.dumps(self.config | {"quantization_config": section}, indent=2) + "\n")
        for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(HERE / self.family / file, folder)
        return folder


# ---- the folders


def gptq_section(bits, group, sym, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "damp_percent": 0.1, "desc_act": False, "sym": sym,
            "true_sequential": True, "lm_head": True} | more  # fmt: skip


def group(weights, activations=None, targets=("Linear",), **more):
    base = {"actorder": None, "block_structure": None, "dynamic": False, "group_size": None, "observer": "minmax",
            "observer_kwargs": {}, "symmetric": True, "type": "int"}  # fmt: skip
    return {"targets": list(targets), "weights": base | weights, "input_activations": activations, "output_activations": None} | more


def compressed_section(form, *groups):
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": ["re:.*gate$"],
            "kv_cache_scheme": None, "global_compression_ratio": None,
            "config_groups": {f"group_{i}": g for i, g in enumerate(groups)}}  # fmt: skip


FOUR = {"num_bits": 4, "strategy": "group", "group_size": 32}
ROWS = {"num_bits": 8, "type": "float", "strategy": "channel"}
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", "modules_to_not_convert": ["gate"]}

# Of each family of formats: model, how it is quantised, folders with layout and section; the golden lies in the first.
FAMILIES = [
    (Model("qwen3_moe", seed=1), lambda n, w: Integers(w, 4, 32, False), [
        ("qwen3_moe_gptq", gptq, gptq_section(4, 32, False)),
        ("qwen3_moe_gptq_v2", lambda n, m: gptq(n, m, False), gptq_section(4, 32, False, checkpoint_format="gptq_v2")),
        ("qwen3_moe_awq", awq, AWQ),
        ("qwen3_moe_w4a16_zero", compressed, compressed_section("pack-quantized", group(FOUR | {"symmetric": False}))),
    ]),
    (Model("mixtral", seed=2), lambda n, w: Integers(w, 4, 0, True), [
        ("mixtral_gptq", gptq, gptq_section(4, -1, True, desc_act=True)),
        ("mixtral_w4a16", compressed, compressed_section("pack-quantized", group({"num_bits": 4, "strategy": "channel"}))),
    ]),
    (Model("mixtral", seed=3), lambda n, w: Integers(w, 8, 0, True, "bf16"), [
        ("mixtral_w8a8", int8, compressed_section("int-quantized", group({"num_bits": 8, "strategy": "channel"},
                                                                        TOKEN | {"type": "int"}))),
        ("mixtral_gptq_int8", gptq, gptq_section(8, -1, True)),
        ("mixtral_w8a16", compressed, compressed_section("pack-quantized", group({"num_bits": 8, "strategy": "channel"}))),
    ]),
    (Model("qwen3_moe", seed=4), lambda n, w: Fp8(w, False), [
        ("qwen3_moe_fp8_dynamic", fp8_rows, compressed_section("float-quantized", group(ROWS, TOKEN))),
    ]),
    (Model("mixtral", seed=6), lambda n, w: Mxfp4(w), [
        ("mixtral_mxfp4", mxfp4, compressed_section(
            "mxfp4-pack-quantized", group({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}))),
    ]),
    (Model("mixtral", seed=5), lambda n, w: Fp8(w, True), [
        ("mixtral_fp8", fp8_whole, {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["re:.*gate"]}),
    ]),
    (Model("mixtral", seed=7), lambda n, w: Fp8(w, False) if "self_attn" in n or n == "lm_head" else Integers(w, 4, 32, True, "bf16"), [
        ("mixtral_mixed", fp8_or_integers, compressed_section(
            "mixed-precision", group(ROWS, TOKEN, ["re:.*self_attn.*", "lm_head"], format="float-quantized"),
            group(FOUR, format="pack-quantized"))),
    ]),
]  # fmt: skip


def main():
    wanted = sys.argv[1:]
    for model, quantise, folders in FAMILIES:
        if wanted and not any(name in wanted for name, _, _ in folders):
            continue
        quantised = {name: quantise(name, w) for name, w in model.matrices.items()}
        for name, layout, section in folders:
            folder = model.write(name, quantised, layout, section)
            if name == folders[0][0]:
                gguf_oracle.write_golden(folder, lambda dtype: model.oracle(quantised, dtype))
            print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
