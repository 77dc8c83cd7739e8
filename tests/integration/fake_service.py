#!/usr/bin/env python3
"""A stand-in for every service, for the tests of `consilium up`: admin port, port file, one canned answer.
CONSILIUM_FAKE_FAIL=role ends that role at start, as a bad model folder would."""
import http.server
import json
import os
import pathlib
import signal
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(json.dumps({"data": [{"id": "fake"}]}).encode() if self.path == "/v1/models" else b"ok\n")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        text = "echo %d: %s" % (len(request["messages"]), request["messages"][-1]["content"])
        for piece in (text[:3], text[3:]):
            self.event(json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data):
        block = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))


def listen(address):
    host, _, port = address.rpartition(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"{host}:{server.server_address[1]}"


def main():
    role = pathlib.Path(sys.argv[0]).name.removeprefix("consilium-")
    flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    if os.environ.get("CONSILIUM_FAKE_FAIL") == role:
        sys.exit(f"consilium-{role}: model.safetensors: expected 10 bytes, got 5")
    bound = {"listen": listen(flags["--listen"]), "admin": listen(flags["--admin"])}
    path = flags["--port-file"]
    pathlib.Path(path + ".tmp").write_text("".join(f"{k} {v}\n" for k, v in bound.items()))
    os.rename(path + ".tmp", path)
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
