"""`winnow demo` made small: every stage runs, the numbers are those of the files, the same seed gives the same numbers."""

from __future__ import annotations

import math

import pytest

import runs
from winnow import hashes, models
from winnow.files import read_json, read_jsonl
from winnow.measures.winrate import win_rate
from winnow.recipes import demo, world
from winnow.sample import Answer

PROMISED = ("true_reward", "grammatical", "win_rate", "win_rate_low", "win_rate_high", "kl", "accuracy", "length_ratio", "seconds")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "PROMPTS", 24)
    monkeypatch.setattr(demo, "HELD_OUT", 8)
    monkeypatch.setattr(demo, "SFT_STEPS", 40)
    monkeypatch.setattr(demo, "SFT", {**demo.SFT, "steps": 40, "warmup": 4, "eval_every": 20})
    monkeypatch.setattr(demo, "DPO", {**demo.DPO, "steps": 4, "batch_size": 8, "warmup": 1, "eval_every": 2})


def test_the_demo_runs_through_and_reports_what_its_files_say(small, tmp_path, monkeypatch, capsys):
    assert runs.winnow(monkeypatch, "demo", "--out", tmp_path / "first") == 0
    first = capsys.readouterr().out
    assert all(stage in first for stage in ("1 of 4", "2 of 4", "3 of 4", "4 of 4", "win rate over the SFT model", "Report: "))
    summary = read_json(tmp_path / "first" / "report.json")["summary"]
    expected = {f"{name}_{when}" for name in PROMISED[:2] for when in ("before", "after")} | set(PROMISED[2:])
    assert expected <= set(summary)
    assert all(math.isfinite(summary[name]) for name in expected)
    before = [row["scores"] for row in read_jsonl(tmp_path / "first" / "held_out.jsonl")]
    # an answer that ends before its first word is no row of the file, and adds nothing to a reward: an opening has none
    assert summary["true_reward_before"] == pytest.approx(math.fsum(sum(row) for row in before) / (demo.HELD_OUT * demo.K))
    compared = read_jsonl(tmp_path / "first" / "preferences.jsonl")
    assert all(row["comparisons"] for row in compared)
    rewards = [[world.true_reward(row["prompt"] + text) for text in row["completions"]] for row in compared]
    told = [(all_[c["winner"]], all_[c["loser"]]) for all_, row in zip(rewards, compared) for c in row["comparisons"]]
    unequal = [won < lost for won, lost in told if won != lost]
    assert summary["flipped_labels"] == pytest.approx(sum(unequal) / len(unequal))
    assert "displacement" in (tmp_path / "first" / "report.html").read_text()

    assert runs.winnow(monkeypatch, "demo", "--out", tmp_path / "first") == 0  # finished: the table again, nothing else
    again = capsys.readouterr().out
    assert "1 of 4" not in again
    assert again.strip() in first
    assert runs.winnow(monkeypatch, "demo", "--out", tmp_path / "second") == 0
    second = read_json(tmp_path / "second" / "report.json")["summary"]
    assert {name: value for name, value in second.items() if name != "seconds"} == {name: value for name, value in summary.items() if name != "seconds"}
    models_ = [hashes.weights_hash(models.load(str(tmp_path / name / "dpo"), device="cpu").model) for name in ("first", "second")]
    assert models_[0] == models_[1]


def sampled(*texts):
    rewards = [[world.true_reward(text) for text in many] for many in texts]
    answers = [[Answer(tuple(range(len(text.split()))), "." in text) for text in many] for many in texts]
    return demo.Sampled(answers, [list(many) for many in texts], rewards)


def test_an_answer_that_ends_before_its_first_word_is_left_out(tmp_path):
    said = sampled(["p good .", "p ", "p bad ."], ["q ", "q fine ."])
    demo._write_preferences(tmp_path / "rows.jsonl", ["p", "q"], said, 0)
    (row,) = read_jsonl(tmp_path / "rows.jsonl")
    assert (row["prompt"], row["completions"], len(row["comparisons"])) == ("p", [" good .", " bad ."], 1)


def test_the_figures_of_the_summary_are_what_they_say():
    text = "i saw this film and the plot was good . overall it was a good film ."
    before = sampled([text, text.replace("good", "awful")], [text, text])
    after = sampled([text.replace("a good film", "very good film"), text], [text, text.replace(" .", "")])
    summary = demo._summary(before, after, 1.5, 0.75)
    assert (summary["grammatical_before"], summary["grammatical_after"]) == (0.75, 0.5)  # "an awful" is right, "a awful" is not
    assert (summary["kl"], summary["accuracy"], summary["finished"], summary["repeated"]) == (1.5, 0.75, 0.75, 0.0)
    assert summary["words_in_use"] == 1
    assert summary["length_ratio"] == pytest.approx((17 + 17 + 17 + 15) / (4 * 17))
    assert summary["true_reward_after"] == pytest.approx(sum(reward for many in after.rewards for reward in many) / 4)
    assert summary["win_rate"] == win_rate(after.rewards, before.rewards).rate
