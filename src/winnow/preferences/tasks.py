"""What an annotator is asked and what comes back: tasks, votes as they are sent, rows of the
log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from winnow.errors import WinnowError
from winnow.preferences.votes import Outcome


@dataclass(frozen=True, slots=True)
class How:
    """How items are asked; a file keeps it, and goes on with the same alone.

    overlap: annotators per pair; repeats, golds: shares of tasks that are asked again, or whose
    answer is known; pairs: per item (None: one fewer than it has different answers); random_share:
    of pairs that are drawn, not chosen.
    """

    seed: int = 0
    overlap: int = 1
    repeats: float = 0.0
    golds: float = 0.0
    pairs: int | Literal["all"] | None = None
    random_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Task:
    """A pair that one annotator is asked about: `left` and `right` are indices into the item's
    answers. `id` says nothing, and `revision` is how often it was voted on, edited or taken back: a
    form that is sent has the one it was shown with.
    """

    id: str
    item: str
    left: int
    right: int
    kind: Literal["once", "repeat", "gold"]
    revision: int


@dataclass(frozen=True, slots=True)
class Cast:
    """A vote as it is sent: `first` as outcome means the left one. seconds: how long it took."""

    task: str
    annotator: str
    outcome: Outcome
    revision: int
    strength: int = 0
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class LogRow:
    """A row of the log. outcome None: taken back. act: the number of the first row of what was done
    at once (a ranking is several rows).
    """

    number: int
    act: int
    task: str
    annotator: str
    revision: int
    outcome: Outcome | None
    strength: int
    reason: str
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class LabelProgress:
    """Of one annotator: votes that count, how many of them are skips, tasks that may still come,
    median seconds of the latest votes (None without any).
    """

    done: int
    skipped: int
    left: int
    seconds: float | None


class Outdated(WinnowError):
    """A vote by a form that is not the current one: the task was voted on, edited or taken back
    since. `task` is what it is now.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(
            f"task {task.id}: a later form of it was sent already",
            remedy="look at the vote that counts, and edit it there",
        )
        self.task = task


class NoTask(WinnowError):
    """There is no such task, or it is somebody else's."""
