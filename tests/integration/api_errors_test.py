"""Bad requests get OpenAI's error shape and status, never a 5xx, and never end a process."""
import socket
import unittest
import urllib.parse

import api
import cluster

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


class ApiErrorsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cluster.Cluster(experts=1)
        cls.cluster.start()
        cls.url = cls.cluster.url
        cls.pids = [p["pid"] for p in cls.cluster.processes()]

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None)

    def tearDown(self):
        self.assertEqual([p["pid"] for p in self.cluster.processes()], self.pids, "a process was restarted")
        status, answer, _ = api.post(self.url, CHAT, {"model": "demo", "messages": HELLO, "max_tokens": 1})
        self.assertEqual(status, 200, answer)

    def assert_error(self, status, answer, expected, what):
        self.assertEqual(status, expected, f"{what}: {answer}")
        self.assertIsInstance(answer, dict, what)
        error = answer["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"}, what)
        self.assertTrue(error["message"], what)

    def bad_chat(self, expected=400, **change):
        body = {"model": "demo", "messages": HELLO, "max_tokens": 1, **change}
        status, answer, _ = api.post(self.url, CHAT, body)
        self.assert_error(status, answer, expected, str(change)[:200])
        return answer["error"]

    def bad_completion(self, expected=400, **change):
        body = {"model": "demo", "prompt": "Hello", "max_tokens": 1, **change}
        status, answer, _ = api.post(self.url, COMPLETIONS, body)
        self.assert_error(status, answer, expected, str(change)[:200])

    def test_unknown_model_is_404(self):
        self.assertEqual(self.bad_chat(404, model="nope")["code"], "model_not_found")
        self.bad_completion(404, model="nope")
        status, answer, _ = api.call(self.url, "GET", "/v1/models/nope")
        self.assert_error(status, answer, 404, "GET model")

    def test_values_of_wrong_type_or_range_are_400(self):
        for change in [{"temperature": "hot"}, {"temperature": -1}, {"temperature": 2.5}, {"top_p": 1.5}, {"top_p": -0.1},
                       {"n": 0}, {"n": 1000}, {"n": "2"}, {"max_tokens": -1}, {"max_tokens": 1.5}, {"stop": 7},
                       {"stop": ["a"] * 100}, {"seed": "x"}, {"presence_penalty": 3}, {"frequency_penalty": -3},
                       {"logit_bias": {"x": 1}}, {"logit_bias": {"5": 101}}, {"logit_bias": [1]},
                       {"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 3}, {"stream": "yes"}, {"top_k": "a"},
                       {"min_p": 2}, {"repetition_penalty": -1}, {"min_tokens": -2}, {"ignore_eos": "no"},
                       {"stream_options": {"include_usage": True}}, {"user": 5}]:
            with self.subTest(str(change)):
                self.bad_chat(**change)

    def test_bad_messages_are_400(self):
        for messages in [None, [], "hi", [1], [{}], [{"role": "user"}], [{"role": "nobody", "content": "x"}],
                         [{"role": "user", "content": 5}]]:
            with self.subTest(str(messages)):
                self.bad_chat(messages=messages)

    def test_bad_prompts_are_400(self):
        for prompt in [None, [], 5, [-1], [10**9], [1.5], {"a": 1}, [[]]]:
            with self.subTest(str(prompt)):
                self.bad_completion(prompt=prompt)
        self.bad_completion(logprobs=21)
        self.bad_completion(best_of=1, n=2)
        self.bad_completion(best_of=2, stream=True)

    def test_what_is_not_served_yet_is_a_clear_400(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        self.bad_chat(tools=[tool], tool_choice="required")
        self.bad_chat(tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}})
        self.bad_chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}})

    def test_a_prompt_beyond_the_context_is_400_and_says_so(self):
        error = self.bad_chat(messages=[{"role": "user", "content": "word " * 5000}])
        self.assertEqual(error["code"], "context_length_exceeded")
        self.bad_completion(prompt=[5] * 769)

    def test_broken_json_is_400(self):
        for body in [b"", b"{", b"[]", b"null", b"{\"model\": \"demo\", }", b"\xff\xfe", b"[" * 100000]:
            with self.subTest(body[:20]):
                status, answer, _ = api.post(self.url, CHAT, body)
                self.assert_error(status, answer, 400, body[:20])

    def test_wrong_method_and_path(self):
        status, answer, _ = api.call(self.url, "GET", CHAT)
        self.assert_error(status, answer, 405, "GET chat")
        status, answer, _ = api.call(self.url, "DELETE", "/v1/models")
        self.assert_error(status, answer, 405, "DELETE models")
        status, answer, _ = api.call(self.url, "GET", "/v1/nothing")
        self.assert_error(status, answer, 404, "GET nothing")

    def test_a_huge_body_is_413(self):
        parts = urllib.parse.urlsplit(self.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as peer:
            peer.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: 1000000000\r\n\r\n{")
            self.assertIn(b" 413 ", peer.recv(4096).split(b"\r\n")[0])

    def test_not_http_at_all_is_answered_or_closed(self):
        parts = urllib.parse.urlsplit(self.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as peer:
            peer.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            first = peer.recv(4096)
            self.assertTrue(first == b"" or b" 400 " in first, first)


class ApiKeyTest(unittest.TestCase):
    def test_keys_are_asked_for_and_never_shown_on_a_command_line(self):
        with cluster.Cluster("--api-key", "sk-one", "--api-key", "sk-two", experts=1) as c:
            body = {"model": "demo", "messages": HELLO, "max_tokens": 1}
            for key in (None, "sk-three", ""):
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                status, answer, _ = api.post(c.url, CHAT, body, headers=headers)
                self.assertEqual(status, 401, answer)
                self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})
            for key in ("sk-one", "sk-two"):
                status, answer, _ = api.post(c.url, CHAT, body, headers={"Authorization": f"Bearer {key}"})
                self.assertEqual(status, 200, answer)
            for process in c.processes():
                with open(f"/proc/{process['pid']}/cmdline", "rb") as file:
                    self.assertNotIn(b"sk-", file.read())


if __name__ == "__main__":
    unittest.main()
