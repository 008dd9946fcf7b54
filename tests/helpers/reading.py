"""Any bytes through the reader of JSON files: no row is lost, none is made up, and nothing but a
DataError is raised.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from winnow.data import jsonl
from winnow.data.jsonl import Row, read_rows
from winnow.errors import DataError, Problem

Read = list[Row | Problem] | DataError
TWICE = object()  # what an object becomes in which a key stands twice
GZIP = b"\x1f\x8b"
BLANK = b" \t\r\n"
CAP = 24


def examine(content: bytes, folder: Path) -> None:
    """The bytes as a file, as a gzip file, a damaged one, and with their lines as the elements of a
    list. Raises AssertionError.
    """
    path = folder / "a.jsonl"
    found = read(path, content)
    with mock.patch.object(jsonl, "_CHUNK", 3):
        assert same(read(path, content), found), "the size of the chunks matters"
        if not isinstance(found, DataError) and all(isinstance(item, Row) for item in found):
            with mock.patch.object(jsonl, "_LINE", 0):  # as within a line too long to be held
                assert same(read(path, content), found), (
                    "the size of the chunks matters within a line"
                )
    if not content.startswith(GZIP):  # what was packed twice is unpacked once
        examine_gzip(path, content, found)
    if isinstance(found, DataError):
        assert content.startswith(GZIP) or truth(content.partition(b"\n")[0]) is None, (
            f"refused: {found}"
        )
    elif content.removeprefix(jsonl._BOM)[:256].lstrip(BLANK).startswith(b"["):
        examine_list(content, found)
    elif not content.startswith(GZIP):
        examine_lines(content, found, str(path))
        examine_cap(path, content, found)
    lines = [line for line in content.split(b"\n") if line.strip(BLANK)]
    listed = b"[" + b",\n".join(lines) + b"]"
    in_list = read(path, listed)
    if not isinstance(in_list, DataError):
        examine_list(listed, in_list)


def examine_lines(content: bytes, found: Sequence[Row | Problem], name: str) -> None:
    """Each line that is not blank is a row or a problem, under its own number, and a row is what
    Python reads there.
    """
    lines = [
        (n, line)
        for n, line in enumerate(content.removeprefix(jsonl._BOM).split(b"\n"), 1)
        if line.strip(BLANK)
    ]
    assert len(found) == len(lines)
    for (number, line), item in zip(lines, found):
        assert item.where == f"{name}:{number}" or item.where.startswith(f"{name}:{number}:"), item
        agree(item, truth(line))


def examine_list(content: bytes, found: Sequence[Row | Problem]) -> None:
    """If the file is a list of JSON, its elements are the rows and problems; if it is none, there
    is a problem.
    """
    places = [
        tuple(map(int, item.where.rpartition("a.jsonl:")[2].split(":")))
        for item in found
        if isinstance(item, Row)
    ]
    assert places == sorted(set(places)), "rows share a place, or stand in another order"
    try:
        elements = json.loads(content.removeprefix(jsonl._BOM).decode(), object_pairs_hook=unique)
    except RecursionError:
        return
    except ValueError:
        assert any(isinstance(item, Problem) for item in found), "not JSON, and nobody says so"
        return
    assert len(elements) == len(found)
    for element, item in zip(elements, found):
        agree(item, element if fit(element) else None)


def examine_gzip(path: Path, content: bytes, found: Read) -> None:
    """A gzip file holds the same rows; one that is cut off is refused; one that was changed is
    refused or holds the same.
    """
    zipped = gzip.compress(content, 1, mtime=0)
    assert same(read(path, zipped), found), "gzip changes what is read"
    if content:
        assert isinstance(read(path, zipped[:-1]), DataError), (
            "a gzip file that is cut off was read"
        )
    at = sum(content) % len(zipped)
    flipped = read(
        path, zipped[:at] + bytes([zipped[at] ^ 1 << sum(content) % 7]) + zipped[at + 1 :]
    )
    assert isinstance(flipped, DataError) or at < 10 or same(flipped, found), (
        "damage passes in silence"
    )


def examine_cap(path: Path, content: bytes, found: Sequence[Row | Problem]) -> None:
    """With a cap on their length, long lines are problems and the others what they were."""
    if any(len(line) > CAP and not line.strip(BLANK) for line in content.split(b"\n")):
        return  # a long line is one, also if it turns out to be blank
    path.write_bytes(content)
    short = list(read_rows(path, cap=CAP))
    assert len(short) == len(found)
    assert all(
        one == other or (isinstance(one, Problem) and "longer than" in one.reason)
        for one, other in zip(short, found)
    )


def read(path: Path, content: bytes) -> Read:
    """All items, or the DataError."""
    path.write_bytes(content)
    try:
        return list(read_rows(path))
    except DataError as error:
        return error


def same(one: Read, other: Read) -> bool:
    return repr(one) == repr(other)


def agree(item: Row | Problem, expected: Any) -> None:
    """A row where a row is expected, equal to the last type and order of keys; a problem where
    there is None.
    """
    if isinstance(item, Row):
        assert repr(item.values) == repr(expected), f"{item} is not {expected!r}"
    else:
        assert expected is None or "nested too deeply" in item.reason, (
            f"{item}, but it is a row: {expected!r}"
        )


def truth(line: bytes) -> Any:
    """The row that Python's json reads in a line, None where there is none that can be used."""
    try:
        value = json.loads(line.decode(), object_pairs_hook=unique)
        return value if fit(value) else None
    except (ValueError, RecursionError):
        return None


def unique(pairs: list[tuple[str, Any]]) -> Any:
    return dict(pairs) if len(dict(pairs)) == len(pairs) else TWICE


def fit(value: Any) -> bool:
    """An object that is JSON by the standard, without a NUL and all of it UTF-8."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(value, dict) and not any("\0" in text for text in texts(value))


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [value] if isinstance(value, str) else []
