"""What users hold stays: what commit e51ed53 wrote (runs, exports, votes, verdicts) is read."""

from __future__ import annotations

import json
import shutil
import socket
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

import runs
from paths import TESTS
from winnow.system.files import read_json, read_jsonl, versions, write_json, write_jsonl
from winnow.system.identity import RUN_FORMAT
from winnow.system.run_folder import RunFolder

DATA = TESTS / "data" / "e51ed53"
NOW = versions()["winnow-lm"]
STORE = "1b0d0c39468c091a.safetensors"
TRAINING = """
--model model --data train.jsonl --eval-data held.jsonl --out run --batch-size 8 --steps 4 --lr 1e-3
--save-every 2 --keep 1 --kl-samples 4
"""
LENGTH = "answers.jsonl --judge length"
ENDPOINT = """
answers.jsonl --judge http://127.0.0.1:18765/v1 --judge-model stand-in --key-env none --orders one
--budget 1
"""


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of what the commit wrote, as the current folder, with the cache of that time."""
    copy = tmp_path / "e51ed53"
    shutil.copytree(DATA, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("WINNOW_CACHE", "cache")
    return copy


def test_every_byte_of_the_run_is_as_it_was_written(old, call):
    code, out, _ = call("verify", "run")
    assert (code, "10 files, 0 of them not as they were" in out) == (0, True)
    with (old / "run" / "model" / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    assert call("verify", "run")[0] == 2


def test_a_finished_run_stays_finished(old, call):
    before = runs.tree(old / "run")
    code, out, _ = call("dpo", *TRAINING.split())
    assert (code, "already finished" in out) == (0, True)
    assert {name: file for name, file in runs.tree(old / "run").items() if name != "lock"} == before


def test_the_report_has_the_numbers_of_the_time(old, call):
    from winnow.reports.run_report import build

    assert call("report", "run", "--out", "page.html")[0] == 0
    assert "dpo" in (old / "page.html").read_text()
    then = read_json(old / "run" / "report.json")
    now = json.loads(json.dumps(build(["run"])))
    assert now["runs"][0]["summary"] == then["runs"][0]["summary"]


def test_the_run_generates_what_its_export_does(old, call):
    for model in ("run", "plain"):
        words = ("--prompt", "0: red?", "--temperature", 0, "--max-new-tokens", 8)
        assert call("generate", "--model", model, *words, "--out", f"{model}.jsonl")[0] == 0
    (of_run,), (of_export,) = (read_jsonl(old / f"{model}.jsonl") for model in ("run", "plain"))
    assert of_run["answer"] == of_export["answer"] != [""]
    assert of_run["prompt"] == of_export["prompt"] == "0: red?"


def test_an_export_gives_the_same_weights(old, call):
    assert call("export", "run", "--out", "again")[0] == 0
    then, now = runs.weights(old / "plain"), runs.weights(old / "again")
    assert then.keys() == now.keys()
    assert all(torch.equal(then[name], now[name]) for name in then)


def test_an_evaluation_finds_what_the_training_found(old, call):
    assert call("eval", "--model", "run", "--data", "held.jsonl", "--out", "eval")[0] == 0
    then = read_jsonl(old / "run" / "metrics.jsonl")[-1]
    now = read_json(old / "eval" / "report.json")["summary"]
    for name in ("eval_logps/chosen", "eval_logps/rejected", "eval_rewards/margins"):
        assert now[name] == pytest.approx(then[name], abs=1e-5)


def test_votes_are_counted_as_they_were_given(old, call):
    code, out, _ = call("votes", "stats", "votes.db")
    assert (code, "9" in out) == (0, True)
    assert call("votes", "agreement", "votes.db", "by-length.jsonl")[0] == 0
    assert call("votes", "export", "votes.db", "--out", "rows.jsonl")[0] == 0
    votes = [vote for row in read_jsonl(old / "rows.jsonl") for vote in row["votes"]]
    cast = {("ann", "first"): 2, ("ann", "second"): 2, ("ann", "tie"): 1, ("bob", "first"): 4}
    assert Counter((vote["by"], vote["outcome"]) for vote in votes) == cast


@pytest.mark.parametrize(
    ("file", "words"),
    [("by-length.jsonl", LENGTH), ("by-model.jsonl", ENDPOINT)],
)
def test_verdicts_are_not_given_again(old, call, file, words):
    before = (old / file).read_bytes()
    code, out, _ = call("judge", *words.split(), "--out", file)
    assert (code, "all 6 rows are judged; nothing to do" in out) == (0, True)
    assert (old / file).read_bytes() == before


def test_replies_of_a_language_model_are_not_asked_for_again(old, call):
    """Nobody listens at the address: a request would end the command."""
    with socket.socket() as door:
        assert door.connect_ex(("127.0.0.1", 18765)) != 0
    code, out, _ = call("judge", *ENDPOINT.split(), "--out", "again.jsonl")
    assert (code, "0 requests; 12 replies were there from before" in out) == (0, True)
    then, now = (_verdicts(old / name) for name in ("by-model.jsonl", "again.jsonl"))
    assert then == now
    shutil.rmtree(old / "cache" / "judge")
    assert call("judge", *ENDPOINT.split(), "--out", "third.jsonl")[0] == 2


def _verdicts(file):
    """What the rows say, without the times at which it was said."""
    keys = ("first", "second", "outcome")
    rows = read_jsonl(file)
    said = [[[vote[key] for key in keys] for vote in row["votes"]] for row in rows]
    return [(row["id"], row["comparisons"], votes) for row, votes in zip(rows, said, strict=True)]


def test_a_finished_comparison_of_models_stays_finished(old, call):
    words = "run model --prompts prompts.jsonl --judge length --max-new-tokens 8 --seed 1"
    before = read_json(RunFolder("winrate").report_json)
    code, out, _ = call("winrate", *words.split(), "--out", "winrate")
    assert (code, "is finished; nothing to do" in out, before["headline"] in out) == (0, True, True)
    assert read_json(RunFolder("winrate").report_json) == before


# --- what was begun in another format -------------------------------------------------------------


def test_a_run_of_another_format_is_not_gone_on_with(old, call):
    for file in ("report.json", "manifest.json"):
        (old / "run" / file).unlink()
    shutil.rmtree(old / "run" / "model")
    before = runs.tree(old / "run")
    code, _, error = call("dpo", *TRAINING.split())
    assert (code, f"winnow 0.1.0 began this in format none, and this is winnow {NOW}" in error) == (
        2,
        True,
    )
    assert (
        "finish it with the version of winnow that began it, or begin again with another" in error
    )
    assert {name: file for name, file in runs.tree(old / "run").items() if name != "lock"} == before
    _as_now(old / "run" / "environment.json")
    assert call("dpo", *TRAINING.split())[0] == 0
    then, now = (runs.weights(folder) for folder in (DATA / "run" / "model", old / "run" / "model"))
    assert all(torch.equal(then[name], now[name]) for name in then)


def _as_now(file):
    """The same record with this version's format."""
    write_json(file, {**read_json(file), "format": RUN_FORMAT})


def test_a_finished_run_of_another_format_is_not_changed(old, call):
    code, _, error = call("dpo", *TRAINING.split(), "--beta", 0.3, "--allow-change", "beta")
    assert (code, "began this in format none" in error) == (2, True)


def test_models_half_compared_in_another_format_are_not_gone_on_with(old, call):
    words = "run model --prompts prompts.jsonl --judge length --max-new-tokens 8 --seed 1"
    (old / "winrate" / "report.json").unlink()
    code, _, error = call("winrate", *words.split(), "--out", "winrate")
    assert (code, "winrate: winnow 0.1.0 began this in format none" in error) == (2, True)
    (old / "winrate" / "winrate.json").unlink()
    shutil.rmtree(old / "winrate")
    assert call("winrate", *words.split(), "--out", "winrate")[0] == 0
    then, now = (read_json(root / "winrate" / "report.json") for root in (DATA, old))
    assert then["comparisons"] == now["comparisons"]


def test_rows_of_another_format_get_no_company(old, call):
    """Verdicts of all rows are read; where some are lacking, none are put beside them."""
    rows = read_jsonl(old / "by-length.jsonl")
    write_jsonl(old / "by-length.jsonl", rows[:3])
    words = ("judge", *LENGTH.split(), "--out", "by-length.jsonl")
    code, _, error = call(*words)
    assert (code, "began this in format none" in error) == (2, True)
    assert read_jsonl(old / "by-length.jsonl") == rows[:3]
    (old / "by-length.jsonl").unlink()
    assert call(*words)[0] == 0
    new = read_jsonl(old / "by-length.jsonl")
    assert {row["judged"]["format"] for row in new} == {RUN_FORMAT}
    write_jsonl(old / "by-length.jsonl", new[:3])
    assert call(*words)[0] == 0
    assert [row["comparisons"] for row in read_jsonl(old / "by-length.jsonl")] == [
        row["comparisons"] for row in rows
    ]


def test_answers_of_another_format_get_no_company(old, call):
    words = (
        "sample",
        "--model",
        "model",
        "--prompts",
        "prompts.jsonl",
        "--k",
        2,
        "--max-new-tokens",
        8,
    )
    assert call(*words, "--limit", 2, "--out", "said.jsonl")[0] == 0
    rows = read_jsonl(old / "said.jsonl")
    assert [row["sampled"].pop("format") for row in rows] == [RUN_FORMAT] * 2
    write_jsonl(old / "said.jsonl", rows)
    assert call(*words, "--limit", 2, "--out", "said.jsonl")[0] == 0
    code, _, error = call(*words, "--out", "said.jsonl")
    assert (code, "began this in format none" in error) == (2, True)


@pytest.mark.slow
def test_rounds_of_another_format_are_not_gone_on_with(old, call):
    words = "--model model --prompts prompts.jsonl --judge length --held-out 2 --per-round 3 --k 2"
    more = "--max-new-tokens 8 --steps 1 --batch-size 1 --kl-samples 0 --out rounds"
    rounds = ("online", *words.split(), *more.split(), "--rounds")
    assert call(*rounds, 1)[0] == 0
    ledger = read_json(old / "rounds" / "online.json")
    assert ledger.pop("format") == RUN_FORMAT
    write_json(old / "rounds" / "online.json", ledger)
    assert call(*rounds, 1)[0] == 0
    code, _, error = call(*rounds, 2)
    assert (code, f"winnow {NOW} began this in format none" in error) == (2, True)
    _as_now(old / "rounds" / "online.json")
    assert call(*rounds, 2)[0] == 0


def test_rewards_half_trained_in_another_format_are_not_gone_on_with(old, call):
    words = "--model model --prompts prompts.jsonl --reward score.py:score --k 2 --max-new-tokens 8"
    (old / "score.py").write_text("def score(prompt, completion):\n    return len(completion)\n")
    more = "--batch-size 2 --epochs 1 --save-every 1 --out ppo --steps"
    assert call("ppo", *words.split(), *more.split(), 1)[0] == 0
    (old / "ppo" / "manifest.json").unlink()
    (old / "ppo" / "report.json").unlink()
    head = read_json(old / "ppo" / "environment.json")
    assert head["format"] == RUN_FORMAT
    write_json(old / "ppo" / "environment.json", {**head, "format": RUN_FORMAT + 1})
    code, _, error = call("ppo", *words.split(), *more.split(), 1)
    assert (code, f"winnow {NOW} began this in format {RUN_FORMAT + 1}" in error) == (2, True)


def test_a_frontier_half_made_in_another_format_is_not_gone_on_with(old, call):
    (old / "frontier").mkdir()
    ledger = {"schema": 1, "settings": {}, "worlds": {}, "points": []}
    write_json(old / "frontier" / "frontier.json", ledger)
    code, _, error = call("frontier", "--out", "frontier", "--quick")
    assert (code, "frontier: winnow of an unrecorded version began this" in error) == (2, True)
    _as_now(old / "frontier" / "frontier.json")
    code, _, error = call("frontier", "--out", "frontier", "--quick")
    assert (code, "its points were made with other settings" in error) == (2, True)


@pytest.mark.slow
def test_a_stored_reference_of_another_format_is_computed_again(old, call):
    shutil.rmtree(old / "run")
    said = "is in the format of another version of winnow: computed again"
    code, out, _ = call("dpo", *TRAINING.split())
    assert (code, out.count(said), out.count("kept for other runs")) == (0, 2, 2)
    then, now = (load_file(root / "cache" / "reference" / STORE)["logp"] for root in (DATA, old))
    assert torch.equal(then, now)
    code, out, _ = call("dpo", *TRAINING.replace("--out run", "--out other").split())
    assert (code, out.count(said), out.count("log-probs read from")) == (0, 0, 2)
