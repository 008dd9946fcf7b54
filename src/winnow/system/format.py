"""Numbers and text as people read them, and the few statistics a report needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Points = list[tuple[float, float]]  # of a curve, a step mostly

RECENT = 10  # logged steps averaged where "now" is meant: one batch alone is noise
Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def points(rows: Iterable[Mapping[str, Any]], name: str) -> Points:
    """(step, value) of one metric, in order of the step; rows without it are passed over."""
    found: dict[float, float] = {
        int(row["step"]): float(row[name]) for row in rows if isinstance(row.get(name), int | float)
    }
    return sorted(found.items())


def held_out(rows: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(step, value) of a metric on held-out data: the only evaluation set, or the first of
    several.
    """
    keys = [
        key
        for row in rows
        for key in row
        if key.startswith("eval_") and (key == f"eval_{name}" or key.endswith(f"_{name}"))
    ]
    return points(rows, keys[0]) if keys else []


def decided(run: Mapping[str, Any]) -> int | None:
    """How many comparisons the held-out accuracy was taken over: those of the first evaluation set
    that are no ties.
    """
    return first_set(run).get("decided")


def first_set(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """What became of the rows of the first evaluation set; empty where there is none."""
    accounts = (run["data"] or {}).get("eval") or {}
    return next(iter(accounts.values()), {})


def looks(account: Mapping[str, Any]) -> int | None:
    """How many independent looks a held-out set's comparisons are worth, at the least: no more than
    it has prompts (`account`: of data.json).
    """
    count, prompts = account.get("decided"), account.get("used")
    return min(count, prompts) if count and prompts else count


def recent(series: Points) -> float:
    """Mean of the last RECENT values."""
    tail = [value for _, value in series[-RECENT:]]
    return math.fsum(tail) / len(tail)


def median(values: Sequence[float]) -> float:
    """The middle value; the mean of the two in the middle where their number is even."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def wilson(share: float, count: float, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a share seen over `count` trials (Wilson 1927): right at 0 and 1, where it
    ends there exactly, and for few trials.
    """
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        / (1 + z * z / count)
    )
    return 0.0 if share == 0 else max(0.0, middle - half), (
        1.0 if share == 1 else min(1.0, middle + half)
    )


def number(value: Any, digits: int = 3) -> str:
    """A number for a sentence or a table: `digits` significant ones, a true minus sign, thousands
    set apart.
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        text = f"{value:,}"
    elif value == 0:
        text = "0"
    elif 1e-4 <= abs(value) < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{places}f}"
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = (
            f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
        )
    return text.replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, for what is above or below a start."""
    return ("+" if value > 0 else "") + number(float(value), digits)


def percent(share: float, digits: int = 0) -> str:
    """A share as percent. A share that only rounds to 100 or to 0 keeps a digit more: 99.9 % is not
    100 %.
    """
    if digits == 0 and (0 < share < 0.005 or 0.995 <= share < 1):
        digits = 1
    return f"{100 * share:.{digits}f} %".replace("-", "−")


def tenths(share: float) -> str:
    """A share as percent with one digit."""
    return percent(share, 1)


def hundredths(value: float) -> str:
    """A number with two digits behind the point."""
    return f"{value:.2f}".replace("-", "−")


def nats(value: float) -> str:
    """A strength or a weight in nats, with its sign."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−").replace("+0.00", "0.00")


def chance(p: float | None) -> str:
    """A p value."""
    return "–" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def plural(count: int, noun: str, many: str = "") -> str:
    """A count with its noun; many: the plural where it is not the noun with an s."""
    return f"{number(count)} {noun if count == 1 else many or noun + 's'}"


TURNING = (
    *range(0x80, 0xA0),
    0x200E,
    0x200F,
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)
SIGNS = (
    {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: "␡"}
    | {code: f"⟨U+{code:04X}⟩" for code in TURNING}
)


def visible(text: Any) -> str:
    """Text as its reader should see it: control characters and those that turn the line around
    become signs.
    """
    return str(text).replace("\r\n", "\n").translate(SIGNS)
