"""The promise, through the HTTP API on real processes: the same request with the same seed gives the same text and the
same logprob bits, alone or in a crowd, on 1, 2 or 3 shards or in one process, with a cold or warm prefix cache, whatever
the prompt chunks, threads and kernels."""
import json
import pathlib
import statistics
import subprocess
import tempfile
import unittest

import api
import cluster

REQUESTS = api.exactness_requests()


class ExactnessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with cluster.Cluster(experts=3) as c:
            cls.alone = api.one_by_one(c.url, REQUESTS)
            cls.crowd_warm = api.all_at_once(c.url, REQUESTS)

    def compare(self, got, what):
        n = len(got)  # of the first requests
        differs = api.difference(REQUESTS[:n], self.alone[:n], got)
        if differs:
            self.fail(f"{what}: {differs}")

    def crowd(self, what, *flags, **kwargs):
        with cluster.Cluster(*flags, **kwargs) as c:
            self.compare(api.all_at_once(c.url, REQUESTS), what)

    def test_the_set_is_not_trivial(self):
        self.assertEqual(len(self.alone), 64)
        self.assertGreater(len({json.dumps(a) for a in self.alone}), 40)
        self.assertTrue(any(len(a) == 2 for a in self.alone))
        self.assertTrue(any(len(t[2]) == 20 for a in self.alone for c in a for t in c["logprobs"]))

    def test_all_at_once_equals_one_by_one_with_a_warm_cache(self):
        self.compare(self.crowd_warm, "all at once, warm cache")

    def test_a_cold_crowd_on_two_shards_then_one_by_one_warm(self):
        with cluster.Cluster(experts=2) as c:
            self.compare(api.all_at_once(c.url, REQUESTS), "2 shards, cold")
            self.compare(api.one_by_one(c.url, REQUESTS[:16]), "2 shards, warm, one by one")
            # Warm means it: the second time the prompts' blocks come from the cache.
            body = {**REQUESTS[0].body, "stream": False}
            _, answer, _ = api.post(c.url, REQUESTS[0].path, body)
            self.assertGreater(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_one_shard_without_prefix_cache(self):
        self.crowd("1 shard, no prefix cache", "--no-prefix-cache", experts=1)

    def test_in_one_process(self):
        self.crowd("in one process", inprocess=True)

    def test_grpc_between_workers_and_shards(self):
        with cluster.Cluster("--local-transport", "off", experts=3) as c:
            self.compare(api.all_at_once(c.url, REQUESTS), "gRPC instead of local sockets")
            streams = {k: v for k, v in c.metrics("attention").items() if "shard_streams" in k and v}
            self.assertEqual(len(streams), 3)
            self.assertTrue(all('transport="grpc"' in k for k in streams), streams)

    def test_prompt_chunk_of_one(self):
        self.crowd("chunk 1", "--prefill-chunk", "1", "--no-prefix-cache", experts=1)

    def test_prompt_chunk_of_seven(self):
        self.crowd("chunk 7", "--prefill-chunk", "7", experts=2)

    def test_prompt_chunk_of_64_with_two_threads(self):
        self.crowd("chunk 64, 2 threads", "--prefill-chunk", "64", "--threads", "2", experts=3)

    def test_whole_prompts_with_one_thread_and_several_flights(self):
        self.crowd("whole prompts, 1 thread, 3 flights", "--prefill-chunk", "0", "--threads", "1", "--flights", "3",
                   experts=3)

    def test_scalar_kernels(self):
        self.crowd("scalar", "--ops", "scalar", experts=2)

    def test_avx2_kernels(self):
        if "avx2" not in cluster.ops_here():
            self.skipTest("this CPU has no AVX2")
        self.crowd("avx2", "--ops", "avx2", experts=2)

    def test_avx512_kernels(self):
        if "avx512" not in cluster.ops_here():
            self.skipTest("this CPU has no AVX-512")
        self.crowd("avx512", "--ops", "avx512", experts=2)

    def test_two_replicas_of_each_expert(self):
        self.crowd("2 replicas", "--replicas", "2", experts=3)


class ConcurrencyTest(unittest.TestCase):
    """It is not exact by serialising."""

    def test_16_streams_reach_twice_the_tokens_of_one_and_share_frames(self):
        with cluster.Cluster(experts=3) as c, tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "bench.json"
            subprocess.run([str(cluster.BIN / "consilium"), "bench", "--url", c.url, "--concurrency", "1,16,1,16,1,16",
                            "--prompt-tokens", "16", "--output-tokens", "64", "--requests", "16", "--json", str(out)],
                           check=True, timeout=300)
            speeds = [level["output_tokens_per_s"] for level in json.loads(out.read_text())["levels"]]
            one, sixteen = statistics.median(speeds[0::2]), statistics.median(speeds[1::2])
            print(f"tokens/s: 1 stream {one:.0f}, 16 streams {sixteen:.0f}, ratio {sixteen / one:.2f}")
            metrics = c.metrics("attention")
        self.assertGreaterEqual(sixteen, 2 * one)
        name = "consilium_dispatch_requests_per_frame"
        frames = sum(v for k, v in metrics.items() if k.startswith(name + "_count"))
        single = sum(v for k, v in metrics.items() if k.startswith(name + "_bucket") and 'le="1"' in k)
        self.assertGreater(frames - single, 0, f"{frames} frames, none with rows of several requests")


if __name__ == "__main__":
    unittest.main()
