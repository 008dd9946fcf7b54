"""Rows of any kind, and every kind of file they may lie in."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from winnow.data.layouts import LAYOUTS


def save(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\n\nHuman: a\n\nAssistant: b", "assistant", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "winner", "loser", "tool_calls", "x"]),
            inner,
            max_size=3,
        )
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": inner})
    ),
    max_leaves=8,
)


COLUMNS = sorted(
    {column for layout in LAYOUTS.values() for column in (*layout.needs, *layout.takes)}
)


ROWS = [
    {"prompt": f"p{i}", "chosen": f'a,"{i}"\nü', "rejected": f"b{i}", "margin": i / 2, "note": "n"}
    for i in range(5)
]


def _csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def _parquet(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)


def _arrow(path: Path, form: str) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(ROWS)
    with getattr(pa.ipc, form)(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: save(path, ROWS),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.jsonl.gz": lambda path: path.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    ),
    "a.csv": _csv,
    "a.parquet": _parquet,
    "a.arrow": lambda path: _arrow(path, "new_stream"),
    "b.arrow": lambda path: _arrow(path, "new_file"),
    "sp äce@2:x.jsonl": lambda path: save(path, ROWS),
}
