"""docs/METRICS.md and running services name the same metrics with the same types."""
import re
import unittest
import urllib.request

import api
import cluster

ROW = re.compile(r"^\| `([a-zA-Z_:][a-zA-Z0-9_:]*)` \| (counter|gauge|histogram) \|")


def documented():
    rows = {}
    for line in (cluster.ROOT / "docs/METRICS.md").read_text().splitlines():
        if match := ROW.match(line):
            rows[match.group(1)] = match.group(2)
    return rows


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.exported = {}
        with cluster.Cluster(experts=2) as c:
            api.all_at_once(c.url, api.exactness_requests(16, max_tokens=8))
            for process in c.processes():
                with urllib.request.urlopen(f"http://{process['admin']}/metrics", timeout=10) as answer:
                    for line in answer.read().decode().splitlines():
                        if line.startswith("# TYPE "):
                            _, _, name, kind = line.split()
                            cls.exported[name] = kind
            cls.values = {role: c.metrics(role) for role in ("gateway", "attention", "expert", "controller")}

    def test_every_exported_metric_is_documented(self):
        self.assertEqual(sorted(set(self.exported) - set(documented())), [])

    def test_every_documented_metric_is_exported(self):
        self.assertEqual(sorted(set(documented()) - set(self.exported)), [])

    def test_types_agree(self):
        rows = documented()
        self.assertEqual({n: k for n, k in self.exported.items() if n in rows}, {n: rows[n] for n in self.exported if n in rows})

    def test_shards_of_this_host_are_reached_by_local_sockets(self):
        name = "consilium_attention_shard_streams"
        self.assertEqual({k: v for k, v in self.values["attention"].items() if k.startswith(name)},
                         {f'{name}{{shard="expert-{i}",transport="local"}}': 2.0 for i in range(2)})

    def test_label_sets_are_bounded(self):
        for role, values in self.values.items():
            families = {}
            for key in values:
                families.setdefault(re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", key), set()).add(key)
            for name, keys in families.items():
                self.assertLess(len(keys), 200 * 25, f"{role} {name}")


if __name__ == "__main__":
    unittest.main()
