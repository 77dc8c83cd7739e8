"""A release, and how its tensors are counted and stored."""
import dataclasses
import json
import pathlib

CONFIGS = pathlib.Path(__file__).resolve().parent / "configs"
BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I32": 4}


@dataclasses.dataclass
class Release:
    name: str
    tensors: object  # config -> Files
    total: float  # billions, of the card
    active: float
    layers: int
    experts: int
    top_k: int
    context: int
    format: str = "safetensors BF16, F32"
    refused: str = ""  # the sentence instead

    def config(self):
        file = next((CONFIGS / self.name).glob("*.json"))
        return file.name, json.loads(file.read_text())


class Files:
    """Collects tensors; `weight` stores a matrix the way the release quantises."""

    def __init__(self):
        self.tensors = []  # name, dtype, shape
        self.total = 0  # parameters the model computes with
        self.routed = 0
        self.unused = 0  # tensors that inference does not use

    def add(self, name, *shape, dtype=None, count=True):
        self.tensors.append((name, dtype or "BF16", list(shape)))
        if count:
            self.total += product(shape)

    def matrix(self, module, rows, columns, quantise=None, routed=False):
        """module.weight [rows, columns] and what belongs to it. Quantised: "fp8" and "native" in blocks, "rows", "tensor"
        (whole matrices), "int4" in groups of 32, "gptq" and "awq" of 128."""
        self.total += rows * columns
        if routed:
            self.routed += rows * columns
        weight = module + ".weight"
        if quantise is None:
            self.add(weight, rows, columns, count=False)
        elif quantise == "int4":
            self.add(module + ".weight_packed", rows, columns // 8, dtype="I32", count=False)
            self.add(module + ".weight_scale", rows, columns // 32, count=False)
            self.add(module + ".weight_shape", 2, dtype="I32", count=False)
        elif quantise in ("gptq", "awq"):
            groups = blocks(columns)
            packed = (columns // 8, rows) if quantise == "gptq" else (columns, rows // 8)
            self.add(module + ".qweight", *packed, dtype="I32", count=False)
            self.add(module + ".qzeros", groups, rows // 8, dtype="I32", count=False)
            self.add(module + ".scales", groups, rows, dtype="F16", count=False)
            if quantise == "gptq":
                self.add(module + ".g_idx", columns, dtype="I32", count=False)
        else:
            self.add(weight, rows, columns, dtype="F8_E4M3", count=False)
            if quantise == "fp8":
                self.add(weight + "_scale_inv", blocks(rows), blocks(columns), dtype="F32", count=False)
            elif quantise == "rows":
                self.add(weight + "_scale", rows, 1, count=False)
            elif quantise == "native":
                self.add(weight + "_scale", blocks(rows), blocks(columns), dtype="F32", count=False)
            else:
                self.add(weight + "_scale_inv", count=False)
                self.add(module + ".activation_scale", count=False)

    def extra(self, tensors):
        """Tensors of vision towers and prediction layers."""
        for name, *shape in tensors:
            self.add(name, *shape, count=False)
            self.unused += 1

    def mlp(self, prefix, names, hidden, inter, quantise=None, routed=False):
        gate, up, down = names
        self.matrix(prefix + gate, inter, hidden, quantise, routed)
        self.matrix(prefix + up, inter, hidden, quantise, routed)
        self.matrix(prefix + down, hidden, inter, quantise, routed)

    def ends(self, c, root="model.", head="lm_head.weight", norm="norm.weight", tied=False, bias=False):
        hidden, vocab = c["hidden_size"], c["vocab_size"]
        self.add(root + "embed_tokens.weight", vocab, hidden)
        self.add(root + norm, hidden)
        if not tied:
            self.add(head, vocab, hidden)
        if bias:
            self.add(head.replace("weight", "bias"), vocab)

    def gqa(self, prefix, c, bias="", norms=None, quantise=None, out="o_proj"):
        hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        dim = c.get("head_dim") or hidden // heads
        for letter, rows in (("q", heads * dim), ("k", kv * dim), ("v", kv * dim)):
            self.matrix(f"{prefix}{letter}_proj", rows, hidden, quantise)
            if letter in bias:
                self.add(f"{prefix}{letter}_proj.bias", rows)
        self.matrix(prefix + out, hidden, heads * dim, quantise)
        if "o" in bias:
            self.add(f"{prefix}{out}.bias", hidden)
        if norms:
            q, k, whole = norms
            self.add(f"{prefix}{q}.weight", heads * dim if whole else dim)
            self.add(f"{prefix}{k}.weight", kv * dim if whole else dim)

    def mla(self, prefix, c, names, quantise=None, plain=()):
        hidden, heads = c["hidden_size"], c["num_attention_heads"]
        rope, nope, value, rank = c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        q_a, q_norm, q_b, kv_a, kv_norm, kv_b, o = names

        def matrix(name, rows, columns):
            self.matrix(prefix + name, rows, columns, None if name in plain else quantise)
        if c.get("q_lora_rank"):
            matrix(q_a, c["q_lora_rank"], hidden)
            self.add(f"{prefix}{q_norm}.weight", c["q_lora_rank"])
            matrix(q_b, heads * (nope + rope), c["q_lora_rank"])
        else:
            matrix("q_proj", heads * (nope + rope), hidden)
        matrix(kv_a, rank + rope, hidden)
        self.add(f"{prefix}{kv_norm}.weight", rank)
        matrix(kv_b, heads * (nope + value), rank)
        matrix(o, hidden, heads * value)

    def norms(self, prefix, hidden, *names, bias=False):
        for name in names:
            self.add(f"{prefix}{name}.weight", hidden)
            if bias:
                self.add(f"{prefix}{name}.bias", hidden)


def product(shape):
    out = 1
    for n in shape:
        out *= n
    return out


def blocks(n):
    return -(-n // 128)
