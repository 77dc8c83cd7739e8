"""Streams as clients see them: whole characters, the same text as without streaming, many at a time on few threads, work
freed at once when the client goes, and a request id in every log line of its way."""
import concurrent.futures
import pathlib
import re
import unittest

import api
import cluster

LONG = {"model": "demo", "prompt": [20, 30, 40], "max_tokens": 600, "ignore_eos": True, "seed": 1}


class StreamsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cluster.Cluster(experts=2)
        cls.cluster.start()
        cls.url = cls.cluster.url

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None)

    def running(self):
        metrics = self.cluster.metrics("attention")
        return sum(v for k, v in metrics.items() if k.startswith("vllm:num_requests_running"))

    def kv_used(self):
        metrics = self.cluster.metrics("attention")
        return sum(v for k, v in metrics.items() if k.startswith("consilium_attention_kv_blocks") and '"used"' in k)

    def test_streamed_and_whole_answers_say_the_same(self):
        for request in api.exactness_requests(24, seed=9):
            streamed = api.Request(request.path, request.body, True).run(self.url)
            at_once = api.Request(request.path, request.body, False).run(self.url)
            self.assertEqual(streamed, at_once, request.body)

    def test_no_character_is_split_between_events(self):
        # At a high temperature the model says bytes of many scripts; the joined text must equal the whole one, and no
        # event may hold a replacement character that the whole answer does not have.
        for seed in range(12):
            body = {"model": "demo", "prompt": [200 + seed], "max_tokens": 60, "ignore_eos": True, "seed": seed,
                    "temperature": 2}
            _, answer, _ = api.post(self.url, "/v1/completions", body)
            whole = answer["choices"][0]["text"]
            parts = [c["text"] for _, e in api.Stream(self.url, "/v1/completions", body) for c in e["choices"]]
            self.assertEqual("".join(parts), whole)
            self.assertEqual(sum(p.count("\ufffd") for p in parts), whole.count("\ufffd"))

    def test_a_client_that_goes_away_frees_its_work_and_kv(self):
        cluster.wait_until(lambda: self.running() == 0, 30, "no request running")
        before = self.kv_used()
        streams = [api.Stream(self.url, "/v1/completions", {**LONG, "seed": i}) for i in range(4)]
        for stream in streams:
            next(iter(stream))
        generated = "consilium_attention_tokens_total"
        for stream in streams:
            stream.answer.close()
            stream.close()
        cluster.wait_until(lambda: self.running() == 0, 10, "no request running after the clients left")
        self.assertEqual(self.kv_used(), before)
        tokens = sum(v for k, v in self.cluster.metrics("attention").items() if k.startswith(generated))
        _, answer, _ = api.post(self.url, "/v1/completions", {**LONG, "max_tokens": 5})
        after = sum(v for k, v in self.cluster.metrics("attention").items() if k.startswith(generated))
        # Only the new request's tokens were computed since.
        self.assertLessEqual(after - tokens, answer["usage"]["total_tokens"] + 1)

    def test_200_streams_at_a_time_on_few_threads(self):
        body = {**LONG, "max_tokens": 8}
        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            futures = [pool.submit(api.Request("/v1/completions", {**body, "seed": i % 4}, True).run, self.url)
                       for i in range(200)]
            answers = [f.result() for f in futures]
        for i, answer in enumerate(answers):
            self.assertEqual(answer, answers[i % 4])
        status = pathlib.Path(f"/proc/{self.cluster.pid('gateway')}/status").read_text()
        self.assertLess(int(re.search(r"Threads:\s+(\d+)", status).group(1)), 64)

    def test_the_request_id_is_given_back_and_logged_on_its_way(self):
        status, _, headers = api.post(self.url, "/v1/completions", {**LONG, "max_tokens": 2},
                                      headers={"x-request-id": "test-id-4711"})
        self.assertEqual(status, 200)
        self.assertEqual({k.lower(): v for k, v in headers.items()}["x-request-id"], "test-id-4711")
        log = self.cluster.state_dir / "logs/gateway-0.log"
        cluster.wait_until(lambda: "request_id=test-id-4711" in log.read_text(), 10, "the id in the gateway's log")
        _, _, headers = api.post(self.url, "/v1/completions", {**LONG, "max_tokens": 1})
        self.assertTrue({k.lower(): v for k, v in headers.items()}.get("x-request-id"))

    def test_tokenize_and_detokenize_are_inverse(self):
        text = "Hello, w\u00f6rld! \u4f60\u597d 1+1=2"
        status, answer, _ = api.post(self.url, "/tokenize", {"model": "demo", "prompt": text})
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["count"], len(answer["tokens"]))
        status, back, _ = api.post(self.url, "/detokenize", {"model": "demo", "tokens": answer["tokens"]})
        self.assertEqual((status, back["prompt"]), (200, text))


if __name__ == "__main__":
    unittest.main()
