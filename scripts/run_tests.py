#!/usr/bin/env python3
"""Runs what scripts/test has built and counts: checks of the sources, every ctest program (each gtest case counts), and
the Python integration tests. Last line: "N passed, N failed, N skipped". Called by scripts/test."""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import unittest
import xml.etree.ElementTree as ET

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Counts:
    def __init__(self):
        self.passed = 0
        self.failures = []
        self.skips = []

    def failed(self, name, why=""):
        self.failures.append((name, why))

    def skipped(self, name, why):
        self.skips.append((name, why))


def say(text):
    print(text, flush=True)


def check_format(counts):
    tool = shutil.which("clang-format-19")
    if tool is None:
        counts.skipped("clang-format", "clang-format-19 is not installed (scripts/setup --dev)")
        return
    files = [str(f) for top in ("common", "services", "kernels", "tests") for f in sorted((ROOT / top).rglob("*"))
             if f.suffix in (".h", ".cc")]
    run = subprocess.run([tool, "--dry-run", "-Werror", *files], capture_output=True, text=True, cwd=ROOT)
    if run.returncode == 0:
        counts.passed += 1
        return
    bad = sorted(set(re.findall(r"^(\S+?):\d+:\d+: error", run.stderr, re.M)))
    counts.failed("clang-format", "run clang-format-19 -i on: " + " ".join(os.path.relpath(b, ROOT) for b in bad))


def check_includes(counts):
    run = subprocess.run([sys.executable, str(ROOT / "scripts/check_includes.py")], capture_output=True, text=True)
    if run.returncode == 0:
        counts.passed += 1
    else:
        counts.failed("includes", run.stdout.strip() or run.stderr.strip())


def count_gtest(counts, program, xml):
    """Adds the cases of one gtest report. Returns the number of failures among them."""
    failed = 0
    for case in ET.parse(xml).getroot().iter("testcase"):
        name = f"{program}: {case.get('classname')}.{case.get('name')}"
        failure = case.find("failure")
        skip = case.find("skipped")
        if failure is not None:
            failed += 1
            counts.failed(name, (failure.get("message") or "").strip())
        elif skip is not None or case.get("result") == "skipped":
            why = (skip.get("message") or "").strip().splitlines() if skip is not None else []
            counts.skipped(name, why[-1] if why else "skipped by the test")
        elif case.get("status") == "run":
            counts.passed += 1
    return failed


# What ctest runs under a sanitizer. tsan: the cores and what they stand on; Debian's gRPC is not built for it and gives
# false alarms.
SELECTED = {
    "asan": ["-L", "unit"],
    "tsan": ["-L", "unit", "-R", "_core_test|^exec_test|^tensor_test|^net_test|placement|planner|hash_backend"],
}


def run_ctest(counts, args):
    results = args.build_dir / "test-results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    junit = results / "ctest.junit.xml"
    command = ["ctest", "--test-dir", str(args.build_dir), "-j", str(os.cpu_count() or 1), "--output-on-failure",
               "--output-junit", str(junit), "--no-tests=ignore"]
    if args.filter:
        command += ["-R", args.filter]
    command += SELECTED.get(args.preset, [])
    environment = dict(os.environ, GTEST_OUTPUT=f"xml:{results}/", ASAN_OPTIONS="detect_leaks=1",
                       UBSAN_OPTIONS="print_stacktrace=1", TSAN_OPTIONS="halt_on_error=1")
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL)
    if not junit.exists():
        counts.failed("ctest", "wrote no report")
        return
    for entry in ET.parse(junit).getroot().iter("testcase"):
        name, status = entry.get("name"), entry.get("status")
        report = results / f"{name}.xml"
        if report.exists():
            failed = count_gtest(counts, name, report)
            if status != "run" and failed == 0:
                counts.failed(name, "the program failed outside a test case (crash or timeout)")
        elif status == "run":
            counts.passed += 1
        elif status == "disabled":
            counts.skipped(name, "disabled in CMake")
        elif status == "notrun":
            counts.failed(name, "the program is not there")
        else:
            counts.failed(name, "the program failed (crash or timeout)")


class Recorder(unittest.TextTestResult):
    """Prints each case with its time, and counts passes, which unittest does not."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.passed = 0
        self.begin = 0.0

    def startTest(self, test):
        self.begin = time.monotonic()
        super().startTest(test)

    def stopTest(self, test):
        self.stream.writeln(f"    {time.monotonic() - self.begin:.1f} s")
        super().stopTest(test)

    def addSuccess(self, test):
        self.passed += 1
        super().addSuccess(test)


def cases(suite):
    """The cases of nested suites, in order."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        else:
            yield item


def run_integration(counts, args):
    if args.preset != "release":
        say(f"\n== integration: not run with {args.preset}")
        return
    os.environ["CONSILIUM_BIN_DIR"] = str(args.build_dir / "bin")
    suite = unittest.TestSuite()
    for folder in (ROOT / "tests/releases", ROOT / "tests/integration"):
        sys.path.insert(0, str(folder))
        found = unittest.TestLoader().discover(str(folder), pattern="*_test.py", top_level_dir=str(folder))
        suite.addTests(case for case in cases(found) if re.search(args.filter, case.id()))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Recorder).run(suite)
    counts.passed += result.passed
    for test, trace in result.failures + result.errors:
        counts.failed(str(test), trace.strip().splitlines()[-1])
    for test, why in result.skipped:
        counts.skipped(str(test), why)
    for test in result.unexpectedSuccesses:
        counts.failed(str(test), "succeeded unexpectedly")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build-dir", type=pathlib.Path, required=True)
    parser.add_argument("--preset", default="release")
    parser.add_argument("--list", action="store_true", help="print the test programs of the preset and stop")
    parser.add_argument("--filter", default="")
    args = parser.parse_args()
    args.build_dir = args.build_dir.resolve()
    if args.list:  # a program's test has its name
        shown = subprocess.run(["ctest", "--test-dir", str(args.build_dir), "-N", *SELECTED.get(args.preset, [])],
                               capture_output=True, text=True, check=True).stdout
        print("\n".join(re.findall(r"Test +#\d+: (\S+)", shown)))
        return 0
    counts = Counts()
    try:
        if not args.filter:
            say("== sources")
            check_format(counts)
            check_includes(counts)
        say("== programs")
        run_ctest(counts, args)
        say("== integration")
        run_integration(counts, args)
    except Exception as error:  # the last line must come whatever happens
        counts.failed("run_tests.py", repr(error))
    say("")
    for name, why in counts.skips:
        say(f"skipped: {name}: {why}")
    for name, why in counts.failures:
        say(f"FAILED: {name}: {why}")
    say(f"{counts.passed} passed, {len(counts.failures)} failed, {len(counts.skips)} skipped")
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main())
