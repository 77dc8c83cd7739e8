"""The HTTP API as the tests see it. Numbers stay text (parse_float=str), so that equal means equal digits."""
import concurrent.futures
import http.client
import json
import random
import time
import urllib.parse

TIMEOUT_S = 120


def connect(url, timeout_s=TIMEOUT_S):
    parts = urllib.parse.urlsplit(url)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)


def call(url, method, path, body=None, headers=None, timeout_s=TIMEOUT_S):
    """(status, parsed body or text, headers). `body`: bytes or something for JSON."""
    connection = connect(url, timeout_s)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        text = answer.read().decode()
        try:
            return answer.status, json.loads(text, parse_float=str), dict(answer.getheaders())
        except ValueError:
            return answer.status, text, dict(answer.getheaders())
    finally:
        connection.close()


def post(url, path, body, **kwargs):
    return call(url, "POST", path, body, **kwargs)


class StreamError(Exception):
    """The server ended a stream with an error event, or before [DONE]."""


class Stream:
    """An open streamed request; iterates over (time, event)."""

    def __init__(self, url, path, body, timeout_s=TIMEOUT_S):
        self.connection = connect(url, timeout_s)
        self.connection.request("POST", path, json.dumps({**body, "stream": True}).encode(),
                                {"Content-Type": "application/json"})
        self.answer = self.connection.getresponse()
        self.status = self.answer.status
        self.error_body = None if self.status == 200 else json.loads(self.answer.read().decode())

    def close(self):
        self.connection.close()

    def __iter__(self):
        try:
            while True:
                line = self.answer.readline()
                if not line:
                    raise StreamError("the stream ended without [DONE]")
                line = line.strip()
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data, parse_float=str)
                if "error" in event:
                    raise StreamError(json.dumps(event["error"]))
                yield time.monotonic(), event
        except http.client.HTTPException as error:
            raise StreamError(repr(error)) from error
        finally:
            self.close()


def joined(events):
    """What a stream said, per choice: text, logprobs and finish reason, as a whole answer would have it."""
    choices = {}
    for event in events:
        for choice in event.get("choices", []):
            out = choices.setdefault(choice["index"], {"text": "", "logprobs": [], "finish_reason": None})
            delta = choice.get("delta", {})
            out["text"] += delta.get("content") or choice.get("text") or ""
            out["logprobs"] += logprob_list(choice)
            out["finish_reason"] = choice.get("finish_reason") or out["finish_reason"]
    return [choices[i] for i in sorted(choices)]


def logprob_list(choice):
    """[(token, logprob, [(token, logprob), ...]), ...] of a chat or completions choice; [] without logprobs."""
    logprobs = choice.get("logprobs")
    if not logprobs:
        return []
    if logprobs.get("content") is not None:
        return [(t["token"], str(t["logprob"]), [(a["token"], str(a["logprob"])) for a in t.get("top_logprobs", [])])
                for t in logprobs["content"]]
    if "tokens" not in logprobs:
        return []
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [(token, str(value), sorted((k, str(v)) for k, v in (top or {}).items()))
            for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops)]


def whole(answer):
    """The same shape as `joined` from an answer that was not streamed."""
    return [{"text": choice["message"]["content"] or "" if "message" in choice else choice["text"],
             "logprobs": logprob_list(choice), "finish_reason": choice["finish_reason"]}
            for choice in sorted(answer["choices"], key=lambda c: c["index"])]


class Request:
    """One request of the exactness set: path, body, and whether it is streamed."""

    def __init__(self, path, body, stream):
        self.path, self.body, self.stream = path, body, stream

    def run(self, url):
        if self.stream:
            stream = Stream(url, self.path, self.body)
            if stream.status != 200:
                raise AssertionError(f"{self.path} {self.body}: {stream.status} {stream.error_body}")
            return joined(event for _, event in stream)
        status, answer, _ = post(url, self.path, self.body)
        if status != 200:
            raise AssertionError(f"{self.path} {self.body}: {status} {answer}")
        return whole(answer)


QUESTIONS = ["What is the capital of France?", "What is 12 + 7?", "Translate to German: water", "Say hello.",
             "What colour is the sky?", "What is the opposite of hot?", "What is the plural of mouse?", "Who are you?"]


PROMPT_TOKENS = (1, 2, 15, 16, 17, 63, 64, 65, 130, 300)  # around pages of 16 and key blocks of 64


def exactness_requests(count=64, seed=1, max_tokens=24, model="demo", ids=range(10, 2000), lengths=PROMPT_TOKENS,
                       chat=True):
    """Mixed lengths and options: greedy and T=1 with seeds, n=2, penalties, top-20 logprobs, filters, bias, echo; every
    second one a chat if `chat`, else all over token ids out of `ids`."""
    random_ = random.Random(seed)
    out = []
    for i in range(count):
        common = {"model": model, "max_tokens": random_.choice([1, 5, max_tokens // 2, max_tokens]), "seed": 1000 + i}
        common["temperature"] = 0 if i % 3 == 0 else 1
        if i % 4 == 1:
            common["n"] = 2
        if i % 5 == 2:
            common.update(presence_penalty=0.5, frequency_penalty=0.25)
        if i % 7 == 3:
            common.update(repetition_penalty=1.2)
        if i % 6 == 4:
            common.update(top_p=0.9, top_k=40, min_p=0.01)
        if i % 8 == 5:
            common.update(logit_bias={"300": 2.5, "301": -100}, ignore_eos=True)
        if i % 9 == 6:
            common.update(stop=["the", "\n"], min_tokens=min(2, common["max_tokens"]))
        stream = i % 4 == 3
        if chat and i % 2 == 0:
            turns = [{"role": "user", "content": random_.choice(QUESTIONS)}]
            if i % 8 == 0:
                turns = [{"role": "system", "content": "You are a helpful assistant."}, *turns,
                         {"role": "assistant", "content": "I see."}, {"role": "user", "content": QUESTIONS[i % 8]}]
            body = {**common, "messages": turns, "logprobs": True, "top_logprobs": 20 if i % 4 == 0 else 3}
            out.append(Request("/v1/chat/completions", body, stream))
        else:  # lengths from 1 to some hundred, some with a common beginning
            length = random_.choice(lengths)
            shared = random.Random(7 if i % 4 == 1 else 100 + i)
            prompt = [shared.randrange(ids.start, ids.stop) for _ in range(length)]
            body = {**common, "prompt": prompt, "logprobs": 20 if i % 2 == 0 else 5}
            if i % 16 == 7:
                body["echo"] = True
            out.append(Request("/v1/completions", body, stream))
    return out


def difference(requests, want, got):
    """What the first answer that is not the wanted one looks like, or None."""
    for request, one, two in zip(requests, want, got, strict=True):
        if one != two:
            return (f"differs: {request.path} {request.body}\n alone: {json.dumps(one)[:1500]}\n"
                    f" here:  {json.dumps(two)[:1500]}")
    return None


def one_by_one(url, requests):
    return [request.run(url) for request in requests]


def all_at_once(url, requests, seed=2, within_s=0.5):
    """In another order, with random arrival within about `within_s`; results in the requests' order."""
    random_ = random.Random(seed)
    order = list(range(len(requests)))
    random_.shuffle(order)
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        futures = {}
        for i in order:
            futures[i] = pool.submit(requests[i].run, url)
            time.sleep(2 * within_s * random_.random() / len(requests))
        return [futures[i].result() for i in range(len(requests))]
