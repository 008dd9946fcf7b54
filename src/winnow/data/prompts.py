"""Prompts to be answered: lines of a text file, or the prompts of any rows. What they were answered
with there is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from winnow.config.resolve import read_text
from winnow.data import fields
from winnow.data.fields import BadRow
from winnow.data.jsonl import Row
from winnow.data.layouts import LAYOUTS, group_of
from winnow.data.records import Message, PreferenceGroup, Text
from winnow.data.sources import READERS, layout_of, open_rows
from winnow.errors import DataError, Problem

Prompt = tuple[str, Text]  # where it stands, and what it says


def prompts(spec: str, limit: int | None = None) -> list[Prompt]:
    """All of them, in their order. A file that is not one of rows has one per line. Raises
    DataError with every row that has none.
    """
    if not has_rows(spec):
        lines = enumerate(read_text(Path(spec).expanduser(), "the file of prompts").split("\n"), 1)
        found: list[Prompt | Problem] = [
            (f"{spec}:{number}", line) for number, line in lines if line.strip()
        ]
    else:
        found = list(_of_rows(spec))
    asked = [one for one in found if not isinstance(one, Problem)][:limit]
    problems = [one for one in found if isinstance(one, Problem)]
    if problems:
        raise DataError(
            f"{spec}: rows without a prompt that can be used: {len(problems):,}", problems
        )
    if not asked:
        raise DataError(
            f"{spec}: there is no prompt in it",
            remedy="give one per line, or rows with a column prompt",
        )
    return asked


def has_rows(spec: str) -> bool:
    """Whether prompts come from rows with columns, and not from the lines of a text file."""
    path = Path(spec).expanduser()
    return not path.is_file() or path.name.lower().endswith(tuple(READERS))


def _of_rows(spec: str) -> Iterator[Prompt | Problem]:
    """From a column `prompt`, else from what the layout of the rows says is the prompt."""
    title, rows = open_rows(spec)
    first = next(rows, None)
    if first is None:
        return
    rows = iter([first, *rows])
    plain = isinstance(first, Row) and "prompt" in first.values
    layout = "" if plain else None
    if not plain:
        layout, rows = layout_of(title, rows, None)
    for row in rows:
        if isinstance(row, Problem):
            yield row
        elif layout:
            group = group_of(row, LAYOUTS[layout], None)
            if isinstance(group, PreferenceGroup) and group.tools:
                yield Problem(
                    row.where,
                    "tools",
                    "are not told to the model that is asked",
                    "leave the column away",
                )
            else:
                yield from (
                    [(row.where, group.prompt)] if isinstance(group, PreferenceGroup) else group
                )
        else:
            yield _of_column(row)


def _of_column(row: Row) -> Prompt | Problem:
    if row.values.get("tools"):
        return Problem(
            row.where, "tools", "are not told to the model that is asked", "leave the column away"
        )
    try:
        said = fields.text_or_turns(row, "prompt")
    except BadRow as error:
        return Problem(row.where, error.name, error.reason, error.fix)
    if not isinstance(said, str) and said[-1].role == "assistant":
        return Problem(
            row.where,
            "prompt",
            "ends with an assistant turn, so there is nothing to answer",
            "end it with the user's turn",
        )
    return row.where, said


def as_turns(prompt: Text) -> tuple[Message, ...]:
    """A prompt as the user's turn, or the turns it is."""
    return fields.spoken(prompt, "user")
