"""A process killed with -9 and restarted by `up`: a request in flight may wait or end with a clean error; it never hangs
and never gives a wrong token; after the restart all works again."""
import concurrent.futures
import os
import signal
import threading
import unittest

import api
import cluster

BODIES = [{"model": "demo", "prompt": [40 + i, 50, 60 + i, 70], "max_tokens": 200, "ignore_eos": True, "seed": i,
           "temperature": 1, "logprobs": 1} for i in range(8)]


def streamed(url, body, started):
    """('done', tokens) or ('error', tokens before it, text). A hang ends in a socket time-out, which fails the test."""
    stream = api.Stream(url, "/v1/completions", body, timeout_s=60)
    if stream.status != 200:
        started.set()
        return "error", [], f"{stream.status} {stream.error_body}"
    events = []
    try:
        for _, event in stream:
            events.append(event)
            if len(events) == 3:
                started.set()
    except api.StreamError as error:
        started.set()
        return "error", events, str(error)
    return "done", events, ""


class Killing:
    FLAGS = ()
    WORKERS = 1
    TRANSPORT = "local"  # between workers and shards

    @classmethod
    def setUpClass(cls):
        cls.cluster = cluster.Cluster(*cls.FLAGS, experts=3, attention=cls.WORKERS)
        cls.cluster.start()
        cls.truth = [cls.run_one(body) for body in BODIES]

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None)

    @classmethod
    def run_one(cls, body):
        return api.Request("/v1/completions", body, True).run(cls.cluster.url)

    def kill_while_busy(self, role, must_finish):
        c = self.cluster
        victim = c.processes(role)[0]
        started = [threading.Event() for _ in BODIES]
        with concurrent.futures.ThreadPoolExecutor(len(BODIES)) as pool:
            futures = [pool.submit(streamed, c.url, body, event) for body, event in zip(BODIES, started)]
            for event in started:
                self.assertTrue(event.wait(60))
            os.kill(victim["pid"], signal.SIGKILL)
            results = [f.result(timeout=120) for f in futures]
        for body, (kind, events, why), truth in zip(BODIES, results, self.truth):
            said = api.joined(events)
            if kind == "done":
                self.assertEqual(said, truth, f"wrong tokens after {role} was killed: {body}")
            else:
                self.assertFalse(must_finish, f"a request was lost when {role} was killed: {why}")
                text = said[0]["text"] if said else ""
                self.assertTrue(truth[0]["text"].startswith(text), f"wrong tokens before the error: {body}")
        c.wait_restarted(victim["name"], victim["pid"])
        self.assert_works_again(role)

    def assert_works_again(self, role):
        def works():
            try:
                return self.run_one(BODIES[0]) == self.truth[0]
            except (AssertionError, api.StreamError, OSError):
                return False
        cluster.wait_until(works, 60, f"the right answer again after {role} was killed")
        cluster.wait_until(self.all_streams_are_as_wanted, 60, f"a {self.TRANSPORT} stream a lane, worker and shard")
        self.assertEqual(api.all_at_once(self.cluster.url, [api.Request("/v1/completions", b, True) for b in BODIES]),
                         self.truth)

    def all_streams_are_as_wanted(self):
        name = "consilium_attention_shard_streams"
        streams = {k: v for k, v in self.cluster.metrics("attention").items() if k.startswith(name) and v}
        return streams == {f'{name}{{shard="{shard["name"]}",transport="{self.TRANSPORT}"}}': 2 * self.WORKERS
                           for shard in self.cluster.processes("expert")}


class KillTest(Killing, unittest.TestCase):
    def test_expert_shard(self):
        self.kill_while_busy("expert", must_finish=False)

    def test_controller_loses_no_request(self):
        self.kill_while_busy("controller", must_finish=True)

    def test_attention_worker(self):
        self.kill_while_busy("attention", must_finish=False)

    def test_all_shards_at_once(self):
        c = self.cluster
        shards = c.processes("expert")
        for shard in shards:
            os.kill(shard["pid"], signal.SIGKILL)
        for shard in shards:
            c.wait_restarted(shard["name"], shard["pid"])
        self.assert_works_again("every shard")

    def test_gateway(self):
        c = self.cluster
        gateway = c.processes("gateway")[0]
        os.kill(gateway["pid"], signal.SIGKILL)
        self.assertEqual(c.wait_restarted(gateway["name"], gateway["pid"])["address"], gateway["address"])
        self.assert_works_again("gateway")


class OverGrpcTest(Killing, unittest.TestCase):
    FLAGS = ("--local-transport", "off")
    TRANSPORT = "grpc"

    def test_expert_shard(self):
        self.kill_while_busy("expert", must_finish=False)

    def test_attention_worker(self):
        self.kill_while_busy("attention", must_finish=False)


class NothingIsNoticedWithReplicasTest(Killing, unittest.TestCase):
    """Every expert twice, two attention workers, experts quantised at load: no request is lost, no token differs."""
    FLAGS = ("--replicas", "2", "--numerics", "i8g32", "--weights-as", "int8")
    WORKERS = 2

    def test_expert_shard(self):
        self.kill_while_busy("expert", must_finish=True)

    def test_attention_worker(self):
        self.kill_while_busy("attention", must_finish=True)


if __name__ == "__main__":
    unittest.main()
