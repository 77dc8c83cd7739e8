"""A frozen attention worker (SIGSTOP) is noticed by the gateway's keepalive, long before a request's deadline."""
import os
import signal
import unittest

import cluster

NOTICED_S = 40  # 8 s without traffic and 5 s for the answer to the ping; the rest is for a loaded machine


class FrozenAttentionTest(unittest.TestCase):
    def test_the_gateway_lets_it_go_and_takes_it_back(self):
        with cluster.Cluster(experts=1) as c:
            pid = c.pid("attention")

            def ready():
                return c.metrics("gateway")["consilium_gateway_workers_ready"]

            cluster.wait_until(lambda: ready() == 1, 10, "one worker is ready")
            os.kill(pid, signal.SIGSTOP)
            try:
                cluster.wait_until(lambda: ready() == 0, NOTICED_S, "the frozen worker is let go")
            finally:
                os.kill(pid, signal.SIGCONT)
            cluster.wait_until(lambda: ready() == 1, 30, "the worker is back")


if __name__ == "__main__":
    unittest.main()
