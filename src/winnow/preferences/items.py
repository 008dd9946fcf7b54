"""What is to be compared: prompts with two or more answers each, as `winnow sample` writes them, or
any rows that have several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from winnow.data.fields import BadRow, shown
from winnow.data.jsonl import Row
from winnow.data.layouts import LAYOUTS, group_of
from winnow.data.records import Comparison, PreferenceGroup, Text, as_json
from winnow.data.sources import layout_of, open_rows
from winnow.errors import DataError, Problem
from winnow.system.console import safe, say
from winnow.system.files import sha256_json


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its K answers. `id` is a hash of both; `models` says who wrote each answer (""
    where nobody knows).

    `known` are comparisons the rows came with; `where` is `file:line`.
    """

    id: str
    prompt: Text
    answers: tuple[Text, ...]
    models: tuple[str, ...]
    where: str
    known: tuple[Comparison, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)


def items(spec: str, limit: int | None = None) -> list[Item]:
    """All rows with two answers or more, in their order; what stands there twice is one item.

    Who wrote the answers is told by a column `models` (a list, one name per answer), by `model`
    (one name for all), or by what `winnow sample` writes into `sampled`. Raises DataError with
    every row that cannot be read, and where nothing is left.
    """
    found: dict[str, Item] = {}
    problems: list[Problem] = []
    few = 0
    for one in _read(spec):
        if isinstance(one, Problem):
            problems.append(one)
        elif len(one.answers) < 2:
            few += 1
        elif limit is None or len(found) < limit:
            found.setdefault(one.id, one)
    if problems:
        raise DataError(f"{spec}: rows that cannot be compared: {len(problems):,}", problems)
    if not found:
        raise DataError(
            f"{spec}: no row has two answers", remedy="winnow sample --k 4 writes such rows"
        )
    if few:
        say(f"{safe(spec)}: left aside, with fewer than two answers: {few:,} rows")
    return list(found.values())


def _read(spec: str) -> Iterator[Item | Problem]:
    title, rows = open_rows(spec)
    layout, rows = layout_of(title, rows, None)
    for row in rows:
        if isinstance(row, Row) and row.values.get("completions") == [] and "sampled" in row.values:
            yield Item("", "", (), (), row.where)  # no answer had a word in it
            continue
        group = row if isinstance(row, Problem) else group_of(row, LAYOUTS[layout], None)
        if isinstance(group, Problem):
            yield group
        elif isinstance(group, PreferenceGroup):
            assert isinstance(row, Row)
            yield _item(row, group)
        else:
            yield from group


def _item(row: Row, group: PreferenceGroup) -> Item | Problem:
    answers = tuple(completion.text for completion in group.completions)
    try:
        models = _models(row, len(answers))
    except BadRow as bad:
        return Problem(row.where, bad.name, bad.reason, bad.fix)
    name = sha256_json([as_json(group.prompt), [as_json(answer) for answer in answers]])[:16]
    return Item(name, group.prompt, answers, models, row.where, group.comparisons, group.tools)


def _models(row: Row, count: int) -> tuple[str, ...]:
    several, sampled = row.values.get("models"), row.values.get("sampled")
    if several is not None:
        if (
            not isinstance(several, list)
            or len(several) != count
            or not all(isinstance(name, str) for name in several)
        ):
            raise BadRow("models", f"is {shown(several)}, expected {count} names, one per answer")
        return tuple(several)
    one = row.values.get("model", sampled.get("model") if isinstance(sampled, Mapping) else None)
    return (one if isinstance(one, str) else "",) * count
