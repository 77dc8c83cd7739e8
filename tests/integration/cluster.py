"""Starts `consilium up` for a test, on free ports with a state folder of its own, and ends exactly what it started."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(os.environ.get("CONSILIUM_BIN_DIR", ROOT / "build/bin"))
DEMO = ROOT / "models/demo"
MIXTRAL = ROOT / "tests/golden/mixtral"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


def wait_until(condition, timeout_s, what):
    """Polls until condition() is true; its value. AssertionError that names `what` otherwise."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s still not: {what}")
        time.sleep(0.02)


def alive(pid):
    """False for a pid that is gone or a zombie."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def model_in(folder):
    """What --model takes for a folder: the GGUF file in it, or itself."""
    return next(iter(sorted(folder.glob("*.gguf"))), folder)


def ops_here():
    """What `--ops` can be on this CPU, slowest first."""
    flags = set()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":")[1].split())
            break
    needs = {"scalar": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    return [ops for ops, need in needs.items() if need <= flags]


class Cluster:
    """Use as a context manager. Attributes: url, state_dir, up (the Popen)."""

    def __init__(self, *flags, experts=3, attention=1, model=DEMO, port=0, inprocess=False, bin_dir=BIN):
        self.state_dir = pathlib.Path(tempfile.mkdtemp(prefix="consilium-test-"))
        self.command = [str(bin_dir / "consilium"), "up", "--model", str(model), "--experts", str(experts),
                        "--attention", str(attention), "--port", str(port), "--state-dir", str(self.state_dir), *flags]
        if inprocess:
            self.command.append("--inprocess")
        self.up = None
        self.url = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.show_logs()
        self.stop()
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def start(self):
        self.output = open(self.state_dir / "up.out", "ab")
        self.up = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.output,
                                   stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: self.up.poll() is not None or self.all_ready(), START_TIMEOUT_S, "all processes ready")
            if self.up.poll() is not None:
                raise AssertionError(f"up ended at start with {self.up.returncode}: {self.up_output().strip()}")
            self.url = self.table()["url"]
        except BaseException:
            self.show_logs()
            self.stop()
            raise

    def up_output(self):
        return (self.state_dir / "up.out").read_text(errors="replace")

    def table(self):
        try:
            return json.loads((self.state_dir / "processes.json").read_text())
        except OSError:
            return None

    def processes(self, role=None):
        table = self.table() or {"processes": []}
        return [p for p in table["processes"] if role is None or p["role"] == role]

    def all_ready(self):
        processes = self.processes()
        return bool(processes) and all(p["state"] == "ready" for p in processes)

    def pid(self, role, index=0):
        return self.processes(role)[index]["pid"]

    def wait_restarted(self, name, old_pid, timeout_s=60):
        """Until the process of that name runs with another pid and is ready."""
        def again():
            return [p for p in self.processes() if p["name"] == name and p["pid"] not in (0, old_pid)
                    and p["state"] == "ready"]
        return wait_until(again, timeout_s, f"{name} ready again after pid {old_pid}")[0]

    @staticmethod
    def metrics_of(process):
        """Of one entry of the process table: {'name{labels}': value}."""
        out = {}
        with urllib.request.urlopen(f"http://{process['admin']}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    key, _, value = line.rpartition(" ")
                    out[key] = float(value)
        return out

    def metrics(self, role):
        """Summed over the role's processes."""
        out = {}
        for process in self.processes(role):
            for key, value in self.metrics_of(process).items():
                out[key] = out.get(key, 0.0) + value
        return out

    def show_logs(self, lines=25):
        print(f"--- up ({self.command}) ---\n{self.up_output()[-3000:]}", file=sys.stderr)
        for log in sorted((self.state_dir / "logs").glob("*.log")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            print(f"--- {log.name} ---\n" + "\n".join(text), file=sys.stderr)

    def stop(self):
        """SIGTERM; the exit code. All children must be gone after it."""
        if self.up is None:
            return None
        pids = [p["pid"] for p in self.processes() if p["pid"]]
        if self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
        try:
            code = self.up.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.up.kill()
            self.up.wait()
            code = "killed after the stop time-out"
        self.output.close()
        self.up = None
        wait_until(lambda: not any(alive(pid) for pid in pids), 10, f"children {pids} gone")
        return code
