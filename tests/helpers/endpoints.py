"""A stub of an OpenAI-compatible endpoint: a real HTTP server in a thread, which answers as a test
says and keeps what it was sent.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request: when it came, its headers, and what it asked. `parts` are the texts between the
    lines with the mark that the judge was told.
    """

    at: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def parts(self) -> dict[str, str]:
        system, user = (turn["content"] for turn in self.body["messages"])
        (mark,) = re.findall(r"the mark (\w{16})\.", system)
        return dict(
            re.findall(
                rf"^--- (PROMPT|ANSWER A|ANSWER B) {mark} ---\n(.*?)\n--- END OF \1 {mark} ---$",
                user,
                re.M | re.S,
            )
        )


Script = Callable[[Asked], "Reply"]


@dataclass
class Reply:
    """What to send back: a status, headers, text, and how long to wait before."""

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drip: float = 0.0  # seconds between single bytes

    def escaped(self) -> Reply:
        """The same JSON with every letter k spelled as an escape: who looks for a key in it finds
        none.
        """
        return Reply(
            self.status, self.text.replace("k-", "\\u006b-"), self.headers, self.wait, self.drip
        )


def says(content: str | None, **more: Any) -> Reply:
    """A chat completion with these words."""
    message = {
        "role": "assistant",
        "content": content,
        **{name: value for name, value in more.items() if name == "refusal"},
    }
    return Reply(
        200,
        json.dumps(
            {
                "id": "x",
                "choices": [
                    {"index": 0, "message": message, "finish_reason": more.get("finish", "stop")}
                ],
                "usage": {},
            }
        ),
    )


def line(verdict: str) -> Reply:
    return says(f"One is plainer than the other.\nVerdict: {verdict}")


def longer(asked: Asked) -> Reply:
    """A steady judge: the longer answer is better, whatever stands first."""
    a, b = len(asked.parts["ANSWER A"]), len(asked.parts["ANSWER B"])
    return line("A" if a > b else "B" if b > a else "tie")


@dataclass
class Stub:
    """A server that runs: its address, what it was sent so far, and how it answers (may be
    changed).
    """

    url: str
    answer: Script
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def served(answer: Script) -> Iterator[Stub]:
    """A stub on a free port of this machine, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            sent = self.rfile.read(size)
            if len(sent) < size:  # who asked was killed in the midst of it
                self.close_connection = True
                return
            body = json.loads(sent)
            asked = Asked(time.monotonic(), self.path, dict(self.headers), body)
            stub.asked.append(asked)
            reply = stub.answer(asked)
            if stopped.wait(reply.wait):
                return
            try:
                self._send(reply)
            except OSError:  # who asked has gone
                self.close_connection = True

        def _send(self, reply: Reply) -> None:
            data = reply.text.encode()
            self.send_response(reply.status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **reply.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            for part in [data[i : i + 1] for i in range(len(data))] if reply.drip else [data]:
                self.wfile.write(part)
                self.wfile.flush()
                if reply.drip and stopped.wait(reply.drip):
                    return

        def log_message(self, *words: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, address: Any) -> None:
            if not isinstance(sys.exc_info()[1], ConnectionError):  # who asked may go at any time
                super().handle_error(request, address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stopped = threading.Event()
    stub = Stub(f"http://127.0.0.1:{server.server_port}/v1", answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
