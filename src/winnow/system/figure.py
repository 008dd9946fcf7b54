"""A number with its 95 % interval, and how it is written: one form for pages and terminals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from winnow.system.format import number, plural

Writer = Callable[[float], str]  # of a value and of both ends of its interval

VALUES = ("value", "rate", "mean", "share")  # the keys under which files hold a figure's value


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval, the rows it was taken over and how many prompts they have.
    value, or low and high, None: not defined, and `why` says why.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    prompts: int
    why: str = ""

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """A figure as a file holds it: a share, a mean or a rate. One whose rows are not told is
        over its prompts, and the other way round.
        """
        value = next(row[name] for name in VALUES if name in row)
        count = row.get("count", row.get("prompts", 0))
        low, high, prompts = row.get("low"), row.get("high"), row.get("prompts", count)
        return cls(value, low, high, count, prompts, row.get("why") or "")

    @classmethod
    def logged(
        cls, row: Mapping[str, Any], name: str, count: int, prompts: int | None = None
    ) -> Self:
        """A figure of a row of metrics.jsonl: NAME, NAME_low, NAME_high, over `count` rows."""
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        return cls(row[name], low, high, count, count if prompts is None else prompts)

    def as_mean(self) -> dict[str, float | None]:
        """A mean as files of win rates and frontiers hold it."""
        return {"mean": self.value, "low": self.low, "high": self.high}

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval, where there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def contains(self, value: float) -> bool:
        """Whether the interval includes a value; without an interval it does not."""
        return self.ends is not None and self.ends[0] <= value <= self.ends[1]

    def negated(self) -> Figure:
        """A loss as a gain, and the other way round."""
        low, high = (None, None) if self.ends is None else (-self.ends[1], -self.ends[0])
        value = None if self.value is None else -self.value
        return Figure(value, low, high, self.count, self.prompts, self.why)


def value(figure: Figure, write: Writer = number) -> str:
    """The value, or why there is none."""
    if figure.value is not None:
        return write(figure.value)
    return f"undefined: {figure.why}" if figure.why else "–"


def interval(figure: Figure, write: Writer = number) -> str:
    """`low to high`, of shares `low–high %`; why there is no interval."""
    if figure.ends is None:
        return f"no interval: {figure.why}" if figure.why else "no interval"
    low, high = map(write, figure.ends)
    share = low.endswith(" %") and high.endswith(" %") and figure.ends[0] >= 0
    return f"{low.removesuffix(' %')}–{high}" if share else f"{low} to {high}"


def taken_over(figure: Figure, noun: str = "") -> str:
    """`n = 177 from 30 prompts`. noun: what the rows are, where that must be said."""
    count = f"n = {number(figure.count)}" + (f" {noun}" if noun else "")
    if figure.prompts == figure.count:
        return count
    return f"{count} from {plural(figure.prompts, 'prompt')}"


def support(figure: Figure, write: Writer = number, noun: str = "") -> str:
    """What stands behind a value: `95 % interval low to high, n = 177 from 30 prompts`."""
    if figure.value is None:
        return ""
    head = "" if figure.ends is None else "95 % interval "
    return f"{head}{interval(figure, write)}, {taken_over(figure, noun)}"


def cited(figure: Figure, write: Writer = number, noun: str = "") -> str:
    """A figure in a sentence: value, interval, n."""
    text = value(figure, write)
    return text if figure.value is None else f"{text} ({support(figure, write, noun)})"


def cell(figure: Figure, write: Writer = number, noun: str = "", *, count: bool = True) -> str:
    """A figure in a table: its value, with the interval and n in brackets. count: whether n is
    told here, or in a column of its own.
    """
    text = value(figure, write)
    if figure.value is None:
        return text
    parts = [interval(figure, write)] if count or figure.ends else []
    parts += [taken_over(figure, noun)] if count else []
    return f"{text} ({', '.join(parts)})" if parts else text
