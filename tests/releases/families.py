"""The tensors of each family's releases: names, types and shapes, counted apart from this project's own tables.
Of vision towers a few stand for all."""
import releases

GUD = ("gate_proj", "up_proj", "down_proj")
W132 = ("w1", "w3", "w2")
NORMS = ("input_layernorm", "post_attention_layernorm")
MLA = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
MLA_NATIVE = ("wq_a", "q_a_norm", "wq_b", "wkv_a_with_mqa", "kv_a_norm", "wkv_b", "wo")


def mixtral(c):
    f = releases.Files()
    f.ends(c)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, c["hidden_size"], *NORMS)
        f.gqa(p + "self_attn.", c)
        f.matrix(p + "block_sparse_moe.gate", c["num_local_experts"], c["hidden_size"])
        for e in range(c["num_local_experts"]):
            f.mlp(f"{p}block_sparse_moe.experts.{e}.", W132, c["hidden_size"], c["intermediate_size"], routed=True)
    return f


def phimoe(c):
    f = releases.Files()
    f.ends(c, bias=True)
    f.add("model.norm.bias", c["hidden_size"])
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, c["hidden_size"], *NORMS, bias=True)
        f.gqa(p + "self_attn.", c, bias="qkvo")
        f.matrix(p + "block_sparse_moe.gate", c["num_local_experts"], c["hidden_size"])
        for e in range(c["num_local_experts"]):
            f.mlp(f"{p}block_sparse_moe.experts.{e}.", W132, c["hidden_size"], c["intermediate_size"], routed=True)
    return f


def minimax(c):
    f = releases.Files()
    f.ends(c)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, c["hidden_size"], *NORMS)
        f.gqa(p + "self_attn.", c, norms=("q_norm", "k_norm", True), quantise="fp8")
        f.add(p + "block_sparse_moe.gate.weight", c["num_local_experts"], c["hidden_size"], dtype="F32")
        f.add(p + "block_sparse_moe.e_score_correction_bias", c["num_local_experts"], dtype="F32")
        for e in range(c["num_local_experts"]):
            f.mlp(f"{p}block_sparse_moe.experts.{e}.", W132, c["hidden_size"], c["intermediate_size"], "fp8", True)
    return f


def deepseek_layer(f, p, c, i, storage, attention):
    """A decoder layer of DeepSeek's kind below the prefix `p`; `attention(p)` adds its attention."""
    hidden, inner = c["hidden_size"], None if storage == "int4" else storage
    f.norms(p, hidden, *NORMS)
    attention(p + "self_attn.")
    if i < c["first_k_dense_replace"]:
        f.mlp(p + "mlp.", GUD, hidden, c["intermediate_size"], inner)
        return
    f.matrix(p + "mlp.gate", c["n_routed_experts"], hidden)
    if c.get("scoring_func", "sigmoid") != "softmax" and c["model_type"] != "mistral4":
        f.add(p + "mlp.gate.e_score_correction_bias", c["n_routed_experts"], dtype="F32")
    width = c["moe_intermediate_size"]
    f.mlp(p + "mlp.shared_experts.", GUD, hidden, width * c["n_shared_experts"], inner)
    for e in range(c["n_routed_experts"]):
        f.mlp(f"{p}mlp.experts.{e}.", GUD, hidden, width, storage, routed=True)


def prediction_layer(f, c, layer, storage, attention):
    """A multi-token prediction layer behind the last one; none of it counts."""
    total, routed, before = f.total, f.routed, len(f.tensors)
    p, hidden = f"model.layers.{layer}.", c["hidden_size"]
    deepseek_layer(f, p, c, layer, storage, attention)
    f.extra([(p + "enorm.weight", hidden), (p + "hnorm.weight", hidden), (p + "eh_proj.weight", hidden, 2 * hidden),
             (p + "embed_tokens.weight", c["vocab_size"], hidden), (p + "shared_head.norm.weight", hidden),
             (p + "shared_head.head.weight", c["vocab_size"], hidden)])
    f.total, f.routed = total, routed
    f.unused = sum(not name.endswith(("_scale", "_scale_inv")) for name, _, _ in f.tensors[before:])


def deepseek(c, storage=None, root="model.", head="lm_head.weight", vision=()):
    f = releases.Files()
    f.ends(c, root, head)
    attention = lambda p: f.mla(p, c, MLA, None if storage == "int4" else storage)
    for i in range(c["num_hidden_layers"]):
        deepseek_layer(f, f"{root}layers.{i}.", c, i, storage, attention)
    if c.get("num_nextn_predict_layers"):
        prediction_layer(f, c, c["num_hidden_layers"], storage, attention)
    f.extra(vision)
    return f


def kimi_k25(c):
    vision = [("vision_tower.patch_embed.proj.weight", 1152, 3, 14, 14),
              ("vision_tower.encoder.blocks.0.wqkv.weight", 3456, 1152), ("mm_projector.proj.0.weight", 4608, 4608),
              ("mm_projector.proj.0.bias", 4608)]
    return deepseek(c["text_config"], "int4", "language_model.model.", "language_model.lm_head.weight", vision)


def glm(c):
    f = releases.Files()
    f.ends(c)
    norms = ("q_norm", "k_norm", False) if c["use_qk_norm"] else None
    attention = lambda p: f.gqa(p, c, bias="qkv", norms=norms)
    for i in range(c["num_hidden_layers"]):
        deepseek_layer(f, f"model.layers.{i}.", c, i, None, attention)
    prediction_layer(f, c, c["num_hidden_layers"], None, attention)
    return f


def dots(c):
    f = releases.Files()
    f.ends(c)
    for i in range(c["num_hidden_layers"]):
        deepseek_layer(f, f"model.layers.{i}.", c, i, None, lambda p: f.gqa(p, c, norms=("q_norm", "k_norm", False)))
    return f


def qwen(c, storage=None):
    """Qwen2 and Qwen3, and OLMoE, whose tensors are called alike."""
    f = releases.Files()
    f.ends(c)
    kind, hidden = c["model_type"], c["hidden_size"]
    norms = {"qwen2_moe": None, "qwen3_moe": ("q_norm", "k_norm", False), "olmoe": ("q_norm", "k_norm", True)}[kind]
    width = c["intermediate_size"] if kind == "olmoe" else c["moe_intermediate_size"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, hidden, *NORMS)
        f.gqa(p + "self_attn.", c, bias="qkv" if kind == "qwen2_moe" else "", norms=norms, quantise=storage)
        f.matrix(p + "mlp.gate", c["num_experts"], hidden)
        if kind == "qwen2_moe":
            f.mlp(p + "mlp.shared_expert.", GUD, hidden, c["shared_expert_intermediate_size"], storage)
            f.add(p + "mlp.shared_expert_gate.weight", 1, hidden)
        for e in range(c["num_experts"]):
            f.mlp(f"{p}mlp.experts.{e}.", GUD, hidden, width, storage, routed=True)
        if kind == "qwen2_moe" and storage == "gptq":  # AutoGPTQ's, of zeros
            f.extra([(p + "self_attn.o_proj.bias", hidden), (p + "mlp.shared_expert.down_proj.bias", hidden)])
    return f


def qwen3_next(c):
    """Every fourth layer has attention whose queries carry a gate, the others a gated delta net. Qwen3.5 lies beside a
    vision tower, its delta nets have a projection for each purpose, its experts are stacked."""
    f, newer = releases.Files(), "text_config" in c
    c = c.get("text_config", c)
    root = "model.language_model." if newer else "model."
    f.ends(c, root)
    hidden, width, dim, heads = c["hidden_size"], c["moe_intermediate_size"], c["head_dim"], c["num_attention_heads"]
    keys = c["linear_num_key_heads"] * c["linear_key_head_dim"]
    value_heads = c["linear_num_value_heads"]
    values = value_heads * c["linear_value_head_dim"]
    for i in range(c["num_hidden_layers"]):
        p = f"{root}layers.{i}."
        f.norms(p, hidden, *NORMS)
        if (i + 1) % c["full_attention_interval"] == 0:
            q = p + "self_attn."
            f.matrix(q + "q_proj", 2 * heads * dim, hidden)
            for letter in "kv":
                f.matrix(f"{q}{letter}_proj", c["num_key_value_heads"] * dim, hidden)
                f.add(f"{q}{'q' if letter == 'v' else letter}_norm.weight", dim)
            f.matrix(q + "o_proj", hidden, heads * dim)
        else:
            q = p + "linear_attn."
            for name, rows in ((("qkv", 2 * keys + values), ("z", values), ("b", value_heads), ("a", value_heads)) if newer
                               else (("qkvz", 2 * keys + 2 * values), ("ba", 2 * value_heads))):
                f.matrix(f"{q}in_proj_{name}", rows, hidden)
            f.add(q + "conv1d.weight", 2 * keys + values, 1, c["linear_conv_kernel_dim"])
            f.add(q + "A_log", value_heads)
            f.add(q + "dt_bias", value_heads)
            f.add(q + "norm.weight", c["linear_value_head_dim"])
            f.matrix(q + "out_proj", hidden, values)
        f.matrix(p + "mlp.gate", c["num_experts"], hidden)
        f.mlp(p + "mlp.shared_expert.", GUD, hidden, c["shared_expert_intermediate_size"])
        f.add(p + "mlp.shared_expert_gate.weight", 1, hidden)
        if newer:
            f.add(p + "mlp.experts.gate_up_proj", c["num_experts"], 2 * width, hidden)
            f.add(p + "mlp.experts.down_proj", c["num_experts"], hidden, width)
            f.routed += 3 * c["num_experts"] * width * hidden
            continue
        for e in range(c["num_experts"]):
            f.mlp(f"{p}mlp.experts.{e}.", GUD, hidden, width, routed=True)
    if newer:
        f.extra([("model.visual.patch_embed.proj.weight", 1152, 3, 2, 16, 16),
                 ("model.visual.blocks.0.attn.qkv.weight", 3456, 1152), ("model.visual.blocks.0.attn.qkv.bias", 3456)])
    f.extra([("mtp.fc.weight", hidden, 2 * hidden), ("mtp.norm.weight", hidden),
             ("mtp.layers.0.self_attn.q_proj.weight", 2 * heads * dim, hidden),
             ("mtp.layers.0.mlp.experts.0.up_proj.weight", width, hidden)])
    return f


def gpt_oss(c):
    f = releases.Files()
    f.ends(c)
    hidden, width, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, hidden, *NORMS)
        f.gqa(p + "self_attn.", c, bias="qkvo")
        f.add(p + "self_attn.sinks", c["num_attention_heads"])
        f.matrix(p + "mlp.router", experts, hidden)
        f.add(p + "mlp.router.bias", experts)
        for name, rows, columns in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
            q = f"{p}mlp.experts.{name}"
            f.add(q + "_blocks", experts, rows, columns // 32, 16, dtype="U8", count=False)
            f.add(q + "_scales", experts, rows, columns // 32, dtype="U8", count=False)
            f.add(q + "_bias", experts, rows)
            f.total += experts * rows * columns
            f.routed += experts * rows * (columns + 1)
    return f


def granite(c):
    f = releases.Files()
    f.ends(c, tied=True)
    hidden, width, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, hidden, *NORMS)
        f.gqa(p + "self_attn.", c)
        f.matrix(p + "block_sparse_moe.router.layer", experts, hidden)
        f.add(p + "block_sparse_moe.input_linear.weight", experts, 2 * width, hidden)
        f.add(p + "block_sparse_moe.output_linear.weight", experts, hidden, width)
        f.routed += 3 * experts * width * hidden
    return f


def llama4(c):
    f, c = releases.Files(), c["text_config"]
    f.ends(c, "language_model.model.", "language_model.lm_head.weight")
    hidden, width, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    for i in range(c["num_hidden_layers"]):
        p = f"language_model.model.layers.{i}."
        f.norms(p, hidden, *NORMS)
        f.gqa(p + "self_attn.", c)
        p += "feed_forward."
        if i not in c["moe_layers"]:
            f.mlp(p, GUD, hidden, c["intermediate_size_mlp"])
            continue
        f.matrix(p + "router", experts, hidden)
        f.mlp(p + "shared_expert.", GUD, hidden, width)
        f.add(p + "experts.gate_up_proj", experts, hidden, 2 * width)
        f.add(p + "experts.down_proj", experts, width, hidden)
        f.routed += 3 * experts * width * hidden
    f.extra([("vision_model.patch_embedding.linear.weight", 1408, 588), ("vision_model.class_embedding", 1408),
             ("vision_model.model.layers.0.self_attn.q_proj.weight", 1408, 1408),
             ("vision_model.model.layers.0.self_attn.q_proj.bias", 1408),
             ("multi_modal_projector.linear_1.weight", 5120, 4096)])
    return f


def dbrx(c):
    f = releases.Files()
    hidden, width = c["d_model"], c["ffn_config"]["ffn_hidden_size"]
    experts, kv = c["ffn_config"]["moe_num_experts"], c["attn_config"]["kv_n_heads"]
    f.add("transformer.wte.weight", c["vocab_size"], hidden)
    f.add("transformer.norm_f.weight", hidden)
    f.add("lm_head.weight", c["vocab_size"], hidden)
    for i in range(c["n_layers"]):
        p = f"transformer.blocks.{i}."
        f.norms(p + "norm_attn_norm.", hidden, "norm_1", "norm_2")
        f.add(p + "norm_attn_norm.attn.Wqkv.weight", hidden + 2 * kv * hidden // c["n_heads"], hidden)
        f.add(p + "norm_attn_norm.attn.out_proj.weight", hidden, hidden)
        f.add(p + "ffn.router.layer.weight", experts, hidden)
        for name in ("w1", "v1", "w2"):
            f.add(f"{p}ffn.experts.mlp.{name}", experts * width, hidden)
            f.routed += experts * width * hidden
    return f


def ernie(c):
    f = releases.Files()
    f.ends(c, tied=c["tie_word_embeddings"])
    hidden, width = c["hidden_size"], c["moe_intermediate_size"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, hidden, *NORMS)
        f.gqa(p + "self_attn.", c)
        if i < c["moe_layer_start_index"]:
            f.mlp(p + "mlp.", GUD, hidden, c["intermediate_size"])
            continue
        f.add(p + "mlp.gate.weight", c["moe_num_experts"], hidden, dtype="F32")
        f.add(p + "mlp.moe_statics.e_score_correction_bias", 1, c["moe_num_experts"], dtype="F32")
        if c["moe_num_shared_experts"]:
            f.mlp(p + "mlp.shared_experts.", GUD, hidden, width * c["moe_num_shared_experts"])
        for e in range(c["moe_num_experts"]):
            f.mlp(f"{p}mlp.experts.{e}.", GUD, hidden, width, routed=True)
    f.extra([("model.mtp_block.0.input_layernorm.weight", hidden),
             ("model.mtp_block.0.mlp.up_proj.weight", width, hidden),
             ("model.mtp_emb_norm.0.weight", hidden), ("model.mtp_hidden_norm.0.weight", hidden),
             ("model.mtp_linear_proj.0.weight", hidden, 2 * hidden)])
    return f


def hunyuan(c):
    f = releases.Files()
    f.ends(c, tied=True)
    hidden, width = c["hidden_size"], c["moe_intermediate_size"][0]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        f.norms(p, hidden, *NORMS)
        f.gqa(p + "self_attn.", c, norms=("query_layernorm", "key_layernorm", False))
        f.add(p + "mlp.gate.wg.weight", c["num_experts"], hidden, dtype="F32")
        f.mlp(p + "mlp.shared_mlp.", GUD, hidden, width * c["num_shared_expert"][0])
        for e in range(c["num_experts"]):
            f.mlp(f"{p}mlp.experts.{e}.", GUD, hidden, width, routed=True)
    return f


def lfm2(c):
    f = releases.Files()
    f.ends(c, norm="embedding_norm.weight", tied=True)
    hidden = c["hidden_size"]
    for i, kind in enumerate(c["layer_types"]):
        p = f"model.layers.{i}."
        f.norms(p, hidden, "operator_norm", "ffn_norm")
        if kind == "conv":
            f.matrix(p + "conv.in_proj", 3 * hidden, hidden)
            f.add(p + "conv.conv.weight", hidden, 1, c["conv_L_cache"])
            f.matrix(p + "conv.out_proj", hidden, hidden)
        else:
            f.gqa(p + "self_attn.", c, norms=("q_layernorm", "k_layernorm", False), out="out_proj")
        p += "feed_forward."
        if i < c["num_dense_layers"]:
            f.mlp(p, W132, hidden, c["intermediate_size"])
            continue
        f.matrix(p + "gate", c["num_experts"], hidden)
        f.add(p + "expert_bias", c["num_experts"], dtype="F32")
        for e in range(c["num_experts"]):
            f.mlp(f"{p}experts.{e}.", W132, hidden, c["moe_intermediate_size"], routed=True)
    return f


def grok(c):
    f = releases.Files()
    f.ends(c, norm="norm.scale", tied=True)
    hidden = c["hidden_size"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name in ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm"):
            f.add(f"{p}{name}.scale", hidden)
        f.gqa(p + "attn.", c)
        f.matrix(p + "moe_block.gate", c["num_experts"], hidden)
        for e in range(c["num_experts"]):
            f.mlp(f"{p}moe_block.experts.{e}.", ("linear", "linear_v", "linear_1"), hidden, c["intermediate_size"],
                  routed=True)
    return f


def mistral_native(c):
    f = releases.Files()
    moe, hidden = c["moe"], c["dim"]
    f.add("tok_embeddings.weight", c["vocab_size"], hidden)
    f.add("norm.weight", hidden)
    f.add("output.weight", c["vocab_size"], hidden)
    attention = dict(c, hidden_size=hidden, num_attention_heads=c["n_heads"])
    for i in range(c["n_layers"]):
        p = f"layers.{i}."
        f.norms(p, hidden, "attention_norm", "ffn_norm")
        f.mla(p + "attention.", attention, MLA_NATIVE, "native", ("wq_a", "wkv_a_with_mqa"))
        if i < moe["first_k_dense_replace"]:
            f.mlp(p + "feed_forward.", W132, hidden, c["hidden_dim"], "native")
            continue
        f.matrix(p + "gate", moe["num_experts"], hidden)
        f.mlp(p + "shared_experts.", W132, hidden, moe["expert_hidden_dim"], "native")
        for e in range(moe["num_experts"]):
            f.mlp(f"{p}experts.{e}.", W132, hidden, moe["expert_hidden_dim"], "native", routed=True)
    f.extra([("vision_encoder.patch_conv.weight", 1664, 3, 14, 14), ("vision_encoder.ln_pre.weight", 1664),
             ("vision_encoder.transformer.layers.0.attention.wq.weight", 1664, 1664),
             ("patch_merger.merging_layer.weight", 1664, 6656), ("pre_mm_projector_norm.weight", 1664),
             ("vision_language_adapter.w_in.weight", hidden, 1664),
             ("vision_language_adapter.w_out.weight", hidden, hidden)])
    return f


def mistral_small(c, root="language_model.model.", head="language_model.lm_head.weight", vision=""):
    """FP8 with one scale a matrix; experts are stacked, gate and up under one scale."""
    f, c = releases.Files(), c["text_config"]
    f.ends(c, root, head)
    hidden, width, experts = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
    for i in range(c["num_hidden_layers"]):
        p = f"{root}layers.{i}."
        f.norms(p, hidden, *NORMS)
        f.mla(p + "self_attn.", c, MLA, "tensor")
        f.matrix(p + "mlp.gate", experts, hidden)
        f.mlp(p + "mlp.shared_experts.", GUD, hidden, width * c["n_shared_experts"], "tensor")
        for name, rows, columns in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
            q = f"{p}mlp.experts.{name}"
            f.add(q, experts, rows, columns, dtype="F8_E4M3")
            f.add(q + "_scale_inv", experts, 1, 1, count=False)
            f.add(q + "_activation_scale", experts, count=False)
            f.routed += experts * rows * columns
    f.extra([(vision + "vision_tower.patch_conv.weight", 1024, 3, 14, 14),
             (vision + "multi_modal_projector.norm.weight", 1024),
             (vision + "multi_modal_projector.linear_1.weight", hidden, 1024)])
    return f
