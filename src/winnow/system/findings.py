"""What a look at data, a run or a figure found: the one form of a warning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS = ("error", "warning", "note")
ROWS_NAMED = 3  # rows named in a message; all are counted and held in `rows`


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is its short stable name, `rows` every row concerned (`file:line`), empty for what is
    about the whole, `remedy` one thing to do about it.
    """

    level: Level
    code: str
    message: str
    rows: tuple[str, ...] = ()
    remedy: str = ""

    def __str__(self) -> str:
        return (
            f"{self.level}: {self.message}"
            + (f": {self.named()}" if self.rows else "")
            + (f" -> {self.remedy}" if self.remedy else "")
        )

    def named(self, most: int = ROWS_NAMED) -> str:
        """The first rows concerned, and how many there are."""
        return ", ".join(self.rows[:most]) + (
            f", ... ({len(self.rows):,} in all)" if len(self.rows) > most else ""
        )

    def to_json(self) -> dict[str, Any]:
        """A finding as reports hold it, which name its rows in the message."""
        return {
            "code": self.code,
            "message": self.message,
            "advice": self.remedy,
            "level": self.level,
        }


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, notes last; within a level in their order."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
