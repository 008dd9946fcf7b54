"""`winnow demo` made small: every stage runs, the numbers are those of the files, the same seed
gives the same numbers.
"""

from __future__ import annotations

import math

import pytest
import torch

import runs
from winnow.config.model_spec import ModelSpec
from winnow.data.render import Renderer
from winnow.evaluation.statistics.intervals import mean, share
from winnow.evaluation.statistics.winrate import win_rate
from winnow.experiments import demo, demo_figures, demo_page, reviews_world
from winnow.generation.sampler import Answer
from winnow.models import hashes, loading
from winnow.system.files import read_json, read_jsonl

PROMISED = ("true_reward", "grammatical", "win_rate", "kl", "accuracy", "length_ratio", "seconds")


@pytest.fixture
def small(brief, monkeypatch):
    monkeypatch.setattr(demo, "PROMPTS", 24)
    monkeypatch.setattr(demo, "HELD_OUT", 8)
    monkeypatch.setattr(demo, "SFT_STEPS", 20)
    monkeypatch.setattr(demo, "SFT_BATCH", 16)
    monkeypatch.setattr(
        demo, "SFT", {**demo.SFT, "steps": 20, "batch_size": 16, "warmup": 4, "eval_every": 10}
    )
    monkeypatch.setattr(
        demo, "DPO", {**demo.DPO, "steps": 4, "batch_size": 8, "warmup": 1, "eval_every": 2}
    )


def without_clock(summary):
    """A summary without how long it took: the number, its row and its card."""
    rows = [row for row in summary["titled"] if row["title"] != "Seconds"]
    cards = [card for card in summary["cards"] if card["label"] != "Time"]
    assert (len(rows), len(cards)) == (len(summary["titled"]) - 1, len(summary["cards"]) - 1)
    values = {name: value for name, value in summary.items() if name != "seconds"}
    return values | {"titled": rows, "cards": cards}


@pytest.mark.slow
def test_the_demo_runs_through_and_reports_what_its_files_say(small, tmp_path, monkeypatch, capsys):
    assert runs.winnow(monkeypatch, "demo", "--out", tmp_path / "first") == 0
    first = capsys.readouterr().out
    assert all(
        stage in first
        for stage in (
            "1 of 4",
            "2 of 4",
            "3 of 4",
            "4 of 4",
            "win rate over the SFT model",
            "Report: ",
        )
    )
    summary = read_json(tmp_path / "first" / "report.json")["summary"]
    expected = {f"{name}_{when}" for name in PROMISED[:2] for when in ("before", "after")} | set(
        PROMISED[2:]
    )
    assert expected <= set(summary)
    assert all(math.isfinite(summary[name]) for name in expected)
    before = [row["scores"] for row in read_jsonl(tmp_path / "first" / "held_out.jsonl")]
    # an answer that ends before its first word is no row of the file, and adds nothing to a reward:
    # an opening has none
    assert summary["true_reward_before"] == pytest.approx(
        math.fsum(sum(row) for row in before) / (demo.HELD_OUT * demo.K)
    )
    compared = read_jsonl(tmp_path / "first" / "preferences.jsonl")
    assert all(row["comparisons"] for row in compared)
    rewards = [
        [reviews_world.true_reward(row["prompt"] + text) for text in row["completions"]]
        for row in compared
    ]
    told = [
        (all_[c["winner"]], all_[c["loser"]])
        for all_, row in zip(rewards, compared)
        for c in row["comparisons"]
    ]
    unequal = [won < lost for won, lost in told if won != lost]
    assert summary["flipped_labels"] == pytest.approx(sum(unequal) / len(unequal))
    known = summary["figures"]
    assert {*expected, "true_ties", "repeated"} - {"seconds"} <= set(known)
    assert all(
        known[name]["value"] == summary[name] and known[name]["prompts"] <= demo.HELD_OUT
        for name in known
    )
    assert all(
        one["low"] <= one["value"] <= one["high"]
        for one in known.values()
        if one["low"] is not None
    )
    assert known["true_reward_after"]["count"] == demo.HELD_OUT * demo.K
    finals = read_json(tmp_path / "first" / "dpo" / "environment.json")["held_out"]["eval_"][
        "figures"
    ]["rewards/accuracies"]
    assert known["accuracy"] == finals
    assert "displacement" in (tmp_path / "first" / "report.html").read_text()

    # finished: the table again, nothing else
    assert runs.winnow(monkeypatch, "demo", "--out", tmp_path / "first") == 0
    again = capsys.readouterr().out
    assert "1 of 4" not in again
    assert again.strip() in first
    page = (tmp_path / "first" / "report.html").read_bytes()
    for name in ("report.html", "report.json"):
        (tmp_path / "first" / name).unlink()
    # finished by its summary: the report is drawn again
    assert runs.winnow(monkeypatch, "demo", "--out", tmp_path / "first") == 0
    assert capsys.readouterr().out == again
    assert (tmp_path / "first" / "report.html").read_bytes() == page
    assert runs.winnow(monkeypatch, "demo", "--out", tmp_path / "second") == 0
    second = read_json(tmp_path / "second" / "report.json")["summary"]
    assert without_clock(second) == without_clock(summary)
    models_ = [
        hashes.weights_hash(
            loading.load(ModelSpec(str(tmp_path / name / "dpo"), device="cpu")).model
        )
        for name in ("first", "second")
    ]
    assert models_[0] == models_[1]


def sampled(*texts):
    rewards = [[reviews_world.true_reward(text) for text in many] for many in texts]
    answers = [
        [Answer(tuple(range(len(text.split()))), "." in text) for text in many] for many in texts
    ]
    return demo.Sampled(answers, [list(many) for many in texts], rewards)


def test_an_answer_that_ends_before_its_first_word_is_left_out(tmp_path):
    said = sampled(["p good .", "p ", "p bad ."], ["q ", "q fine ."])
    demo._write_preferences(tmp_path / "rows.jsonl", ["p", "q"], said, 0)
    (row,) = read_jsonl(tmp_path / "rows.jsonl")
    assert (row["prompt"], row["completions"], len(row["comparisons"])) == (
        "p",
        [" good .", " bad ."],
        1,
    )


def test_the_figures_of_the_summary_are_what_they_say():
    text = "i saw this film and the plot was good . overall it was a good film ."
    before = sampled([text, text.replace("good", "awful")], [text, text])
    after = sampled(
        [text.replace("a good film", "very good film"), text], [text, text.replace(" .", "")]
    )
    kl, accuracy = mean([1.0, 2.0], "ab"), share([True, True, True, False], "abcd")
    found = demo_figures.figures(before, after, kl, accuracy)
    assert {
        name: one.value
        for name, one in found.items()
        if name in ("grammatical_before", "grammatical_after", "finished", "repeated")
    } == {
        "grammatical_before": 0.75,  # "an awful" is right, "a awful" is not
        "grammatical_after": 0.5,
        "finished": 0.75,
        "repeated": 0.0,
    }
    assert (found["kl"], found["accuracy"]) == (kl, accuracy)
    assert demo_figures.words_in_use(after) == 1
    assert found["length_ratio"].value == pytest.approx((17 + 17 + 17 + 15) / (4 * 17))
    # each prompt's answers before have 34 tokens, so the interval is that of a mean of two: t with
    # one degree of freedom, 12.706
    assert found["length_ratio"].high - found["length_ratio"].value == pytest.approx(
        12.706 * (34 / 34 - 32 / 34) / 2, rel=1e-4
    )
    assert found["true_reward_after"].value == pytest.approx(
        sum(reward for many in after.rewards for reward in many) / 4
    )
    won = win_rate(after.rewards, before.rewards)
    assert (found["win_rate"].value, found["win_rate"].low, found["win_rate"].high) == (
        won.rate,
        won.low,
        won.high,
    )
    assert found["true_ties"].value == won.ties


def test_the_kl_of_the_summary_is_exact(tmp_path):
    """Against a plain loop over every token, and its own model at no distance."""
    reviews_world.write_tokenizer(tmp_path / "tokenizer")
    tokenizer = loading.load_tokenizer(ModelSpec(str(tmp_path / "tokenizer")))
    for name, seed in (("a", 1), ("b", 2)):
        loading.create(tmp_path / name, tokenizer, seed=seed, **demo.SHAPE)
    a, b = (loading.load(ModelSpec(str(tmp_path / name), device="cpu")) for name in "ab")
    prompts = reviews_world.openings(3, 0)
    said = demo.sampled(a, prompts, 5, k=2)
    answers = []
    for prompt, many in zip(prompts, said.answers, strict=True):
        for answer in many:
            ids = Renderer(tokenizer).prompt_ids(prompt)
            whole = torch.tensor([[*ids, *answer.ids]])
            steps = len(answer.ids) + answer.finished
            with torch.no_grad():
                ours, theirs = (
                    one.model(whole).logits[0, len(ids) - 1 :][:steps].double().log_softmax(-1)
                    for one in (a, b)
                )
            answers.append(float((ours.exp() * (ours - theirs)).sum()))
    found = demo_figures.kl(a, b, prompts, said)
    assert found.value == pytest.approx(sum(answers) / len(answers), rel=1e-5)
    assert (found.count, found.prompts) == (6, 3)
    assert demo_figures.kl(a, a, prompts, said).value == pytest.approx(0.0, abs=1e-5)  # float32


def test_what_the_demo_hands_its_report():
    """Each text once, from numbers that are known; a fall of the share of sentences beyond the
    bound is a warning.
    """
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 64, "prompts": 16, "why": ""}
    summary = dict.fromkeys(demo_page.TITLES, figure["value"]) | {
        "words_in_use": 7,
        "flipped_labels": 0.2,
        "seconds": 125.0,
    }
    summary |= {
        "grammatical_before": 0.95,
        "grammatical_after": 0.06,
        "true_reward_after": -1.0,
        "win_rate": 0.92,
    }
    summary["figures"] = dict.fromkeys(demo_page.TITLES, figure) | {
        "win_rate": {**figure, "value": 0.92, "low": 0.9, "high": 0.94}
    }
    parts = demo_page.parts(summary)
    assert (
        parts["verdict"]
        == "The tuned model wins 92 % of held-out prompts against the model it started from."
    )
    close = {**summary, "figures": {**summary["figures"], "win_rate": figure}}
    assert demo_page.verdict(close).endswith("it started from: too close to tell them apart.")
    (sign,) = parts["warnings"]
    assert (sign["code"], sign["message"]) == (
        "unsound",
        "Grammatical samples fell from 95 % to 6 %: reward is being bought with broken text.",
    )
    assert (
        demo_page.signs({**summary, "grammatical_after": 0.95 - demo_page.GRAMMAR_LOSS + 1e-9})
        == []
    )
    assert [(card["label"], card["value"], card["detail"]) for card in parts["cards"]][:3] == [
        ("Win rate", "92 %", "95 % interval 90–94 %, n = 64 from 16 prompts"),
        ("True reward", "−1.00", "0.50 before; 95 % interval 0.40 to 0.60, n = 64 from 16 prompts"),
        ("Grammatical text", "6 %", "95 % before; 95 % interval 40–60 %, n = 64 from 16 prompts"),
    ]
    assert (parts["cards"][-1]["label"], parts["cards"][-1]["value"]) == ("Time", "2 min 05 s")
    rows = {row["source"].split(": ")[1].removeprefix("figures, "): row for row in parts["titled"]}
    assert list(rows) == [*demo_page.TITLES, *demo_page.COUNTS]
    assert (rows["win_rate"]["n"], rows["kl"]["n"]) == (
        "64 games of 16 prompts",
        "64 answers of 16 prompts",
    )
    assert (rows["words_in_use"]["value"], rows["words_in_use"]["low"]) == (7, None)
