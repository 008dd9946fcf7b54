"""A data set by its name -> groups: a file, a folder, or a hub name, with a split (`NAME:test`) and
a weight (`NAME@0.5`).

The only place that touches `datasets` (imported late: it takes seconds).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from winnow.data.hub import DataSpec, hub_rows, saved_rows
from winnow.data.jsonl import Row, read_rows
from winnow.data.layout_parts import As
from winnow.data.layouts import LAYOUTS, advice, detect, group_of
from winnow.data.records import PreferenceGroup
from winnow.data.tables import read_arrow, read_csv, read_parquet
from winnow.errors import DataError, Problem, SettingsError
from winnow.system import hub

READERS: dict[str, Callable[[Path], Iterator[Row | Problem]]] = {
    ".jsonl": read_rows,
    ".json": read_rows,
    ".jsonl.gz": read_rows,
    ".json.gz": read_rows,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}

_SAMPLE = 100  # rows looked at to tell the layout
_MOST = 1_000_000  # times that a mixture may repeat a data set in an epoch
# notes that `datasets` leaves in folders
_NOT_ROWS = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A data set: its groups, and everything about them that must not pass in silence.

    problems: rows that cannot be used (the caller stops or skips); ignored: columns the layout does
    not read; counts: rows read, groups, bad rows, comparisons, and ties: pairs of completions with
    equal scores or ranks (which are not compared), or rows whose chosen and rejected have equal
    scores (which are, because the row says so).
    """

    name: str
    layout: str
    groups: list[PreferenceGroup]
    problems: list[Problem]
    weight: float
    ignored: tuple[str, ...]
    counts: Mapping[str, int]


def load(spec: str, *, as_: As = None, limit: int | None = None) -> Loaded:
    """Read a data set: FILE, FOLDER or hub NAME, each with `:split` and `@weight` where wanted.

    `limit` reads only the first so many rows. Raises DataError where nothing can be read at all.
    """
    where = _parse(spec)
    title, rows = _open(where)
    layout, rows = layout_of(title, islice(rows, limit), as_)
    return collect(title, layout, rows, as_, where.weight)


def named(spec: str) -> tuple[str, str]:
    """The name a held-out set is given by `NAME=SET`, empty where it has none, and the set. A file
    that has such a sign in its name is found first.
    """
    name, sign, rest = spec.partition("=")
    if not sign or not re.fullmatch(r"\w[\w.-]*", name) or not rest or Path(spec).exists():
        return "", spec
    return name, rest


def column(spec: str, name: str, limit: int | None = None) -> dict[str, Any]:
    """What a column says of each row, by where the row stands; None where a row has no such cell.
    The data set is read again for it.

    Raises SettingsError where no row has the column, with the columns there are.
    """
    title, rows = _open(_parse(spec))
    read = [row for row in islice(rows, limit) if isinstance(row, Row)]
    columns = sorted({key for row in read for key in row.values})
    if name not in columns:
        near = difflib.get_close_matches(name, columns, 1)
        raise SettingsError(
            f"{title}: there is no column {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else ""),
            remedy=f"it has {', '.join(columns)}",
        )
    return {row.where: row.values.get(name) for row in read}


def files_of(spec: str) -> list[Path]:
    """The files a data set is read from; none of one on the hub."""
    where = _parse(spec)
    path = Path(where.name).expanduser()
    if not path.is_dir():
        return [path] if path.exists() else []
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def open_rows(spec: str) -> tuple[str, Iterator[Row | Problem]]:
    """A data set's title and its rows, read as they are asked for; of a hub data set no more is
    fetched. Raises DataError, SettingsError.
    """
    where = _parse(spec)
    if where.weight != 1:
        raise SettingsError(
            f"{spec}: a weight mixes data sets, and a stream is one",
            remedy=f"leave @{where.weight:g} away",
        )
    return _open(where, streaming=True)


def layout_of(
    title: str, rows: Iterator[Row | Problem], as_: As
) -> tuple[str, Iterator[Row | Problem]]:
    """The layout of the first rows, and all rows, those looked at included. Raises DataError where
    they fit no layout.
    """
    head = _first(rows)
    return _layout(title, head, as_), chain(head, rows)


def collect(
    title: str, layout: str, rows: Iterator[Row | Problem], as_: As, weight: float = 1.0
) -> Loaded:
    """Rows as groups, with everything about them that must not pass in silence: a row that does not
    fit the layout is a problem.
    """
    kind = LAYOUTS[layout]
    groups: list[PreferenceGroup] = []
    problems: list[Problem] = []
    columns: set[str] = set()
    read = bad = ties = 0
    for row in rows:
        read += 1
        group = [row] if isinstance(row, Problem) else group_of(row, kind, as_)
        if isinstance(row, Row):
            columns.update(row.values)
        if isinstance(group, list):
            bad += 1
            problems += group
            continue
        groups.append(group)
        if kind.all_pairs:
            ties += math.comb(len(group.completions), 2) - len(group.comparisons)
        elif isinstance(row, Row):
            ties += row.values.get("score_chosen") is not None and row.values[
                "score_chosen"
            ] == row.values.get("score_rejected")
    counts = {
        "rows": read,
        "groups": len(groups),
        "bad": bad,
        "comparisons": sum(len(group.comparisons) for group in groups),
        "ties": ties,
    }
    return Loaded(
        title,
        layout,
        groups,
        problems,
        weight,
        tuple(sorted(columns.difference(kind.needs, kind.takes))),
        counts,
    )


def _first(rows: Iterator[Row | Problem]) -> list[Row | Problem]:
    """Enough to tell the layout by, however many bad rows stand before."""
    head: list[Row | Problem] = []
    good = 0
    while good < _SAMPLE and (row := next(rows, None)) is not None:
        head.append(row)
        good += isinstance(row, Row)
    return head


def _layout(title: str, head: list[Row | Problem], as_: As) -> str:
    """The layout of the first rows, or why there is none."""
    sample = [row for row in head if isinstance(row, Row)]
    if not head:
        raise DataError(
            f"{title}: there are 0 rows in it",
            remedy="check that it was written to its end, and that it is the right one",
        )
    if not sample:
        problems = [row for row in head if isinstance(row, Problem)]
        raise DataError(f"{title}: none of its {len(head):,} rows can be read", problems)
    layout = detect(sample)
    if layout is None:
        columns = sorted({name for row in sample for name in row.values})
        shown = ", ".join(columns[:30]) + (", ..." if len(columns) > 30 else "")
        raise DataError(
            f"{title}: the columns {shown or '(none)'} fit no known layout", remedy=advice(columns)
        )
    if as_ == "text":
        read = [group_of(row, LAYOUTS[layout], None) for row in sample]
        prompts = [group.prompt for group in read if isinstance(group, PreferenceGroup)]
        if prompts and not any(
            isinstance(prompt, str) for prompt in prompts
        ):  # not a stray row: these are dialogues
            raise DataError(
                f"{title}: --as text, but the rows are lists of messages, which have no text"
                " without a chat template",
                remedy="leave out --as text",
            )
    return layout


# --- which rows are meant


def _parse(spec: str) -> DataSpec:
    """`NAME[:SPLIT][@WEIGHT]`; a file that has such a sign in its name is found first."""
    name, weight = spec, 1.0
    if not Path(spec).exists() and "@" in spec:
        name, _, tail = spec.rpartition("@")
        try:
            weight = float(tail)
        except ValueError:
            name = spec  # no weight: part of the name
        if not 0 < weight <= _MOST:
            raise SettingsError(
                f"data: {spec}: the weight behind @ is {tail}, expected a finite number above 0, at"
                f" most {_MOST:,}"
            )
    base, colon, split = name.rpartition(":")
    if colon and base and not Path(name).exists() and re.fullmatch(r"\w[\w.-]*", split):
        return DataSpec(base, split, weight)
    return DataSpec(name, None, weight)


def _open(spec: DataSpec, streaming: bool = False) -> tuple[str, Iterator[Row | Problem]]:
    """The data set's title and its rows."""
    path = Path(spec.name).expanduser()
    if path.is_dir():
        return _folder(path, spec)
    if path.exists():
        if spec.split:
            raise SettingsError(
                f"data: {spec}: a file has no splits", remedy=f"give {spec.name}, or a folder"
            )
        return spec.name, _reader(path)(path)
    looks_local = (
        any(spec.name.endswith(suffix) for suffix in READERS)
        or spec.name.startswith((".", "/", "~"))
        or spec.name.count("/") > 1
    )
    if looks_local or not hub.may_hold(spec.name):
        raise DataError(f"{spec.name}: no such file or folder", remedy=_neighbours(path))
    split = spec.split or "train"
    return f"{spec.name}:{split}", hub_rows(spec.name, split, streaming)


def _reader(path: Path) -> Callable[[Path], Iterator[Row | Problem]]:
    for suffix, reader in READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    raise DataError(
        f"{path}: not a known kind of file", remedy=f"known endings: {', '.join(READERS)}"
    )


def _neighbours(path: Path) -> str:
    """The name in the same folder that is most like the one asked for."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} is not there either" if not path.parent.exists() else ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return (
        f"did you mean {path.parent / near[0]}?" if near else f"known endings: {', '.join(READERS)}"
    )


def _folder(path: Path, spec: DataSpec) -> tuple[str, Iterator[Row | Problem]]:
    """A folder that `save_to_disk` wrote, or one of data files: those of the split, else all,
    sorted by name.
    """
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return saved_rows(path, spec)
    files = sorted(
        file for file in path.rglob("*") if _is_rows(file.relative_to(path)) and file.is_file()
    )
    if not files:
        raise DataError(
            f"{path}: no data file in this folder", remedy=f"known endings: {', '.join(READERS)}"
        )
    split = spec.split
    if split is None and any(_of_split(file.relative_to(path), "train") for file in files):
        split = "train"  # as on the hub; reading train and test together would be a leak
    chosen = [file for file in files if split is None or _of_split(file.relative_to(path), split)]
    if not chosen:
        names = ", ".join(str(file.relative_to(path)) for file in files[:20])
        raise DataError(f"{path}: no file of the split {split!r}; there are {names}")
    title = f"{spec.name}:{split}" if split else spec.name
    return title, chain.from_iterable(_reader(file)(file) for file in chosen)


def _is_rows(file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and file.name not in _NOT_ROWS and file.name.lower().endswith(tuple(READERS))


def _of_split(file: Path, split: str) -> bool:
    """train.jsonl, train-00000-of-00002.parquet, train/rows.csv."""
    return (
        split in file.parts[:-1]
        or re.match(re.escape(split) + r"\b|" + re.escape(split) + "_", file.name) is not None
    )


# --- datasets
