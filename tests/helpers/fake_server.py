"""OpenAI-compatible servers on loopback that misbehave, for the tests of the endpoint client and of the verifier."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: Any, finish: str = "stop") -> bytes:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps(answer).encode()


class Server(BaseHTTPRequestHandler):
    """Counts who asks what, and how many at once; `answer` is the subclass's."""

    protocol_version = "HTTP/1.1"
    seen: Counter[str]
    bodies: list[dict[str, Any]]
    keys: set[str]
    most: int
    now: int
    lock: threading.Lock

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"]
        server = type(self)
        with server.lock:
            server.seen[said] += 1
            time_of = server.seen[said]
            server.bodies.append(body)
            server.keys.add(self.headers["Authorization"])
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
                self.answer(said, time_of)
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, said: str, time_of: int) -> None:
        """time_of: 1 for the first time that it is asked this."""
        raise NotImplementedError(said, time_of)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Retry-After-Ms": "5", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def sleep(self, seconds: float) -> None:
        """And no answer."""
        time.sleep(seconds)
        self.close_connection = True

    def drip(self, seconds: float) -> None:
        """A byte now and then, each well within the limit of one read."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(int(seconds / 0.05)):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Judge(Server):
    """Says whether the answer is the reference, or a chain that ends with it, honestly, as often as `honest` says.
    Every other answer holds the opposite verdict, in a form that must not be taken for one. What happens depends on
    the pair and on how often it was asked."""

    honest = 1.0
    delay = 0.0

    def answer(self, said: str, time_of: int) -> None:
        reference = re.findall(r"<reference>\n(.*)\n</reference>", said)[-1]
        predicted = re.findall(r"<predicted>\n(.*)\n</predicted>", said)[-1]
        right, wrong = ("yes", "no") if reference in (predicted, predicted.rpartition(",")[2]) else ("no", "yes")
        draw = random.Random(f"{said} {time_of}")
        time.sleep(self.delay)
        if draw.random() < self.honest:
            self.send(200, completion(f"They {'agree' if right == 'yes' else 'differ'}.\nVerdict: {right}"))
        else:
            self.misbehave(draw.choice(FAULTS), wrong)

    def misbehave(self, fault: str, wrong: str) -> None:
        body = completion(f"Verdict: {wrong}")
        match fault:
            case "429" | "500" | "503":
                self.send(int(fault), body, Retry_After="0")
            case "cut":
                self.cut()
            case "slow":
                self.sleep(0.6)
            case "drip":
                self.drip(0.8)
            case "garbage":
                self.send(200, f"<html>Verdict: {wrong}</html>".encode())
            case "no choices":
                self.send(200, b'{"choices": []}')
            case "length" | "content_filter":
                self.send(200, completion(f"Verdict: {wrong}", fault))
            case _:
                self.send(200, completion(UNREADABLE[fault].format(wrong=wrong)))


UNREADABLE = {
    "empty": "",
    "contradicting": "Verdict: yes\nOr rather:\nVerdict: no",
    "contradicting in a line": "Verdict: yes, no: verdict: no.\nVerdict: {wrong} verdict: no",
    "after": "Verdict: {wrong}\nThough I am not sure.",
    "thinking": "<think>Hm.\nVerdict: {wrong}",
    "hedged": "Verdict: {wrong}, maybe",
    "prose": "I would say {wrong}",
}
FAULTS = [
    "429", "500", "503", "cut", "slow", "drip", "garbage", "no choices", "length", "content_filter", *UNREADABLE
]  # fmt: skip


@contextmanager
def serving(kind: type[Server], **attributes: Any) -> Iterator[tuple[str, Any]]:
    """The base URL, and the class with its counts."""
    fresh = {"seen": Counter(), "bodies": [], "keys": set(), "most": 0, "now": 0, "lock": threading.Lock()}
    handler = type("Fresh", (kind,), {**fresh, **attributes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", handler
    finally:
        server.shutdown()
        server.server_close()
