"""A real `winnow label` in a process of its own, for tests: its links, its end, a visitor without a
browser.
"""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import runs
import tiny
from winnow.preferences.votes import Vote
from winnow.preferences.votes_db import Store

MODELS = ("model-amber", "model-birch", "model-cedar")


def rows(count: int, k: int = 2) -> list[dict[str, Any]]:
    """Prompts whose answers say who wrote them only in `models`."""
    return [
        {
            "prompt": f"Question {i}?",
            "completions": [f"Answer **{'abc'[j]}** to {i}." for j in range(k)],
            "comparisons": [],
            "models": list(MODELS[:k]),
        }
        for i in range(count)
    ]


@dataclass
class Served:
    """A running server. `links` are the first links by annotator; `again` starts the same command
    once more, at the same port.
    """

    out: Path
    words: list[str]
    process: subprocess.Popen[str] = field(init=False)
    links: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.again()

    def again(self) -> Served:
        self.process = runs.started("label", *self.words, "--out", self.out, "--no-open")
        assert self.process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = self.process.stdout.readline()
            assert line, (said, self.process.communicate()[1])
            said += line
        self.links = dict(
            re.findall(r"^(\S+)\s+(http://\S+/enter\?token=\S+)$", said, re.MULTILINE)
        )
        # a pipe nobody reads would stop it
        self.rest = threading.Thread(target=self._listen, daemon=True)
        self.rest.start()
        where = urlsplit(next(iter(self.links.values())))
        self.url, self.port = f"http://{where.netloc}", int(where.port or 80)
        if "--port" not in self.words:
            self.words += ["--port", str(self.port)]
        return self

    def _listen(self) -> None:
        self.said, self.complained = self.process.communicate()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.rest.join()
        return code

    def votes(self) -> list[Vote]:
        store = Store.existing(self.out)
        try:
            return store.votes()
        finally:
            store.close()


def start(folder: Path, made: list[dict[str, Any]], *words: object) -> Served:
    """Serve these rows from a file with a telling name."""
    file = tiny.write(folder / "answers-of-model-amber.jsonl", made)
    return Served(folder / "votes.db", [str(file), *map(str, words)])


class Visitor:
    """HTTP by hand, with the cookies of one browser."""

    def __init__(self, served: Served, who: str | None = None) -> None:
        self.served, self.cookies = served, dict[str, str]()
        if who is not None:
            status, _, _ = self.get(served.links[who].removeprefix(served.url))
            assert status == 303

    def ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], str]:
        link = http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=30)
        try:
            jar = (
                {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
                if self.cookies
                else {}
            )
            link.request(
                method, path, body, {"Host": f"127.0.0.1:{self.served.port}", **jar, **headers}
            )
            answer = link.getresponse()
            for cookie in answer.headers.get_all("Set-Cookie") or []:
                name, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name] = value
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read().decode(),
            )
        finally:
            link.close()

    def get(self, path: str = "/", **headers: str) -> tuple[int, dict[str, str], str]:
        return self.ask("GET", path, None, headers)

    def post(
        self, path: str, form: dict[str, object], headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        own = {
            "Origin": self.served.url,
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return self.ask("POST", path, urlencode(form).encode(), {**own, **(headers or {})})

    def form(self, path: str = "/") -> dict[str, object]:
        """What the page's form would send, without an outcome."""
        _, _, html = self.get(path)
        found = dict(
            re.findall(
                r'<input type="hidden" name="(task|revision|shown|away|editing)" value="([^"]*)">',
                html,
            )
        )
        return {**found, "strength": "0", "reason": ""}

    def vote(self, outcome: str = "first", **more: object) -> int:
        return self.post("/vote", {**self.form(), "outcome": outcome, **more})[0]
