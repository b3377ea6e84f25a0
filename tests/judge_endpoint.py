"""An OpenAI-compatible endpoint on loopback that answers as a script says, for tests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes]  # status, body


def says(text: str | None) -> Reply:
    """A chat completion with this content."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    return 200, json.dumps(body).encode()


def labels(label: str) -> Reply:
    return says(json.dumps({"label": label}))


def fails(status: int) -> Reply:
    return status, json.dumps({"error": {"message": f"scripted {status}"}}).encode()


@dataclass
class Endpoint:
    """``answer`` gets the request's object and its number, from 0; what arrived is in ``requests``."""

    answer: Callable[[dict[str, Any], int], Reply]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: dict[str, Any]) -> Reply:
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
        return self.answer(request, number)


@contextmanager
def endpoint(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[Endpoint]:
    served = Endpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = served.handle(request)
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                pass  # the client timed out

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def slow(seconds: float) -> Callable[[dict[str, Any], int], Reply]:
    def answer(_: dict[str, Any], __: int) -> Reply:
        time.sleep(seconds)
        return labels("refuse")

    return answer
