"""The same figures for each value of a column: where is the model good, and where not?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from winnow.evaluation import heldout
from winnow.system.figure import Figure

NONE, EMPTY = "(none)", "(empty)"  # a row without the cell, and one whose cell is blank
MOST = 200  # values a column may have: beyond, it is no column of kinds


def name_of(value: Any) -> str:
    """A cell as the name of a slice. Raises ValueError for lists and objects, which are not one
    value.
    """
    if value is None:
        return NONE
    if isinstance(value, list | dict):
        raise ValueError(
            f"is {'a list' if isinstance(value, list) else 'an object'}, expected text, a number,"
            " true or false"
        )
    if isinstance(value, str):
        return value.strip() or EMPTY
    return json.dumps(value)


def sliced(
    rows: Sequence[Mapping[str, Any]], value_of: Mapping[str, str]
) -> dict[str, dict[str, Figure | int]]:
    """Rows of `heldout` by the value of their row, `value_of[where]`: figures of each slice, the
    largest slice first, then by name.
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(value_of[row["where"]], []).append(dict(row))
    order = sorted(parts, key=lambda name: (-len(parts[name]), name))
    return {name: figures(parts[name]) for name in order}


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Figure | int]:
    """Of comparisons and of labelled answers, whichever there are."""
    compared, labelled = (
        [row for row in rows if "rejected" in row],
        [row for row in rows if "label" in row],
    )
    return {
        **(heldout.figures(compared) if compared or not labelled else {}),
        **heldout.thumbs_figures(labelled),
    }
