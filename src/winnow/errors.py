"""What can go wrong, as a tree. The command line prints the message and leaves with `exit_code`; no
traceback.

    WinnowError
    |- SettingsError     an option is unknown, out of range, or contradicts another     exit 2
    |- DataError         the data cannot be used as it is; holds `problems`, one per row  exit 2
    |  `- NothingLeft    no row is left of it
    |- ModelError        a model or tokenizer cannot be loaded or does not fit the data   exit 2
    |- JudgeError        a judge cannot be asked (address, key, model), or a rule fails   exit 2
    |- RunError          a run folder is in use, damaged, or belongs to other settings     exit 2
    |- TrainingError     numbers went wrong while training (NaN, frozen weights)           exit 1
    |- RankError         another process of the job is gone, or gives no sign of life      exit 1 `-
    Stopped           a signal ended the command: 143 for SIGTERM, 130 for SIGINT        exit 128 +
    signal

A message says what, where, got, expected, remedy: the reader should not have to open the code.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN = 20


class WinnowError(Exception):
    """Base of every error that is the user's to mend. `remedy` is the sentence that says how."""

    exit_code = 2

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(f"{what}\n  -> {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """An error that crosses from one process to another stays what it was: its message is not
        wrapped a second time.
        """
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[WinnowError], args: tuple[Any, ...], state: dict[str, Any]) -> WinnowError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class SettingsError(WinnowError):
    """A setting is unknown, out of range, or contradicts another."""


class ModelError(WinnowError):
    """A model or tokenizer cannot be loaded, or cannot do what is asked of it."""


class JudgeError(WinnowError):
    """A judge cannot be asked, or cannot judge: its address, its key, its model, the function that
    is the rule.
    """


class RunError(WinnowError):
    """A run folder is held by another process, damaged, or was made with other settings."""


class TrainingError(WinnowError):
    """Training cannot go on: the weights on disk are the last good ones."""

    exit_code = 1


class RankError(WinnowError):
    """Another process of the job is gone, or gives no sign of life: what it was computing is lost
    for all.
    """

    exit_code = 1


class Stopped(BaseException):
    """SIGTERM or SIGINT ended the command. No `except Exception` around somebody else's code takes
    it for that code's failure.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        where = f" {saved}" if saved else ""
        super().__init__(
            f"stopped by {signal.Signals(number).name}{where}: the same command goes on from what"
            " was saved, or begins again"
        )
        self.exit_code = 128 + number


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one row: `where` is `file:line[:column]`, `field` the key (may be
    empty).
    """

    where: str
    field: str
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: {self.field}" if self.field else self.where
        return f"{place}: {self.reason}" + (f" -> {self.fix}" if self.fix else "")


class DataError(WinnowError):
    """The data cannot be used as it is. `problems` holds every bad row; the message shows the first
    20.
    """

    def __init__(self, what: str, problems: Sequence[Problem] = (), *, remedy: str = "") -> None:
        shown = [f"  {problem}" for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            shown.append(f"  ... and {len(problems) - SHOWN:,} more ({len(problems):,} in all)")
        super().__init__("\n".join([what, *shown]), remedy=remedy)
        self.problems = tuple(problems)


class NothingLeft(DataError):
    """All rows were left out; `dropped` counts them by reason."""

    def __init__(self, what: str, dropped: Mapping[str, int], *, remedy: str) -> None:
        counted = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
        super().__init__(f"{what} ({counted})" if counted else what, remedy=remedy)
        self.dropped = {reason: count for reason, count in dropped.items() if count}
