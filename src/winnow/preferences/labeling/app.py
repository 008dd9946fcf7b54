"""The page of `winnow label`: addresses and what they answer. A vote is on the disk before its
answer is sent
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from winnow.errors import RunError
from winnow.preferences.labeling import views
from winnow.preferences.labeling.auth import BODY, Door, Refused, guarded
from winnow.preferences.tasks import Cast, NoTask, Outdated
from winnow.preferences.votes_db import Store
from winnow.system.console import complain

YEAR = 365 * 24 * 3600
REASON = 2000  # characters
LONGEST = 3600.0  # seconds: whoever looks at a pair for longer has gone away
A_PAGE = 50  # votes


@dataclass(frozen=True, slots=True)
class Look:
    """How somebody wants the page: texts, colours, and whether letters are keys (to speech input
    they are words). Each is kept in a cookie.
    """

    view: str = "markdown"
    theme: str = "auto"
    keys: str = "on"


LOOKS = {"view": ("markdown", "raw"), "theme": ("auto", "light", "dark"), "keys": ("on", "off")}


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request of somebody who came in."""

    who: str
    task: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    look: Look
    nonce: str
    address: str

    def number(self, name: str) -> float:
        """A number of the form. Raises Refused."""
        try:
            found = float(self.form[name])
        except (KeyError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise Refused(400, f"The form's {name} is missing, or is no number.")
        return found


@dataclass(frozen=True, slots=True)
class LabelPage:
    """What all requests share."""

    store: Store
    door: Door
    guidelines: Markup | None = None


Handler = Callable[[LabelPage, PageRequest], Response]


def app(page: LabelPage) -> ASGIApp:
    """The page as an ASGI application, guarded."""
    gets = {"/": ask, "/votes": votes, "/votes/{task}": vote, "/rank/{task}": ranking}
    posts = {"/vote": cast, "/undo": undo, "/rank/{task}": rank, "/look": look}
    routes = [Route("/enter", _enter(page.door), methods=["GET"])]
    for method, answers in (("GET", gets), ("POST", posts)):
        routes += [
            Route(path, _endpoint(page, handler), methods=[method])
            for path, handler in answers.items()
        ]
    errors: dict[Any, Any] = {
        Refused: _refused,
        NoTask: _no_task,
        Outdated: _outdated,
        RunError: _failed,
        HTTPException: _other,
    }
    return guarded(Starlette(routes=routes, exception_handlers=errors), page.door, _refused)


# --- what addresses answer


def ask(page: LabelPage, asked: PageRequest) -> Response:
    """The next pair, or that all is done."""
    last = page.store.history(asked.who, limit=1)
    values = {
        "last": last[0] if last else None,
        "progress": page.store.progress(asked.who),
        "here": "label",
    }
    task = page.store.next(asked.who)
    if task is None:
        lines = [
            "There is nothing left for you to compare. If others are still at it, look again later:"
            " pairs they leave come to you."
        ]
        return _page(
            asked,
            "message",
            title="All done. Thank you.",
            lines=lines,
            links=[("/votes", "My votes")],
            **values,
        )
    shown = views.shown(page.store.items[task.item], (task.left, task.right))
    several = len(page.store.order(task.id, asked.who))
    return _page(
        asked,
        "task",
        task=task,
        shown=shown,
        several=several,
        guidelines=page.guidelines,
        now=time.time(),
        **values,
    )


def cast(page: LabelPage, asked: PageRequest) -> Response:
    """A vote. What was sent twice counts once."""
    outcome, strength = asked.form.get("outcome", ""), int(asked.number("strength"))
    if outcome not in views.OUTCOMES or strength not in range(len(views.STRENGTHS)):
        raise Refused(
            400,
            "The form says no outcome, or one that there is not. Go back, and press one of the"
            " buttons.",
        )
    decided = outcome in ("first", "second")
    page.store.cast(
        Cast(
            asked.form.get("task", ""),
            asked.who,
            outcome,
            int(asked.number("revision")),
            strength if decided else 0,
            _reason(asked),
            _seconds(asked),
        )
    )
    return _go(f"/votes/{asked.form['task']}" if "editing" in asked.form else "/")


def undo(page: LabelPage, asked: PageRequest) -> Response:
    """Take the last vote (or ranking) back, once."""
    page.store.undo(asked.who, int(asked.number("act")))
    return _go("/")


def votes(page: LabelPage, asked: PageRequest) -> Response:
    """What one has voted so far."""
    word = asked.query.get("page", "1")
    number = int(word) if re.fullmatch(r"[1-9][0-9]{0,5}", word) else 1
    found = page.store.history(asked.who, limit=A_PAGE + 1, offset=(number - 1) * A_PAGE)
    rows = [views.row(page.store.items[task.item], task, entry) for task, entry in found[:A_PAGE]]
    more = len(found) > A_PAGE
    return _page(
        asked,
        "votes",
        rows=rows,
        number=number,
        more=more,
        progress=page.store.progress(asked.who),
        here="votes",
    )


def vote(page: LabelPage, asked: PageRequest) -> Response:
    """One vote again, with what was hidden before: lengths and differences."""
    task, entry = page.store.task(asked.task, asked.who), page.store.current(asked.task, asked.who)
    if entry is None:
        return _go("/")
    shown = views.looked_at(page.store.items[task.item], task)
    values = {
        "progress": page.store.progress(asked.who),
        "here": "votes",
        "guidelines": page.guidelines,
        "now": time.time(),
    }
    return _page(asked, "vote", task=task, entry=entry, shown=shown, last=None, **values)


def ranking(page: LabelPage, asked: PageRequest) -> Response:
    """All answers to a prompt, to be put in order."""
    task, order = page.store.task(asked.task, asked.who), page.store.order(asked.task, asked.who)
    shown = views.shown(page.store.items[task.item], order)
    values = {
        "progress": page.store.progress(asked.who),
        "here": "label",
        "guidelines": page.guidelines,
        "now": time.time(),
    }
    return _page(asked, "rank", task=task, shown=shown, answers=shown.answers, **values)


def rank(page: LabelPage, asked: PageRequest) -> Response:
    """A ranking: a place for every answer, 1 the best, equals allowed."""
    order = page.store.order(asked.task, asked.who)
    places = [asked.number(f"place-{i + 1}") for i in range(len(order))]
    tiers = [
        [answer for answer, place in zip(order, places) if place == tier]
        for tier in sorted(set(places))
    ]
    page.store.rank(
        asked.task,
        asked.who,
        int(asked.number("revision")),
        tiers,
        reason=_reason(asked),
        seconds=_seconds(asked),
    )
    return _go("/")


def look(page: LabelPage, asked: PageRequest) -> Response:
    """Markdown or raw text, light or dark, keys or none."""
    back = asked.form.get("back", "/")
    response = _go(back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/")
    for name, choices in LOOKS.items():
        if asked.form.get(name) in choices:
            response.set_cookie(
                f"winnow_{name}", asked.form[name], max_age=YEAR, httponly=True, samesite="strict"
            )
    return response


# --- from a request to a handler, and back


def _endpoint(page: LabelPage, handler: Handler) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        asked = PageRequest(
            page.door.who(request.cookies.get(page.door.cookie, "")),
            request.path_params.get("task", ""),
            request.query_params,
            await _form(request) if request.method == "POST" else {},
            _look(request),
            request.state.nonce,
            request.url.path,
        )
        return await run_in_threadpool(handler, page, asked)

    return endpoint


def _enter(door: Door) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        """The link of the terminal: the token becomes a cookie, and leaves the address. Whoever is
        in already needs none.
        """
        try:
            who = door.who(request.cookies.get(door.cookie, ""))
        except Refused:
            if (
                request.method == "HEAD"
            ):  # what looks at links before a person does must not use them up
                raise
            who = door.enter(request.query_params.get("token", ""))
        response = _go("/")
        response.set_cookie(
            door.cookie, door.signed(who), max_age=YEAR, httponly=True, samesite="strict"
        )
        return response

    return endpoint


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form. Raises Refused where it is too long or no text."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > BODY:
            raise Refused(413, f"A form has at most {BODY:,} bytes.")
    try:
        return dict(
            parse_qsl(
                found.decode("ascii"), keep_blank_values=True, max_num_fields=200, errors="strict"
            )
        )
    except ValueError:
        raise Refused(400, "The form cannot be read.") from None


def _look(request: Request) -> Look:
    kept = {name: request.cookies.get(f"winnow_{name}") for name in LOOKS}
    return Look(**{name: value for name, value in kept.items() if value in LOOKS[name]})


def _reason(asked: PageRequest) -> str:
    return asked.form.get("reason", "").replace("\r\n", "\n").strip()[:REASON]


def _seconds(asked: PageRequest) -> float:
    """How long the pair was looked at: since the page was made, without the time in which it was
    out of sight.
    """
    return max(0.0, min(LONGEST, time.time() - asked.number("shown") - asked.number("away")))


def _go(address: str) -> Response:
    return RedirectResponse(address, status_code=303)


def _page(asked: PageRequest, template: str, **values: Any) -> Response:
    return HTMLResponse(
        views.html(
            template,
            {
                "who": asked.who,
                "look": asked.look,
                "nonce": asked.nonce,
                "back": asked.address,
                **values,
            },
        )
    )


def _message(
    request: Request, status: int, title: str, *lines: str, links: tuple[tuple[str, str], ...] = ()
) -> Response:
    values = {
        "who": "",
        "look": _look(request),
        "nonce": request.state.nonce,
        "back": "/",
        "here": "",
        "progress": None,
        "last": None,
    }
    return HTMLResponse(
        views.html("message", {**values, "title": title, "lines": lines, "links": links}), status
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    # a Strict cookie is not sent where a link elsewhere led here
    links = (("/", "Open the page"),) if error.status == 403 and request.method == "GET" else ()
    return _message(request, error.status, "Not answered", error.why, links=links)


async def _outdated(request: Request, error: Exception) -> Response:
    assert isinstance(error, Outdated)
    links = (("/", "Go on"), (f"/votes/{error.task.id}", "The vote that counts"))
    return _message(
        request,
        409,
        "This pair was voted on already",
        "Perhaps in another tab, or by going back. Nothing was changed by this form.",
        links=links,
    )


async def _no_task(request: Request, error: Exception) -> Response:
    return _message(
        request, 404, "No such pair", "It is not one of yours.", links=(("/", "Go on"),)
    )


async def _failed(request: Request, error: Exception) -> Response:
    complain(f"error: {error}")
    return _message(
        request,
        503,
        "The file of votes does not answer",
        "A vote that was just sent is not kept. The terminal says why.",
        links=(("/", "Try again"),),
    )


async def _other(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _message(request, error.status_code, "Nothing here", links=(("/", "Go on"),))
