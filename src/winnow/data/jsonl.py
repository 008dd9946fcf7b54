"""Rows of a JSON-lines file, or of a JSON list, each with its place; what is wrong with a row is
told, not raised.

Reading is by line (or by element of the list), so memory is bounded by the longest row. A row that
cannot be read is a `Problem` in the stream and reading goes on, so that all bad rows are listed at
once; what makes the whole file unreadable (UTF-16, a torn gzip) is a DataError.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from winnow.data.json_cutter import BLANK, Cutter, TextPiece
from winnow.errors import DataError, Problem

CAP = 32 << 20  # bytes in one row: beyond any dialogue, below any memory
_CHUNK = 1 << 20
_LINE = CAP  # bytes of a line in which a missing quote is looked for
_BOM = codecs.BOM_UTF8

# What a file may turn out to be, by its first bytes, and what to do about it. UTF-32 before UTF-16:
# it starts alike.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    (codecs.BOM_UTF32_BE, "UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    (b"PAR1", "parquet", "rename it to .parquet"),
    (b"ARROW1", "an Arrow file", "rename it to .arrow"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it with zstd -d"),
    (b"BZh", "bzip2-compressed", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "xz-compressed", "unpack it with unxz"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set: its columns, and `where` it stands (`file:line`)."""

    where: str
    values: Mapping[str, Any]


def read_rows(path: str | Path, *, cap: int = CAP) -> Iterator[Row | Problem]:
    """The rows of a .jsonl or .json file, gzip or not, in order; a bad row is its Problem. Raises
    DataError.
    """
    with open_utf8(path) as stream:
        head = stream.peek(256)[:256]
        if re.match(rb"[ \t\r\n]*\{[ \t]*\r?\n", head):
            raise DataError(
                f"{path}:1: an object over several lines",
                remedy="write one row per line, or a list of objects: [ {...}, {...} ]",
            )
        split = _elements if head.lstrip(BLANK)[:1] == b"[" else _lines
        for piece in split(stream, str(path), cap):
            yield piece if isinstance(piece, Problem) else _row(str(path), piece)


@contextmanager
def open_utf8(path: str | Path) -> Iterator[io.BufferedReader]:
    """The bytes of a text file: gzip undone, byte-order mark skipped, other encodings and formats
    refused by name.
    """
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(path).open("rb"))
            if stream.peek(2)[:2] == b"\x1f\x8b":
                stream = stack.enter_context(io.BufferedReader(gzip.GzipFile(fileobj=stream)))
            head = stream.peek(64)[:64]
            _refuse_foreign(path, head)
            if head.startswith(_BOM):
                stream.read(len(_BOM))
            yield stream
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{path}: the gzip data is damaged or cut off: {error}",
                remedy="fetch the file again",
            ) from error
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error


def strict_json(text: str) -> Any:
    """JSON as the standard says: no NaN, no duplicate keys, and no text that cannot be written as
    UTF-8. Raises ValueError.
    """
    value = _DECODER.decode(text)
    if "\\u" in text:
        reason = unfit(value)
        if reason:
            raise ValueError(reason)
    return value


def unfit(value: Any) -> str:
    """Why some text inside `value` cannot be tokenized (a NUL, half a surrogate pair); empty if all
    is well.
    """
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character (\\u0000)"
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"holds a lone surrogate (\\u{ord(value[error.start]):04x}), half a character"
        return ""
    if isinstance(value, dict):
        return next(filter(None, (unfit(part) for pair in value.items() for part in pair)), "")
    if isinstance(value, list):
        return next(filter(None, map(unfit, value)), "")
    return ""


def json_type(value: Any) -> str:
    """The type of a value in JSON's words, with an article where there is one."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def not_utf8(byte: int) -> str:
    """What a byte that breaks UTF-8 most likely is."""
    character = bytes([byte]).decode("cp1252", errors="replace")
    return f"byte 0x{byte:02X} is not UTF-8; as Latin-1 (Windows-1252) it is {character!r}"


def recode(path: str | Path) -> str:
    """The remedy for a Latin-1 file."""
    return f"iconv -f WINDOWS-1252 -t UTF-8 {path} > new file"


def _refuse_foreign(path: str | Path, head: bytes) -> None:
    for magic, name, fix in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{path}: line 1, byte 0: this is {name}, expected UTF-8", remedy=fix)
    if (
        len(head) >= 4 and 0 in head[:2] and head[:4].count(0) == 2
    ):  # ASCII in UTF-16 has every other byte zero
        order = "LE" if head[1] == 0 else "BE"
        what = (
            f"line 1, byte {head.index(0)}: this is UTF-16 text ({order}, without a mark), expected"
            " UTF-8"
        )
        raise DataError(f"{path}: {what}", remedy=f"iconv -f UTF-16{order} -t UTF-8")


def _lines(stream: io.BufferedReader, name: str, cap: int) -> Iterator[TextPiece | Problem]:
    line, offset = 0, stream.tell()
    while raw := stream.readline(cap + 1):
        line, begin, offset = line + 1, offset, offset + len(raw)
        if len(raw) > cap and raw[-1:] != b"\n":
            while raw and raw[-1:] != b"\n":  # leave the rest of the line unread, a chunk at a time
                raw = stream.readline(_CHUNK)
                offset += len(raw)
            yield Problem(
                f"{name}:{line}",
                "",
                f"the line is longer than {cap:,} bytes (byte {begin:,} on)",
                "split or remove the row",
            )
        elif raw.strip(BLANK):
            yield TextPiece(f"{name}:{line}", raw, line, 1, begin, raw[-1:] != b"\n")


def _elements(stream: io.BufferedReader, name: str, cap: int) -> Iterator[TextPiece | Problem]:
    """The elements of a JSON list, cut at the commas of depth 1 without parsing, so one bad element
    spoils no other.
    """
    cutter = Cutter(name, cap, stream.tell())
    while chunk := stream.read(_CHUNK) + stream.readline(
        _LINE
    ):  # whole lines, so that a missing quote is seen on the line it is missing from
        yield from cutter.feed(chunk)
    yield from cutter.end()


def _row(name: str, piece: TextPiece) -> Row | Problem:
    """One piece parsed, or what is wrong with it and where."""
    where = piece.where
    try:
        text = piece.raw.decode()
        if "\0" in text:
            return Problem(
                f"{name}:{piece.line}:{piece.column + text.index(chr(0))}",
                "",
                "holds a NUL byte",
                "the file was damaged or is not text",
            )
        value = strict_json(text)
    except UnicodeDecodeError as error:
        return _undecodable(name, piece, error)
    except json.JSONDecodeError as error:
        return _malformed(name, piece, error)
    except RecursionError:
        return Problem(where, "", "is nested too deeply")
    except ValueError as error:
        return Problem(where, "", str(error))
    if not isinstance(value, dict):
        return Problem(where, "", f"the row is {json_type(value)}, expected an object")
    return Row(where, value)


def _malformed(name: str, piece: TextPiece, error: json.JSONDecodeError) -> Problem:
    ended = error.doc.rstrip()
    # the line break behind a row is no part of it: what ends too early, ends on its own line
    at = min(error.pos, len(ended))
    begin = error.doc.rfind("\n", 0, at) + 1
    line = piece.line + error.doc.count("\n", 0, at)
    column = at - begin + (1 if begin else piece.column)
    if piece.last and (error.pos >= len(ended) or not ended.endswith("}")):
        return Problem(
            f"{name}:{line}:{column}",
            "",
            "the last line is cut off: the file ends inside a row",
            "fetch or write the file again",
        )
    if error.msg.startswith(
        "Invalid control character"
    ):  # as the reader puts a line that ends inside a string
        return Problem(
            f"{name}:{line}:{column}",
            "",
            "not JSON: a text ends with the line, without its closing quote, or holds a bare"
            " control character",
        )
    return Problem(f"{name}:{line}:{column}", "", f"not JSON: {error.msg}")


def _undecodable(name: str, piece: TextPiece, error: UnicodeDecodeError) -> Problem:
    before = piece.raw[: error.start]
    column = len(before[before.rfind(b"\n") + 1 :].decode()) + (
        piece.column if b"\n" not in before else 1
    )
    where, offset = f"{name}:{piece.line + before.count(10)}:{column}", piece.offset + error.start
    if piece.last and error.reason == "unexpected end of data":
        return Problem(
            where,
            "",
            "the last line is cut off: the file ends inside a character",
            "fetch or write the file again",
        )
    byte = piece.raw[error.start]
    if byte == 0xED and piece.raw[error.start + 1 : error.start + 2] >= b"\xa0":
        return Problem(
            where, "", f"holds a lone surrogate, half a character (byte offset {offset:,})"
        )
    return Problem(where, "", f"{not_utf8(byte)} (byte offset {offset:,})", recode(name))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if abs(value) == float("inf"):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)
