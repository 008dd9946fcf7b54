"""What the figures of an evaluation should tell its reader: pure functions from the numbers of
report.json to sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from winnow.reports.training_warnings import DISPLACED, FAR, in_words
from winnow.system.figure import Figure, cited, taken_over
from winnow.system.findings import Finding, by_level
from winnow.system.format import number, percent, tenths

Report = Mapping[str, Any]

FEW = 30  # comparisons: with fewer an accuracy's interval is wider than a third


def examine(report: Report) -> list[Finding]:
    """Everything worth a sentence, the loudest first."""
    found = [
        sign
        for name, one in report["sets"].items()
        for sign in _of_set(f"{name}: " if len(report["sets"]) > 1 else "", one)
    ]
    if report["rewardbench"]:
        found += _of_bench(report["rewardbench"])
    return by_level(found)


def _of_set(where: str, one: Mapping[str, Any]) -> Iterator[Finding]:
    if one["trained_on"]:
        yield Finding(
            "warning",
            "trained-on",
            f"{where}These are the rows the run was trained on: nothing here says how it does on"
            " others.",
            remedy="Evaluate on rows it has not seen.",
        )
    yield from _accuracy(where, one["figures"])
    if one["displacement"]:
        yield from _displaced(where, one["displacement"])
    if one["calibration"] and "sureness" in one["calibration"]:
        yield from _sure(where, one["calibration"])
    if (far := one["kl"]) and far["kl"]["value"] > FAR:
        text = (
            f"{where}KL to the reference is {cited(Figure.read(far['kl']), _four)} nats per answer:"
            " the model says what the reference hardly ever would."
        )
        yield Finding("warning", "far", text, remedy="Raise beta, or stop earlier.")
    for finding in one["data"]["findings"]:
        if finding["level"] in ("warning", "error"):
            yield Finding(
                finding["level"],
                finding["code"],
                where + in_words(finding),
                remedy=finding["remedy"],
            )


def _accuracy(where: str, figures: Mapping[str, Any]) -> Iterator[Finding]:
    row = figures.get("rewards/accuracies") or figures.get("raw/accuracies")
    if row is None:
        return
    accuracy = Figure.read(row)
    seen = (
        f"{where}{'Reward' if 'rewards/accuracies' in figures else 'Ranking'} accuracy is"
        f" {cited(accuracy, tenths)}: "
    )
    if accuracy.high is not None and accuracy.high < 0.5:
        yield Finding(
            "warning",
            "chance",
            f"{seen}below chance.",
            remedy="Check that chosen and rejected are not swapped in the data.",
        )
    elif accuracy.low is not None and accuracy.low <= 0.5:
        yield Finding(
            "warning",
            "chance",
            f"{seen}it cannot be told from chance.",
            remedy="Hold out more comparisons before believing it.",
        )
    if accuracy.count < FEW:
        yield Finding(
            "note",
            "few",
            f"{where}Only {accuracy.count} decided comparisons: intervals are wide.",
            remedy="Hold out more.",
        )
    if accuracy.prompts < accuracy.count:
        text = (
            f"{where}{accuracy.count:,} comparisons answer {accuracy.prompts:,} prompts:"
            " intervals are over prompts."
        )
        yield Finding("note", "prompts", text)


def _displaced(where: str, moved: Mapping[str, Any]) -> Iterator[Finding]:
    chosen, rejected = Figure.read(moved["chosen_token"]), moved["rejected_token"]["value"]
    less_likely = Figure.read(moved["less_likely"])
    less = (
        f"{cited(less_likely, tenths)} of chosen answers are less likely than under the reference"
    )
    if (chosen.value or 0.0) <= -DISPLACED:
        beside = f"rejected answers {'lost' if rejected < 0 else 'won'} {number(abs(rejected))}"
        text = (
            f"{where}Chosen answers lost {cited(chosen.negated(), _four)} nats per token,"
            f" {beside}; {less}: displacement."
        )
        yield Finding(
            "warning",
            "displacement",
            text,
            remedy="Consider a higher beta, a lower rate, fewer steps, or an SFT term.",
        )
    elif less_likely.low is not None and less_likely.low > 0.5:
        yield Finding(
            "note",
            "displacement",
            f"{where}{less}.",
            remedy="Watch it: margins can grow while good answers become rare.",
        )


def _sure(where: str, found: Mapping[str, Any]) -> Iterator[Finding]:
    excess = found["sureness"]["excess"]
    if excess["low"] is None or excess["low"] <= 0 <= excess["high"]:
        return
    agreed = sum(one["count"] * one["agreed"] for one in found["bins"]) / found["count"]
    word = "overconfident" if excess["value"] > 0 else "underconfident"
    low, high = sorted(100 * abs(excess[end]) for end in ("low", "high"))
    points = (
        f"{100 * abs(excess['value']):.1f} points (95 % interval {low:.1f} to {high:.1f},"
        f" {taken_over(Figure.read(excess))})"
    )
    text = (
        f"{where}Margins claim {percent(agreed + excess['value'], 1)} and labels agree in"
        f" {percent(agreed, 1)}: {word} by {points}."
    )
    remedy = (
        f"Do not read margins as probabilities: {'shrink' if excess['value'] > 0 else 'stretch'}"
        " them by a temperature first."
    )
    yield Finding("warning" if word == "overconfident" else "note", word, text, remedy=remedy)


def _of_bench(bench: Mapping[str, Any]) -> Iterator[Finding]:
    scores = bench.get("rewards") or bench["raw"]
    if bench["unscored"]:
        many = f"{bench['unscored']:,} row{'' if bench['unscored'] == 1 else 's'}"
        text = (
            f"RewardBench: left out and counted as wrong, as a tie is: {many} whose answers are the"
            " same, or cannot be scored."
        )
        yield Finding(
            "warning", "unscored", text, remedy="Look at what was left out in report.json."
        )
    if scores["other"]:
        yield Finding(
            "note",
            "other",
            "RewardBench: not the benchmark's subsets, so in no section:"
            f" {', '.join(scores['other'])}.",
        )
    if scores["why"]:
        yield Finding(
            "note",
            "sections",
            f"RewardBench: no overall score: {scores['why']}.",
            remedy="Give all rows of the benchmark.",
        )
    there = {name: pair for name, pair in scores["partial"].items() if name in scores["subsets"]}
    if there:
        some = ", ".join(
            f"{name} {own:,} of {whole:,}" for name, (own, whole) in list(there.items())[:5]
        ) + (", ..." if len(there) > 5 else "")
        yield Finding(
            "warning",
            "partial",
            "RewardBench: other numbers of prompts than the benchmark's, so scores are not to be"
            f" set beside others': {some}.",
            remedy="Give all rows.",
        )


def _four(value: float) -> str:
    return number(value, 4)
