#!/usr/bin/env python3
"""Memory and time to ready of one expert shard and one attention worker, as processes, on a random model of some GB.

Questions, formulas, bounds (figures: docs/benchmarks):
  memory  VmHWM of each process after it is ready, and after prompts and answers went through it.
          Bounds: shard <= bytes of its experts + 10 % + 100 MB; attention <= bytes of all else + 10 % + 100 MB. Bytes as
          stored; with --weights-as those that the shard says it holds (consilium_expert_loaded_bytes).
          The attention worker's KV pages (--kv-mb, here 16) are within the 100 MB.
  time    from exec to /readyz, with the files' pages dropped from the page cache before each start (cold) and not (warm).
          Bound: bytes / disk bandwidth + 1 s; bandwidth: preads of the same cold files by as many threads as there are cores,
          once a round. A first start without `consilium import` hashes the whole model to make its manifest; later ones find it.
          `consilium import` of cold files: the same bound, over all bytes.
          Medians of the rounds.

  python3 tests/bench/memory_bench.py [--gb 3] [--format bf16|fp8|int4] [--rounds 3] [--folder DIR]
                                      [--weights-as int8|int4] [--numerics C]        (after scripts/test)

The model goes into --folder, which is kept and used again if it has one, or else into a temporary folder.
"""
import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/integration"))
import api  # noqa: E402
import cluster  # noqa: E402

EXPERT, ATTENTION = "consilium-expert", "consilium-attention"
LAYERS, HIDDEN, INTER, VOCAB = 4, 2048, 2048, 65536
KV_MB = 16
BITS = {"bf16": 16, "fp8": 8, "int4": 4.5}
PIECE = 8 << 20


def make_model(folder, gb, kind):
    expert = 3 * HIDDEN * INTER * BITS[kind] / 8
    experts = max(8, round(gb * 1e9 / LAYERS / expert))
    subprocess.run([sys.executable, str(ROOT / "scripts/make_random_model"), str(folder), "--layers", str(LAYERS), "--hidden",
                    str(HIDDEN), "--inter", str(INTER), "--experts", str(experts), "--vocab", str(VOCAB), "--format", kind],
                   check=True, stderr=subprocess.DEVNULL)


def tensor_bytes(folder):
    """(routed experts, all else) as stored."""
    routed = other = 0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            for name, entry in json.loads(file.read(length)).items():
                size = 0 if name == "__metadata__" else entry["data_offsets"][1] - entry["data_offsets"][0]
                if ".experts." in name:
                    routed += size
                else:
                    other += size
    return routed, other


def drop_pages(folder):
    for path in folder.glob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_bandwidth(folder, threads):
    """Bytes a second of preads of the whole files."""
    pieces = [(path, at) for path in sorted(folder.glob("*.safetensors")) for at in range(0, path.stat().st_size, PIECE)]
    buffers = [bytearray(PIECE) for _ in range(threads)]

    def read(i):
        total = 0
        for path, at in pieces[i::threads]:
            with open(path, "rb", buffering=0) as file:
                total += os.preadv(file.fileno(), [buffers[i]], at)
        return total

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, range(threads)))
    return total / (time.perf_counter() - begin)


class Service:
    """A service process; `listen` and `admin` once its port file is there."""

    def __init__(self, state, program, *flags):
        self.ports = state / f"{program}.ports"
        self.ports.unlink(missing_ok=True)
        self.log = open(state / f"{program}.log", "wb")
        self.begin = time.perf_counter()
        self.process = subprocess.Popen([str(cluster.BIN / program), "--port-file", str(self.ports), *flags],
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        cluster.wait_until(self.has_ports, 600, f"{program} listens; see {self.log.name}")
        words = self.ports.read_text().split()
        self.listen, self.admin = words[1], words[3]

    def has_ports(self):
        if self.process.poll() is not None:
            end = pathlib.Path(self.log.name).read_text()[-2000:]
            sys.exit(f"memory_bench: {self.log.name} ended with {self.process.returncode}:\n{end}")
        return self.ports.exists()

    def ready(self):
        """Seconds from exec to ready."""
        def is_ready():
            try:
                return urllib.request.urlopen(f"http://{self.admin}/readyz", timeout=5).status == 200
            except urllib.error.HTTPError:
                return self.has_ports() and False
        cluster.wait_until(is_ready, 600, f"{self.log.name}: ready")
        return time.perf_counter() - self.begin

    def peak(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


def verdict(value, bound, unit, digits):
    return f"{value:.{digits}f} {unit} | {bound:.{digits}f} {unit} | {'within' if value <= bound else 'ABOVE'}"


def use(gateway):
    """Prompts of a few hundred tokens and answers, several at a time."""
    name = api.call(gateway, "GET", "/v1/models")[1]["data"][0]["id"]
    requests = [api.Request("/v1/completions", {"model": name, "prompt": [(7 * i + j) % 256 for j in range(300)],
                                                "max_tokens": 16, "ignore_eos": True}, False) for i in range(8)]
    api.all_at_once(gateway, requests)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=3, help="of routed experts")
    parser.add_argument("--format", choices=BITS, default="bf16")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights-as")
    parser.add_argument("--numerics")
    args = parser.parse_args()
    flags = [f"--{name}={value}" for name, value in (("weights-as", args.weights_as), ("numerics", args.numerics)) if value]
    with contextlib.ExitStack() as stack:
        temporary = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="consilium-memory-")))
        folder = args.folder or temporary / "model"
        if not (folder / "config.json").exists():
            make_model(folder, args.gb, args.format)
        Bench(folder, temporary, flags).run(args.rounds)


class Bench:
    def __init__(self, folder, state, flags):
        self.folder, self.state, self.flags = folder, state, flags
        self.routed, self.other = tensor_bytes(folder)
        self.sizes = {EXPERT: self.routed, ATTENTION: self.other}
        self.common = ["--model", str(folder), "--state-dir", str(state), *flags]
        self.shard_flags = [*self.common, "--static-experts", "all"]

    def attention_flags(self, shard_address):
        return [*self.common, "--static-placement", shard_address, "--kv-mb", str(KV_MB)]

    def seconds(self, program, flags, cold, manifest=True):
        """One start and stop."""
        if not manifest:
            shutil.rmtree(self.state / "manifests", ignore_errors=True)
        if cold:
            drop_pages(self.folder)
        service = Service(self.state, program, *flags)
        seconds = service.ready()
        service.stop()
        return seconds

    def import_seconds(self):
        shutil.rmtree(self.state / "manifests", ignore_errors=True)
        drop_pages(self.folder)
        begin = time.perf_counter()
        subprocess.run([str(cluster.BIN / "consilium"), "import", str(self.folder), "--state-dir", str(self.state)],
                       check=True, capture_output=True)
        return time.perf_counter() - begin

    def run(self, rounds):
        print(f"{self.routed / 1e6:.0f} MB of routed experts, {self.other / 1e6:.0f} MB of all else; {os.cpu_count()} cores; "
              f"flags: {' '.join(self.flags) or 'none'}")
        bandwidths, times = [], {}

        def time_all(program, flags):
            drop_pages(self.folder)
            bandwidths.append(read_bandwidth(self.folder, os.cpu_count() or 1))
            for cold, manifest in ((True, False), (True, True), (False, True)):
                times.setdefault((program, cold, manifest), []).append(self.seconds(program, flags, cold, manifest))

        for _ in range(rounds):
            times.setdefault(("consilium import", True, False), []).append(self.import_seconds())
            time_all(EXPERT, self.shard_flags)
        shard = Service(self.state, EXPERT, *self.shard_flags)  # attention is ready when some shard has the experts
        shard.ready()
        for _ in range(rounds):
            time_all(ATTENTION, self.attention_flags(shard.listen))
        shard.stop()
        bandwidth = statistics.median(bandwidths)
        print(f"disk: {bandwidth / 1e6:.0f} MB/s (median of {len(bandwidths)}, {min(bandwidths) / 1e6:.0f} to {max(bandwidths) / 1e6:.0f})\n\n"
              "| process | page cache | manifest | ready | bound | |\n|---|---|---|---|---|---|")
        for (program, cold, manifest), seconds in times.items():
            size = self.sizes[program] if manifest else self.routed + self.other
            print(f"| {program} | {'cold' if cold else 'warm'} | {'kept' if manifest else 'made'} | "
                  f"{verdict(statistics.median(seconds), size / bandwidth + 1, 's', 2)} |")
        self.memory()

    def memory(self):
        shard = Service(self.state, EXPERT, *self.shard_flags)
        shard.ready()
        attention = Service(self.state, ATTENTION, *self.attention_flags(shard.listen))
        attention.ready()
        ready = {EXPERT: shard.peak(), ATTENTION: attention.peak()}
        gateway = Service(self.state, "consilium-gateway", "--model", str(self.folder), "--listen", "127.0.0.1:0", "--attention",
                          attention.listen)
        gateway.ready()
        use("http://" + gateway.listen)
        sizes = dict(self.sizes)
        if any(flag.startswith("--weights-as") for flag in self.flags):
            sizes[EXPERT] = cluster.Cluster.metrics_of({"admin": shard.admin})["consilium_expert_loaded_bytes"]
        print("\n| process | peak RSS when ready | after use | bound | |\n|---|---|---|---|---|")
        for service, program in ((shard, EXPERT), (attention, ATTENTION)):
            bound = sizes[program] * 1.1 + 100e6
            print(f"| {program} | {ready[program] / 1e6:.0f} MB | {verdict(service.peak() / 1e6, bound / 1e6, 'MB', 0)} |")
        for service in (gateway, attention, shard):
            service.stop()


if __name__ == "__main__":
    main()
