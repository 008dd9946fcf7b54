"""What the figures of an evaluation should tell its reader: pure functions from the numbers of
report.json to sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from winnow.reports.training_warnings import DISPLACED, FAR, Sign, in_words
from winnow.system.format import number, percent

Report = Mapping[str, Any]

FEW = 30  # comparisons: with fewer an accuracy's interval is wider than a third


def examine(report: Report) -> list[Sign]:
    """Everything worth a sentence, the loudest first."""
    found = [
        sign
        for name, one in report["sets"].items()
        for sign in _of_set(f"{name}: " if len(report["sets"]) > 1 else "", one)
    ]
    if report["rewardbench"]:
        found += _of_bench(report["rewardbench"])
    rank = {"error": 0, "warning": 1}
    return sorted(found, key=lambda sign: rank.get(sign.level, 2))


def _of_set(where: str, one: Mapping[str, Any]) -> Iterator[Sign]:
    if one["trained_on"]:
        yield Sign(
            "trained-on",
            f"{where}These are the rows the run was trained on: nothing here says how it does on"
            " others.",
            "Evaluate on rows it has not seen.",
        )
    yield from _accuracy(where, one["figures"])
    if one["displacement"]:
        yield from _displaced(where, one["displacement"])
    if one["calibration"] and "sureness" in one["calibration"]:
        yield from _sure(where, one["calibration"])
    if (far := one["kl"]) and far["kl"]["value"] > FAR:
        text = (
            f"{where}KL to the reference is {cited(far['kl'])} nats per answer: the model says what"
            " the reference hardly ever would."
        )
        yield Sign("far", text, "Raise beta, or stop earlier.")
    for finding in one["data"]["findings"]:
        if finding["level"] in ("warning", "error"):
            yield Sign(
                finding["code"], where + in_words(finding), finding["remedy"], finding["level"]
            )


def _accuracy(where: str, figures: Mapping[str, Any]) -> Iterator[Sign]:
    accuracy = figures.get("rewards/accuracies") or figures.get("raw/accuracies")
    if accuracy is None:
        return
    seen = (
        f"{where}{'Reward' if 'rewards/accuracies' in figures else 'Ranking'} accuracy is"
        f" {cited(accuracy, share=True)}: "
    )
    if accuracy["high"] is not None and accuracy["high"] < 0.5:
        yield Sign(
            "chance",
            f"{seen}below chance.",
            "Check that chosen and rejected are not swapped in the data.",
        )
    elif accuracy["low"] is not None and accuracy["low"] <= 0.5:
        yield Sign(
            "chance",
            f"{seen}it cannot be told from chance.",
            "Hold out more comparisons before believing it.",
        )
    if accuracy["count"] < FEW:
        yield Sign(
            "few",
            f"{where}Only {accuracy['count']} decided comparisons: intervals are wide.",
            "Hold out more.",
            "note",
        )
    if accuracy["prompts"] < accuracy["count"]:
        text = (
            f"{where}{accuracy['count']:,} comparisons answer {accuracy['prompts']:,} prompts:"
            " intervals are over prompts."
        )
        yield Sign("prompts", text, "", "note")


def _displaced(where: str, moved: Mapping[str, Any]) -> Iterator[Sign]:
    chosen, rejected = moved["chosen_token"], moved["rejected_token"]["value"]
    less = (
        f"{cited(moved['less_likely'], share=True)} of chosen answers are less likely than under"
        " the reference"
    )
    if chosen["value"] <= -DISPLACED:
        beside = f"rejected answers {'lost' if rejected < 0 else 'won'} {number(abs(rejected))}"
        text = (
            f"{where}Chosen answers lost {_turned(chosen)} nats per token, {beside}; {less}:"
            " displacement."
        )
        yield Sign(
            "displacement",
            text,
            "Consider a higher beta, a lower rate, fewer steps, or an SFT term.",
        )
    elif moved["less_likely"]["low"] is not None and moved["less_likely"]["low"] > 0.5:
        yield Sign(
            "displacement",
            f"{where}{less}.",
            "Watch it: margins can grow while good answers become rare.",
            "note",
        )


def _sure(where: str, found: Mapping[str, Any]) -> Iterator[Sign]:
    excess = found["sureness"]["excess"]
    if excess["low"] is None or excess["low"] <= 0 <= excess["high"]:
        return
    agreed = sum(one["count"] * one["agreed"] for one in found["bins"]) / found["count"]
    word = "overconfident" if excess["value"] > 0 else "underconfident"
    low, high = sorted(100 * abs(excess[end]) for end in ("low", "high"))
    points = (
        f"{100 * abs(excess['value']):.1f} points (95 % interval {low:.1f} to {high:.1f},"
        f" {counted(excess)})"
    )
    text = (
        f"{where}Margins claim {percent(agreed + excess['value'], 1)} and labels agree in"
        f" {percent(agreed, 1)}: {word} by {points}."
    )
    remedy = (
        f"Do not read margins as probabilities: {'shrink' if excess['value'] > 0 else 'stretch'}"
        " them by a temperature first."
    )
    yield Sign(word, text, remedy, "warning" if word == "overconfident" else "note")


def _of_bench(bench: Mapping[str, Any]) -> Iterator[Sign]:
    scores = bench.get("rewards") or bench["raw"]
    if bench["unscored"]:
        many = f"{bench['unscored']:,} row{'' if bench['unscored'] == 1 else 's'}"
        text = (
            f"RewardBench: left out and counted as wrong, as a tie is: {many} whose answers are the"
            " same, or cannot be scored."
        )
        yield Sign("unscored", text, "Look at what was left out in report.json.")
    if scores["other"]:
        yield Sign(
            "other",
            "RewardBench: not the benchmark's subsets, so in no section:"
            f" {', '.join(scores['other'])}.",
            "",
            "note",
        )
    if scores["why"]:
        yield Sign(
            "sections",
            f"RewardBench: no overall score: {scores['why']}.",
            "Give all rows of the benchmark.",
            "note",
        )
    there = {name: pair for name, pair in scores["partial"].items() if name in scores["subsets"]}
    if there:
        some = ", ".join(
            f"{name} {own:,} of {whole:,}" for name, (own, whole) in list(there.items())[:5]
        ) + (", ..." if len(there) > 5 else "")
        yield Sign(
            "partial",
            "RewardBench: other numbers of prompts than the benchmark's, so scores are not to be"
            f" set beside others': {some}.",
            "Give all rows.",
        )


def cited(figure: Mapping[str, Any], *, share: bool = False) -> str:
    """A figure as it stands in a sentence: value, interval, n."""
    between = "" if figure["low"] is None else f"95 % interval {span(figure, share=share)}, "
    return f"{shown(figure['value'], share=share)} ({between}{counted(figure)})"


def counted(figure: Mapping[str, Any]) -> str:
    """What a figure was taken over."""
    prompts = (
        f" from {figure['prompts']:,} prompt{'' if figure['prompts'] == 1 else 's'}"
        if figure["prompts"] != figure["count"]
        else ""
    )
    return f"n = {figure['count']:,}{prompts}"


def span(figure: Mapping[str, Any], *, share: bool = False) -> str:
    """A figure's interval, or why there is none."""
    return (
        f"no interval: {figure['why']}"
        if figure["low"] is None
        else f"{shown(figure['low'], share=share)} to {shown(figure['high'], share=share)}"
    )


def beside(figure: Mapping[str, Any], *, share: bool = False) -> str:
    """A figure in a table of many: its interval in brackets, where it has one; why one has none is
    said once below (`reasons`).
    """
    return shown(figure["value"], share=share) + (
        "" if figure["low"] is None else f" ({span(figure, share=share)})"
    )


def reasons(parts: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Why figures of slices have no interval, each reason once."""
    found = dict.fromkeys(
        part[name]["why"]
        for part in parts.values()
        for name in names
        if name in part and part[name]["low"] is None
    )
    return f"Without brackets: {'; '.join(found)}." if found else ""


def shown(value: float, *, share: bool = False) -> str:
    """A figure's value, or an end of its interval."""
    return percent(value, 1) if share else number(value, 4)


def _turned(figure: Mapping[str, Any]) -> str:
    """A loss as an amount above 0."""
    ends: Sequence[float | None] = (
        (None, None) if figure["low"] is None else (-figure["high"], -figure["low"])
    )
    return cited({**figure, "value": -figure["value"], "low": ends[0], "high": ends[1]})
