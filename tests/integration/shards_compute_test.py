"""The shards really compute: without them no token flows, attention does not hold the experts, and the bytes on the wire
are those of the rows."""
import json
import os
import pathlib
import re
import signal
import struct
import threading
import time
import unittest

import api
import cluster

KV_MB = 32
MAX_TOKENS = 300


def safetensors_header(path):
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size))


def dense_bytes_f32(folder):
    """Everything but the routed experts, as f32."""
    total = 0
    for file in pathlib.Path(folder).glob("*.safetensors"):
        if file.name.startswith("golden"):
            continue
        for name, tensor in safetensors_header(file).items():
            if name != "__metadata__" and not re.search(r"\.experts\.\d+\.", name):
                size = 4
                for n in tensor["shape"]:
                    size *= n
                total += size
    return total


class ShardsComputeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # The lease is long, so that a stopped shard stays a member.
        cls.cluster = cluster.Cluster("--kv-mb", str(KV_MB), "--lease-ms", "60000", experts=3)
        cls.cluster.start()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None)

    def test_stopped_shards_stop_the_tokens_and_the_same_go_on(self):
        c = self.cluster
        body = {"model": "demo", "prompt": [100, 200, 300], "max_tokens": MAX_TOKENS, "ignore_eos": True, "seed": 5,
                "temperature": 1, "logprobs": 1}
        truth = api.Request("/v1/completions", body, True).run(c.url)
        events, times = [], []
        begun = threading.Event()

        def read():
            for when, event in api.Stream(c.url, "/v1/completions", body):
                events.append(event)
                times.append(when)
                if len(events) == 5:
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        self.assertTrue(begun.wait(60))
        pids = [p["pid"] for p in c.processes("expert")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            time.sleep(1.5)  # the time that is watched, not a wait for something
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            continued = time.monotonic()
        reader.join(120)
        self.assertFalse(reader.is_alive())
        late = [t for t in times if stopped + 0.3 < t < continued]
        self.assertEqual(late, [], "tokens came while every shard was stopped")
        self.assertGreater(len([t for t in times if t > continued]), 0, "the answer had ended before the stop")
        self.assertEqual(api.joined(events), truth)

    def test_attention_holds_the_dense_part_and_kv_only(self):
        c = self.cluster
        api.all_at_once(c.url, api.exactness_requests(16))
        status = pathlib.Path(f"/proc/{c.pid('attention')}/status").read_text()
        resident = int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024
        limit = dense_bytes_f32(cluster.DEMO) + KV_MB * 2**20 + 100 * 10**6
        print(f"attention: {resident / 1e6:.0f} MB resident, limit {limit / 1e6:.0f} MB")
        self.assertLess(resident, limit)

    def test_bytes_on_the_wire_are_those_of_the_formula_in_the_docs(self):
        config = json.loads((cluster.DEMO / "config.json").read_text())
        hidden, top_k = config["hidden_size"], config["num_experts_per_tok"]
        layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
        for shards in (1, 3):
            with self.subTest(shards=shards), cluster.Cluster("--no-prefix-cache", experts=shards) as c:
                def total(what, c=c):
                    role = "attention" if what.startswith("consilium_attention") else "expert"
                    return sum(v for k, v in c.metrics(role).items() if k.startswith(what))

                def cost(tokens, c=c):
                    names = ('consilium_expert_bytes_total{direction="in"', 'consilium_expert_bytes_total{direction="out"',
                             "consilium_expert_calls_total",
                             'consilium_attention_call_bytes_total{direction="out"',
                             'consilium_attention_call_bytes_total{direction="in"')
                    before = [total(name) for name in names]
                    status, answer, _ = api.post(c.url, "/v1/completions", {
                        "model": "demo", "prompt": [5, 6, 7], "max_tokens": tokens, "ignore_eos": True, "seed": 1})
                    self.assertEqual(status, 200, answer)
                    return [total(name) - b for name, b in zip(names, before)]

                short, long = cost(10), cost(60)  # the difference is 50 decode tokens
                call, result, calls, sent, received = (b - a for a, b in zip(short, long))
                self.assertEqual((sent, received), (call, result), "both ends count the same frames")
                self.assertEqual(call, calls * (128 + 4 * hidden))
                self.assertEqual(result, calls * 128 + 50 * layers * top_k * 4 * hidden)
                if shards == 1:
                    self.assertEqual(calls, 50 * layers)


if __name__ == "__main__":
    unittest.main()
