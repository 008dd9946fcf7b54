"""Who may speak to the page: a token opens it once, a cookie keeps it open, and only forms of the
page itself are taken

The page listens on this machine, but other pages in the same browser can send requests there too,
and other people may have accounts here. So no request without a cookie gets more than a refusal;
the Host must be ours (else a stranger's name could be pointed at this address), and a form must
come from this very address (Origin, Sec-Fetch-Site). The cookie is signed, SameSite=Strict and
closed to scripts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NoBase64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from winnow.errors import RunError

# bytes of a form: a vote with a reason is a few hundred, and every browser keeps to `maxlength`
BODY = 64 * 1024
FORM = "application/x-www-form-urlencoded"


class Refused(Exception):
    """Why a request is not answered, with its HTTP status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


@dataclass(frozen=True, slots=True)
class Door:
    """`hosts` are the names the page may be called by (with port), `people` who may label; `told`
    is given a fresh token when one was used.
    """

    key: bytes
    hosts: frozenset[str]
    people: Sequence[str]
    told: Callable[[str, str], object] = lambda who, token: None
    tokens: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cookie(self) -> str:
        """The cookie's name. Cookies do not know ports: pages of two files beside each other need
        two names.
        """
        return f"winnow_{hashlib.sha256(self.key).hexdigest()[:8]}"

    def token(self, who: str) -> str:
        """A new token that lets `who` in, once."""
        made = secrets.token_urlsafe(24)
        with self.lock:
            self.tokens[made] = who
        return made

    def enter(self, token: str) -> str:
        """Who comes in by a token, which is gone then. Raises Refused."""
        with self.lock:
            found = next(
                (
                    known
                    for known in self.tokens
                    if hmac.compare_digest(known.encode(), token.encode())
                ),
                None,
            )
            who = self.tokens.pop(found) if found is not None else None
        if who is None:
            raise Refused(
                403,
                "This link was used already, or belongs to an earlier start. The terminal shows a"
                " fresh one.",
            )
        self.told(who, self.token(who))
        return who

    def signed(self, who: str) -> str:
        """The cookie's value."""
        return f"{urlsafe_b64encode(who.encode()).decode()}.{self._mark(who)}"

    def who(self, cookie: str) -> str:
        """Whose cookie it is. Raises Refused for one that was not made with this key, or for
        somebody who does not label now.
        """
        name, _, mark = cookie.partition(".")
        try:
            who = urlsafe_b64decode(name.encode()).decode()
        except (NoBase64, UnicodeDecodeError):
            who = ""
        if (
            not hmac.compare_digest(mark.encode(), self._mark(who).encode())
            or who not in self.people
        ):
            raise Refused(
                403, "This browser has not come in yet. Open the link that the terminal shows."
            )
        return who

    def check(self, method: str, headers: Headers) -> None:
        """Raises Refused for another Host, and for a form that does not come from the page
        itself.
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            raise Refused(
                421,
                f"The page answers to {', '.join(sorted(self.hosts))} alone. Through a tunnel, use"
                " the same port at both ends.",
            )
        if method in ("GET", "HEAD"):
            return
        if (
            headers.get("origin") != f"http://{hosts[0]}"
            or headers.get("sec-fetch-site", "same-origin") != "same-origin"
        ):
            raise Refused(403, "A form that was not sent by the page itself is not taken.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
            raise Refused(415, f"A form is sent as {FORM}.")

    def _mark(self, who: str) -> str:
        return hmac.new(self.key, who.encode(), hashlib.sha256).hexdigest()


def names(host: str, port: int) -> frozenset[str]:
    """What a browser's Host header may say: this machine's own names and the address that was asked
    for; at port 80 also without it.
    """
    own = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host.lower()}
    return frozenset({f"{name}:{port}" for name in own} | (own if port == 80 else set()))


def key(path: Path) -> bytes:
    """The key that cookies are signed with, beside the file of votes: made once, for its owner
    alone to read. Deleting it ends all sessions.

    Raises RunError for a file that is no key, or that others may read.
    """
    made = secrets.token_bytes(32)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    temporary.touch(0o600, exist_ok=False)
    temporary.write_bytes(made)
    try:
        os.link(temporary, path)  # whole or not at all, and the first of two starts wins
    except FileExistsError:
        made = path.read_bytes()
    finally:
        temporary.unlink()
    if len(made) != 32 or path.stat().st_mode & 0o077:
        raise RunError(
            f"{path}: no key of 32 bytes for its owner alone",
            remedy="delete it; annotators then open new links",
        )
    return made


def headers(nonce: str) -> dict[str, str]:
    """Of every answer: nothing is loaded from anywhere, nothing is kept, nobody may frame it. Forms
    say where they come from, to us alone.
    """
    policy = {
        "script-src": f"'nonce-{nonce}'",
        "style-src": f"'nonce-{nonce}'",
        "img-src": "data:",
        "form-action": "'self'",
    }
    closed = {"default-src": "'none'", "base-uri": "'none'", "frame-ancestors": "'none'"}
    return {
        "Content-Security-Policy": "; ".join(
            f"{name} {value}" for name, value in {**closed, **policy}.items()
        ),
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def guarded(
    app: ASGIApp, door: Door, refused: Callable[[Request, Refused], Awaitable[Response]]
) -> ASGIApp:
    """`app` behind the door: Host and origin are checked before anything else is looked at, and
    every answer has the headers, errors too.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        nonce = secrets.token_urlsafe(16)
        scope["state"] = {**scope.get("state", {}), "nonce": nonce}

        async def closed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers(nonce))
            await send(message)

        try:
            door.check(scope["method"], Headers(scope=scope))
        except Refused as error:
            await (await refused(Request(scope), error))(scope, receive, closed)
        else:
            await app(scope, receive, closed)

    return call
