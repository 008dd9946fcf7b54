"""What the page shows of tasks and votes: words for a person, and nothing of where an answer comes
from
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from winnow.data.records import plain
from winnow.preferences.items import Item
from winnow.preferences.labeling import sanitize
from winnow.preferences.labeling.sanitize import Turn
from winnow.preferences.tasks import LogRow, Task
from winnow.preferences.votes import Outcome
from winnow.system.format import visible

OUTCOMES: dict[Outcome, str] = {
    "first": "Answer 1 is better",
    "second": "Answer 2 is better",
    "tie": "Tie",
    "bad": "Both bad",
    "skip": "Skip",
}
KEYS = {"first": "1", "second": "2", "tie": "3", "bad": "4", "skip": "s"}
STRENGTHS = ("not said", "slightly", "clearly", "much")
BEGINNING = 140  # characters of a prompt in a list


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt and its answers as turns of HTML, in the order in which they stand on the page."""

    prompt: tuple[Turn, ...]
    answers: tuple[tuple[Turn, ...], ...]
    tools: Markup | None
    lengths: tuple[tuple[int, int], ...] = ()
    difference: tuple[Markup, Markup] | None = None


def shown(item: Item, order: tuple[int, ...]) -> Shown:
    """The item's answers in the order given. No lengths and no differences: before a vote they
    would be a hint.
    """
    tools = (
        sanitize.raw(json.dumps([dict(tool) for tool in item.tools], ensure_ascii=False, indent=2))
        if item.tools
        else None
    )
    return Shown(
        sanitize.turns(item.prompt), tuple(sanitize.turns(item.answers[i]) for i in order), tools
    )


def looked_at(item: Item, task: Task) -> Shown:
    """The same pair after the vote, with lengths and differences."""
    before, both = (
        shown(item, (task.left, task.right)),
        [plain(item.answers[i]) for i in (task.left, task.right)],
    )
    return Shown(
        before.prompt,
        before.answers,
        before.tools,
        tuple(map(sanitize.lengths, both)),
        sanitize.difference(*both),
    )


def sentence(entry: LogRow) -> str:
    """A vote in words: "Answer 1 is better, clearly"."""
    assert entry.outcome is not None
    said = "Skipped" if entry.outcome == "skip" else OUTCOMES[entry.outcome]
    return f"{said}, {STRENGTHS[entry.strength]}" if entry.strength else said


def row(item: Item, task: Task, entry: LogRow) -> dict[str, str]:
    """A vote as a line of a list."""
    words = " ".join(visible(plain(item.prompt)).split())
    beginning = words if len(words) <= BEGINNING else f"{words[:BEGINNING]} …"
    return {
        "id": task.id,
        "said": sentence(entry),
        "prompt": beginning,
        "took": took(entry.seconds),
        "ago": ago(entry.at),
    }


def took(seconds: float) -> str:
    """A length of time in one unit: "8 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def ago(at: float) -> str:
    """How long ago a moment was."""
    return f"{took(max(0.0, time.time() - at))} ago"


def _templates() -> Environment:
    loader = PackageLoader("winnow.preferences.labeling", "web")
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, js = (Markup(loader.get_source(made, name)[0]) for name in ("page.css", "page.js"))
    made.globals.update(
        css=css,
        js=js,
        outcomes=OUTCOMES,
        keys=KEYS,
        strengths=STRENGTHS,
        sentence=sentence,
        took=took,
        ago=ago,
    )
    return made


TEMPLATES = _templates()


def html(template: str, values: Mapping[str, Any]) -> str:
    """A page of web/."""
    return TEMPLATES.get_template(f"{template}.html.jinja").render(values)
