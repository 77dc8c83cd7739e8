"""Real releases without their weights: each one's configuration and tensor list, in files whose data is a hole.
`consilium inspect` must read headers only and agree with the card, and with a count of its own made here."""
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import families
import releases
import table

BIN = pathlib.Path(os.environ.get("CONSILIUM_BIN_DIR", releases.CONFIGS.parents[2] / "build/bin"))
SHARD_BYTES = 5 << 30  # as the hub cuts them


def write_files(folder, files, stem):
    """Safetensors files of these tensors, cut as releases are, with true headers over a hole."""
    shards, room = [], 0
    for name, dtype, shape in files.tensors:
        size = releases.product(shape) * releases.BYTES[dtype]
        if not shards or size > room:
            shards.append({})
            room = max(SHARD_BYTES, size)
        end = shards[-1][next(reversed(shards[-1]))]["data_offsets"][1] if shards[-1] else 0
        shards[-1][name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        room -= size
    weight_map = {}
    for i, header in enumerate(shards):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps(header, separators=(",", ":")).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + header[next(reversed(header))]["data_offsets"][1])
        weight_map.update(dict.fromkeys(header, file))
    if len(shards) > 1:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return len(shards)


def kv_bytes(c):
    """f32 keys and values of a token over all layers with attention."""
    c = c.get("text_config", c)
    if "kv_lora_rank" in c and c["kv_lora_rank"]:
        layers = c.get("num_hidden_layers") or c["n_layers"]
        return 4 * layers * (2 * c["kv_lora_rank"] + c["qk_rope_head_dim"])
    if c["model_type"] == "dbrx":
        return 4 * c["n_layers"] * 2 * c["attn_config"]["kv_n_heads"] * (c["d_model"] // c["n_heads"])
    dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    attention = 2 * c["num_key_value_heads"] * dim
    return 4 * (c["num_hidden_layers"] - recurrent_layers(c)) * attention


def recurrent_layers(c):
    if "full_attention_interval" in c:
        return c["num_hidden_layers"] - c["num_hidden_layers"] // c["full_attention_interval"]
    return c.get("layer_types", []).count("conv")


def state_bytes(c):
    """What recurrent layers keep of a sequence: the last inputs of a convolution, and of a delta net a key by value matrix
    a value head."""
    c = c.get("text_config", c)
    layers = recurrent_layers(c)
    if "full_attention_interval" not in c:
        return 4 * layers * (c["conv_L_cache"] - 1) * c["hidden_size"] if layers else 0
    keys, values = c["linear_num_key_heads"] * c["linear_key_head_dim"], c["linear_num_value_heads"] * c["linear_value_head_dim"]
    return 4 * layers * (values * c["linear_key_head_dim"] + (c["linear_conv_kernel_dim"] - 1) * (2 * keys + values))


class ReleasesTest(unittest.TestCase):
    def inspect(self, release):
        """The finished inspect of the release's folder, its configuration and its tensors."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix="consilium-test-"))
        self.addCleanup(shutil.rmtree, folder, True)
        file, config = release.config()
        shutil.copy(releases.CONFIGS / release.name / file, folder)
        files = None
        if release.tensors is not None:
            files = release.tensors(config)
            try:
                write_files(folder, files, "consolidated" if file == "params.json" else "model")
            except OSError as error:
                self.skipTest(f"this file system holds no sparse files of that size: {error}")
        run = subprocess.run([BIN / "consilium", "inspect", folder, "--json"], capture_output=True, text=True,
                             timeout=120, stdin=subprocess.DEVNULL)
        shutil.rmtree(folder)
        return run, config, files

    def test_a_tensor_that_no_release_has_is_named(self):
        release = dataclasses.replace(next(x for x in table.RELEASES if x.name == "Qwen3-30B-A3B"))
        usual = release.tensors

        def one_more(config):
            files = usual(config)
            files.add("model.layers.47.mlp.experts.128.up_proj.weight", 768, 2048)
            return files
        release.tensors = one_more
        run, _, _ = self.inspect(release)
        self.assertNotEqual(run.returncode, 0)
        self.assertIn('unknown tensor "model.layers.47.mlp.experts.128.up_proj.weight" [768, 2048]', run.stderr)

    def test_a_wrapped_text_model_may_be_called_the_newer_way(self):
        release = next(x for x in table.RELEASES if x.name == "Mistral-Small-4-119B-2603")
        newer = functools.partial(families.mistral_small, root="model.language_model.", head="lm_head.weight",
                                  vision="model.")
        self.check(dataclasses.replace(release, tensors=newer))

    def check(self, release):
        run, config, files = self.inspect(release)
        if release.refused:
            self.assertNotEqual(run.returncode, 0)
            self.assertIn(release.refused, run.stderr)
            return
        self.assertEqual(run.returncode, 0, run.stderr)
        found = json.loads(run.stdout)
        embedding = found["params_by_part"]["embedding"]
        expected = {"layers": release.layers, "experts_per_layer": release.experts, "experts_per_token": release.top_k,
                    "context": release.context, "format": release.format, "kv_bytes_per_token": kv_bytes(config),
                    "state_bytes_per_sequence": state_bytes(config),
                    "params_total": files.total,
                    "params_active": files.total - files.routed + files.routed * release.top_k // release.experts}
        self.assertEqual({key: found[key] for key in expected}, expected)
        self.assertEqual(found["unused"]["tensors"], files.unused)
        self.assertAlmostEqual(found["params_total"] / 1e9 / release.total, 1, delta=0.01)
        # Cards count the active ones with the embedding or without, and round.
        active = [n / 1e9 for n in (found["params_active"], found["params_active"] - embedding,
                                    found["params_active"] - 2 * embedding)]
        self.assertLess(min(abs(a / release.active - 1) for a in active), 0.07, active)
        self.assertEqual(table.unexplained(config, found["unused"]["config_keys"]), [], "keys that nothing reads")


def add_cases():
    for release in table.RELEASES:
        name = "test_" + "".join(c if c.isalnum() else "_" for c in release.name)
        setattr(ReleasesTest, name, lambda self, release=release: self.check(release))


add_cases()

if __name__ == "__main__":
    unittest.main()
