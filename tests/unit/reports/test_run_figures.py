"""The figures of a run as numbers: intervals, n, steps and sources; and what stands beside before
and after.
"""

from __future__ import annotations

import math

import pytest
from scipy import stats

import runs
import tiny
from report_parts import data, environment, healthy, make
from winnow import api
from winnow.config.evaluation import EvalSettings
from winnow.data.dataset import EVERYTHING, prepare
from winnow.data.render import Renderer
from winnow.generation import prompts as asking
from winnow.reports import run_report, run_summary
from winnow.reports.run_figures import figures
from winnow.system.files import read_json, read_jsonl
from winnow.system.format import wilson


def test_every_figure_names_its_n_step_and_source(tmp_path):
    rows = healthy()
    rows[-1] |= {"kl_low": 2.0, "kl_high": 3.0, "kl_samples": 32}
    made = run_report.build([make(tmp_path / "run", rows=rows)])["runs"][0]
    found = {one["title"]: one for one in made["figures"]}
    assert all(
        one["source"].startswith("metrics.jsonl: ") and isinstance(one["step"], int) and one["n"]
        for one in found.values()
    )
    assert all((one["low"] is None) == bool(one["why"]) for one in found.values())
    accuracy = found["Held-out accuracy"]
    assert (accuracy["value"], accuracy["low"], accuracy["high"]) == pytest.approx(
        (0.75, *wilson(0.75, 100))
    )
    assert (accuracy["n"], accuracy["step"], accuracy["source"]) == (
        "100 comparisons",
        40,
        "metrics.jsonl: eval_rewards/accuracies",
    )
    assert (
        found["KL to the reference, nats per answer"]["low"],
        found["KL to the reference, nats per answer"]["n"],
    ) == (2.0, "32 answers")
    last = [row["loss"] for row in rows if "loss" in row][-10:]
    low, high = stats.t.interval(0.95, 9, sum(last) / 10, stats.sem(last))
    loss = found["Training loss"]
    assert (loss["value"], loss["low"], loss["high"]) == pytest.approx((sum(last) / 10, low, high))
    assert loss["n"] == "10 logged steps"
    assert "winnow eval" in found["Held-out loss"]["why"]


def test_answers_in_training_have_intervals_over_their_prompts(tmp_path):
    """A training on rewards that held nothing out: score, KL and length are the last iteration's,
    with its intervals and its n; of one prompt there are none, and that is said.
    """
    rows = [
        {
            "step": step,
            "score": 0.5 * step,
            "kl": 0.3 * step,
            "length/sampled": 9.0,
            "answers": 64,
            "prompts": 16,
            "entropy": 2.0,
        }
        for step in (1, 2)
    ]
    for row in rows:
        row |= {
            f"{name}_{end}": row[name] + by
            for name in ("score", "kl", "length/sampled")
            for end, by in (("low", -0.25), ("high", 0.25))
        }
    made = run_report.build([make(tmp_path / "run", rows=rows, environment=environment("ppo"))])
    found = {
        one["source"].removeprefix("metrics.jsonl: "): one for one in made["runs"][0]["figures"]
    }
    for name, value in (("score", 1.0), ("kl", 0.6), ("length/sampled", 9.0)):
        one = found[name]
        assert (one["value"], one["low"], one["high"], one["n"], one["step"]) == (
            value,
            value - 0.25,
            value + 0.25,
            "64 answers of 16 prompts",
            2,
        )
        assert one["why"] == ""
    assert [one["title"] for one in made["runs"][0]["figures"]].count(
        "Score of answers in training"
    ) == 1
    assert "95 % interval 0.350 to 0.850, n = 64 from 16 prompts" in next(
        card.detail for card in run_summary.cards(made) if card.label == "KL in training"
    )
    bare = [
        {name: value for name, value in row.items() if not name.endswith(("_low", "_high"))}
        | {"prompts": 1}
        for row in rows
    ]
    made = run_report.build([make(tmp_path / "bare", rows=bare, environment=environment("ppo"))])
    few = [one for one in made["runs"][0]["figures"] if one["low"] is None]
    assert {(one["n"], one["why"]) for one in few} == {
        ("64 answers of 1 prompt", "one prompt has no spread to make an interval of")
    }


def test_the_head_of_the_page_has_the_saved_models_figures_and_intervals(tmp_path):
    """Where the saved model was measured its intervals stand at the top too, not the bound by
    prompts that a training still under way has.
    """
    one = {"value": 0.7534, "low": 0.71, "high": 0.79, "count": 300, "prompts": 60, "why": ""}
    loss = {"value": 0.4321, "low": 0.41, "high": 0.45, "count": 300, "prompts": 60, "why": ""}
    held = {
        "eval_": {
            "figures": {"rewards/accuracies": one, "loss": loss},
            "displacement": None,
            "calibration": None,
        }
    }
    made = run_report.build(
        [make(tmp_path / "run", environment=environment() | {"held_out": held, "saved_step": 40})]
    )
    assert (
        run_summary.verdict(made)
        == "Prefers the chosen answer in 75 % of 300 held-out comparisons (95 % interval 71–79 %)."
    )
    cards = {card.label: card for card in run_summary.cards(made)}
    assert (cards["Held-out accuracy"].at, cards["Held-out accuracy"].interval) == (
        0.7534,
        (0.71, 0.79),
    )
    assert cards["Held-out accuracy"].detail == "95 % interval 71–79 %, n = 300 from 60 prompts"
    assert cards["Held-out loss"].value == "0.432"
    assert "95 % interval 0.410 to 0.450" in cards["Held-out loss"].detail


@pytest.mark.slow
def test_a_saved_model_has_the_figures_that_an_evaluation_gives_it(tmp_path):
    """Every one with its interval and n: those of `winnow eval` on the same rows, and on the page
    of the run.
    """
    (tmp_path / "world").mkdir()
    root = runs.world(tmp_path / "world")
    run = runs.dpo(root, tmp_path / "run", steps=3, lr=1e-3, eval_data=[str(root / "held.jsonl")])
    seen = api.evaluate(model=str(run.root), data=[str(root / "held.jsonl")], device="cpu")
    told = read_json(run.environment)["held_out"]["eval_"]
    theirs = next(iter(seen.report["sets"].values()))
    for part in ("figures", "displacement"):
        assert set(told[part]) == set(theirs[part])
        for name, one in theirs[part].items():
            ours, expected = (
                [one] if isinstance(one, int) else [value for value in one.values() if value != ""]
                for one in (told[part][name], one)
            )
            assert ours == pytest.approx(expected, rel=1e-2, abs=1e-3), name
    made = {row["title"]: row for row in run_report.build([run.root])["runs"][0]["figures"]}
    loss = made["Held-out loss"]
    assert (loss["low"], loss["high"], loss["step"], loss["n"]) == (
        told["figures"]["loss"]["low"],
        told["figures"]["loss"]["high"],
        3,
        "8 comparisons",
    )
    assert loss["value"] == pytest.approx(
        [row for row in read_jsonl(run.metrics) if "eval_loss" in row][-1]["eval_loss"], rel=1e-5
    )
    assert all(
        row["low"] is not None
        for title, row in made.items()
        if "eld-out" in title or "held out" in title
    )


def test_comparisons_of_one_prompt_are_no_more_looks_than_prompts(tmp_path):
    """1,000 comparisons of 50 prompts at 60 %: the headline's interval is that of 50 looks, and
    chance is not ruled out.
    """
    account = data()
    account["eval"]["eval_"] |= {"decided": 1000, "comparisons": 1000, "used": 50}
    rows = [
        {
            **row,
            **(
                {"eval_rewards/accuracies": 0.6}
                if "eval_rewards/accuracies" in row and row["step"]
                else {}
            ),
        }
        for row in healthy()
    ]
    root = make(tmp_path / "run", rows=rows, data=account)
    made = run_report.build([root])
    low, high = wilson(0.6, 50)
    html = run_report.render(made)
    assert (
        "60\u00a0% of 1,000 held-out comparisons (95\u00a0% interval"
        f" {100 * low:.0f}–{100 * high:.0f}\u00a0%)" in html
    )
    assert "1,000 comparisons of 50 prompts" in html
    assert "chance" in [sign["code"] for sign in made["warnings"]]
    assert environment()["plan"]["steps"] == 40
    assert figures(made["runs"][0] | {"data": None, "metrics": []}) == []


def test_prompts_are_drawn_at_random_and_not_the_first_ones(tmp_path):
    """Every seed has another order, the same seed the same; all prompts are there; of training data
    a few of all rows.
    """
    tokenizer = tiny.tokenizer()
    file = tiny.write(tmp_path / "held.jsonl", tiny.pairs(200))
    one, _ = prepare(
        [str(file)], Renderer(tokenizer), EvalSettings(model="m", data=("d",)), EVERYTHING
    )
    first = [group.sequences[0].ids[: group.sequences[0].start] for group in one.groups]
    orders = [
        asking.probe({"eval_": one}, one, Renderer(tokenizer), seed).prompts for seed in (0, 1, 0)
    ]
    assert orders[0] == orders[2] != orders[1] != first != orders[0]
    assert sorted(orders[0]) == sorted(first)
    chosen = [
        [first.index(prompt) for prompt in asking.probe({}, one, Renderer(tokenizer), seed).prompts]
        for seed in range(40)
    ]
    assert {len(some) for some in chosen} == {asking.SHOWN}
    mean = sum(i for some in chosen for i in some) / (40 * asking.SHOWN)
    # of the first ones it would be 2.5
    assert abs(mean - 99.5) < 4 * math.sqrt((200**2 - 1) / 12 / 240)


@pytest.mark.slow
def test_before_and_after_say_how_they_were_drawn(tmp_path):
    (tmp_path / "world").mkdir()
    root = runs.world(tmp_path / "world")
    run = runs.dpo(root, tmp_path / "run", steps=2, eval_data=[str(root / "held.jsonl")])
    rows = read_jsonl(run.samples)
    assert {(row["of"], row["held_out"]) for row in rows} == {(8, True)}
    assert "6 of 8 held-out prompts, drawn at random before training" in run.report_html.read_text()
    last = [row for row in read_jsonl(run.metrics) if "kl" in row][-1]
    assert last["kl_low"] < last["kl"] < last["kl_high"]
    assert last["kl_samples"] == 8
    length = next(
        row
        for row in figures(run_report.build([run.root])["runs"][0])
        if row["title"] == "Length of own answers, tokens"
    )
    assert (length["value"], length["low"], length["high"], length["n"]) == (
        *(last[f"length/sampled{end}"] for end in ("", "_low", "_high")),
        "8 answers",
    )
    assert length["low"] <= length["value"] <= length["high"]
