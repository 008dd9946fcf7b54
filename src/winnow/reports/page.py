"""What pages are made of, and the terminal too: cards and tables of text, drawn by one template and
by rich.

Text of a user's or a model's goes through the template's escaping and `visible`; nothing on a page
can run, load or follow anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import rich.table
from markupsafe import Markup

from winnow.reports.plots import DASHES, RUN_INKS
from winnow.system.console import console, safe, say
from winnow.system.figure import Figure, Writer, support, value
from winnow.system.format import number, visible

PREVIEW = 600  # characters of a sample shown before it is folded
LONGEST_TEXT = 20_000  # characters of a text held by a page, which says where the rest is
SAMPLES_SHOWN = 6  # before the others are folded

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Card:
    """One key figure. `interval` (low, high) and `at`, shares of 1, draw the bar below it."""

    label: str
    value: str
    detail: str = ""
    at: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table. `unit` stands beside its name; `interval` and `at`, shares of 1, draw a
    bar behind its cells.
    """

    name: str
    cells: Sequence[str]
    unit: str = ""
    at: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table with sentences before and a note behind it. heads: of the names and of each
    cell; none where the cells explain themselves.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[TableRow]
    sentences: Sequence[str] = ()
    note: str = ""

    @property
    def bars(self) -> bool:
        """Whether rows draw bars."""
        return any(row.at is not None for row in self.rows)


@dataclass(frozen=True, slots=True)
class Page:
    """One page. kind: of what it tells, beside the brand; chips: tags beside the title, the quiet
    ones last; warnings: findings as `report.json` holds them; looked_for: the sentence below them;
    bodies: the templates that follow, with their `values`.
    """

    title: str
    kind: str
    verdict: str
    subline: str = ""
    cards: Sequence[Card] = ()
    chips: Sequence[tuple[str, str]] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[Mapping[str, Any]] = ()
    looked_for: str = ""
    notes: Sequence[str] = ()
    bodies: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    footer: str = ""


def figure_card(
    label: str, figure: Figure, write: Writer = number, noun: str = "", *, bar: bool = False
) -> Card:
    """A card of one figure: value, interval and n. bar: whether its interval, of a share, is
    drawn.
    """
    if figure.value is None:
        return Card(label, "–", value(figure, write))
    return Card(
        label,
        write(figure.value),
        support(figure, write, noun),
        figure.value if bar else None,
        figure.ends if bar else None,
    )


def render(page: Page) -> str:
    """The page as HTML. Equal pages give equal bytes."""
    world = jinja2.Environment(
        autoescape=True,
        finalize=_shown,
        loader=jinja2.FileSystemLoader([HERE / "templates", HERE]),
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    world.filters |= {"number": number, "plain": plain}
    constants = {
        "dashes": DASHES,
        "inks": RUN_INKS,
        "preview": PREVIEW,
        "whole": LONGEST_TEXT,
        "shown": SAMPLES_SHOWN,
    }
    template = world.get_template("page.html.jinja")
    return template.render({"page": page, **page.values, **constants})


def say_table(table: Table) -> None:
    """A table on the terminal, with its sentences and its note."""
    drawn = rich.table.Table(
        title=safe(table.title), title_justify="left", box=None, show_header=any(table.heads)
    )
    heads = table.heads or ["", *([""] * len(table.rows[0].cells) if table.rows else [])]
    for i, head in enumerate(heads):
        drawn.add_column(safe(head), justify="right" if i else "left")
    for row in table.rows:
        name = f"{row.name}, {row.unit}" if row.unit else row.name
        drawn.add_row(safe(name), *map(safe, row.cells))
    for sentence in table.sentences:
        say(safe(sentence))
    if table.rows:
        console.print(drawn)
    if table.note:
        say(safe(table.note))


def say_warnings(warnings: Sequence[Mapping[str, Any]]) -> None:
    """Findings as `report.json` holds them, on the terminal."""
    marks = {"warning": "[yellow]warning:[/]", "error": "[red]error:[/]"}
    for warning in warnings:
        mark = marks.get(warning["level"], "note:")
        say(f"{mark} {safe(warning['message'])} {safe(warning['advice'])}".rstrip())


def plain(setting: Any) -> str:
    """A setting's value as it is typed on the command line."""
    if setting is None:
        return "none"
    if isinstance(setting, bool):
        return str(setting).lower()
    return setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)


def _shown(text: Any) -> Any:
    """What the template prints, before it is escaped; Markup is our own. Nothing foreign is longer
    than LONGEST_TEXT.
    """
    if isinstance(text, Markup):
        return text
    text = str(text)
    more = len(text) - LONGEST_TEXT
    return visible(text[:LONGEST_TEXT]) + (
        f"… ({number(more)} more characters)" if more > 0 else ""
    )
