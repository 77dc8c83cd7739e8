"""Bad model folders, flags and ports: one clear line that says what is wrong, exit code not 0, no core dump."""
import json
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import unittest

import cluster

SERVICES = ("controller", "expert", "attention", "gateway")


def run(*command, timeout_s=60):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout_s,
                          stdin=subprocess.DEVNULL)


class Case(unittest.TestCase):
    def folder(self):
        path = pathlib.Path(tempfile.mkdtemp(prefix="consilium-test-"))
        self.addCleanup(shutil.rmtree, path, True)
        return path

    def assert_one_line(self, result, *words, code=None):
        """The last line of stderr is the message; services may log before it. Never a signal."""
        self.assertNotEqual(result.returncode, 0, result.stdout)
        self.assertGreater(result.returncode, 0, f"ended by {-result.returncode}: {result.stderr}")
        if code is not None:
            self.assertEqual(result.returncode, code, result.stderr)
        lines = result.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        for word in words:
            self.assertIn(word, lines[0])


class BadModelTest(Case):
    """Each folder is the demo model with one thing broken. `inspect` and `up` must both say what."""

    def setUp(self):
        self.model = self.folder() / "broken"
        self.model.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                     "generation_config.json", "model.safetensors"):
            shutil.copy(cluster.DEMO / name, self.model / name)

    def tensors(self):
        """{name: (header entry, bytes)} of the weights."""
        data = (self.model / "model.safetensors").read_bytes()
        size, = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8:8 + size]), data[8 + size:]
        return {name: (t, body[t["data_offsets"][0]:t["data_offsets"][1]]) for name, t in header.items()
                if name != "__metadata__"}

    def write(self, tensors):
        """A well-formed file of these tensors: what is wrong must be wrong to the model, not to the format."""
        header, body = {}, b""
        for name, (entry, data) in tensors.items():
            header[name] = {**entry, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (self.model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)

    def config(self, **change):
        path = self.model / "config.json"
        config = json.loads(path.read_text())
        config.update(change)
        path.write_text(json.dumps(config))

    def assert_refused(self, *words, inspect=True):
        state = self.folder()
        self.assert_one_line(run(cluster.BIN / "consilium", "up", "--model", self.model, "--port", "0", "--experts", "1",
                                 "--state-dir", state), *words, code=1)
        self.assertEqual(list(state.glob("**/core*")), [])
        if inspect:
            self.assert_one_line(run(cluster.BIN / "consilium", "inspect", self.model), *words, code=1)

    def test_missing_tensor(self):
        tensors = self.tensors()
        name = next(n for n in tensors if ".experts.3." in n)
        del tensors[name]
        self.write(tensors)
        self.assert_refused(name)

    def test_missing_dense_tensor(self):
        tensors = self.tensors()
        del tensors["model.norm.weight"]
        self.write(tensors)
        self.assert_refused("model.norm.weight")

    def test_wrong_shape(self):
        tensors = self.tensors()
        entry, data = tensors["model.norm.weight"]
        tensors["model.norm.weight"] = ({**entry, "shape": [entry["shape"][0] // 2, 2]}, data)
        self.write(tensors)
        self.assert_refused("model.norm.weight", "expected", "[128, 2]")

    def test_a_tensor_nobody_asked_for(self):
        tensors = self.tensors()
        tensors["model.layers.1.extra.weight"] = tensors["model.norm.weight"]
        self.write(tensors)
        self.assert_refused("model.layers.1.extra.weight")

    def test_tensors_that_overlap(self):
        path = self.model / "model.safetensors"
        data = path.read_bytes()
        size, = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + size])
        header["model.layers.1.extra.weight"] = dict(header["model.norm.weight"])
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size:])
        self.assert_refused("model.safetensors", "tile")

    def test_truncated_weights(self):
        path = self.model / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:len(data) // 2])
        self.assert_refused("model.safetensors", "truncated")

    def test_weights_that_end_in_the_header(self):
        path = self.model / "model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        self.assert_refused("model.safetensors")

    def test_no_weights(self):
        (self.model / "model.safetensors").unlink()
        self.assert_refused("safetensors")

    def test_unknown_family(self):
        self.config(architectures=["GPT2LMHeadModel"], model_type="gpt2")
        self.assert_refused("gpt2", "known", "deepseek_v3", "mixtral")

    def test_no_config(self):
        (self.model / "config.json").unlink()
        self.assert_refused("config.json")

    def test_broken_config(self):
        (self.model / "config.json").write_text("{\"architectures\": [")
        self.assert_refused("config.json")

    def test_config_value_of_wrong_type(self):
        self.config(hidden_size="wide")
        self.assert_refused("hidden_size")

    def test_missing_tokenizer(self):
        (self.model / "tokenizer.json").unlink()
        self.assert_refused("tokenizer.json", inspect=False)

    def test_broken_tokenizer(self):
        (self.model / "tokenizer.json").write_text("[]")
        self.assert_refused("tokenizer.json", inspect=False)


class BadFlagTest(Case):
    def test_every_program_refuses_bad_flags_with_code_two(self):
        for service in SERVICES:
            binary = cluster.BIN / f"consilium-{service}"
            with self.subTest(service):
                self.assert_one_line(run(binary, "--nope"), "--nope", code=2)
                self.assert_one_line(run(binary, "--log-level", "loud"), "--log-level", "debug|info|warn|error", "loud",
                                     code=2)

    def test_every_program_has_help_and_version(self):
        for service in SERVICES:
            binary = cluster.BIN / f"consilium-{service}"
            with self.subTest(service):
                help_text = run(binary, "--help")
                self.assertEqual(help_text.returncode, 0)
                for flag in ("--listen", "--admin", "--log-level", "--config", "--port-file"):
                    self.assertIn(flag, help_text.stdout)
                version = run(binary, "--version")
                self.assertEqual((version.returncode, version.stderr), (0, ""))
                self.assertRegex(version.stdout, r"^consilium-\w+ \d+\.\d+\.\d+\n$")

    def test_numbers_out_of_range_and_unknown_choices(self):
        for service, flags in [("expert", ["--threads", "0x"]), ("attention", ["--kv-mb", "-1"]),
                               ("controller", ["--replicas", "0"]),
                               ("attention", ["--numerics", "f8"])]:
            with self.subTest(f"{service} {flags}"):
                self.assert_one_line(run(cluster.BIN / f"consilium-{service}", *flags), flags[0], "expected", flags[1],
                                     code=2)


class BusyPortTest(Case):
    def test_every_service_names_the_busy_port(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            busy = f"127.0.0.1:{taken.getsockname()[1]}"
            state = self.folder()
            common = {"controller": ["--state-dir", state]}
            model = ["--name", "x", "--controller", "127.0.0.1:9", "--model", cluster.DEMO]
            for service in SERVICES:
                flags = common.get(service) or model + ([] if service == "gateway" else ["--state-dir", state])
                binary = cluster.BIN / f"consilium-{service}"
                with self.subTest(f"{service} --admin"):
                    result = run(binary, *flags, "--log-level", "error", "--listen", "127.0.0.1:0", "--admin", busy)
                    self.assert_one_line(result, busy.split(":")[1], code=1)
                with self.subTest(f"{service} --listen"):
                    result = run(binary, *flags, "--log-level", "error", "--listen", busy, "--admin", "127.0.0.1:0")
                    self.assert_one_line(result, busy.split(":")[1], code=1)

    def test_services_end_with_zero_on_sigterm(self):
        state = self.folder()
        ports = state / "ports"
        process = subprocess.Popen([str(cluster.BIN / "consilium-controller"), "--listen", "127.0.0.1:0", "--admin",
                                    "127.0.0.1:0", "--state-dir", str(state), "--port-file", str(ports)],
                                   stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        try:
            cluster.wait_until(ports.exists, 30, "the port file")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(20), 0)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


if __name__ == "__main__":
    unittest.main()
