"""The official openai Python client against the running system."""
import json
import unittest

import cluster

try:
    import openai
except ImportError:
    openai = None

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@unittest.skipIf(openai is None, "the openai package is not installed (scripts/test installs it into build/venv)")
class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cluster.Cluster(experts=2)
        cls.cluster.start()
        cls.client = openai.OpenAI(base_url=cls.cluster.url + "/v1", api_key="none", max_retries=0, timeout=60)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None)

    def chat(self, text="What is the capital of France?", **options):
        options = {"temperature": 0, "max_tokens": 40, **options}
        return self.client.chat.completions.create(model="demo", messages=[{"role": "user", "content": text}], **options)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").object, "model")

    def test_chat(self):
        answer = self.chat()
        self.assertIn("Paris", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.object, "chat.completion")
        self.assertTrue(answer.system_fingerprint)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_the_same_seed_gives_the_same_answer(self):
        one, two = (self.chat("Tell me a story.", temperature=1, seed=3, max_tokens=60) for _ in range(2))
        self.assertEqual(one.choices[0].message.content, two.choices[0].message.content)
        self.assertEqual(one.system_fingerprint, two.system_fingerprint)

    def test_chat_stream_says_the_same_and_ends_with_usage(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")

    def test_chat_logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=5).choices[0].logprobs.content
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 5)
            self.assertEqual(token.top_logprobs[0].token, token.token)  # greedy
        self.assertEqual(bytes(b for t in content for b in (t.bytes or [])).decode(errors="ignore").find("Paris") >= 0, True)

    def test_several_choices(self):
        answer = self.chat("Tell me a story.", n=3, temperature=1, seed=1, max_tokens=16)
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2])
        self.assertGreater(len({c.message.content for c in answer.choices}), 1)

    def test_completions_with_list_prompts_and_echo(self):
        answer = self.client.completions.create(model="demo", prompt=["Call me", "The sea"], max_tokens=4, temperature=0)
        self.assertEqual([c.index for c in answer.choices], [0, 1])
        scored = self.client.completions.create(model="demo", prompt="Call me Ishmael.", max_tokens=0, echo=True, logprobs=2)
        self.assertEqual(scored.choices[0].text, "Call me Ishmael.")
        logprobs = scored.choices[0].logprobs
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(v <= 0 for v in logprobs.token_logprobs[1:]))
        self.assertEqual("".join(logprobs.tokens), "Call me Ishmael.")
        self.assertEqual(scored.usage.completion_tokens, 0)

    def test_completion_stream(self):
        options = dict(model="demo", prompt="It was", max_tokens=12, temperature=0)
        whole = self.client.completions.create(**options)
        text = "".join(c.choices[0].text for c in self.client.completions.create(stream=True, **options) if c.choices)
        self.assertEqual(text, whole.choices[0].text)

    def test_stop_strings_end_the_text_before_them(self):
        whole = self.chat().choices[0].message.content
        stop = whole[len(whole) // 2:len(whole) // 2 + 3]
        answer = self.chat(stop=[stop])
        self.assertEqual(answer.choices[0].message.content, whole[:whole.find(stop)])
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_max_tokens_ends_with_length(self):
        answer = self.chat("Tell me a story.", max_tokens=3)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 3)

    def test_tools_are_called_streamed_and_not(self):
        options = dict(tools=[WEATHER], tool_choice="auto", max_tokens=80)
        choice = self.chat("What is the weather in Paris?", **options).choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls", choice)
        call = choice.message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        arguments = json.loads(call.function.arguments)
        self.assertIn("city", arguments)
        name, text, finish = "", "", None
        for chunk in self.chat("What is the weather in Paris?", stream=True, **options):
            for c in chunk.choices:
                finish = c.finish_reason or finish
                for part in c.delta.tool_calls or []:
                    name += part.function.name or ""
                    text += part.function.arguments or ""
        self.assertEqual((name, json.loads(text), finish), ("get_weather", arguments, "tool_calls"))

    def test_tool_choice_none_calls_nothing(self):
        choice = self.chat("What is the weather in Paris?", tools=[WEATHER], tool_choice="none").choices[0]
        self.assertFalse(choice.message.tool_calls)

    def test_errors_are_the_clients_exceptions(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=9)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError):
            self.client.completions.create(model="demo", prompt="x", max_tokens=100000)


if __name__ == "__main__":
    unittest.main()
