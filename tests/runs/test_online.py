"""`winnow online`: what its rounds do is what the commands do, one after the other, and a kill
changes nothing.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import cache

import pytest

import runs
import tiny
from matrix import cases
from winnow.commands import online
from winnow.config.collection import OnlineSettings
from winnow.config.resolve import resolve
from winnow.errors import RunError
from winnow.evaluation.statistics.winrate import interval
from winnow.generation.prompts import name_of
from winnow.reports import online_report, run_report
from winnow.system.files import read_json, read_jsonl, sha256_file

PER_ROUND, HELD = 6, 4
JUDGE = "regex:[A-Za-z]"


@pytest.fixture(scope="module")
def world(brief, tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny.folder(root / "model", hidden_size=16, intermediate_size=32)
    tiny.write(
        root / "prompts.jsonl", [{"prompt": f"{i}: {'green ' * (i % 5)}?"} for i in range(20)]
    )
    return root


def line(world, out, **changes):
    asked = {
        "model": world / "model",
        "prompts": world / "prompts.jsonl",
        "judge": JUDGE,
        "out": out,
        "rounds": 2,
        "per_round": PER_ROUND,
    }
    asked |= {
        "held_out": HELD,
        "k": 3,
        "max_new_tokens": 8,
        "steps": 2,
        "batch_size": 3,
        "lr": 1e-2,
        "kl_samples": 0,
        "reference": "previous",
        **changes,
    }
    return [
        "online",
        *(
            str(word)
            for name, value in asked.items()
            if value is not None
            for word in ("--" + name.replace("_", "-"), value)
        ),
    ]


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """By seed: two rounds that nobody killed."""

    @cache
    def run(seed=0):
        out = tmp_path_factory.mktemp("undisturbed") / "online"
        with pytest.MonkeyPatch.context() as patch:
            assert runs.winnow(patch, *line(world, out, seed=seed)) == 0
        return out

    return run


@pytest.fixture(scope="module")
def whole(undisturbed):
    return undisturbed()


def weights(folder):
    return sha256_file(folder / "model" / "model.safetensors")


def timeless(out):
    """The ledger without what depends on the clock and the folder's name."""
    found = read_json(out / "online.json")
    return [
        {name: value for name, value in row.items() if name != "seconds"} for row in found["rounds"]
    ]


def test_a_round_is_what_the_commands_do_one_after_the_other(world, whole, tmp_path, monkeypatch):
    model = world / "model"
    for number in (1, 2):
        answers, judged, run = (
            tmp_path / f"a{number}.jsonl",
            tmp_path / f"j{number}.jsonl",
            tmp_path / f"run{number}",
        )
        prompts = whole / f"round-{number}.prompts.jsonl"
        sampled = [
            "sample",
            "--model",
            model,
            "--prompts",
            prompts,
            "--k",
            3,
            "--max-new-tokens",
            8,
            "--seed",
            number,
            "--out",
            answers,
        ]
        assert runs.winnow(monkeypatch, *map(str, sampled)) == 0
        assert (
            runs.winnow(monkeypatch, "judge", str(answers), "--judge", JUDGE, "--out", str(judged))
            == 0
        )
        trained = [
            "dpo",
            "--model",
            model,
            "--data",
            judged,
            "--out",
            run,
            "--steps",
            2,
            "--batch-size",
            3,
            "--lr",
            1e-2,
            "--kl-samples",
            0,
        ]
        assert runs.winnow(monkeypatch, *map(str, trained)) == 0
        assert weights(run) == weights(whole / f"round-{number}")
        model = run


def test_the_ledger_says_what_each_round_began_with(world, whole):
    rows = timeless(whole)
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["began_with"] for row in rows] == [None, str(world / "model"), "round-1"]
    assert [row["reference"] for row in rows] == [row["began_with"] for row in rows]
    assert [row.get("prompts") for row in rows] == [None, PER_ROUND, PER_ROUND]
    assert rows[0]["kl"] == 0
    assert rows[1]["kl"] > 0


def test_figures_are_those_of_the_files(whole):
    """The judge prefers the answer with a letter in it; its scores and wins are counted here once
    more.
    """
    said = [read_jsonl(whole / f"round-{number}.held-out.jsonl") for number in (0, 1, 2)]
    assert all(
        [row["prompt"] for row in rows] == [row["prompt"] for row in said[0]] for rows in said
    )
    row = timeless(whole)[2]
    for name, other in (("over_first", said[0]), ("over_previous", said[1])):
        scores = [
            (letters(a), letters(b)) for b, a in zip(other, said[2]) if spoken(a) and spoken(b)
        ]
        wins = [(ours > theirs) + 0.5 * (ours == theirs) for ours, theirs in scores]
        low, high = interval(wins)
        assert {end: row[name][end] for end in ("mean", "low", "high")} == pytest.approx(
            {"mean": sum(wins) / len(wins), "low": low, "high": high}
        )
        assert row[name]["score"]["mean"] == pytest.approx(
            sum(ours for ours, _ in scores) / len(scores)
        )
        assert row[name]["score_gain"]["mean"] == pytest.approx(
            sum(ours - theirs for ours, theirs in scores) / len(scores)
        )
        assert row[name]["invalid"] == HELD - len(scores)
    assert row["length"] == sum(one["tokens"] for one in said[2]) / HELD


def letters(row):
    return float(re.search("[A-Za-z]", row["completion"]) is not None)


def spoken(row):
    return bool(row["completion"].strip()) and "\0" not in row["completion"]


def test_held_out_prompts_are_never_trained_on_and_no_prompt_is_asked_twice(whole):
    asked = [
        [row["prompt"] for row in read_jsonl(whole / f"round-{number}.prompts.jsonl")]
        for number in (0, 1, 2)
    ]
    assert [len(prompts) for prompts in asked] == [HELD, PER_ROUND, PER_ROUND]
    assert len({prompt for prompts in asked for prompt in prompts}) == HELD + 2 * PER_ROUND


def test_prompts_are_asked_again_only_when_all_were():
    asked = [(f"f:{i}", f"prompt {i}") for i in range(11)]
    known = {name_of(text) for _, text in asked[:2]}
    shares = [online._share(asked, known, 3, 5, number, seed=4) for number in range(5)]
    held = {text for _, text in shares[0]}
    drawn = [text for share in shares[1:] for _, text in share]
    assert len(held) == 3
    assert not held & {text for _, text in asked[:2]}
    assert not held & set(drawn)
    assert [len(set(drawn[lap : lap + 8])) for lap in (0, 8)] == [8, 8]
    assert drawn[:8] != drawn[8:16]


WRITTEN = [
    "round-0.prompts.jsonl",
    "round-1.answers.jsonl",
    "round-1/metrics.jsonl",
    "round-2.judged.jsonl",
    "round-2/model",
]


@pytest.mark.process
@pytest.mark.parametrize(
    "point", cases([(point,) for point in WRITTEN], lambda point: point in WRITTEN[2:4])
)
def test_killed_anywhere_it_goes_on_to_the_same(world, undisturbed, tmp_path, seed, point):
    """A real process under SIGKILL as soon as a file is there."""
    out, whole, words = (
        tmp_path / "online",
        undisturbed(seed),
        line(world, tmp_path / "online", seed=seed),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "winnow", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (out / point).exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "online.json").exists() or len(timeless(out)) <= 2
    with pytest.MonkeyPatch.context() as patch:
        assert runs.winnow(patch, *words) == 0
    assert timeless(out) == [same_place(row, whole, out) for row in timeless(whole)]
    assert [weights(out / name) for name in ("round-1", "round-2")] == [
        weights(whole / name) for name in ("round-1", "round-2")
    ]


def same_place(row, old, new):
    return json.loads(json.dumps(row).replace(str(old), str(new)))


@pytest.mark.slow
def test_more_rounds_go_on_from_the_last(world, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "online"
    assert runs.winnow(monkeypatch, *line(world, out, rounds=1)) == 0
    assert len(timeless(out)) == 2
    assert runs.winnow(monkeypatch, *line(world, out)) == 0
    assert timeless(out) == timeless(whole)
    capsys.readouterr()
    assert runs.winnow(monkeypatch, *line(world, out)) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": 1e-3}, "lr: 0.01 -> 0.001"),
        ({"judge": "shorter"}, "-> 'shorter'"),
        ({"limit": 19}, "limit: None -> 19"),
    ],
)
def test_rounds_of_other_settings_are_refused(world, whole, monkeypatch, capsys, changes, told):
    before = (whole / "online.json").read_bytes()
    assert runs.winnow(monkeypatch, *line(world, whole, **changes)) == 2
    assert told in capsys.readouterr().err
    assert (whole / "online.json").read_bytes() == before


def test_other_prompts_are_refused(world, whole, tmp_path, monkeypatch, capsys):
    rows = read_jsonl(world / "prompts.jsonl")
    keep = (world / "prompts.jsonl").read_bytes()
    tiny.write(world / "prompts.jsonl", [*rows[:-1], {"prompt": "another"}])
    try:
        assert runs.winnow(monkeypatch, *line(world, whole)) == 2
        assert "prompts: " in capsys.readouterr().err
    finally:
        (world / "prompts.jsonl").write_bytes(keep)


@pytest.mark.slow
def test_the_reference_stays_the_first_unless_told_otherwise(world, whole, tmp_path, monkeypatch):
    out = tmp_path / "online"
    assert runs.winnow(monkeypatch, *line(world, out, reference=None)) == 0
    assert weights(out / "round-1") == weights(whole / "round-1")
    assert weights(out / "round-2") != weights(whole / "round-2")
    assert [
        read_json(out / f"round-{n}" / "environment.json")["settings"]["reference"] for n in (1, 2)
    ] == [None, str(world / "model")]
    assert [row["reference"] for row in timeless(out)][1:] == [str(world / "model")] * 2


@pytest.mark.parametrize(
    "changes", [{"objective": "simpo"}, {"moving_reference": "mix=0.6"}, {"objective": "tdpo"}]
)
def test_objectives_with_another_reference_or_none_have_theirs(world, tmp_path, changes):
    made = resolve(
        OnlineSettings,
        {"model": "m", "prompts": "p", "judge": "length", "out": tmp_path, **changes},
    )
    assert [
        online._training(made, online.Round(n, tmp_path, "m")).settings.reference for n in (1, 2)
    ] == [None, None]


@pytest.mark.slow
def test_an_adapter_is_trained_on_from_round_to_round(world, tmp_path, monkeypatch):
    out = tmp_path / "online"
    assert runs.winnow(monkeypatch, *line(world, out, lora="r=2", held_out=2, reference=None)) == 0
    first, second = (
        sha256_file(out / name / "model" / "adapter_model.safetensors")
        for name in ("round-1", "round-2")
    )
    assert first != second


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"held_out": 1}, "held_out"),
        ({"held_out": 20}, "20 different prompts, and 20 of them are held out"),
        ({"per_round": 17}, "20 different prompts, and 4 of them are held out"),
        ({"objective": "simpo", "reference": "first"}, "compares with no reference"),
        ({"k": 1}, "k"),
        ({"judge": "column:right"}, "sampled answers have no column"),
        ({"judge": "reward:nowhere"}, "there is no such folder"),
        ({"judge": "http://127.0.0.1:1/v1", "judge_model": "m"}, "nobody replies there"),
        ({"judge": "http://localhost:1/v1"}, "judge_model: an endpoint must be told"),
        ({"stream": 8}, "stream: a round's comparisons are few"),
        ({"judge": "lenght"}, "'lenght' is no rule"),
        ({"judge": "localhost:8000/v1"}, "an address begins with http://"),
        (
            {"judge": "https://h/v1?api-key=abcdef0123456789", "judge_model": "m"},
            "'https://h/v1' is no endpoint's address",
        ),
        (
            {"labels": "soft", "judge": "http://localhost:1/v1", "judge_model": "m"},
            "labels: of no use to a language model",
        ),
        ({"allow_change": "lr"}, "allow_change: rounds that began one way"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(
    world, tmp_path, monkeypatch, capsys, changes, told
):
    assert runs.winnow(monkeypatch, *line(world, tmp_path / "o", **changes)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_report_sets_rounds_side_by_side(whole):
    made = run_report.build([whole])
    assert [row["round"] for row in made["rounds"]] == [0, 1, 2]
    assert [run["name"] for run in made["runs"]] == ["round-1", "round-2"]
    page = (whole / "report.html").read_text()
    for text in ("Rounds", "Wins over the start", "Over the round before", "KL to the start"):
        assert text in page
    assert page == run_report.render(made)


def test_a_damaged_ledger_is_told(whole, tmp_path):
    for content in (
        '{"rounds": [{"round": 1}]}',
        '{"rounds": [{"round": 0, "kl": "much"}]}',
        '{"rounds": 3}',
        "{",
        "{}",
    ):
        (tmp_path / "online.json").write_text(content)
        with pytest.raises(RunError, match=r"online\.json"):
            online_report.read(tmp_path)
