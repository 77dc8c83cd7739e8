"""`consilium up`, `ps` and `chat` over stand-in services: start, restart, stop, errors."""
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import unittest

import cluster


class SupervisorTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.bin = pathlib.Path(tempfile.mkdtemp(prefix="consilium-bin-"))
        shutil.copy(cluster.BIN / "consilium", cls.bin / "consilium")
        for role in ("controller", "expert", "attention", "gateway"):
            target = cls.bin / f"consilium-{role}"
            shutil.copy(pathlib.Path(__file__).parent / "fake_service.py", target)
            target.chmod(target.stat().st_mode | stat.S_IXUSR)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.bin)

    def start(self, *flags, **kwargs):
        c = cluster.Cluster(*flags, bin_dir=self.bin, **kwargs)
        self.addCleanup(shutil.rmtree, c.state_dir, True)
        return c

    def run_cli(self, *args, text=None):
        return subprocess.run([str(self.bin / "consilium"), *args], input=text, capture_output=True, text=True, timeout=60)

    def run_up(self, *flags, env=None):
        """`up` that is expected to end by itself."""
        folder = tempfile.mkdtemp(prefix="consilium-test-")
        self.addCleanup(shutil.rmtree, folder, True)
        return subprocess.run([str(self.bin / "consilium"), "up", "--port", "0", "--model", str(cluster.DEMO),
                               "--state-dir", folder, *flags],
                              capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
                              env=dict(os.environ, **(env or {})))

    def test_ps_lists_every_process_with_its_role_and_state(self):
        with self.start(experts=2) as c:
            run = self.run_cli("ps", "--json", "--state-dir", str(c.state_dir))
            listed = json.loads(run.stdout)
            self.assertEqual(sorted(p["role"] for p in listed),
                             ["attention", "controller", "expert", "expert", "gateway"])
            for process in listed:
                self.assertEqual(set(process), {"role", "name", "pid", "address", "state"})
                self.assertEqual(process["state"], "ready")
                self.assertTrue(cluster.alive(process["pid"]))
            self.assertIn("expert-1", self.run_cli("ps", "--state-dir", str(c.state_dir)).stdout)
            state = str(c.state_dir)
            self.assertEqual(c.stop(), 0)
            down = json.loads(self.run_cli("ps", "--json", "--state-dir", state).stdout)
            self.assertEqual({p["state"] for p in down}, {"down"})

    def test_a_killed_process_is_started_again_at_the_same_address(self):
        with self.start() as c:
            before = c.processes("expert")[1]
            os.kill(before["pid"], signal.SIGKILL)
            after = c.wait_restarted(before["name"], before["pid"])
            self.assertEqual(after["address"], before["address"])
            self.assertIn("signal 9", c.up_output())

    def test_children_die_with_up_even_when_it_is_killed(self):
        c = self.start()
        c.start()
        pids = [p["pid"] for p in c.processes()]
        c.up.kill()
        c.up.wait()
        cluster.wait_until(lambda: not any(cluster.alive(p) for p in pids), 10, "children gone")
        c.stop()

    def test_a_stopped_child_does_not_hold_up_the_end(self):
        with self.start() as c:
            os.kill(c.pid("expert"), signal.SIGSTOP)
            self.assertEqual(c.stop(), 0)

    def test_chat_streams_one_answer_and_keeps_history_from_a_pipe(self):
        with self.start() as c:
            one = self.run_cli("chat", "--url", c.url, "-m", "hi there")
            self.assertEqual((one.returncode, one.stdout), (0, "echo 1: hi there\n"), one.stderr)
            positional = self.run_cli("chat", "--state-dir", str(c.state_dir), "again")
            self.assertEqual(positional.stdout, "echo 1: again\n", positional.stderr)
            piped = self.run_cli("chat", "--url", c.url, text="one\ntwo\n")
            self.assertEqual(piped.stdout, "echo 1: one\necho 3: two\n", piped.stderr)

    def test_once_prints_the_answer_and_ends_with_zero(self):
        run = self.run_up("--ask", "Anyone there?", "--once")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("> Anyone there?\necho 1: Anyone there?\n", run.stdout)

    def test_a_busy_port_is_one_line_that_names_it(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            run = self.run_up("--port", str(port))
        self.assertEqual(run.returncode, 1)
        self.assertEqual(len(run.stderr.splitlines()), 1, run.stderr)
        self.assertIn(f"127.0.0.1:{port}", run.stderr)

    def test_a_process_that_ends_at_start_is_an_error_with_its_own_words(self):
        run = self.run_up(env={"CONSILIUM_FAKE_FAIL": "expert"})
        self.assertEqual(run.returncode, 1)
        self.assertEqual(len(run.stderr.splitlines()), 1, run.stderr)
        self.assertIn("model.safetensors: expected 10 bytes, got 5", run.stderr)

    def test_bad_flags_end_with_two_and_one_line(self):
        for flags, text in [(["--experts", "257"], "--experts: expected an integer in 0..256, got \"257\""),
                            (["--nope"], "unknown argument \"--nope\""),
                            (["--ops", "mmx"], "--ops: expected one of")]:
            run = self.run_up(*flags)
            self.assertEqual(run.returncode, 2, run.stderr)
            self.assertEqual(len(run.stderr.splitlines()), 1, run.stderr)
            self.assertIn(text, run.stderr)
        for flags, text in [(["--experts", "3", "--replicas", "4"], "--replicas: expected at most --experts (3), got 4"),
                            (["--model", "/no/such"], "/no/such")]:
            run = self.run_up(*flags)
            self.assertEqual(run.returncode, 1, run.stderr)
            self.assertEqual(len(run.stderr.splitlines()), 1, run.stderr)
            self.assertIn(text, run.stderr)

    def test_a_second_up_in_the_same_state_folder_is_refused(self):
        with self.start() as c:
            run = self.run_up("--state-dir", str(c.state_dir))
            self.assertEqual(run.returncode, 1)
            self.assertIn("in use by another", run.stderr)
            self.assertTrue(c.all_ready())


if __name__ == "__main__":
    unittest.main()
