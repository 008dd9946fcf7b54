"""Streams: windows of rows while training goes on, equal to the whole data where they hold all of
it, and exactly resumed.
"""

from __future__ import annotations

import json
from itertools import chain

import pytest
import torch

import runs
import tiny
from winnow.config.resolve import resolve
from winnow.config.training import DPOSettings
from winnow.data import hub, sources
from winnow.data.streaming import Windows
from winnow.errors import DataError, SettingsError
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder
from winnow.training import loop

pytestmark = pytest.mark.usefixtures("brief")


def wheres(loaded):
    return [int(group.where.rpartition(":")[2]) for group in loaded.groups]


def test_windows_are_the_rows_in_order_again_and_again(tmp_path):
    tiny.write(tmp_path / "d.jsonl", tiny.pairs(10))
    windows = Windows(str(tmp_path / "d.jsonl"), 4)
    found = [wheres(windows.load(number)) for number in range(7)]
    assert found[:3] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert found[3:6] == found[:3]
    assert found[6] == found[0]
    again = Windows(str(tmp_path / "d.jsonl"), 4)
    assert [wheres(again.load(number)) for number in (4, 1, 2, 6, 5)] == [
        found[number] for number in (4, 1, 2, 6, 5)
    ]
    short = Windows(str(tmp_path / "d.jsonl"), 4, limit=6)
    assert [wheres(short.load(number)) for number in range(3)] == [
        [1, 2, 3, 4],
        [5, 6],
        [1, 2, 3, 4],
    ]


def test_no_more_is_read_than_was_asked_for(tmp_path, monkeypatch):
    """A pipe would do: what is beyond the window has not been looked at."""
    tiny.write(tmp_path / "d.jsonl", tiny.pairs(500))
    seen = []

    def counted(path):
        for row in reader(path):
            seen.append(row.where)
            yield row

    reader = sources.READERS[".jsonl"]
    monkeypatch.setitem(sources.READERS, ".jsonl", counted)
    windows = Windows(str(tmp_path / "d.jsonl"), 20)
    windows.load(0)
    assert len(seen) == 20
    windows.load(3)
    assert len(seen) == 80


def test_a_hub_data_set_is_fetched_as_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "org" / "pairs").mkdir(parents=True)
    (tmp_path / "org" / "pairs" / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in tiny.pairs(9))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = hub.hub_rows("org/pairs", "train", streaming=True)
    assert [row.values["prompt"] for row in rows] == [row["prompt"] for row in tiny.pairs(9)]
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # nothing was converted first


def test_the_first_window_tells_the_layout_of_all(tmp_path):
    """Demonstrations that follow after preferences are rows that do not fit, in whatever window, as
    they are when the file is read whole.
    """
    tiny.write(
        tmp_path / "d.jsonl",
        [*tiny.pairs(4), *({"prompt": "p", "completion": "c"} for _ in range(4))],
    )
    whole = sources.load(str(tmp_path / "d.jsonl"))
    for order in ((0, 1), (1,)):  # resumed in the second window, too
        windows = Windows(str(tmp_path / "d.jsonl"), 4)
        last = [windows.load(number) for number in order][-1]
        assert (last.layout, last.groups) == (whole.layout, [])
        assert [problem.where for problem in last.problems] == [
            problem.where for problem in whole.problems
        ]


def test_an_empty_stream_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text("")
    with pytest.raises(DataError, match="there are 0 rows in it"):
        Windows(str(tmp_path / "d.jsonl"), 4).load(0)
    with pytest.raises(SettingsError, match="a weight mixes data sets"):
        Windows(f"{tmp_path / 'd.jsonl'}@2", 4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": None}, "give steps"),
        ({"data": ["a", "b"]}, "stream reads one data set, and data names 2"),
        ({"eval_fraction": 0.1}, "a stream is never seen whole: give eval_data"),
    ],
)
def test_what_a_stream_cannot_do_is_said(changes, says):
    with pytest.raises(SettingsError, match=says):
        resolve(
            DPOSettings,
            {"model": "M", "data": ["d"], "out": "RUN", "stream": 10, "steps": 5, **changes},
        )


def kept(run: RunFolder):
    return runs.numbers(run), runs.weights(run.model)


def same(one, other):
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], tensor) for name, tensor in other[1].items())


@pytest.mark.parametrize("recipe", [runs.sft, runs.dpo])
def test_a_window_that_holds_all_rows_is_the_whole_data_set(tmp_path, recipe):
    world = runs.world(tmp_path)
    whole, streamed = (
        recipe(world, tmp_path / "whole", steps=8),
        recipe(world, tmp_path / "streamed", steps=8, stream=24),
    )
    rows, weights = kept(streamed)
    same(
        kept(whole),
        (
            [
                {"epoch" if name == "window" else name: value for name, value in row.items()}
                for row in rows
            ],
            weights,
        ),
    )


def test_each_row_is_trained_on_once_in_a_pass_and_scored_by_the_first_weights(
    tmp_path, monkeypatch, capsys
):
    """24 rows in windows of 10, 10 and 4, batches of 5, and the first window again."""
    world, drawn = runs.world(tmp_path), []
    take_step = loop.take_step

    def watched(model, micro, **settings):
        drawn.append(
            [int(where.rpartition(":")[2]) for batch in micro.own for where in batch.wheres]
        )
        return take_step(model, micro, **settings)

    monkeypatch.setattr(loop, "take_step", watched)
    run = runs.dpo(world, tmp_path / "run", stream=10, batch_size=5, steps=7, lr=1e-2)
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("window ")] == [
        "window 2",
        "window 3",
        "window 4",
    ]
    assert [sorted(chain(*drawn[a:b])) for a, b in ((0, 2), (2, 4), (4, 5), (5, 7))] == [
        [*range(1, 11)],
        [*range(11, 21)],
        [*range(21, 25)],
        [*range(1, 11)],
    ]
    rows = runs.numbers(run)
    assert [row["window"] for row in rows if "loss" in row] == [0.5, 1, 1.5, 2, 3, 3.5, 4]
    # ln 2: policy and reference are one
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    # the second window's reference is not the policy of now
    assert abs(rows[2]["loss"] - 0.693147) > 1e-4
    named = runs.dpo(
        world,
        tmp_path / "named",
        stream=10,
        batch_size=5,
        steps=7,
        lr=1e-2,
        reference=str(world / "model"),
    )
    # a reference loaded anew for each window says the same as the policy's own first weights
    same(kept(run), kept(named))


def test_a_window_without_a_usable_row_is_passed_over(tmp_path, capsys):
    world = runs.world(tmp_path)
    rows = tiny.pairs(24)
    rows[10:20] = [{"prompt": "a", "chosen": "b"}] * 10
    tiny.write(world / "train.jsonl", rows)
    run = runs.dpo(world, tmp_path / "run", stream=10, batch_size=5, steps=6, on_bad_row="skip")
    assert "window 2 passed over:" in capsys.readouterr().out
    assert [row["window"] for row in runs.numbers(run) if "loss" in row] == [0.5, 1, 3, 3.5, 4, 6]
    windows = read_json(run.root / "data.json")["windows"]
    assert [(row["window"], row["read"], row["used"], row["dropped"]) for row in windows] == [
        (1, 10, 10, {}),
        (2, 10, 0, {"cannot be used": 10}),
        (3, 4, 4, {}),
        (4, 10, 10, {}),
        (5, 10, 0, {"cannot be used": 10}),
        (6, 4, 4, {}),
    ]
    assert "In 6 windows" in run.report_html.read_text()


def test_a_large_group_in_a_later_window_is_told(tmp_path, capsys):
    world = runs.world(tmp_path)
    rows = tiny.pairs(24)
    rows[15]["chosen"] = "a long answer " * 15
    tiny.write(world / "train.jsonl", rows)
    runs.dpo(world, tmp_path / "run", stream=10, batch_size=5, steps=5, max_tokens=200)
    said = " ".join(capsys.readouterr().out.split())
    assert "window 2: its largest group needs" in said
    assert "window 3: its largest group" not in said


@pytest.mark.slow
def test_a_bad_row_in_a_later_window_stops_the_run_and_names_itself(tmp_path):
    world = runs.world(tmp_path)
    rows = tiny.pairs(24)
    rows[17] = {"prompt": "a", "chosen": "b"}
    tiny.write(world / "train.jsonl", rows)
    whole = runs.dpo(
        world,
        tmp_path / "whole",
        data=[str(tiny.write(tmp_path / "good.jsonl", tiny.pairs(24)))],
        stream=10,
        batch_size=5,
        steps=7,
    )
    with pytest.raises(DataError, match=r"rows that cannot be used: 1") as caught:
        runs.dpo(world, tmp_path / "run", stream=10, batch_size=5, steps=7)
    assert "mend the data and give the same command again" in caught.value.remedy
    assert (
        tmp_path / "run" / "checkpoints" / "step_2"
    ).exists()  # saved before the window was asked for
    tiny.write(world / "train.jsonl", tiny.pairs(24))
    mended = runs.dpo(world, tmp_path / "run", stream=10, batch_size=5, steps=7)
    same(kept(whole), kept(mended))
    tiny.write(world / "train.jsonl", rows)
    run = runs.dpo(world, tmp_path / "lenient", stream=10, batch_size=5, steps=7, on_bad_row="skip")
    assert run.finished
