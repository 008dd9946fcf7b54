"""`winnow sample` through the command line: groups to be compared, a file that goes on where it
stopped.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

import runs
import tiny
from winnow.data.prompts import prompts
from winnow.data.sources import load
from winnow.errors import DataError
from winnow.system.files import read_jsonl
from winnow.system.identity import RUN_FORMAT


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny.folder(root / "model")
    tiny.folder(root / "chat", template=tiny.TEMPLATE)
    tiny.write(
        root / "prompts.jsonl", [{"prompt": f"{i}: {'green ' * (i % 5)}?"} for i in range(12)]
    )
    return root


def line(world, out, **changes):
    asked = {
        "model": world / "model",
        "prompts": world / "prompts.jsonl",
        "k": 3,
        "max_new_tokens": 8,
        "out": out,
        **changes,
    }
    return [
        "sample",
        *(
            str(word)
            for name, value in asked.items()
            for word in ("--" + name.replace("_", "-"), value)
        ),
    ]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """What an undisturbed command writes."""
    out = tmp_path_factory.mktemp("whole") / "a.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        assert runs.winnow(patch, *line(world, out)) == 0
    return out.read_bytes()


def same(one, other):
    """Rows of two files: alike to the letter but for the last digits of log-probs, which are
    computed beside other rows.
    """
    ours, theirs = ([json.loads(row) for row in content.splitlines()] for content in (one, other))
    for a, b in zip(ours, theirs, strict=True):
        assert a.pop("logps") == pytest.approx(b.pop("logps"), abs=1e-3)
    return ours == theirs


def test_rows_are_groups_that_are_read_as_they_are(world, whole, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(whole)
    rows = read_jsonl(file)
    assert [row["prompt"] for row in rows] == [
        row["prompt"] for row in read_jsonl(world / "prompts.jsonl")
    ]
    assert [row["from"] for row in rows] == [f"{world / 'prompts.jsonl'}:{n}" for n in range(1, 13)]
    assert all(len(row["completions"]) + row["left_out"] == 3 for row in rows)
    assert all(
        len(row[name]) == len(row["completions"])
        for row in rows
        for name in ("logps", "tokens", "finished")
    )
    assert {json.dumps(row["sampled"]) for row in rows} == {json.dumps(rows[0]["sampled"])}
    how = {
        "k": 3,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 0,
        "sampler": "transformers",
    }
    assert rows[0]["sampled"] | {"weights": ""} == {
        "model": str(world / "model"),
        "weights": "",
        "template": None,
        **how,
        "format": RUN_FORMAT,
    }
    loaded = load(str(file))
    assert (loaded.layout, len(loaded.groups), loaded.problems) == ("grouped", 12, [])


@pytest.mark.parametrize("cut", [0, 1, 700, -20])
def test_it_goes_on_where_it_stopped(world, whole, tmp_path, call, cut):
    out = tmp_path / "a.jsonl"
    out.write_bytes(whole[:cut])
    code, said, _ = call(*line(world, out))
    assert code == 0
    kept = whole[:cut].count(b"\n")
    assert (f"{kept} of 12 prompts are answered already" in said) == (kept > 0)
    assert same(out.read_bytes(), whole)
    before = out.read_bytes()
    code, said, _ = call(*line(world, out))
    assert (code, "nothing to do" in said, out.read_bytes()) == (0, True, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.process
def test_killed_in_the_midst(world, whole, tmp_path):
    """A real process under SIGKILL, once its first rows are there."""
    out = tmp_path / "a.jsonl"
    words = line(world, out, max_new_tokens=230)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not out.exists() or not out.read_bytes().count(b"\n"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen = out.read_bytes().count(b"\n")
    assert 0 < seen < 12
    with pytest.MonkeyPatch.context() as patch:
        assert runs.winnow(patch, *words) == 0
        assert runs.winnow(patch, *line(world, tmp_path / "b.jsonl", max_new_tokens=230)) == 0
    assert same(out.read_bytes(), (tmp_path / "b.jsonl").read_bytes())


SLOWLY = (
    "import sys, winnow.generation.sampler as s; s.ROWS = 3; from winnow.cli import main; main()"
)


def test_the_file_of_another_command_is_refused(world, whole, tmp_path, call):
    out = tmp_path / "a.jsonl"
    out.write_bytes(whole)
    code, _, error = call(*line(world, out, seed=1, temperature=0.5))
    assert (code, "temperature: 1.0 -> 0.5" in error, "seed: 0 -> 1" in error) == (2, True, True)
    tiny.write(tmp_path / "few.jsonl", [{"prompt": "other"}])
    code, _, error = call(*line(world, out, prompts=tmp_path / "few.jsonl"))
    assert (code, "prompts: 12 of its are not asked now" in error) == (2, True)
    assert out.read_bytes() == whole


def test_more_prompts_are_added(world, whole, tmp_path, call):
    out = tmp_path / "a.jsonl"
    assert call(*line(world, out, limit=5))[0] == 0
    assert same(out.read_bytes(), b"".join(whole.splitlines(keepends=True)[:5]))
    assert call(*line(world, out))[0] == 0
    assert same(out.read_bytes(), whole)


def test_chat_prompts_have_chat_answers(world, tmp_path, call):
    tiny.write(
        tmp_path / "p.jsonl",
        [
            {
                "prompt": [
                    {"role": "system", "content": "be kind"},
                    {"role": "user", "content": "hello"},
                ]
            },
            {"prompt": "hello"},
        ],
    )
    out = tmp_path / "a.jsonl"
    assert call(*line(world, out, model=world / "chat", prompts=tmp_path / "p.jsonl"))[0] == 0
    first, second = read_jsonl(out)
    assert [turn["role"] for turn in first["prompt"]] == ["system", "user"]
    assert second["prompt"] == [{"role": "user", "content": "hello"}]
    assert {
        turn["role"] for row in (first, second) for answer in row["completions"] for turn in answer
    } == {"assistant"}
    assert not load(str(out)).problems
    code, _, error = call(
        *line(world, tmp_path / "b.jsonl", model=world / "chat", prompts=tmp_path / "p.jsonl"),
        "--as",
        "text",
    )
    assert (code, "some prompts are text, others lists of messages" in error) == (2, True)


def test_vllm_that_is_not_there_is_told(world, tmp_path, call):
    code, _, error = call(*line(world, tmp_path / "a.jsonl", sampler="vllm"))
    assert (code, "vllm is not installed" in error) == (2, True)


def test_prompts_of_any_data(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert prompts(str(tmp_path / "a.txt")) == [
        (f"{tmp_path}/a.txt:1", "one"),
        (f"{tmp_path}/a.txt:3", "two"),
    ]
    tiny.write(tmp_path / "pairs.jsonl", tiny.pairs(3))
    assert [text for _, text in prompts(str(tmp_path / "pairs.jsonl"), 2)] == [
        row["prompt"] for row in tiny.pairs(2)
    ]
    said = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    tiny.write(
        tmp_path / "chosen.jsonl",
        [{"chosen": said, "rejected": [said[0], {"role": "assistant", "content": "b"}]}],
    )
    ((where, turns),) = prompts(str(tmp_path / "chosen.jsonl"))
    assert (where, [turn.content for turn in turns]) == (f"{tmp_path}/chosen.jsonl:1", ["u"])
    tiny.write(
        tmp_path / "bad.jsonl", [{"prompt": "p"}, {"prompt": 3}, {"other": 1}, {"prompt": said}]
    )
    with pytest.raises(DataError) as told:
        prompts(str(tmp_path / "bad.jsonl"))
    assert [problem.where.rpartition(":")[2] for problem in told.value.problems] == ["2", "3", "4"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="there is no prompt in it"):
        prompts(str(tmp_path / "empty.txt"))
