"""Every way a JSON file can be broken, each named with file, line and column."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths import TESTS
from reading import examine
from winnow.data import jsonl
from winnow.data.jsonl import Row, read_rows
from winnow.errors import DataError, Problem


def read(
    folder: Path, content: bytes | str, name: str = "a.jsonl", **options: int
) -> tuple[list[Row], list[Problem]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    items = list(read_rows(path, **options))
    return [item for item in items if isinstance(item, Row)], [
        item for item in items if isinstance(item, Problem)
    ]


def only(problems: list[Problem]) -> tuple[str, str]:
    """The place behind the folder, and the whole message."""
    assert len(problems) == 1, problems
    return problems[0].where.rpartition("/")[2], str(problems[0])


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'{"a": 1}\n{"a": 2}',
        b' {"a": 1} \n{"a": 2}\n\n',
        b'[{"a": 1},\n{"a": 2}]',
        b'\xef\xbb\xbf\n[\r\n {\r\n  "a": 1},\r\n {"a": 2}\r\n]\r\n',
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_harmless_differences(tmp_path: Path, content: bytes, zipped: bool, name: str) -> None:
    rows, problems = read(tmp_path, gzip.compress(content) if zipped else content, name)
    assert [row.values for row in rows] == [{"a": 1}, {"a": 2}]
    assert not problems


def test_blank_lines_keep_the_count(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, '\n\n{"a": 1}\n \t\n{"a": 2}')
    assert [row.where for row in rows] == [f"{tmp_path}/a.jsonl:3", f"{tmp_path}/a.jsonl:5"]


def test_unicode_line_separator_inside_text_ends_no_line(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, '{"a": "x\u2028\x85y"}\n')
    assert rows[0].values["a"] == "x\u2028\x85y"
    assert not problems


def test_every_malformed_line_is_listed_with_its_column(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, '{"a": 1}\n{"a" 1}\n{"a": 1}\n{"ä": x}\n{"a": 1} {"a": 2}\n')
    assert [problem.where.rpartition("/")[2] for problem in problems] == [
        "a.jsonl:2:6",
        "a.jsonl:4:7",
        "a.jsonl:5:10",
    ]
    assert len(rows) == 2
    error = DataError("bad", problems * 10)
    assert str(error).count("a.jsonl:2:6") == 7
    assert "and 10 more (30 in all)" in str(error)


@pytest.mark.parametrize("cut", range(1, 28))
def test_truncated_last_line_is_named(tmp_path: Path, cut: int) -> None:
    whole = '{"a": "ü\\u00e4", "b": [{}]}'.encode()
    rows, problems = read(tmp_path, b'{"a": 1}\n' + whole[:cut])
    assert len(rows) == 1
    where, message = only(problems)
    assert where.startswith("a.jsonl:2:")
    assert "cut off" in message


def test_a_row_that_ends_too_early_is_named_by_its_own_line(tmp_path: Path) -> None:
    _, problems = read(tmp_path, '{"a": 1,\n"b": 2}\r\n{"a": [\r\n{"a": 1}\n')
    assert [problem.where.rpartition("/")[2] for problem in problems] == [
        "a.jsonl:1:9",
        "a.jsonl:2:4",
        "a.jsonl:3:8",
    ]


def test_malformed_is_not_called_truncated(tmp_path: Path) -> None:
    assert "cut off" not in only(read(tmp_path, '{"a": x}')[1])[1]
    assert "cut off" not in only(read(tmp_path, '{"a": \n{"a": 1}\n')[1])[1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "x\0y"}', "NUL byte"),
        (b'{"a": "x\\u0000y"}', "NUL character"),
        (b'{"a": [{"b": "\\ud800"}]}', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b'{"a": "\xed\xa0\x80"}', "lone surrogate"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        (b'{"a": {"b": 2, "b": 3}}', "'b' stands twice"),
        (b'{"a": NaN}', "NaN is no JSON value"),
        (b'{"a": Infinity}', "Infinity is no JSON value"),
        (b'{"a": [-Infinity]}', "-Infinity is no JSON value"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b"[1]", "is a list"),
        (b'"text"', "is text"),
        (b"null", "is null"),
        (b"true", "is a boolean"),
        (b"1.5", "is a number"),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_rejected_with_line(tmp_path: Path, line: bytes, reason: str, as_list: bool) -> None:
    content = (
        b'[{"a": 1},\n' + line + b',\n{"a": 2}]'
        if as_list
        else b'{"a": 1}\n' + line + b'\n{"a": 2}\n'
    )
    rows, problems = read(tmp_path, content, "a.json")
    where, message = only(problems)
    assert where.startswith("a.json:2")
    assert reason in message
    assert [row.values["a"] for row in rows] == [1, 2]


def test_escaped_pairs_and_backslashes_are_fine(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, '{"a": "\\ud83d\\ude00", "b": "\\\\u0000"}\n')
    assert not problems
    assert rows[0].values == {"a": "\U0001f600", "b": "\\u0000"}


def test_latin_1_is_recognised_with_line_and_byte(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, '{"a": "x"}\n{"a": "é"}\n'.encode("latin-1"))
    where, message = only(problems)
    assert where == "a.jsonl:2:8"
    for part in ("0xE9", "Latin-1", "'é'", "byte offset 18", "iconv -f WINDOWS-1252"):
        assert part in message
    assert len(rows) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("zipped", [False, True])
def test_utf_16_is_recognised(tmp_path: Path, encoding: str, zipped: bool) -> None:
    content = '{"a": "x"}\n'.encode(encoding)
    with pytest.raises(
        DataError, match=r"line 1, byte \d: this is UTF-(16|32) text.*\n  -> iconv -f UTF"
    ):
        read(tmp_path, gzip.compress(content) if zipped else content)


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"PAR1", "parquet"),
        (b"ARROW1", "Arrow"),
        (b"PK\x03\x04", "zip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, magic: bytes, name: str) -> None:
    with pytest.raises(DataError, match=name):
        read(tmp_path, magic + b"0" * 50)


@pytest.mark.parametrize("damage", ["short", "flip"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    content = bytearray(gzip.compress(b'{"a": "%d"}\n' * 10_000))
    if damage == "short":
        del content[-20:]
    else:
        content[-6] ^= 255
    with pytest.raises(DataError, match="gzip data is damaged or cut off"):
        read(tmp_path, bytes(content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="Is a directory"):
        list(read_rows(tmp_path))


def test_line_cap_and_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"a": 2}\n')
    tracemalloc.start()
    items = list(read_rows(path, cap=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # the file has 64 MiB
    assert [item.values for item in items if isinstance(item, Row)] == [{"a": 1}, {"a": 2}]
    assert only([item for item in items if isinstance(item, Problem)]) == (
        "a.jsonl:2",
        f"{path}:2: the line is longer than 1,048,576 bytes (byte 9 on) -> split or remove the row",
    )


def test_list_element_cap(tmp_path: Path) -> None:
    rows, problems = read(
        tmp_path, '[{"a": 1},\n{"a": "' + "x" * 5000 + '"},\n{"a": 2}]', "a.json", cap=1000
    )
    assert [row.values for row in rows] == [{"a": 1}, {"a": 2}]
    assert "row 2 is longer than 1,000 bytes" in only(problems)[1]


def test_rows_of_a_list_are_named_by_line(tmp_path: Path) -> None:
    content = json.dumps([{"a": 1}, {"a": 2}], indent=1)
    assert [row.where.rpartition("/")[2] for row in read(tmp_path, content, "a.json")[0]] == [
        "a.json:2",
        "a.json:5",
    ]
    assert [
        row.where.rpartition("/")[2] for row in read(tmp_path, '[{"a": 1}, {"a": 2}]', "a.json")[0]
    ] == ["a.json:1", "a.json:1:12"]


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ('[\n{"a": 1},\n{"a" 2},\n{"a": 3}]', "a.json:3:6", "not JSON"),
        ('[\n {"a": 1},\n {"a":\n  x}, {"a": 3}]', "a.json:4:3", "not JSON"),
        # the missing quote spoils one row
        (
            '[\n{"a": 1},\n{"a": "2},\n{"a": 3}]',
            "a.json:3:7",
            "not JSON",
        ),
        ('[\n{"a": 1},\n{"a": 3},\n]', "a.json:4:1", "extra comma"),
        ('[\n{"a": 1},,\n{"a": 3}]', "a.json:2:10", "extra comma"),
        ('[\n{"a": 1},{"a": 3}', "a.json:2", "cut off"),
        ('[\n{"a": 1},\n{"a": 3},\n{"a": "x', "a.json:4", "inside the row that begins on line 4"),
        ('[\n{"a": 1},\n{"a": 3}]\n\n{"a": 4}', "a.json:5", "after the end of the list"),
        ('[\n{"a": 1},\n{"a": 3}}\n]', "a.json:3:9", "not JSON: Extra data"),
    ],
)
def test_broken_lists(tmp_path: Path, content: str, place: str, reason: str) -> None:
    where, message = only(read(tmp_path, content, "a.json")[1])
    assert where == place
    assert reason in message


@pytest.mark.parametrize("chunk", [1, 3, 9, 1 << 20])
def test_a_missing_quote_spoils_one_row_wherever_the_file_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(jsonl, "_CHUNK", chunk)
    rows, problems = read(tmp_path, '[\n{"a": 1},\n{"a": "2},\n{"a": 3}]', "a.json")
    assert [row.values for row in rows] == [{"a": 1}, {"a": 3}]
    assert only(problems)[0] == "a.json:3:7"


@pytest.mark.parametrize(
    "content", ['\v[{"a": 1}]', '[\v{"a": 1}]', '[{"a": 1}]\f', '{"a": 1}\n\f\n']
)
def test_what_json_does_not_take_for_a_blank_is_none(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content, "a.json")[1]


def test_object_over_several_lines_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="object over several lines"):
        read(tmp_path, json.dumps({"data": [{"a": 1}] * 100}, indent=1), "a.json")


def test_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "") == ([], [])
    assert read(tmp_path, "[ ]", "a.json") == ([], [])


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('ab[]{}",\\ü\n', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.lists(
    st.dictionaries(st.text("ab,]", max_size=2), json_values, max_size=3), max_size=5
)


@settings(deadline=None)
@given(
    rows=objects,
    indent=st.sampled_from([None, 0, 2]),
    ascii=st.booleans(),
    chunk=st.sampled_from([1, 2, 7, 1 << 20]),
)
def test_what_json_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, object]],
    indent: int | None,
    ascii: bool,
    chunk: int,
) -> None:
    folder = tmp_path_factory.mktemp("json")
    lines = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_CHUNK", chunk)
        patch.setattr(jsonl, "_LINE", 0)  # brackets, quotes and escapes cut apart anywhere
        for content in (lines, json.dumps(rows, indent=indent, ensure_ascii=ascii)):
            found, problems = read(folder, content, "a.json")
            assert not problems
            assert [row.values for row in found] == rows
            assert len({row.where for row in found}) == len(rows)


@settings(deadline=None)
@given(content=st.binary(max_size=80) | st.text('{}[]",:\\ \na1é', max_size=60).map(str.encode))
def test_any_bytes_give_each_line_as_a_row_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    examine(content, tmp_path_factory.mktemp("bytes"))


@pytest.mark.parametrize(
    "file", sorted((TESTS / "corpus").iterdir()), ids=lambda file: file.name[:8]
)
def test_the_bytes_that_taught_the_fuzzer_most(tmp_path: Path, file: Path) -> None:
    examine(file.read_bytes(), tmp_path)
