"""Rounds of `winnow online` for a report: what each began with, was trained on and came to, side by
side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from winnow.errors import RunError
from winnow.reports.page import Table, TableRow
from winnow.reports.panels import Panel
from winnow.reports.plots import Drawing, Line, draw_one
from winnow.system.figure import Figure, Writer, cell
from winnow.system.files import read_json
from winnow.system.format import number, percent, plural

LEDGER = "online.json"
MEANS = ("over_first", "over_previous")
Rounds = Sequence[Mapping[str, Any]]


def read(root: Path) -> list[dict[str, Any]]:
    """The rounds done in a folder, in their order; none where the folder is no such. Raises
    RunError for a ledger that is damaged.
    """
    path = root / LEDGER
    if not path.exists():
        return []
    found = read_json(path, "rounds")["rounds"]
    good = isinstance(found, list) and all(
        isinstance(row, dict) and row.get("round") == i and _figures(row)
        for i, row in enumerate(found)
    )
    if not good:
        raise RunError(
            f"{path}: rounds: expected one object with its figures for each round, from 0",
            remedy="restore the file from a copy",
        )
    return [dict(row) for row in found]


def _figures(row: Mapping[str, Any]) -> bool:
    means = [row.get(name) or {} for name in MEANS]
    numbers = [
        row.get(name) for name in ("kl", "length", "seconds", "prompts", "comparisons", "ties")
    ]
    numbers += [
        mean.get(name)
        for mean in means
        if isinstance(mean, dict)
        for name in ("mean", "low", "high")
    ]
    return all(isinstance(mean, dict) for mean in means) and all(
        value is None or isinstance(value, int | float) for value in numbers
    )


def sentence(rounds: Rounds) -> str:
    """What came of it."""
    done, over = rounds[-1]["round"], rounds[-1].get("over_first") or {}
    many = plural(done, "round")
    if "mean" not in over:
        why = (
            "too few held-out prompts have a verdict"
            if over
            else "nothing was held out to judge the policy on"
        )
        return f"{many} done; {why}."
    close = ": too close to tell them apart" if over["low"] <= 0.5 <= over["high"] else ""
    return (
        f"After {many} the policy wins {percent(over['mean'])} of held-out prompts against the"
        f" model it started from{close}."
    )


def table(rounds: Rounds) -> Table:
    """A row per round; columns nobody has, and those that say nothing, are left out."""
    moved = any(row.get("reference") != row.get("began_with") for row in rounds)
    tied = any(row.get("ties") for row in rounds)
    start = _start(rounds)
    unheard = any((row.get("over_first") or {}).get("invalid") for row in rounds)
    columns = (
        ("Began with", lambda row: _model(row.get("began_with"))),
        ("Reference", lambda row: _model(row.get("reference")) if moved else None),
        ("Prompts", lambda row: _counted(row.get("prompts"))),
        ("Comparisons", lambda row: _counted(row.get("comparisons"))),
        ("Ties", lambda row: _counted(row.get("ties")) if tied else None),
        ("Wins over the start", lambda row: _mean(row.get("over_first"), _share)),
        ("Over the round before", lambda row: _mean(row.get("over_previous"), _share)),
        (
            "Judge's score",
            lambda row: _mean(
                (row.get("over_first") or {}).get("score") if row["round"] else start
            ),
        ),
        ("Its gain", lambda row: _mean((row.get("over_previous") or {}).get("score_gain"))),
        ("KL to the start", lambda row: _counted(row.get("kl"))),
        ("Tokens", lambda row: _counted(row.get("length"))),
        (
            "Without verdict",
            lambda row: _counted((row.get("over_first") or {}).get("invalid")) if unheard else None,
        ),
    )
    shown = [(title, [value(row) for row in rounds]) for title, value in columns]
    shown = [(title, cells) for title, cells in shown if any(cell is not None for cell in cells)]
    rows = [TableRow(str(i), [cells[i] or "" for _, cells in shown]) for i in range(len(rounds))]
    return Table("Rounds", ["Round", *(title for title, _ in shown)], rows)


def draw(rounds: Rounds) -> list[Drawing]:
    """Wins, the judge's score, KL and length over the rounds, with intervals where there are
    any.
    """
    wins = [
        (row["round"], row["over_first"])
        for row in rounds
        if "mean" in (row.get("over_first") or {})
    ]
    scores = [
        (row["round"], row["over_first"]["score"])
        for row in rounds
        if "score" in (row.get("over_first") or {})
    ]
    if scores:
        scores = [(0, _start(rounds) or {}), *scores]
    found = []
    if wins:
        panel = Panel(
            "Wins over the start",
            "Held-out prompts whose answer the judge prefers to the start's; 0.5 is none better.",
            (),
            0.5,
            axis="round",
        )
        found.append(draw_one(panel, [_line("wins", wins)]))
    if scores:
        panel = Panel("The judge's score", "Mean over held-out prompts.", (), axis="round")
        found.append(draw_one(panel, [_line("score", scores)]))
    for title, caption, name in (
        ("KL to the start", "Nats per answer, on its own samples: an estimate.", "kl"),
        ("Length", "Tokens per answer.", "length"),
    ):
        series = [(row["round"], float(row[name])) for row in rounds if row.get(name) is not None]
        if len(series) > 1:
            found.append(
                draw_one(
                    Panel(title, caption, (), None, 0.0, axis="round"),
                    [Line(series, "", name, "c1", "solid", "o")],
                )
            )
    return found


def _start(rounds: Rounds) -> Mapping[str, float] | None:
    """What the judge gave the model at the start, beside whose answers the others were scored."""
    return next(
        (
            row["over_first"]["score_theirs"]
            for row in rounds
            if "score_theirs" in (row.get("over_first") or {})
        ),
        None,
    )


def _line(name: str, series: Sequence[tuple[int, Mapping[str, float]]]) -> Line:
    spans = tuple((mean["low"], mean["high"]) for _, mean in series)
    return Line(
        [(step, mean["mean"]) for step, mean in series], "", name, "c1", "solid", "o", spans=spans
    )


def _counted(value: Any) -> str | None:
    return None if value is None else number(value)


def _model(name: Any) -> str | None:
    return None if name is None else Path(str(name)).name


def _share(value: float) -> str:
    """The interval of a mean of shares may leave 0 to 1, which a share cannot."""
    return percent(min(1.0, max(0.0, value)))


def _mean(mean: Mapping[str, float] | None, write: Writer = number) -> str | None:
    if not mean or "mean" not in mean:
        return None
    return cell(Figure.read(mean), write, count=False)
