"""`winnow objectives`: what can be trained, from the table the training itself reads."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from winnow.errors import SettingsError
from winnow.objectives.parsing import SETTINGS, modifiers, settings_of, shown
from winnow.objectives.table import TABLE, ObjectiveEntry, Value
from winnow.system.console import console, safe, say

FAMILIES = (
    "of the margin",
    "of both sides",
    "thumbs up and down",
    "rankings",
    "without a reference",
)


def run(names: Sequence[str]) -> None:
    """All objectives as a table, or everything about those named."""
    for name in names:
        if name not in TABLE:
            raise SettingsError(
                f"there is no objective {name!r}", remedy=f"one of {', '.join(TABLE)}"
            )
    if not names:
        _say_all()
    for name in names:
        _say_one(name, TABLE[name])


def family(entry: ObjectiveEntry) -> str:
    """Which of FAMILIES it belongs to."""
    if entry.unit == "completion":
        return FAMILIES[2]
    if entry.unit == "group":
        return FAMILIES[3]
    if not entry.reference:
        return FAMILIES[4]
    return FAMILIES[0] if entry.takes[0] == "margin" else FAMILIES[1]


def defaults(entry: ObjectiveEntry) -> str:
    """Its own settings and its unusual modifiers, as they are given on the command line."""
    return ", ".join(
        f"{key}={shown(value)}"
        for key, value in {
            **entry.settings,
            **entry.tuning,
            **entry.defaults,
            **_score(entry),
        }.items()
    )


def _score(entry: ObjectiveEntry) -> dict[str, Value]:
    return {"score": entry.scores[0]} if len(entry.scores) > 1 else {}


def unit(entry: ObjectiveEntry) -> str:
    """What is counted, and whether the whole optimizer batch must be seen first."""
    return f"{entry.unit}, whole batch" if entry.batch else entry.unit


def about(entry: ObjectiveEntry) -> str:
    """What its function says of itself, after the title and the equation: where it starts, its
    limits, what noise does.
    """
    paragraphs = (inspect.getdoc(entry.loss) or "").split("\n\n")
    return "\n\n".join(paragraphs[1:])


def _say_all() -> None:
    table = Table(title="objectives", title_justify="left", box=None, padding=(0, 1))
    table.add_column("name", style="bold", no_wrap=True)
    for name, share in (
        ("equation", 4),
        ("reference", None),
        ("unit", None),
        ("defaults", 2),
        ("paper", 2),
    ):
        table.add_column(name, ratio=share)
    for title in FAMILIES:
        table.add_row(f"[dim]{title}[/]")
        for name, entry in TABLE.items():
            if family(entry) == title:
                cells = (
                    entry.equation,
                    "yes" if entry.reference else "no",
                    unit(entry),
                    defaults(entry),
                    entry.paper,
                )
                table.add_row(name, *map(escape, cells))
    console.print(table)
    say(
        "w, l: sums over an answer's tokens of log pi - log pi_ref (without a reference: of log pi)"
        " of winner and loser; D = w - l; w/n, l/n: means; b: beta; s: logistic\none alone:"
        " --objective simpo:gamma=1.2   a mixture: --objective dpo:0.8,bco:0.2,sft:1   more about"
        " one: winnow objectives NAME"
    )


def _say_one(name: str, entry: ObjectiveEntry) -> None:
    title = (inspect.getdoc(entry.loss) or "").split(":", 1)[0]
    say(
        f"\n[bold]{name}[/]  {safe(entry.equation)}\n{safe(entry.paper)}; unit: {unit(entry)};"
        f" reference: {'yes' if entry.reference else 'no'}"
    )
    say(f"\n{safe(entry.when)}\n\n[dim]{safe(title)}[/]\n{safe(about(entry))}\n")
    table = Table(box=None, show_header=True, padding=(0, 2, 0, 0))
    for column in ("setting", "default", "what it does", "allowed"):
        table.add_column(column)
    for key, value in settings_of(entry).items():
        table.add_row(key, shown(value), safe(SETTINGS[key].help), SETTINGS[key].allowed)
    console.print(table)
    if not settings_of(entry):
        say("no settings")
    composes = [key for key in modifiers(entry) if key not in ("label_smoothing", "score")]
    composes = ["--pairs", *composes] if entry.unit == "comparison" else composes
    say(f"composes with: {', '.join(composes) or 'nothing'}")
