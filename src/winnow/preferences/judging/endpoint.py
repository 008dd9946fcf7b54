"""A language model behind an OpenAI-compatible address: asked politely, at most so often, and never
twice for the same thing.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
)
from tenacity.wait import wait_exponential, wait_random

from winnow.errors import JudgeError
from winnow.system.files import make_folder, read_json, sha256_json, write_json
from winnow.system.redact import BLANK, blanked

T = TypeVar("T")
R = TypeVar("R")
Kind = Literal[
    "busy",
    "server",
    "timeout",
    "connection",
    "rejected",
    "garbage",
    "refusal",
    "cut off",
    "no verdict",
]

UNREACHED: tuple[Kind, ...] = ("busy", "server", "timeout", "connection")
TRIES = 5  # of one question, where the next may do better
# Seconds before the second try, doubled from then on; a server that asks for more than the
# longest is not waited for.
FIRST_WAIT, LONGEST_WAIT = (
    1.0,
    60.0,
)
MOST = 2**23  # bytes of a reply
# no question will do better
NEVER = {
    401: "the key is not accepted",
    403: "the key may not do this",
    404: "there is no such address or model",
}


class Failed(Exception):
    """A question that got no usable reply. wait: seconds the server asked for before the next; None
    where it said nothing.
    """

    def __init__(self, kind: Kind, detail: str, wait: float | None = None) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.wait = kind, wait

    @property
    def passes(self) -> bool:
        """Whether another try may do better, within a time that one waits for."""
        return self.unreached and (self.wait or 0.0) <= LONGEST_WAIT

    @property
    def unreached(self) -> bool:
        """Whether it is the server or the way to it, and not what was asked."""
        return self.kind in UNREACHED


class Spent(Exception):
    """No more requests may be sent."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and how: everything but the key and the patience is part of a question's
    identity.
    """

    url: str
    model: str
    temperature: float | None
    max_tokens: int | None
    timeout: float = 60.0
    key: str = field(default="", repr=False)

    def body(
        self, messages: Sequence[Mapping[str, str]], form: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """What is sent. form: a schema the reply must have; None: any words."""
        more = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "response_format": form,
        }
        return {
            "model": self.model,
            "messages": list(messages),
            **{name: value for name, value in more.items() if value is not None},
        }


class Asking:
    """An endpoint that is being asked, by several threads if wanted. `sent` counts requests, `kept`
    replies that lay in `folder` already.
    """

    def __init__(self, endpoint: Endpoint, folder: Path, budget: int | None) -> None:
        self.endpoint, self.folder, self.budget = endpoint, folder, budget
        self.sent = self.kept = 0
        self.over = threading.Event()  # nobody waits for answers any more
        self._count = threading.Lock()
        self._client = httpx2.Client(
            timeout=endpoint.timeout,
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            limits=httpx2.Limits(max_connections=None),
        )

    def ask(self, body: Mapping[str, Any], read: Callable[[str], R]) -> R:
        """What `read` makes of the reply to `body`. A reply that it can read is kept, whole, under
        the hash of what was asked.

        Raises Failed where there is none, Spent where the budget does not allow to ask, JudgeError
        where asking on is pointless.
        """
        asked = {"url": self.endpoint.url, **body}
        name = sha256_json(asked)
        file = self.folder / name[:2] / f"{name}.json"
        if file.exists():
            with self._count:
                self.kept += 1
            return read(_content(read_json(file, "asked", "reply")["reply"]))
        reply = self._patiently(body)
        made = read(_content(reply))
        make_folder(file.parent)
        write_json(file, {"asked": asked, "reply": reply})
        return made

    def close(self) -> None:
        """Stop waiting for anything."""
        self.over.set()
        self._client.close()

    def _patiently(self, body: Mapping[str, Any]) -> Any:
        """The reply, after as many tries as it takes and may be."""
        tries = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Failed) and error.passes),
            stop=stop_any(stop_after_attempt(TRIES), stop_when_event_set(self.over)),
            wait=_wait,
            sleep=sleep_using_event(self.over),
            reraise=True,
        )
        return tries(self._once, body)

    def _once(self, body: Mapping[str, Any]) -> Any:
        with self._count:
            if self.over.is_set() or (self.budget is not None and self.sent >= self.budget):
                raise Spent
            self.sent += 1
        try:
            status, headers, text = self._sent(body)
        except httpx2.TimeoutException:
            raise Failed("timeout", f"no reply within {self.endpoint.timeout:g} s") from None
        except (
            httpx2.HTTPError,
            httpx2.StreamError,
            RuntimeError,
        ) as error:  # RuntimeError: the client was closed meanwhile
            raise Failed("connection", self._shown(f"{type(error).__name__}: {error}")) from None
        if status in NEVER:
            raise JudgeError(
                f"{self.endpoint.url}: HTTP {status}: {NEVER[status]}: {self._shown(text)}",
                remedy="check --judge, --judge-model and --key-env",
            )
        if status == 429 or status >= 500:
            raise Failed(
                "busy" if status == 429 else "server",
                f"HTTP {status}: {self._shown(text)}",
                _asked_wait(headers.get("retry-after")),
            )
        if status != 200:
            raise Failed("rejected", f"HTTP {status}: {self._shown(text)}")
        try:
            # NaN, in figures that nobody reads
            said = json.loads(text, parse_constant=lambda name: None)
            # a key may be escaped in it
            return json.loads(
                self._without_key(json.dumps(said, ensure_ascii=False, allow_nan=False))
            )
        except (ValueError, RecursionError):
            raise Failed("garbage", f"is not JSON: {self._shown(text)}") from None

    def _sent(self, body: Mapping[str, Any]) -> tuple[int, Any, str]:
        """Status, headers and text. The time limit is the whole reply's: one that comes drop by
        drop ends it too.
        """
        begun, data = time.monotonic(), bytearray()
        with self._client.stream(
            "POST", f"{self.endpoint.url}/chat/completions", json=dict(body)
        ) as reply:
            for part in reply.iter_bytes():
                data += part
                if len(data) > MOST:
                    raise Failed("garbage", f"is longer than {MOST:,} bytes")
                if time.monotonic() - begun > self.endpoint.timeout:
                    raise httpx2.ReadTimeout("too slow")
            return reply.status_code, reply.headers, data.decode(errors="replace")

    def _without_key(self, text: str) -> str:
        """A server may say back what it was sent."""
        key = self.endpoint.key
        return text.replace(key, BLANK).replace(json.dumps(key)[1:-1], BLANK) if key else text

    def _shown(self, text: str) -> str:
        """What a server said, for a message: short, without secrets."""
        words = " ".join(blanked(self._without_key(text)).split())
        return repr(words[:200]) if words else "(nothing)"


def _content(reply: Any) -> str:
    """The words of a reply. Raises Failed where it refuses, breaks off, or is none."""
    try:
        choice = reply["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        refused, content = message.get("refusal"), message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Failed("garbage", f"is no chat completion: {str(reply)[:200]!r}") from None
    if refused or reason == "content_filter":
        raise Failed("refusal", repr(str(refused or reason)[:200]))
    if reason == "length":
        raise Failed("cut off", "its end is missing; --reply-tokens says how long it may be")
    if not isinstance(content, str):
        raise Failed("garbage", f"has no content: {str(message)[:200]!r}")
    return content


def _wait(state: RetryCallState) -> float:
    """Seconds before the next try: twice as long each time, with a random part so that not all come
    back at once, and never less than the server asked for.
    """
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.wait if isinstance(error, Failed) and error.wait is not None else 0.0
    return max(
        asked,
        (wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT) + wait_random(0, FIRST_WAIT))(
            state
        ),
    )


def _asked_wait(header: str | None) -> float | None:
    """Retry-After in seconds, from seconds or a date (RFC 9110, section 10.2.3); None where it says
    nothing that can be read.
    """
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def refuse_absent(url: str) -> None:
    """Raises JudgeError where nobody listens at an address; behind a proxy only a question can
    tell.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if getproxies().get(parts.scheme) and not proxy_bypass(host):
        return
    try:
        socket.create_connection(
            (host, parts.port or (443 if parts.scheme == "https" else 80)), timeout=10
        ).close()
    except OSError as error:
        raise JudgeError(
            f"{url}: nobody replies there: {error}",
            remedy="start the server, or give its address; nothing was sampled yet",
        ) from error


def refuse_address(url: str, key: str) -> None:
    """Raises JudgeError for an address that nobody can be asked at, and for a key that would travel
    for all to read.
    """
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL:
        parts = httpx2.URL()
    if not parts.host or parts.query or parts.fragment or not 0 < (parts.port or 443) < 2**16:
        bare = blanked(url.partition("?")[0].partition("#")[0])  # a key may stand behind these
        raise JudgeError(
            f"judge: {bare!r} is no endpoint's address",
            remedy="what stands before /chat/completions: http://localhost:8000/v1, say",
        )
    if key and parts.scheme == "http" and parts.host not in ("localhost", "127.0.0.1", "::1"):
        raise JudgeError(
            f"judge: a key would travel to {parts.host} unencrypted",
            remedy="https://, or --key-env none where no key is needed",
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise JudgeError(
            "judge: the key holds characters that no key has (a line break, a blank, ...)",
            remedy="set the variable again",
        )


def at_once(work: Callable[[T], R], things: Sequence[T], many: int) -> Iterator[R]:
    """`work` of each thing, `many` at a time, in the order in which they are done. The first error
    ends it.

    The threads end with the process, whatever they wait for: a signal need not wait for a server.
    """
    todo, done = SimpleQueue[T](), SimpleQueue[R | BaseException]()
    for thing in things:
        todo.put(thing)

    def run() -> None:
        while True:
            try:
                done.put(work(todo.get_nowait()))
            except Empty:
                return
            except BaseException as error:  # told by who waits for it
                done.put(error)

    for _ in range(min(many, len(things))):
        threading.Thread(target=run, daemon=True).start()
    for _ in things:
        made = done.get()
        if isinstance(made, BaseException):
            raise made
        yield made
