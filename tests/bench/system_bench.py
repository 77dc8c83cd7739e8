#!/usr/bin/env python3
"""What the split into processes costs, and what the gateway adds to a request.

Questions, formulas, bounds (figures: docs/benchmarks):
  split tax         tokens/s of `consilium up` with 3 shards / tokens/s of `consilium up --inprocess`, at 1, 4 and 16 streams,
                    with local sockets between workers and shards (auto) and with gRPC (off), rounds of all in turn, median of
                    the ratios. Bound: >= 0.5 at 16 streams on two cores, by either.
  gateway overhead  client's mean latency of one-token requests - the attention worker's own mean (submission to end, its
                    histogram), over the same requests: HTTP, JSON, tokenizer, one gRPC session each way. Bound: <= 1 ms.
  scaling           tokens/s of 16 streams / of one stream. Bound: >= 2.

  python3 tests/bench/system_bench.py [--rounds 3] [--requests 48] [--json FILE]     (after scripts/test or scripts/quickstart)
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
from cluster import BIN, Cluster  # noqa: E402

STREAMS = (1, 4, 16)


def tokens_per_second(cluster, requests):
    """{streams: tokens/s} of one round of `consilium bench`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([str(BIN / "consilium"), "bench", "--url", cluster.url, "--concurrency",
                        ",".join(map(str, STREAMS)), "--prompt-tokens", "32", "--output-tokens", "64", "--requests",
                        str(requests), "--json", out.name], check=True, stdout=subprocess.DEVNULL)
        levels = json.load(open(out.name))["levels"]
    return {level["concurrency"]: level["output_tokens_per_s"] for level in levels}


def histogram(text, name):
    """(sum, count) of an unlabelled histogram."""
    value = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith(name)}
    return value[name + "_sum"], value[name + "_count"]


def worker_seconds(cluster):
    worker = next(p for p in cluster.table()["processes"] if p["role"] == "attention")
    with urllib.request.urlopen(f"http://{worker['admin']}/metrics") as page:
        return histogram(page.read().decode(), "consilium_attention_request_seconds")


def gateway_overhead(cluster, requests):
    """Mean microseconds that a one-token request spends outside the attention worker, and its whole mean."""
    import http.client
    import urllib.parse
    parts = urllib.parse.urlsplit(cluster.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    body = json.dumps({"model": "demo", "prompt": "The capital of France", "max_tokens": 1, "temperature": 0})

    def once():
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()

    for _ in range(20):
        once()
    seconds, count = worker_seconds(cluster)
    begin = time.perf_counter()
    for _ in range(requests):
        once()
    client = (time.perf_counter() - begin) / requests
    later_seconds, later_count = worker_seconds(cluster)
    worker = (later_seconds - seconds) / (later_count - count)
    return 1e6 * (client - worker), 1e6 * client


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=48, help="requests of a round and a level")
    parser.add_argument("--json", help="write all figures there")
    args = parser.parse_args()
    rounds = []
    overhead = []
    with Cluster() as split, Cluster("--local-transport", "off") as remote, Cluster(inprocess=True) as whole:
        for i in range(args.rounds + 1):  # the first warms up
            figures = {"local": tokens_per_second(split, args.requests),
                       "grpc": tokens_per_second(remote, args.requests),
                       "inprocess": tokens_per_second(whole, args.requests)}
            if i > 0:
                rounds.append(figures)
        overhead = [gateway_overhead(split, 300) for _ in range(args.rounds)]

    def median(kind, streams):
        return statistics.median(r[kind][streams] for r in rounds)

    print(f"Medians of {args.rounds} rounds.\n\n| streams | local sockets tok/s | gRPC tok/s | one process tok/s | "
          "split tax, local | split tax, gRPC |\n|---|---|---|---|---|---|")
    for n in STREAMS:
        taxes = [statistics.median(r[kind][n] / r["inprocess"][n] for r in rounds) for kind in ("local", "grpc")]
        print(f"| {n} | {median('local', n):.0f} | {median('grpc', n):.0f} | {median('inprocess', n):.0f} | "
              f"{taxes[0]:.2f} | {taxes[1]:.2f} |")
    print("\n16 streams / 1 stream: " + ", ".join(f"{median(kind, 16) / median(kind, 1):.2f} ({kind})" for kind in rounds[0]))
    print(f"gateway overhead of a one-token request: {statistics.median(o[0] for o in overhead):.0f} us of "
          f"{statistics.median(o[1] for o in overhead):.0f} us in all (median of {args.rounds} runs of 300)")
    if args.json:
        json.dump({"rounds": rounds, "gateway_overhead_us": overhead}, open(args.json, "w"), indent=1)


if __name__ == "__main__":
    main()
