"""What a run says while it goes: one console, one progress line. Text from models and data is
shown, never obeyed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from winnow.system.launch import leads
from winnow.system.redact import blanked

console = Console(highlight=False)

_part: ContextVar[ProgressBar | None] = ContextVar("winnow_part", default=None)


@contextmanager
def as_part(whole: ProgressBar) -> Iterator[None]:
    """What is done inside is a part of something with a progress line of its own: it says nothing
    itself, and stands on that line.
    """
    token = _part.set(whole)
    try:
        yield
    finally:
        _part.reset(token)


def _speaks() -> bool:
    """Of several processes one speaks, and of a whole and its parts the whole."""
    return leads() and _part.get() is None


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(foreign: object, limit: int = 2000) -> str:
    """Foreign text (rows, answers, names of files) for a terminal: no secrets, control characters
    (ANSI, bidi) made visible, markup escaped, long text cut.
    """
    text = blanked(str(foreign))
    shown = text if len(text) <= limit else f"{text[:limit]} ... ({len(text):,} characters)"
    return escape(visible(shown))


def visible(foreign: str) -> str:
    """Foreign text with its control characters (ANSI, bidi) spelled out, and bytes of a file's name
    that are no UTF-8.
    """
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", foreign)


def say(text: str) -> None:
    """A line of text with rich's markup, never broken: what does not fit is wrapped by the
    terminal, and a log keeps it whole.
    """
    if _speaks():
        console.print(blanked(text), soft_wrap=True)


def complain(text: str) -> None:
    """An error's text, on stderr as it stands: no markup, but nothing in it is obeyed or given away
    either.
    """
    click.echo(visible(blanked(text)), err=True)


class ProgressBar:
    """Progress with time left and a few figures on one line; where there is no terminal, a plain
    line now and then.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self.figures: dict[str, float] = {}
        self.spoken = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            *columns,
            TextColumn("{task.fields[figures]}"),
            console=console,
            speed_estimate_period=LONG,
        )
        self.task = self.bar.add_task(label, total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        if console.is_terminal and _speaks():
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if console.is_terminal and _speaks():
            self.bar.stop()

    def show(self, row: Mapping[str, float]) -> None:
        """Take over the figures of a metrics row; a row with a training loss, or the policy's, is
        one step done.
        """
        self.figures |= {SHORT[name]: value for name, value in row.items() if name in SHORT}
        if "loss" in row or "loss/policy" in row:
            self.advance(1)

    def name(self, label: str) -> None:
        """What is done now."""
        self.label = label
        if console.is_terminal and _speaks():
            self.bar.update(self.task, description=label)

    def advance(self, n: int) -> None:
        """`n` more done."""
        self.done += n
        text = "  ".join(
            f"{name} {FORMATS.get(name, '{:.3f}').format(value)}"
            for name, value in self.figures.items()
        )
        if (whole := _part.get()) is not None:
            whole.within(
                f"{self.label} {self.done}/{self.total}  {text}", self.done / max(1, self.total)
            )
        elif console.is_terminal and _speaks():
            self.bar.update(self.task, completed=self.done, figures=text)
        elif self.done >= self.total or time.monotonic() - self.spoken > QUIET:
            self._line(text)

    def within(self, text: str, share: float) -> None:
        """How far the part has come that is done now. Called inside `as_part`, so it is this line
        that speaks.
        """
        if not leads():
            return
        token = _part.set(None)
        if console.is_terminal:
            # a part may be one of several
            self.bar.update(self.task, completed=self.done + min(share, 0.99), figures=text)
        elif time.monotonic() - self.spoken > QUIET:
            self._line(text)
        _part.reset(token)

    def _line(self, text: str) -> None:
        self.spoken = time.monotonic()
        say(f"{self.label} {self.done}/{self.total}  {text}")


LONG = 600.0  # seconds over which speed is estimated: a step may take a minute
QUIET = 10.0  # seconds between lines where there is no terminal
SHORT = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "eval_loss": "held-out",
    "score": "score",
    "kl": "kl",
    "tokens_per_second": "tok/s",
}
FORMATS = {
    "loss": "{:.4f}",
    "score": "{:.2f}",
    "held-out": "{:.4f}",
    "accuracy": "{:.2f}",
    "kl": "{:.2f}",
    "tok/s": "{:,.0f}",
}
