"""`consilium verify`, `perplexity`, `inspect` and `import` as a user runs them: exit codes, the sentence, JSON."""
import json
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest

import cluster

GOLDEN = cluster.ROOT / "tests/golden"


class CheckCommandsTest(unittest.TestCase):
    def setUp(self):
        self.state = pathlib.Path(tempfile.mkdtemp(prefix="consilium-test-"))
        self.addCleanup(shutil.rmtree, self.state, True)

    def run_command(self, command, *arguments):
        if command not in ("inspect", "import"):
            arguments += ("--state-dir", self.state)
        return subprocess.run([str(a) for a in (cluster.BIN / "consilium", command, *arguments)], capture_output=True,
                              text=True, timeout=120, stdin=subprocess.DEVNULL)

    def test_every_folder_with_a_golden_file_verifies(self):
        folders = [f.parent for f in sorted(GOLDEN.glob("*/golden.safetensors"))] + [cluster.DEMO]
        self.assertGreaterEqual(len(folders), 32)
        for folder in folders:
            with self.subTest(folder.name):
                result = self.run_command("verify", folder)
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
                self.assertRegex(result.stdout, r"All \d+ checks hold\.\n$")

    def test_one_changed_weight_is_found_in_its_layer(self):
        model = self.state / "mixtral"
        shutil.copytree(GOLDEN / "mixtral", model)
        data = bytearray((model / "model.safetensors").read_bytes())
        size, = struct.unpack("<Q", data[:8])
        entry = json.loads(data[8:8 + size])["model.layers.1.self_attn.o_proj.weight"]
        at = 8 + size + entry["data_offsets"][0]
        data[at:at + 2] = b"\x80\x3f"  # 1.0
        (model / "model.safetensors").write_bytes(data)
        result = self.run_command("verify", model, "--golden", GOLDEN / "mixtral/golden.safetensors")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("First place out of tolerance: layer 1, prompt.2, position 0: ", result.stdout)
        result = self.run_command("verify", model, "--json")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(json.loads(result.stdout)["first"]["layer"], 1)

    def test_an_imported_model_is_not_hashed_again(self):
        model = self.state / "mixtral"
        shutil.copytree(GOLDEN / "mixtral", model)
        for made in (True, False):
            result = self.run_command("import", model, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            told = json.loads(result.stdout)
            self.assertEqual((told["made"], told["manifest"]), (made, str(model / "consilium-manifest.json")))
        result = self.run_command("verify", model)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertFalse((self.state / "manifests").exists())
        blocked = self.state / "file"
        blocked.write_text("no folder")
        result = self.run_command("import", model, "--state-dir", blocked)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"^consilium import: .*/file/manifests/.*\n$")

    def test_what_cannot_be_verified_ends_with_two(self):
        for arguments, words in (((GOLDEN / "mixtral", "--golden", "/nonexistent"), "no golden file /nonexistent"),
                                 ((GOLDEN / "mixtral", "--golden", GOLDEN / "dbrx/golden.safetensors"), "expected"),
                                 (("/nonexistent",), "/nonexistent")):
            result = self.run_command("verify", *arguments)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(words, result.stderr)

    def test_perplexity_measures_what_a_class_loses(self):
        result = self.run_command("perplexity", cluster.DEMO, "--text", cluster.DEMO / "heldout.txt", "--tokens", 3000,
                                  "--numerics", "i8g32", "--weights-as", "int8", "--against", "f32", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        figures = json.loads(result.stdout)
        self.assertEqual(figures["score"]["class"], "i8g32+int8")
        self.assertLessEqual(abs(figures["quality_loss_percent"]), 1)
        result = self.run_command("perplexity", cluster.DEMO)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("--text", result.stderr)

    def test_inspect_reads_a_gguf_file_and_says_what_fits(self):
        result = self.run_command("inspect", GOLDEN / "gguf_mixtral_q8_0/model.gguf", "--json", "--shard-memory", "24GiB",
                                  "--shard-memory", "101MB", "--tokens", 64)
        self.assertEqual(result.returncode, 0, result.stderr)
        figures = json.loads(result.stdout)
        self.assertEqual(figures["family"], "mixtral")
        self.assertEqual([s["memory"] for s in figures["fit"]["shards"]], [24 << 30, 101_000_000])
        self.assertEqual(figures["fit"]["attention"]["kv_bytes"], 64 * figures["kv_bytes_per_token"])
        for key in ("layers", "experts_total", "params_active", "params_total", "bytes_by_part", "bytes_per_expert",
                    "format", "context", "tokenizer"):
            self.assertIn(key, figures)


if __name__ == "__main__":
    unittest.main()
