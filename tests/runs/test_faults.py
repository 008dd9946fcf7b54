"""Faults and bad input through the command line: what is wrong with rows is refused by file, line
and field, before a model is loaded.

The cases stand in the order of the fault table, under its numbers: 1 to 5 and 9 are about bytes and
cells, 6 to 8 and 10 to 16 about what the rows say. Faults of machines, folders and settings are in
test_faults_runs.py. A told message is compared whole, line by line: it is what its reader has.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import runs
import tiny
from winnow.commands import check
from winnow.data.jsonl import CAP
from winnow.models import loading

PAIR = {"prompt": "p", "chosen": " a", "rejected": " b"}
GOOD = json.dumps(PAIR)
MEND = "-> mend them, or --on-bad-row skip to leave them out and count them"
TEXT_OR_TURNS = "expected text or a list of messages"


def lines(*rows: dict[str, Any] | str) -> bytes:
    return "".join(
        (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
    ).encode()


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": f" a{number}", "rejected": f" b{number}", **changes}


def bad(count: int, *problems: str, name: str = "d.jsonl") -> tuple[str, ...]:
    return (f"{name}: rows that cannot be used: {count}", *problems, MEND)


def unscored(count: int, *problems: str) -> tuple[str, ...]:
    return (f"rows that cannot be scored: {count}", *problems, MEND)


@dataclass(frozen=True)
class Fault:
    """Data in a file, and the lines that are told of it, by the commands that read it; `words` are
    given besides.
    """

    row: int
    data: bytes
    told: tuple[str, ...]
    words: tuple[str, ...] = ()
    name: str = "d.jsonl"
    commands: tuple[str, ...] = ("dpo", "sft", "eval", "check")
    model: str = "model"


TRAIN = ("dpo", "sft", "check")
PAIRED = ("dpo", "eval", "check")  # SFT looks at the preferred answer alone
AGAIN = "-> fetch or write the file again"
NAME = "not JSON: Expecting property name enclosed in double quotes"
TEXT = "expected text or a list of messages"
BLANK = "is empty or blank -> remove the row or --on-bad-row skip"
RAISE = "-> raise --max-length, or --on-bad-row skip"
LATIN = "byte 0xE9 is not UTF-8; as Latin-1 (Windows-1252) it is 'é'"
ICONV = "-> iconv -f WINDOWS-1252 -t UTF-8"
KNOWN = "known: winner, loser, probability, weight, margin -> did you mean"
EMPTY = "-> check that it was written to its end, and that it is the right one"
LEFT = ("d.jsonl: no row is left to use", "-> winnow check shows what became of each")
AT_20 = ("--max-length", "20")
ANY_CUT = ("--max-length", "20", "--cut-budget", "1")
SKIP = ("--on-bad-row", "skip")
GROUP = {"prompt": "p", "completions": ["a", "b", "c"]}
ALIKE = {"prompt": "q", "chosen": "x" * 30 + "a", "rejected": "x" * 30 + "b"}  # once they are cut

FAULTS = [
    Fault(
        1,
        lines(PAIR, '{"prompt" "p"}', PAIR) + GOOD[:20].encode(),
        bad(
            2,
            "d.jsonl:2:11: not JSON: Expecting ':' delimiter",
            f"d.jsonl:4:17: the last line is cut off: the file ends inside a row {AGAIN}",
        ),
    ),
    Fault(
        1,
        lines(PAIR, GOOD[:12], PAIR),
        bad(
            1,
            "d.jsonl:2:13: not JSON: a text ends with the line, without its closing quote, or holds"
            " a bare control character",
        ),
    ),
    Fault(
        1,
        lines('{"prompt": "p",', ' "chosen": "a"}'),
        (
            "d.jsonl: none of its 2 rows can be read",
            f"d.jsonl:1:16: {NAME}",
            "d.jsonl:2:10: not JSON: Extra data",
        ),
    ),
    Fault(
        1,
        lines("{", '"data": []', "}"),
        (
            "d.jsonl:1: an object over several lines",
            "-> write one row per line, or a list of objects: [ {...}, {...} ]",
        ),
    ),
    Fault(
        1,
        f"[{GOOD},\n {{}} {GOOD},\n {GOOD}]".encode(),
        bad(1, "d.json:2:5: not JSON: Extra data", name="d.json"),
        name="d.json",
    ),
    Fault(
        1,
        f"[{GOOD},\n {GOOD},\n".encode(),
        bad(1, f"d.json:3: is cut off: the file ends inside the list {AGAIN}", name="d.json"),
        name="d.json",
    ),
    Fault(
        1,
        lines(PAIR, *["{,"] * 24),
        bad(24, *(f"d.jsonl:{n}:2: {NAME}" for n in range(2, 22)), "... and 4 more (24 in all)"),
    ),
    Fault(
        3,
        lines(PAIR) + '{"prompt": "caf\xe9"}\n'.encode("latin-1"),
        bad(1, f"d.jsonl:2:16: {LATIN} (byte offset 65) {ICONV} d.jsonl > new file"),
    ),
    Fault(
        3,
        GOOD.encode("utf-16"),
        (
            "d.jsonl: line 1, byte 0: this is UTF-16 text, expected UTF-8",
            "-> iconv -f UTF-16 -t UTF-8",
        ),
    ),
    Fault(
        3,
        GOOD.encode("utf-16-be"),
        (
            "d.jsonl: line 1, byte 0: this is UTF-16 text (BE, without a mark), expected UTF-8",
            "-> iconv -f UTF-16BE -t UTF-8",
        ),
    ),
    Fault(
        3,
        gzip.compress(lines(PAIR) * 99)[:-9],
        name="d.jsonl.gz",
        told=(
            (
                "d.jsonl.gz: the gzip data is damaged or cut off: Compressed file ended before the"
                " end-of-stream marker was reached"
            ),
            "-> fetch the file again",
        ),
    ),
    Fault(
        3,
        b"BZh91AY",
        (
            "d.jsonl: line 1, byte 0: this is bzip2-compressed, expected UTF-8",
            "-> unpack it with bunzip2",
        ),
    ),
    Fault(
        3,
        b"PK",
        name="d.zip",
        told=(
            "d.zip: not a known kind of file",
            "-> known endings: .jsonl, .json, .jsonl.gz, .json.gz, .csv, .csv.gz, .parquet, .arrow",
        ),
    ),
    Fault(
        4,
        lines(PAIR, {"prompt": "p", "chosen": " a", "rejcted": " b"}),
        bad(
            1,
            "d.jsonl:2: rejected: is missing; keys found: 'prompt', 'chosen', 'rejcted' -> did you"
            " mean 'rejcted'?",
        ),
    ),
    Fault(
        4,
        lines({**GROUP, "comparisons": [{"winner": 0, "loser": 1, "probabilty": 1}]}),
        bad(
            1,
            f"d.jsonl:1: comparisons[0]: has the unknown key 'probabilty', {KNOWN} 'probability'?",
        ),
    ),
    Fault(
        5,
        lines(
            PAIR,
            *(
                {**PAIR, **cell}
                for cell in (
                    {"chosen": None},
                    {"rejected": 3},
                    {"prompt": []},
                    {"prompt": True},
                    {"chosen": [{"role": "user"}]},
                )
            ),
        ),
        bad(
            5,
            f"d.jsonl:2: chosen: is null, {TEXT}",
            f"d.jsonl:3: rejected: is a number, {TEXT}",
            "d.jsonl:4: prompt: is an empty list, expected messages",
            f"d.jsonl:5: prompt: is a boolean, {TEXT}",
            "d.jsonl:6: chosen[0].content: is missing; keys found: 'role'",
        ),
    ),
    Fault(
        5,
        b"prompt,completion,label\np,c,true\np,c,perhaps\n",
        name="d.csv",
        told=bad(1, "d.csv:3: label: is text ('perhaps'), expected true or false", name="d.csv"),
    ),
    Fault(
        6,
        lines(PAIR, {**PAIR, "chosen": ""}, {**PAIR, "chosen": " \n", "rejected": ""}),
        bad(
            2,
            f"d.jsonl:2: chosen: {BLANK}",
            f"d.jsonl:3: chosen: {BLANK}",
            f"d.jsonl:3: rejected: {BLANK}",
        ),
    ),
    Fault(
        7,
        lines(*[{**PAIR, "rejected": " a"}] * 3),
        (f"{LEFT[0]} (3 identical completions)", LEFT[1]),
        commands=PAIRED,
    ),
    Fault(
        7,
        lines(PAIR, ALIKE),
        words=ANY_CUT,
        commands=PAIRED,
        told=unscored(
            1,
            "d.jsonl:2: comparisons: winner and loser are identical after cutting to max_length"
            f" {RAISE}",
        ),
    ),
    Fault(
        7,
        lines(ALIKE),
        (f"{LEFT[0]} (1 cannot be scored)", LEFT[1]),
        (*ANY_CUT, *SKIP),
        commands=PAIRED,
    ),
    Fault(
        8,
        lines(pair(1), pair(2), pair(3)),
        words=("--eval-data", "held.jsonl"),
        commands=("dpo", "sft"),
        told=(
            "the data should not be trained on",
            (
                "held.jsonl:2: leak: 2 of 3 evaluation groups are in the training data too"
                " (held.jsonl:2, held.jsonl:3) -> remove them from one side, or set a fraction of"
                " the prompts aside instead"
            ),
            "-> winnow check shows all that was found",
        ),
    ),
    Fault(
        9,
        lines(
            PAIR,
            *(
                f'{{"prompt": {text}}}'
                for text in (
                    '"a\0"',
                    '"a\\u0000"',
                    '"\\ud800"',
                    '"p", "prompt": "q"',
                    "NaN",
                    "-Infinity",
                )
            ),
        ),
        bad(
            6,
            "d.jsonl:2:14: holds a NUL byte -> the file was damaged or is not text",
            "d.jsonl:3: holds a NUL character (\\u0000)",
            "d.jsonl:4: holds a lone surrogate (\\ud800), half a character",
            "d.jsonl:5: the key 'prompt' stands twice in one object",
            "d.jsonl:6: NaN is no JSON value",
            "d.jsonl:7: -Infinity is no JSON value",
        ),
    ),
    Fault(
        9,
        b"prompt,prompt\np,q\n",
        ("d.csv: the columns 'prompt' stand there twice", "-> rename or remove one"),
        name="d.csv",
    ),
    Fault(
        9,
        b"prompt,caf\xe9\np,q\n",
        (f"d.csv:1: the name of a column: {LATIN}", f"{ICONV} d.csv > new file"),
        name="d.csv",
    ),
    *(
        Fault(11, nothing, (f"{name}: there are 0 rows in it", EMPTY), name=name)
        for name, nothing in (
            ("d.jsonl", b""),
            ("d.jsonl", b"\n\r\n \n"),
            ("d.json", b"[]"),
            ("d.csv", b"prompt,completion\n"),
            ("d.jsonl.gz", gzip.compress(b"")),
        )
    ),
    Fault(
        11,
        lines(pair(1), pair(2)),
        ("an epoch has 2 groups, fewer than batch_size 8", "-> --batch-size 2 or less"),
        ("--batch-size", "8"),
        commands=TRAIN,
    ),
    Fault(
        12,
        lines(PAIR),
        model="no_eos",
        told=(
            (
                "no_eos: the tokenizer has no end-of-sequence token, so the model could never learn"
                " to stop"
            ),
            "-> set eos_token in tokenizer_config.json",
        ),
    ),
    Fault(
        12,
        lines(PAIR, {**PAIR, "prompt": [{"role": "user", "content": "x"}]}),
        (
            "d.jsonl:2: the data has messages, the tokenizer has no chat template",
            "-> give --chat-template FILE, or a tokenizer that has one",
        ),
    ),
    *(
        Fault(
            14,
            lines(pair(1), pair(2, prompt="x" * more)),
            words=ANY_CUT,
            commands=PAIRED,
            told=unscored(
                1,
                *(
                    f"d.jsonl:2: completions[{k}]: the prompt alone has {more + 1} tokens, the"
                    f" limit is 20 {RAISE}"
                    for k in (0, 1)
                ),
            ),
        )
        for more in (19, 30)
    ),
    Fault(
        14,
        lines(pair(1), pair(2, chosen="x" * 30)),
        words=AT_20,
        commands=PAIRED,
        told=(
            "max_length 20 cuts 32.6% of the completion tokens, the budget is 10%",
            "d.jsonl:2: completions: 14 tokens cut",
            "-> raise --max-length or --cut-budget, or drop the long rows",
        ),
    ),
    Fault(
        14,
        lines(pair(1), pair(2, chosen="x" * 300)),
        unscored(
            1,
            "d.jsonl:2: completions[0]: needs 304 tokens, the model's limit is 256"
            " -> --max-length 256 to cut, --on-bad-row skip to drop the row",
        ),
    ),
    Fault(
        16,
        lines(
            *(
                {**GROUP, "comparisons": [{"winner": a, name: b}]}
                for a, name, b in (
                    (0, "loser", 7),
                    (-1, "loser", 1),
                    (1, "loser", 1),
                    (0, "looser", 1),
                )
            )
        ),
        bad(
            4,
            "d.jsonl:1: comparisons[0].loser: names completion 7, there are 3 -> indices count"
            " from 0",
            "d.jsonl:2: comparisons[0].winner: names completion -1, there are 3 -> indices count"
            " from 0",
            "d.jsonl:3: comparisons[0]: completion 1 is compared with itself",
            f"d.jsonl:4: comparisons[0]: has the unknown key 'looser', {KNOWN} 'loser'?",
        ),
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models whose tokenizers have no padding token; one merges letters across prompt and answer,
    others have no token to end or to begin with.
    """
    root = tmp_path_factory.mktemp("world")
    tiny.folder(root / "model", hidden_size=16, intermediate_size=32)
    made = tiny.tokenizer(merges=[("a", "b")])
    tiny.model(
        "llama", vocab_size=len(made), hidden_size=16, intermediate_size=32, pad_token_id=None
    ).save_pretrained(root / "merging")
    made.save_pretrained(root / "merging")
    tiny.folder(root / "no_eos", hidden_size=16, intermediate_size=32)
    config = json.loads((root / "no_eos" / "tokenizer_config.json").read_text())
    (root / "no_eos" / "tokenizer_config.json").write_text(
        json.dumps({**config, "eos_token": None})
    )
    tiny.folder(root / "no_bos", hidden_size=16, intermediate_size=32)
    tiny.tokenizer(bos=False).save_pretrained(root / "no_bos")
    return root


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """An empty working folder with the models in it; no weights may be read."""
    for model in world.iterdir():
        (tmp_path / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "_load_weights", refuse)
    # takes longer than all the rest, and knows of no row
    monkeypatch.setattr(check, "memory_line", lambda *_: "")
    return tmp_path


def command(name: str, fault: Fault) -> list[str]:
    size = () if name == "eval" or "--batch-size" in fault.words else ("--batch-size", "1")
    recipe = {"eval": (), "check": ()}.get(name, ("--out", "run"))
    return [name, "--model", fault.model, "--data", fault.name, *size, *recipe, *fault.words]


@pytest.mark.parametrize(
    ("fault", "name"),
    [(fault, name) for fault in FAULTS for name in fault.commands],
    ids=lambda part: getattr(part, "row", part),
)
def test_is_refused_with_its_place_before_anything_is_loaded_or_written(
    here, monkeypatch, capsys, fault, name
):
    (here / fault.name).write_bytes(fault.data)
    (here / "held.jsonl").write_bytes(lines(pair(9), pair(2), pair(3)))
    before = sorted(here.iterdir())
    assert runs.winnow(monkeypatch, *command(name, fault)) == 2
    told = capsys.readouterr().err
    assert [line.strip() for line in told.splitlines()] == [
        f"error: {fault.told[0]}",
        *fault.told[1:],
    ]
    assert sorted(here.iterdir()) == before


@dataclass(frozen=True)
class Accepted:
    """Data in a file that can be used, and what `winnow check` has to say of it."""

    row: int
    data: bytes
    told: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    name: str = "d.jsonl"
    model: str = "model"
    code: int = 0


TWO = lines(pair(1), pair(2))
ACCEPTED = [
    Accepted(2, b"\xef\xbb\xbf" + TWO),
    Accepted(2, TWO.replace(b"\n", b"\r\n")),
    Accepted(2, b"\n\r\n" + TWO.replace(b"\n", b"\n \n\n")),
    Accepted(2, TWO.removesuffix(b"\n")),
    Accepted(3, gzip.compress(TWO), name="d.jsonl.gz"),
    Accepted(
        4,
        lines(pair(1, weihgt=2, id=7), pair(2)),
        ("columns not read: id, weihgt (did you mean 'weight'?)",),
    ),
    Accepted(
        6,
        lines(pair(1), pair(2), pair(3, chosen=" "), pair(4, rejected="", chosen="")),
        ("4 rows, 2 used", "dropped 2 cannot be used"),
        SKIP,
    ),
    # on one line
    Accepted(
        6,
        f'[{{"prompt": NaN}}, {GOOD}, {{"prompt"'.encode(),
        ("3 rows, 1 used", "dropped 2 cannot be used"),
        SKIP,
        name="d.json",
    ),
    Accepted(
        7,
        lines(pair(1), pair(2), pair(3, rejected=" a3")),
        ("3 rows, 2 used", "dropped 1 identical completions"),
    ),
    Accepted(
        7,
        lines(pair(1), pair(2), ALIKE),
        ("3 rows, 2 used", "dropped 1 cannot be scored"),
        (*ANY_CUT, *SKIP),
    ),
    Accepted(
        8,
        lines(pair(1), pair(1), pair(2)),
        (
            (
                "duplicates: 1 groups say the same as an earlier one: d.jsonl:2 -> they count"
                " twice: remove them"
            ),
        ),
    ),
    Accepted(
        8,
        lines(pair(1), pair(2), pair(2, chosen=" b2", rejected=" a2")),
        (
            (
                "contradictions: 1 groups contradict an earlier judgement of the same answers:"
                " d.jsonl:3 -> check them"
            ),
        ),
    ),
    Accepted(
        8,
        TWO,
        words=("--eval-data", "held.jsonl"),
        code=2,
        told=(
            (
                "error train: leak: 1 of 3 evaluation groups are in the training data too:"
                " held.jsonl:2 -> remove"
            ),
        ),
    ),
    Accepted(11, TWO, ("plan: 1 steps of 2 groups",), ("--batch-size", "2")),
    Accepted(12, TWO),  # the tokenizer has no padding token
    Accepted(12, TWO, ("completion 0: p1| a1</s>",), model="no_bos"),
    # not cut blindly: the first scored token holds both
    Accepted(
        13,
        lines(pair(1, prompt="xa", chosen="b yes")),
        (
            "<s>x|ab yes</s>",
            "<s>xa| b1</s>",
            "moved: in 1 completions the prompt's last tokens are others than alone",
            "is scored: d.jsonl:1",
        ),
        model="merging",
    ),
    Accepted(
        14,
        lines(pair(1), pair(2, chosen="x" * 30)),
        (
            "29 scored, 14 cut (32.56%, budget 90%)",
            (
                "cut: max_length cuts 14 of 43 completion tokens (32.56%): d.jsonl:2 -> raise"
                " max_length"
            ),
        ),
        ("--max-length", "20", "--cut-budget", "0.9"),
    ),
    Accepted(
        15,
        lines(pair(1), pair(2, chosen=" </s> a")),
        (
            "<s>p2| </s> a</s>",
            (
                "special_text: 1 texts in the data spell a special token; they are read as plain"
                " text: d.jsonl:2 ->"
            ),
        ),
    ),
    Accepted(
        16,
        lines({**GROUP, "comparisons": [{"winner": i, "loser": (i + 1) % 3} for i in range(3)]}),
        (
            "3 completions and 3 comparisons",
            (
                "cycles: for 1 prompts the preferences run in a circle (A over B over C over A):"
                " d.jsonl:1"
            ),
        ),
    ),
    Accepted(
        16,
        lines(
            {**GROUP, "comparisons": [{"winner": i, "loser": (i + 1) % 3} for i in range(3)]},
            "{,",
            {**GROUP, "comparisons": [{"winner": 0, "loser": 1}, {"winner": 0, "loser": 2}]},
        ),
        words=("--pairs", "best", *SKIP),
        told=("3 rows, 1 used", "dropped 2 cannot be used"),
    ),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.row)
def test_is_accepted_and_said(here, monkeypatch, capsys, case):
    (here / case.name).write_bytes(case.data)
    (here / "held.jsonl").write_bytes(lines(pair(9), pair(2), pair(8)))
    size = () if "--batch-size" in case.words else ("--batch-size", "1")
    assert (
        runs.winnow(
            monkeypatch, "check", "--model", case.model, "--data", case.name, *size, *case.words
        )
        == case.code
    )
    said = " ".join(capsys.readouterr().out.split())
    for words in case.told or (
        "2 rows, 2 used",
        "completion 0: <s>p1| a1</s>",
        "completion 1: <s>p2| b2</s>",
    ):
        assert words in said


@pytest.mark.slow
def test_a_column_that_nobody_reads_is_told_when_training_begins(
    world, tmp_path, monkeypatch, capsys
):
    (tmp_path / "d.jsonl").write_bytes(lines(pair(1, weihgt=2), pair(2)))
    assert (
        runs.winnow(
            monkeypatch,
            *runs.line(
                "dpo",
                world,
                tmp_path / "run",
                data=[str(tmp_path / "d.jsonl")],
                batch_size=2,
                steps=1,
            ),
        )
        == 0
    )
    assert (
        f"columns of {tmp_path / 'd.jsonl'} that are not read: weihgt (did you mean 'weight'?)"
        in capsys.readouterr().out
    )


# Row 10. The largest row that is read, and one of half a gigabyte: who held it would grow by as
# much.


def memory(name: str) -> int:
    """Of this process, in MiB; VmHWM is its peak."""
    return (
        int(
            next(
                line
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(name)
            ).split()[1]
        )
        >> 10
    )


def test_a_row_of_thirty_megabytes_is_read_and_a_longer_one_is_not(here, monkeypatch, capsys):
    begin, end = b'{"prompt": "', b'", "chosen": " a", "rejected": " b"}\n'
    room = CAP - len(begin) - len(end) + 1  # the line break is not counted
    (here / "d.jsonl").write_bytes(
        lines(PAIR) + begin + b"x" * room + end + begin + b"x" * (room + 1) + end
    )
    assert (
        runs.winnow(monkeypatch, "dpo", "--model", "model", "--data", "d.jsonl", "--out", "run")
        == 2
    )
    where = (
        f"d.jsonl:3: the line is longer than {CAP:,} bytes (byte {len(lines(PAIR)) + CAP + 1:,} on)"
        " -> split or remove the row"
    )
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        f"error: {bad(1)[0]}",
        where,
        MEND,
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_a_line_of_half_a_gigabyte_is_never_held(here, monkeypatch, capsys):
    with (here / "d.jsonl").open("wb") as file:
        file.write(lines(PAIR))
        file.truncate(512 << 20)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    assert (
        runs.winnow(monkeypatch, "dpo", "--model", "model", "--data", "d.jsonl", "--out", "run")
        == 2
    )
    assert memory("VmHWM") - before < 256
    assert "d.jsonl:2: the line is longer than" in capsys.readouterr().err
