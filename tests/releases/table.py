"""The releases and the figures their cards publish."""
from functools import partial

import families as r
from releases import Release

BF16 = "safetensors BF16"
FP8, PLAIN_FP8 = "safetensors BF16, F32, FP8 blocks", "safetensors BF16, FP8 blocks"
GPTQ, AWQ = "safetensors BF16, GPTQ INT4", "safetensors AWQ INT4, BF16"
ROWS, WHOLE = "safetensors BF16, FP8 per row", "safetensors BF16, FP8 per matrix"
INT4, MXFP4 = "safetensors BF16, F32, INT4 groups", "safetensors BF16, MXFP4"
# name, tensors, total and active parameters (billions), layers, experts, top-k, context
RELEASES = [Release(*row) if isinstance(row, tuple) else row for row in (
    ("Mixtral-8x7B-v0.1", r.mixtral, 46.7, 12.9, 32, 8, 2, 32768, BF16),
    ("Mixtral-8x22B-v0.1", r.mixtral, 141, 39, 56, 8, 2, 65536, BF16),
    ("DeepSeek-V2-Lite", r.deepseek, 15.7, 2.4, 27, 64, 6, 163840, BF16),
    ("DeepSeek-V2", r.deepseek, 236, 21, 60, 160, 6, 163840, BF16),
    ("DeepSeek-V3", partial(r.deepseek, storage="fp8"), 671, 37, 61, 256, 8, 163840, FP8),
    ("DeepSeek-R1", partial(r.deepseek, storage="fp8"), 671, 37, 61, 256, 8, 163840, FP8),
    ("DeepSeek-V3.1", partial(r.deepseek, storage="fp8"), 671, 37, 61, 256, 8, 163840, FP8),
    ("Kimi-K2-Instruct", partial(r.deepseek, storage="fp8"), 1026, 32, 61, 384, 8, 131072, FP8),
    ("Kimi-K2-Thinking", partial(r.deepseek, storage="int4"), 1026, 32, 61, 384, 8, 262144, INT4),
    ("Kimi-K2.5", r.kimi_k25, 1026, 32, 61, 384, 8, 262144, INT4),
    ("Mistral-Large-3-675B-Instruct-2512", r.mistral_native, 673, 39, 61, 128, 4, 294912, PLAIN_FP8),
    ("Mistral-Small-4-119B-2603", r.mistral_small, 119, 6.5, 36, 128, 4, 1048576, WHOLE),
    ("grok-1", r.grok, 314, 86, 64, 8, 2, 8192, BF16),
    ("Qwen1.5-MoE-A2.7B", r.qwen, 14.3, 2.7, 24, 60, 4, 8192, BF16),
    ("Qwen2-57B-A14B", r.qwen, 57.4, 14, 28, 64, 8, 131072, BF16),
    ("Qwen3-30B-A3B", r.qwen, 30.5, 3.3, 48, 128, 8, 40960, BF16),
    ("Qwen3-235B-A22B", r.qwen, 235, 22, 94, 128, 8, 40960, BF16),
    ("Qwen3-235B-A22B-FP8", partial(r.qwen, storage="fp8"), 235, 22, 94, 128, 8, 40960, PLAIN_FP8),
    ("Qwen2-57B-A14B-Instruct-GPTQ-Int4", partial(r.qwen, storage="gptq"), 57.4, 14, 28, 64, 8, 131072, GPTQ),
    ("Qwen3-30B-A3B-GPTQ-Int4", partial(r.qwen, storage="gptq"), 30.5, 3.3, 48, 128, 8, 40960, GPTQ),
    ("Qwen3-30B-A3B-AWQ", partial(r.qwen, storage="awq"), 30.5, 3.3, 48, 128, 8, 40960, AWQ),
    ("Qwen3-30B-A3B-FP8-dynamic", partial(r.qwen, storage="rows"), 30.5, 3.3, 48, 128, 8, 40960, ROWS),
    ("Qwen3-Coder-480B-A35B-Instruct", r.qwen, 480, 35, 62, 160, 8, 262144, BF16),
    ("OLMoE-1B-7B-0924", r.qwen, 6.9, 1.3, 16, 64, 8, 4096, BF16),
    ("Qwen3-Next-80B-A3B-Instruct", r.qwen3_next, 80, 3.3, 48, 512, 10, 262144, BF16),  # the card rounds to 3
    ("Qwen3.5-35B-A3B", r.qwen3_next, 35, 3, 40, 256, 8, 262144, BF16),
    ("gpt-oss-20b", r.gpt_oss, 20.9, 3.6, 24, 32, 4, 131072, MXFP4),
    ("gpt-oss-120b", r.gpt_oss, 116.8, 5.1, 36, 128, 4, 131072, MXFP4),
    ("granite-3.0-1b-a400m-base", r.granite, 1.33, 0.4, 24, 32, 8, 4096, BF16),
    ("granite-3.0-3b-a800m-base", r.granite, 3.3, 0.8, 32, 40, 8, 4096, BF16),
    ("GLM-4.5", r.glm, 355, 32, 92, 160, 8, 131072),
    ("GLM-4.5-Air", r.glm, 106, 12, 46, 128, 8, 131072),
    ("GLM-4.6", r.glm, 355, 32, 92, 160, 8, 202752),
    ("Llama-4-Scout-17B-16E-Instruct", r.llama4, 107.8, 17, 48, 16, 1, 10485760, BF16),
    ("Llama-4-Maverick-17B-128E-Instruct", r.llama4, 400, 17, 48, 128, 1, 1048576, BF16),
    ("Phi-3.5-MoE-instruct", r.phimoe, 41.9, 6.6, 32, 16, 2, 131072, BF16),
    ("dbrx-instruct", r.dbrx, 132, 36, 40, 16, 4, 32768, BF16),
    ("ERNIE-4.5-21B-A3B-PT", r.ernie, 21.8, 3, 28, 64, 6, 131072),
    ("ERNIE-4.5-300B-A47B-PT", r.ernie, 300, 47, 54, 64, 8, 131072),
    ("dots.llm1.inst", r.dots, 142, 14, 62, 128, 6, 32768),
    ("Hunyuan-A13B-Instruct", r.hunyuan, 80.4, 13, 32, 64, 8, 32768),
    ("MiniMax-M2", r.minimax, 229, 10, 62, 256, 8, 196608, FP8),
    ("MiniMax-M2.5", r.minimax, 229, 10, 62, 256, 8, 196608, FP8),
    ("LFM2-8B-A1B", r.lfm2, 8.3, 1.5, 24, 32, 4, 128000),
    Release("granite-4.0-tiny-preview", None, 6.7, 1, 40, 64, 6, 131072,
              refused='model_type: "granitemoehybrid" is not supported: its Mamba layers are not implemented'),
)]

# Keys that change no figure and no result, by what they are about.
UNUSED_KEYS = set("""
architectures model_type torch_dtype dtype use_cache output_router_logits
ep_size router_aux_loss_coef input_jitter_noise router_jitter_noise moe_jitter_eps moe_loss_weight
bos_token_id pad_token_id image_token_index image_token_id video_token_id vision_start_token_id vision_end_token_id boi_token_index eoi_token_index media_placeholder_token_id
num_nextn_predict_layers use_mtp mtp_transformer_layers num_mtp_modules
initial_context_length experts_per_token qk_head_dim cla_share_factor
mrope_section mrope_interleaved
vision_config vision_feature_layer multimodal_projector_bias projector_hidden_act spatial_merge_size
""".split())

# Keys that a release carries without effect, and why.
UNUSED_WHEN = {
    "sliding_window": lambda c: not c["use_sliding_window"],
    "max_window_layers": lambda c: not c.get("use_sliding_window"),
    "intermediate_size": lambda c: c["decoder_sparse_step"] == 1 and not c.get("mlp_only_layers"),  # no dense layers
    "intermediate_size_mlp": lambda c: c["interleave_moe_layer_step"] == 1,
    "n_group": lambda c: c["topk_method"] == "greedy",
    "topk_group": lambda c: c["topk_method"] == "greedy",
    "head_dim": lambda c: c["kv_lora_rank"] > 0,  # latent heads have sizes of their own
    "partial_rotary_factor": lambda c: c["kv_lora_rank"] > 0,
    "type": lambda c: "rope_type" in c["rope_parameters"],
    "beta_fast": lambda c: "alpha" in c["rope_scaling"],  # one base for all lengths needs no more
    "beta_slow": lambda c: "alpha" in c["rope_scaling"],
    "mscale": lambda c: "alpha" in c["rope_scaling"],
}


def unexplained(config, unread):
    """Those of a configuration's unread keys that should have been read."""
    config = config.get("text_config", config)

    def explained(path):
        key = path.rpartition(".")[2]
        return key in UNUSED_KEYS or key in UNUSED_WHEN and UNUSED_WHEN[key](config)
    return [path for path in unread if not explained(path)]
