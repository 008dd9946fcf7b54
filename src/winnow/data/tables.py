"""Rows of files that are tables: CSV, parquet, Arrow. The same stream of `Row | Problem` as
`jsonl.read_rows`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from winnow.data.jsonl import CAP, Row, not_utf8, open_utf8, recode, strict_json, unfit
from winnow.errors import DataError, Problem

_BATCH = 1_000

# CSV knows only text. In these columns a cell is read as JSON (a number, true, a list); all others
# stay text, so that an answer that happens to be "42" is not turned into a number.
_JSON_COLUMNS = frozenset(
    {
        "label",
        "probability",
        "weight",
        "margin",
        "score_chosen",
        "score_rejected",
        "scores",
        "ranks",
        "completions",
        "comparisons",
        "messages",
        "tools",
    }
)


def read_csv(path: str | Path) -> Iterator[Row | Problem]:
    """Rows of a comma-separated file with a header line; `where` is the line a row begins on.
    Raises DataError.
    """
    csv.field_size_limit(CAP)
    with open_utf8(path) as stream:
        reader = csv.reader(
            (
                line.decode(errors="surrogateescape")
                for line in iter(partial(stream.readline, CAP), b"")
            ),
            strict=True,
        )
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise DataError(f"{path}:1: not CSV: {error}") from error
        for name in header:
            if fault := _fault(path, name):
                raise DataError(f"{path}:1: the name of a column: {fault[0]}", remedy=fault[1])
        _no_twins(path, header)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Problem(
                    f"{path}:{reader.line_num}",
                    "",
                    f"not CSV: {error}",
                    'put the cell in double quotes, and write a quote inside as ""',
                )
                continue
            if cells:
                yield _csv_row(path, where, header, cells)


def read_parquet(path: str | Path) -> Iterator[Row | Problem]:
    """Rows of a parquet file, a batch at a time; `where` is `file:row N`, from 1. Raises
    DataError.
    """
    import pyarrow.parquet as pq

    with readable(path, "parquet file"), pq.ParquetFile(path) as file:
        _no_twins(path, file.schema_arrow.names)
        yield from numbered(path, rows_of(file.iter_batches(_BATCH)))


def read_arrow(path: str | Path) -> Iterator[Row | Problem]:
    """Rows of an Arrow file, in the stream form `datasets` writes or the file form. Raises
    DataError.
    """
    import pyarrow as pa

    with readable(path, "Arrow file"), pa.memory_map(str(path)) as source:
        in_file_form = source.read(6) == b"ARROW1"
        source.seek(0)
        if in_file_form:
            file = pa.ipc.open_file(source)
            batches: Iterable[Any] = map(file.get_batch, range(file.num_record_batches))
        else:
            file = batches = pa.ipc.open_stream(source)
        _no_twins(path, file.schema.names)
        yield from numbered(path, rows_of(batches))


@contextmanager
def readable(path: str | Path, what: str) -> Iterator[None]:
    """Whatever pyarrow raises over a damaged file, or over a cell that Python has no value for, as
    one DataError.
    """
    import pyarrow as pa

    try:
        yield
    except (ValueError, OSError, ArithmeticError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not a readable {what}: {_first_line(error)}", remedy="fetch or write it again"
        ) from error


def rows_of(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of Arrow batches or tables. A batch may hold a whole file: what is Python at one
    time is bounded.
    """
    for batch in batches:
        # an offset that points beyond its buffer would not raise, but end the process
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _BATCH):
            yield from batch.slice(start, _BATCH).to_pylist()


def numbered(name: str | Path, rows: Iterable[dict[str, Any]]) -> Iterator[Row | Problem]:
    """Rows of something without lines, named by their number from 1."""
    for n, row in enumerate(rows, 1):
        where = f"{name}:row {n}"
        reason = unfit(row)
        yield Problem(where, "", reason) if reason else Row(where, row)


def _csv_row(path: str | Path, where: str, header: list[str], cells: list[str]) -> Row | Problem:
    if len(cells) != len(header):
        return Problem(
            where,
            "",
            f"has {len(cells)} cells, the header has {len(header)}",
            "put cells that hold a comma in double quotes",
        )
    values: dict[str, Any] = {}
    for name, cell in zip(header, cells):
        if fault := _fault(path, cell):
            return Problem(where, name, *fault)
        values[name] = _json_cell(cell) if name in _JSON_COLUMNS else cell
    return Row(where, values)


def _fault(path: str | Path, cell: str) -> tuple[str, str] | None:
    """What is wrong with a cell's text, and how to mend it; None where all is well."""
    broken = next((c for c in cell if "\udc80" <= c <= "\udcff"), "")
    if broken:
        return not_utf8(ord(broken) - 0xDC00), recode(path)
    reason = unfit(cell)
    return (reason, "") if reason else None


def _json_cell(cell: str) -> Any:
    """The JSON value a cell spells; what spells none stays text, and the layout says what it
    expected instead.
    """
    if cell in ("True", "False", ""):
        return {"True": True, "False": False, "": None}[cell]
    try:
        return strict_json(cell)
    except (ValueError, RecursionError):
        return cell


def _no_twins(path: str | Path, names: list[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise DataError(
            f"{path}: the columns {', '.join(map(repr, twins))} stand there twice",
            remedy="rename or remove one",
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
