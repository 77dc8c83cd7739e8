#!/usr/bin/env python3
"""Makes the GGUF folders of tests/golden that are not copies of the reference set. Not run by any test.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy 'gguf==0.19.0'
    /tmp/venv/bin/python tests/golden/make_gguf.py [NAME...]

Three kinds:
  - architectures: the weights of a reference folder, as they are, under the names, metadata and orders of rows that
    llama.cpp's converter gives them. The folder's own golden.safetensors holds for the file.
  - storage types: one checkpoint quantised by the gguf package, or, where it can only read a type, by quantise.py. The
    golden comes from gguf_oracle.py: the package's dequantisation and a forward pass in double.
  - "blocks": common/model/testdata/gguf_blocks.json.
"""
import json
import re
import shutil
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

import quantise

HERE = Path(__file__).resolve().parent
F32, F16, BF16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16
MERGED = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight$")


def read_safetensors(path):
    """name -> float32 array; bf16 is widened exactly."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    out = {}
    for name, info in json.loads(raw[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in info["data_offsets"])
        if info["dtype"] == "BF16":
            bits = np.frombuffer(raw[begin:end], "<u2").astype("<u4") << 16
            data = bits.view("<f4")
        else:
            data = np.frombuffer(raw[begin:end], {"F32": "<f4", "I32": "<i4"}[info["dtype"]])
        out[name] = data.reshape(info["shape"])
    return out


class Folder:
    def __init__(self, name):
        self.dir = HERE / name
        whole = json.loads((self.dir / "config.json").read_text())
        self.config = {**whole, **whole.get("text_config", {})}
        self.tensors = {}
        for file in sorted(self.dir.glob("model*.safetensors")):
            self.tensors |= read_safetensors(file)

    def get(self, key, default=None):
        value = self.config.get(key)
        return default if value is None else value

    def rope(self, key, default=None):
        return (self.get("rope_parameters") or self.get("rope_scaling") or {}).get(key, self.get(key, default))


# ---- metadata: what convert_hf_to_gguf writes for every text model, then what one architecture adds


def write_common(w, m):
    layers = m.get("num_hidden_layers") + m.get("num_nextn_predict_layers", 0)
    w.add_block_count(layers)
    w.add_context_length(m.get("max_position_embeddings"))
    w.add_embedding_length(m.get("hidden_size"))
    w.add_feed_forward_length(m.get("intermediate_size"))
    w.add_head_count(m.get("num_attention_heads"))
    w.add_head_count_kv(m.get("num_key_value_heads"))
    if m.rope("rope_type") == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(m.rope("factor"))
        w.add_rope_scaling_orig_ctx_len(m.rope("original_max_position_embeddings"))
        w.add_rope_scaling_yarn_beta_fast(m.rope("beta_fast"))
        w.add_rope_scaling_yarn_beta_slow(m.rope("beta_slow"))
    w.add_rope_freq_base(m.rope("rope_theta"))
    w.add_layer_norm_rms_eps(m.get("rms_norm_eps"))
    for keys, add in (
        (("num_local_experts", "num_experts", "n_routed_experts"), w.add_expert_count),
        (("num_experts_per_tok",), w.add_expert_used_count),
        (("n_group",), w.add_expert_group_count),
        (("topk_group",), w.add_expert_group_used_count),
        (("head_dim",), w.add_key_length),
        (("head_dim",), w.add_value_length),
    ):
        for key in keys:
            if m.get(key) is not None:
                add(m.get(key))
                break
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_vocabulary(w, m):
    tokenizer = json.loads((m.dir / "tokenizer.json").read_text())
    config = json.loads((m.dir / "tokenizer_config.json").read_text())
    ids = {v: k for k, v in tokenizer["model"]["vocab"].items()}
    special = {t["id"]: t for t in tokenizer["added_tokens"]}
    tokens, types = [], []
    for i in range(m.get("vocab_size")):
        if i in special:
            tokens.append(special[i]["content"])
            types.append(gguf.TokenType.CONTROL if special[i]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(ids.get(i, f"[PAD{i}]"))
            types.append(gguf.TokenType.NORMAL if i in ids else gguf.TokenType.UNUSED)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges([" ".join(x) if isinstance(x, list) else x for x in tokenizer["model"]["merges"]])
    by_text = {text: i for i, text in enumerate(tokens)}
    w.add_bos_token_id(by_text[config["bos_token"]])
    w.add_eos_token_id(by_text[config["eos_token"]])
    w.add_eot_token_id(by_text["<|im_end|>"])
    w.add_pad_token_id(by_text["<pad>"])
    w.add_add_bos_token(False)
    w.add_chat_template(config["chat_template"])


def head_dim(m):
    return m.get("head_dim") or m.get("hidden_size") // m.get("num_attention_heads")


def write_moe_width(w, m):
    w.add_expert_feed_forward_length(m.get("moe_intermediate_size"))


def write_dense_first(w, m):
    w.add_leading_dense_block_count(m.get("first_k_dense_replace"))
    w.add_expert_shared_count(m.get("n_shared_experts"))
    w.add_expert_weights_scale(m.get("routed_scaling_factor"))
    if m.get("norm_topk_prob"):
        w.add_expert_weights_norm(True)


def qwen2moe(w, m):
    write_moe_width(w, m)
    w.add_expert_shared_feed_forward_length(m.get("shared_expert_intermediate_size"))


def granitemoe(w, m):
    w.add_vocab_size(m.get("vocab_size"))
    w.add_rope_dimension_count(head_dim(m))
    w.add_attention_scale(m.get("attention_multiplier"))
    w.add_embedding_scale(m.get("embedding_multiplier"))
    w.add_residual_scale(m.get("residual_multiplier"))
    w.add_logit_scale(m.get("logits_scaling"))
    if m.get("shared_intermediate_size"):
        w.add_expert_shared_feed_forward_length(m.get("shared_intermediate_size"))


def glm4moe(w, m):
    w.add_rope_dimension_count(int(head_dim(m) * m.rope("partial_rotary_factor")))
    write_moe_width(w, m)
    write_dense_first(w, m)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_nextn_predict_layers(m.get("num_nextn_predict_layers"))


def deepseek2(w, m, absorbed):
    w.add_vocab_size(m.get("vocab_size"))
    write_dense_first(w, m)
    write_moe_width(w, m)
    if m.get("q_lora_rank"):
        w.add_q_lora_rank(m.get("q_lora_rank"))
    rank, nope, rope = m.get("kv_lora_rank"), m.get("qk_nope_head_dim"), m.get("qk_rope_head_dim")
    w.add_kv_lora_rank(rank)
    if absorbed:
        w.add_head_count_kv(1)
        w.add_key_length(rank + rope)
        w.add_value_length(rank)
        w.add_key_length_mla(nope + rope)
        w.add_value_length_mla(m.get("v_head_dim"))
    else:  # files from before April 2025: kv_b in one piece, no group counts
        w.add_key_length(nope + rope)
        w.add_value_length(m.get("v_head_dim"))
        w.kv_data[0].pop("deepseek2.expert_group_count")
        w.kv_data[0].pop("deepseek2.expert_group_used_count")
    w.add_rope_dimension_count(rope)
    w.add_rope_scaling_yarn_log_mul(0.1 * m.rope("mscale_all_dim"))


def dots1(w, m):
    write_moe_width(w, m)
    write_dense_first(w, m)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def ernie(w, m):
    w.add_expert_count(m.get("moe_num_experts"))
    w.add_expert_used_count(m.get("moe_k"))
    w.add_interleave_moe_layer_step(m.get("moe_layer_interval"))
    w.add_leading_dense_block_count(m.get("moe_layer_start_index"))
    write_moe_width(w, m)
    w.add_expert_shared_count(m.get("moe_num_shared_experts"))
    # As the converter has it; right for releases only.
    w.add_expert_shared_feed_forward_length(m.get("intermediate_size") // m.get("num_key_value_heads"))


def hunyuan(w, m):
    w.add_expert_shared_feed_forward_length(m.get("intermediate_size"))
    w.add_expert_feed_forward_length(m.get("intermediate_size"))
    w.add_expert_used_count(m.get("moe_topk"))
    w.add_expert_shared_count(1)


def minimax_m2(w, m):
    w.add_expert_feed_forward_length(m.get("intermediate_size"))
    w.add_rope_dimension_count(int(head_dim(m) * m.rope("partial_rotary_factor")))
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def llama4(w, m):
    w.add_feed_forward_length(m.get("intermediate_size_mlp"))
    w.add_vocab_size(m.get("vocab_size"))
    w.add_rope_dimension_count(head_dim(m))
    w.add_interleave_moe_layer_step(m.get("interleave_moe_layer_step"))
    w.add_expert_feed_forward_length(m.get("intermediate_size"))
    # llama3 scaling comes as what each frequency is divided by.
    lanes = np.arange(0, head_dim(m), 2, dtype=np.float32) / np.float32(head_dim(m))
    wave = 2 * np.pi * np.float32(m.rope("rope_theta")) ** lanes
    old, factor = m.rope("original_max_position_embeddings"), m.rope("factor")
    assert m.rope("low_freq_factor") == m.rope("high_freq_factor") == 1
    w.add_tensor("rope_freqs.weight", np.where(wave > old, factor, 1).astype(np.float32))


def grok(w, m):
    w.add_attn_logit_softcapping(m.get("max_attn_value"))
    w.add_router_logit_softcapping(30.0)
    w.add_attn_output_scale(m.get("attn_output_multiplier"))
    w.add_embedding_scale(m.get("embedding_multiplier_scale"))
    w.add_logit_scale(m.get("output_multiplier_scale"))


def lfm2moe(w, m):
    w.add_vocab_size(m.get("vocab_size"))
    kv = m.get("num_key_value_heads")
    w.add_head_count_kv([kv if kind == "full_attention" else 0 for kind in m.get("layer_types")])
    w.add_layer_norm_rms_eps(m.get("norm_eps"))
    w.add_shortconv_l_cache(m.get("conv_L_cache"))
    w.add_leading_dense_block_count(m.get("num_dense_layers"))
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    write_moe_width(w, m)


def write_dbrx(w, m):
    attention, ffn = m.get("attn_config"), m.get("ffn_config")
    w.add_block_count(m.get("n_layers"))
    w.add_context_length(m.get("max_seq_len"))
    w.add_embedding_length(m.get("d_model"))
    w.add_feed_forward_length(ffn["ffn_hidden_size"])
    w.add_head_count(m.get("n_heads"))
    w.add_head_count_kv(attention["kv_n_heads"])
    w.add_rope_freq_base(attention["rope_theta"])
    w.add_clamp_kqv(attention["clip_qkv"])
    w.add_expert_count(ffn["moe_num_experts"])
    w.add_expert_used_count(ffn["moe_top_k"])
    w.add_layer_norm_eps(1e-5)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


# ---- tensors: (Hugging Face name, data) -> the pieces under the names that gguf's map knows


def adjacent_pairs(data, heads):
    """Rows of each head from halves [a..., b...] to pairs [a0, b0, a1, b1, ...]."""
    return data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def plain(m, name, data):
    yield name, data


def granite_tensors(m, name, data):
    if name.endswith("q_proj.weight"):
        data = adjacent_pairs(data, m.get("num_attention_heads"))
    if name.endswith("k_proj.weight"):
        data = adjacent_pairs(data, m.get("num_key_value_heads"))
    layer = re.search(r"layers\.(\d+)\.", name)
    for stem, kind in (("block_sparse_moe", "exps"), ("shared_mlp", "shexp")):
        if name.endswith(stem + ".input_linear.weight"):
            gate, up = np.split(data, 2, axis=-2)
            yield f"=blk.{layer[1]}.ffn_gate_{kind}.weight", gate
            yield f"=blk.{layer[1]}.ffn_up_{kind}.weight", up
            return
    yield name, data


def absorbed_tensors(m, name, data):
    if not name.endswith("kv_b_proj.weight"):
        yield name, data
        return
    nope = m.get("qk_nope_head_dim")
    heads = data.reshape(m.get("num_attention_heads"), nope + m.get("v_head_dim"), -1)
    yield name.replace("kv_b_proj", "k_b_proj"), heads[:, :nope].swapaxes(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), heads[:, nope:]


def ernie_tensors(m, name, data):
    yield name, data.reshape(-1) if name.endswith("e_score_correction_bias") else data


def llama4_tensors(m, name, data):
    """Stacks lie as [experts, in, out] in the folder; vision is left out."""
    if name.startswith(("vision_model.", "multi_modal_projector.")):
        return
    name = name.removeprefix("language_model.")
    layer = re.search(r"layers\.(\d+)\.", name)
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(data.swapaxes(1, 2), 2, axis=1)
        yield f"=blk.{layer[1]}.ffn_gate_exps.weight", gate
        yield f"=blk.{layer[1]}.ffn_up_exps.weight", up
    elif name.endswith("experts.down_proj"):
        yield name + ".weight", data.swapaxes(1, 2)
    else:
        yield name, data


def lfm2_tensors(m, name, data):
    if name.endswith("conv.conv.weight"):
        data = data[:, 0]
    if ".experts." in name:
        name = name.removeprefix("model.")
    yield name + (".bias" if name.endswith("expert_bias") else ""), data


def dbrx_tensors(m, name, data):
    if ".experts.mlp." in name:
        data = data.reshape(m.get("ffn_config")["moe_num_experts"], -1, data.shape[-1])
        if name.endswith("w2"):
            data = data.swapaxes(1, 2)
        name += ".weight"
    yield name, data


GROK = {"pre_attn_norm": "attn_norm", "post_attn_norm": "attn_output_norm", "pre_moe_norm": "ffn_norm",
        "post_moe_norm": "layer_output_norm", "attn.q_proj": "attn_q", "attn.k_proj": "attn_k",
        "attn.v_proj": "attn_v", "attn.o_proj": "attn_output", "moe_block.gate": "ffn_gate_inp",
        "moe_block.experts.linear": "ffn_gate_exps", "moe_block.experts.linear_v": "ffn_up_exps",
        "moe_block.experts.linear_1": "ffn_down_exps"}  # fmt: skip


def grok_tensors(m, name, data):
    match = re.match(r"model\.layers\.(\d+)\.(.*)\.(?:weight|scale)$", name)
    yield (f"=blk.{match[1]}.{GROK[match[2]]}.weight" if match else name.replace(".scale", ".weight")), data


def stack_experts(tensors):
    """One tensor for each expert becomes one for all, as the converter's map names it."""
    out, stacks = {}, {}
    for name, data in tensors.items():
        match = MERGED.match(name)
        if match:
            stacks.setdefault(f"{match[1]}.{match[3]}.weight", {})[int(match[2])] = data
        else:
            out[name] = data
    for name, parts in stacks.items():
        out[name] = np.stack([parts[i] for i in range(len(parts))])
    return out


def stored_type(name, data, wanted):
    if data.ndim == 1 or name.endswith("_norm.weight") or not name.endswith(".weight") or "_gate_inp" in name:
        return F32
    if wanted not in (F32, F16, BF16) and data.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] != 0:
        return gguf.GGMLQuantizationType.Q8_0 if data.shape[-1] % 32 == 0 else F16
    return wanted


def add_tensor(w, name, data, kind):
    data = np.ascontiguousarray(data, dtype=np.float32)
    if kind in quantise.BY_TYPE:
        raw = quantise.BY_TYPE[kind](data)
    else:
        raw = data if kind == F32 else gguf.quants.quantize(data, kind)
    w.add_tensor(name, raw, raw_dtype=kind)


def make_architecture(name):
    source, arch, write, tensors, common = ARCHITECTURES[name]
    wanted = F16 if name == "gguf_granitemoe" else BF16  # one of them in f16
    m = Folder(source)
    out = HERE / name
    out.mkdir(exist_ok=True)
    w = gguf.GGUFWriter(out / "model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    w.add_name(name)
    common(w, m)
    write(w, m)
    write_vocabulary(w, m)
    names = gguf.get_tensor_name_map(arch, 64)
    for hub, data in stack_experts(m.tensors).items():
        for mapped, piece in tensors(m, hub, data):
            mapped = mapped.replace("e_score_correction_bias", "e_score_correction.bias")
            final = mapped[1:] if mapped.startswith("=") else names.get_name(mapped, (".weight", ".bias"))
            if final is None:
                raise KeyError(mapped)
            if final.endswith("ffn_gate_inp_shexp.weight"):
                piece = piece.reshape(-1)
            kind = stored_type(final, piece, wanted)
            # bf16 values below 2^-17 lose bits in f16, at most half of its smallest step.
            lost = piece - gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(piece), kind), kind)
            if np.abs(lost).max() > (kind == F16) * 2.0**-25:
                raise ValueError(f"{final}: not exact in {kind.name}")
            add_tensor(w, final, piece, kind)
    finish(w)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


ARCH = gguf.MODEL_ARCH
ARCHITECTURES = {
    "gguf_qwen2moe": ("qwen2_moe", ARCH.QWEN2MOE, qwen2moe, plain, write_common),
    "gguf_granitemoe": ("granitemoe", ARCH.GRANITE_MOE, granitemoe, granite_tensors, write_common),
    "gguf_granitemoe_shared": ("granitemoeshared", ARCH.GRANITE_MOE, granitemoe, granite_tensors, write_common),
    "gguf_glm4moe": ("glm4_moe", ARCH.GLM4_MOE, glm4moe, plain, write_common),
    "gguf_deepseek2_lite": (
        "deepseek_v2_lite", ARCH.DEEPSEEK2, lambda w, m: deepseek2(w, m, True), absorbed_tensors, write_common),
    "gguf_deepseek2_lite_old": (
        "deepseek_v2_lite", ARCH.DEEPSEEK2, lambda w, m: deepseek2(w, m, False), plain, write_common),
    "gguf_dots1": ("dots1", ARCH.DOTS1, dots1, plain, write_common),
    "gguf_ernie4_5_moe": ("ernie4_5_moe", ARCH.ERNIE4_5_MOE, ernie, ernie_tensors, write_common),
    "gguf_hunyuan_moe": ("hunyuan_v1_moe", ARCH.HUNYUAN_MOE, hunyuan, plain, write_common),
    "gguf_minimax_m2": ("minimax_m2", ARCH.MINIMAXM2, minimax_m2, plain, write_common),
    "gguf_dbrx": ("dbrx", ARCH.DBRX, lambda w, m: None, dbrx_tensors, write_dbrx),
    "gguf_llama4": ("llama4", ARCH.LLAMA4, llama4, llama4_tensors, write_common),
    "gguf_grok": ("grok1", ARCH.GROK, grok, grok_tensors, write_common),
    "gguf_lfm2moe": ("lfm2_moe", ARCH.LFM2MOE, lfm2moe, lfm2_tensors, write_common),
}  # fmt: skip


# ---- storage types


def make_type(name):
    import gguf_oracle

    source, kind = TYPES[name]
    read = gguf.GGUFReader(HERE / source / "model.gguf")
    out = HERE / name
    out.mkdir(exist_ok=True)
    arch = read.fields["general.architecture"].contents()
    w = gguf.GGUFWriter(out / "model.gguf", arch)
    for key, field in read.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = name if key == "general.name" else field.contents()
        w.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in read.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        wanted = kind(tensor.name) if callable(kind) else kind
        add_tensor(w, tensor.name, data, stored_type(tensor.name, data, wanted))
    finish(w)
    shutil.copy(HERE / source / "generation_config.json", out)
    gguf_oracle.write_golden(out)


Q = gguf.GGMLQuantizationType


def low_bits(name):
    """A mix of the small types."""
    kinds = {"ffn_gate_exps": Q.Q2_K, "ffn_up_exps": Q.Q3_K, "attn_output": Q.IQ4_NL, "attn_q": Q.Q3_K, "attn_v": Q.Q2_K}
    return next((kind for part, kind in kinds.items() if part in name), Q.IQ4_XS)


TYPES = {
    "gguf_mixtral_q4_1": ("gguf_mixtral_q8_0", Q.Q4_1),
    "gguf_mixtral_q5_0": ("gguf_mixtral_q8_0", Q.Q5_0),
    "gguf_mixtral_q5_1": ("gguf_mixtral_q8_0", Q.Q5_1),
    "gguf_qwen3moe_q5_k": ("gguf_qwen3moe_q4_k_q6_k", Q.Q5_K),
    "gguf_qwen3moe_q2_k_iq4": ("gguf_qwen3moe_q4_k_q6_k", low_bits),
}


def make_blocks():
    """Random blocks of every quantised type and what the package reads in them: common/model/gguf_blocks_test.cc."""
    random, out = np.random.default_rng(1), {}
    kinds = (Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.MXFP4, Q.Q2_K, Q.Q3_K, Q.IQ4_NL, Q.IQ4_XS)
    for kind in kinds:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        raw = random.integers(0, 256, (3, size), dtype=np.uint8)
        # The scales must be finite: f16 numbers of both signs, or an exponent around 1.
        halves = {Q.Q4_1: (0, 2), Q.Q5_1: (0, 2), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,), Q.MXFP4: (),
                  Q.Q2_K: (80, 82), Q.Q3_K: (108,)}  # fmt: skip
        for at in halves.get(kind, (0,)):
            raw[:, at : at + 2] = random.normal(0, 0.1, 3).astype("<f2").reshape(3, 1).view(np.uint8)
        if kind == Q.MXFP4:
            raw[:, 0] = random.integers(110, 140, 3)
        values = gguf.quants.dequantize(raw.reshape(1, -1), kind).astype("<f4")
        out[kind.name] = {"columns": 3 * elements, "blocks": raw.tobytes().hex(), "values": values.tobytes().hex()}
    path = HERE.parent.parent / "common/model/testdata/gguf_blocks.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(out, indent=1) + "\n")


def main():
    for name in sys.argv[1:] or ["blocks", *ARCHITECTURES, *TYPES]:
        if name == "blocks":
            make_blocks()
            continue
        make_architecture(name) if name in ARCHITECTURES else make_type(name)
        print(name, sum(f.stat().st_size for f in (HERE / name).iterdir()), "bytes")


if __name__ == "__main__":
    main()
