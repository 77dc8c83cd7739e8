#!/usr/bin/env python3
"""Makes the folders of tests/golden for options of a family that its own folder there does not use, and qwen3_5_moe. Not run by any
test.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy 'gguf==0.19.0' torch safetensors 'transformers==5.24.0'
    /tmp/venv/bin/python tests/golden/make_variants.py [NAME...]

Random weights in bf16 as the library writes them; the golden is that library's, in f32, eager, without cache. The noise floor is its
difference from float64. Prompts are drawn until no choice of experts or tokens comes near a tie.
"""
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import gguf_oracle

HERE = Path(__file__).resolve().parent
SPECIAL = 8  # ids that the reference vocabulary begins with


def draw(model, seed):
    """Weights that make every part count: unit variance through matrices, norms near 1, biases that show."""
    random = torch.Generator().manual_seed(seed)
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        if "inv_freq" in name:
            continue
        noise = torch.randn(p.shape, generator=random)
        if p.ndim > 1:
            p.data = noise * (1 if "embed" in name else p.shape[-1] ** -0.5)
        else:
            p.data = 1 + noise * 0.1 if "norm" in name else noise * 0.2


def draw_qwen3_5(model, seed):
    """The same for norms by 1 + w and delta nets, whose states decay at all speeds."""
    random, out = torch.Generator().manual_seed(seed), {}
    for name, p in model.state_dict().items():
        noise = torch.randn(p.shape, generator=random)
        if name.endswith("A_log"):
            w = torch.empty(p.shape).uniform_(0.02, 1.0, generator=random).log()
        elif name.endswith(("dt_bias", "conv1d.weight")):
            w = noise * (0.5 if name.endswith("dt_bias") else 0.6)
        elif p.ndim == 1:
            w = 0.2 * noise + name.endswith("linear_attn.norm.weight")
        elif name.endswith("embed_tokens.weight"):
            w = noise
        else:
            strong = name.endswith(("mlp.gate.weight", "down_proj", "down_proj.weight"))
            w = noise * (2.5 if name == "lm_head.weight" else 1.5 if strong else 1.2) / math.sqrt(p.shape[-1])
        out[name] = w.to(torch.bfloat16)
    return out


class Reference:
    """One run of a model a prompt, whole sequences."""

    def __init__(self, folder, dtype):
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager").eval()  # fmt: skip
        self.calls, self.hidden = [], []
        layers = self.model.model.layers
        layers[0].register_forward_pre_hook(lambda m, args: self.hidden.append(args[0]))
        for layer in layers:
            layer.register_forward_hook(lambda m, args, out: self.hidden.append(out[0] if isinstance(out, tuple) else out))
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.register_forward_hook(lambda m, args, out: self.calls.append((m, out)))

    def forward(self, ids):
        """logits [T, V], hidden [layers + 1, T, H], of each MoE layer router logits, ids, weights."""
        self.calls.clear(), self.hidden.clear()
        with torch.no_grad():
            logits = self.model(torch.tensor(ids)[None], use_cache=False).logits[0].numpy()
        router, self.router_gap = [], np.inf
        for gate, (raw, weights, chosen) in self.calls:
            choice = self.choice(gate, raw).detach().numpy()
            gap = -np.sort(-choice, axis=-1)
            self.router_gap = min(self.router_gap, (gap[:, :-1] - gap[:, 1:])[:, : gate.top_k].min())
            order = np.argsort(-np.take_along_axis(choice, chosen.numpy(), -1), axis=-1)
            router.append((raw.numpy(), *(np.take_along_axis(x.numpy(), order, -1) for x in (chosen, weights))))
        return logits, torch.stack([h[0] for h in self.hidden]).numpy(), router

    @staticmethod
    def choice(gate, raw):
        if hasattr(gate, "moe_statics"):  # ERNIE-4.5
            return gate.moe_statics(raw.softmax(-1))
        if hasattr(gate, "e_score_correction_bias"):  # DeepSeek-V3
            return raw.sigmoid() + gate.e_score_correction_bias
        return raw.softmax(-1)

    greedy = gguf_oracle.Oracle.greedy


class WideReference(Reference):
    """Log-probabilities in double, of logits in f32."""

    def forward(self, ids):
        logits, *others = super().forward(ids)
        return logits.astype(np.float64), *others


def compute(reference, prompts):
    moe = [i for i, layer in enumerate(reference.model.model.layers) if hasattr(layer.mlp, "gate")]
    out, gap = gguf_oracle.compute(reference, prompts)
    named = {}
    for name, data in out.items():  # layers are counted from the first one
        part = name.split(".")
        if part[2] == "router":
            part[3] = str(moe[int(part[3])])
        named[".".join(part)] = data
    return named, gap


def write_golden(folder, prompts, golden, facts):
    exact, _ = compute(Reference(folder, torch.float64), prompts)
    gguf_oracle.write_floor(folder, golden, exact, {"oracle": "transformers 5.24.0"} | facts)


def make(name, family, changes, seed):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = AutoConfig.from_pretrained(HERE / family)
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw(model, seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(HERE / family / file, folder)
    single = Reference(folder, torch.float32)
    for prompt_seed in range(200):
        random = np.random.default_rng(prompt_seed)
        prompts = [random.integers(SPECIAL, config.vocab_size, n) for n in gguf_oracle.LENGTHS]
        golden, gap = compute(single, prompts)
        if gap >= gguf_oracle.ROUTER_GAP and min(golden[f"prompt.{p}.greedy_ids"].min() for p in range(3)) >= SPECIAL:
            break
    else:
        raise ValueError("no prompts without near ties; choose another seed")
    write_golden(folder, prompts, golden, {"seed": seed, "prompt_seed": prompt_seed, "smallest_gap": float(gap)})


def make_qwen3_5(name, seed):
    """The text part of a model of text and pictures, named as its releases name it; one tensor each stands for the vision tower and the
    prediction layers. config.json is its own source. The seed is one whose prompts hold no near tie."""
    folder = HERE / name
    config = AutoConfig.from_pretrained(folder).text_config
    weights = draw_qwen3_5(AutoModelForCausalLM.from_config(config, dtype=torch.float32), seed)
    tensors = {k.replace("model.", "model.language_model.", 1): w for k, w in weights.items()}
    random = torch.Generator().manual_seed(1)
    tensors["model.visual.patch_embed.proj.weight"] = torch.randn(8, 3, 2, 2, 2, generator=random).to(torch.bfloat16)
    tensors["mtp.fc.weight"] = torch.randn(8, 16, generator=random).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    random = torch.Generator().manual_seed(seed + 777)
    prompts = [torch.randint(5, config.vocab_size, (n,), generator=random).numpy() for n in gguf_oracle.LENGTHS]
    golden, gap = compute(WideReference(folder, torch.float32), prompts)
    write_golden(folder, prompts, golden, {"seed": seed, "smallest_gap": float(gap)})


SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_nextn_predict_layers": 0, "n_routed_experts": 8,
         "num_local_experts": 8, "num_experts_per_tok": 2}  # fmt: skip
ERNIE = {"use_bias": True, "tie_word_embeddings": False, "hidden_size": 48, "num_hidden_layers": 2, "moe_layer_end_index": 1,
         "moe_num_experts": 8, "moe_k": 2}  # fmt: skip
# Threads, on whose number the last bits of the library's sums depend; how, and with what.
VARIANTS = {
    "deepseek_v3_bias_gelu": (2, make, "deepseek_v3", SMALL | {"attention_bias": True, "hidden_act": "gelu"}, 1),
    "ernie4_5_moe_bias": (2, make, "ernie4_5_moe", ERNIE, 1),
    "qwen3_5_moe": (1, make_qwen3_5, 1079),
}


def main():
    for name in sys.argv[1:] or VARIANTS:
        threads, how, *options = VARIANTS[name]
        torch.set_num_threads(threads)
        how(name, *options)
        print(name, sum(f.stat().st_size for f in (HERE / name).iterdir()), "bytes")


if __name__ == "__main__":
    main()
