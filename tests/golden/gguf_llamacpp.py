"""Golden logits and greedy continuations of a GGUF folder by llama.cpp, for architectures whose constants are llama.cpp's
own and differ from the bf16 folder's (llama4: chunks and temperature steps of 8192). Weights are widened to F32 first,
since llama.cpp rounds activations to the type of the weights.

    /tmp/venv/bin/pip install numpy 'gguf==0.19.0' 'llama-cpp-python==0.3.36'
    /tmp/venv/bin/python tests/golden/gguf_llamacpp.py gguf_llama4 llama4    # folder, folder with the prompts
"""
import ctypes
import json
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf_oracle import GREEDY, write_safetensors
from make_gguf import HERE, read_safetensors


def widen(source, target):
    read = gguf.GGUFReader(source)
    w = gguf.GGUFWriter(target, read.fields["general.architecture"].contents())
    for key, field in read.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            w.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for t in read.tensors:
        w.add_tensor(t.name, np.ascontiguousarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def logits_of(model, ids):
    """All positions, in one batch, with an f32 cache."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    batch.n_tokens = len(ids)
    if llama_cpp.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocab,)).copy() for i in range(len(ids))]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return np.stack(rows)


def main():
    folder, prompts = HERE / sys.argv[1], read_safetensors(HERE / sys.argv[2] / "golden.safetensors")
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    out, gap = {}, np.inf
    with tempfile.TemporaryDirectory() as temporary:
        wide = Path(temporary) / "model.gguf"
        widen(folder / "model.gguf", wide)
        model = llama_cpp.llama_model_load_from_file(str(wide).encode(), llama_cpp.llama_model_default_params())
        for p in range(3):
            ids = prompts[f"prompt.{p}.ids"]
            base, text, tokens, logprobs = f"prompt.{p}.", list(ids), [], []
            out |= {base + "ids": ids, base + "logits": logits_of(model, ids)}
            for _ in range(GREEDY):
                row = logits_of(model, text)[-1].astype(np.float64)
                first, second = np.argsort(-row, kind="stable")[:2]
                gap = min(gap, row[first] - row[second])
                tokens.append(first)
                logprobs.append(row[first] - row.max() - np.log(np.exp(row - row.max()).sum()))
                text.append(first)
            out |= {base + "greedy_ids": np.array(tokens, np.int32), base + "greedy_logprobs": np.array(logprobs)}
    write_safetensors(folder / "golden.safetensors", out)
    tolerance = {"logits": 1e-4, "hidden": 1e-4, "logprobs": 1e-4, "router_weights": 1e-4, "router_ids": "exact",
                 "greedy_ids": "exact"}  # fmt: skip
    (folder / "golden.json").write_text(json.dumps({
        "name": folder.name, "oracle": "llama.cpp", "llama_cpp_python": "0.3.36", "smallest_greedy_gap": float(gap),
        "tolerance": tolerance}, indent=2) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
