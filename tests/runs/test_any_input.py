"""Anything at all, for any setting, in any row and in place of any bytes: it is used, or it is
refused in one paragraph.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import runs
import tiny
from any_rows import COLUMNS, WRITERS, json_values
from winnow.commands import check
from winnow.config.evaluation import CheckSettings
from winnow.data.sources import load
from winnow.errors import DataError, Problem
from winnow.models import loading

# Values that mean something to one setting or another, or nearly.
VALUES = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "0.5",
    "-0",
    "1e-9",
    "1e9",
    "1e308",
    "1e309",
    "nan",
    "inf",
    "-inf",
    "99999999999999999999999",
    "1_0",
    "1.0",
    "true",
    "false",
    "none",
    "auto",
    "all",
    "0x10",
    "cpu",
    "cuda",
    "cuda:9",
    "meta",
    "dpo",
    "sft",
    "ipo",
    "dpo:beta=0",
    "dpo:beta=1e309",
    "simpo:gamma=nan",
    "simpo:gama=1",
    "dpo:0.8,sft:0.2",
    "dpo:nan,sft",
    "dpo,",
    "::",
    "=",
    "mix=0.5",
    "every=2",
    "mix=nan",
    "every=1e3",
    "r=2",
    "r=2,alpha=0",
    "targets=q_proj",
    "targets=",
    "lora=1",
    "r=99999999999999999999",
    "d.jsonl",
    "d.jsonl@2",
    "d.jsonl@nan",
    "d.jsonl@1e308",
    "d.jsonl:test",
    "@",
    ":",
    "..",
    "~",
    "~nobody",
    "model",
    "/proc/x",
    "/dev/null",
    "template",
    "bad.jinja",
]
FIELDS = {field.alias or name: field for name, field in CheckSettings.model_fields.items()}


def choices(annotation: Any) -> list[str]:
    """What a setting takes by name."""
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    return (
        [one for part in get_args(annotation) for one in choices(part)]
        if not isinstance(annotation, types.NoneType)
        else []
    )


@st.composite
def words(draw: st.DrawFn) -> list[str]:
    """One to three settings as they are typed, mostly with values that have a meaning somewhere."""
    typed = []
    for name in draw(
        st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3, unique=True)
    ):
        flag, annotation = name.replace("_", "-"), FIELDS[name].annotation
        if annotation in (bool, bool | None):
            typed.append(draw(st.sampled_from([f"--{flag}", f"--no-{flag}", f"--{flag}=1"])))
        else:
            value = draw(
                st.sampled_from(VALUES)
                | st.sampled_from(choices(annotation) or VALUES)
                | st.text(st.characters(exclude_characters="\0"), max_size=9)
            )
            typed.append(f"--{flag}={value}")
    return typed


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a model; no weights may be read, and memory is not estimated, which
    takes longer than all the rest.
    """

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    folder = tmp_path_factory.mktemp("here")
    tiny.folder(folder / "model", hidden_size=16, intermediate_size=32)
    tiny.write(folder / "good.jsonl", tiny.pairs(4))
    (folder / "bad.jinja").write_text("{{ messages[0]['content'] | nothing }}{% if")
    (folder / "template").write_text(tiny.TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(loading, "_load_weights", refuse)
        patch.setattr(check, "memory_line", lambda *_: "")
        yield folder


def used_or_refused(*given: str) -> tuple[int, str]:
    """`winnow check`: exit code 0, or 2 and one paragraph (or findings) that say why. The code, and
    all that was said.
    """
    out, error = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        code = runs.winnow(patch, "check", "--model=model", *given)
    told = error.getvalue()
    paragraphs = sum(line.startswith("error: ") for line in told.splitlines())
    assert code in (0, 2), told
    assert "Traceback" not in told
    assert paragraphs == (code == 2 and "error train: " not in out.getvalue()), told
    if paragraphs:
        assert told.startswith("error: ")
    return code, out.getvalue() + told


@settings(max_examples=150)
@given(typed=words())
@example(typed=["--limit=99999999999999999999999"])
@example(typed=["--steps=99999999999999999999999"])
@example(typed=["--epochs=1e308"])
@example(typed=["--data=d.jsonl@1e308"])
@example(typed=["--max-length=99999999999999999999999"])
@example(typed=["--stream=99999999999999999999999", "--steps=2"])
@example(typed=["--chat-template=bad.jinja", "--as=chat"])
def test_any_value_of_any_setting(here: Path, typed: list[str]) -> None:
    tiny.write(here / "d.jsonl", tiny.pairs(4))
    used_or_refused("--data=good.jsonl", "--batch-size=2", *typed)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from([*COLUMNS, "\x1b[2J", "é"]), json_values, max_size=6),
        min_size=1,
        max_size=4,
    ),
    layout=st.sampled_from(
        [["prompt", "chosen", "rejected"], ["prompt", "completions", "scores"], ["messages"], []]
    ),
    words=st.sampled_from(
        [
            [],
            ["--on-bad-row=skip"],
            ["--recipe=sft"],
            ["--as=chat", "--chat-template=template"],
            ["--objective=kto"],
        ]
    ),
    data=st.data(),
)
def test_any_row(
    here: Path, rows: list[dict[str, Any]], layout: list[str], words: list[str], data: st.DataObject
) -> None:
    full = [{**{name: data.draw(json_values) for name in layout}, **row} for row in rows]
    (here / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in full))
    code, said = used_or_refused("--data=d.jsonl", "--batch-size=1", *words)
    assert "\x1b" not in said
    if code == 2 and "rows that cannot be" in said:
        assert "d.jsonl:" in said.partition("rows that cannot be")[2]


# ---------------------------------------------------------------- bytes

DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert"]),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def damaged(whole: bytes, damage: list[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(whole)
    for kind, at, more in damage:
        at %= len(data) + 1
        if kind == "flip":
            data[at : at + 1] = bytes(byte ^ 1 << more[0] % 8 for byte in data[at : at + 1])
        elif kind == "cut":
            del data[at : at + more[0]]
        else:
            data[at:at] = more
    return bytes(data)


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", params=[name for name in WRITERS if " " not in name])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, bytes]:
    """A file of each kind: its name and its bytes."""
    path = tmp_path_factory.mktemp("whole") / request.param
    WRITERS[request.param](path)
    return request.param, path.read_bytes()


@settings(max_examples=120)
@given(damage=DAMAGE)
def test_any_damage_to_a_file(
    here: Path, whole: tuple[str, bytes], damage: list[tuple[str, int, bytes]]
) -> None:
    path = here / whole[0]
    path.write_bytes(damaged(whole[1], damage))
    with no_hang():
        try:
            loaded = load(path.name)
        except DataError:
            return
    assert loaded.counts["rows"] == loaded.counts["groups"] + loaded.counts["bad"]
    assert all(
        isinstance(bad, Problem) and bad.where.startswith(f"{path.name}:")
        for bad in loaded.problems
    )
    assert loaded.counts["bad"] <= len(loaded.problems)


@settings(max_examples=12)
@given(damage=DAMAGE)
def test_any_damage_to_a_file_through_the_command_line(
    here: Path, whole: tuple[str, bytes], damage: list[tuple[str, int, bytes]]
) -> None:
    (here / whole[0]).write_bytes(damaged(whole[1], damage))
    with no_hang():
        code, said = used_or_refused(f"--data={whole[0]}", "--batch-size=1")
    assert code == 0 or whole[0] in said
