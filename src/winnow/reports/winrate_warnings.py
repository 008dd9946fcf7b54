"""What the figures of a win rate should tell their reader: pure functions from figures to
sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from winnow.preferences.judging.verdicts import STEADY
from winnow.system.findings import Finding, by_level
from winnow.system.format import number, percent

Figures = Mapping[str, Any]

FEW = 50  # prompts, below which an interval is wide whatever comes out
TIED, INVALID, CUT = 0.3, 0.05, 0.1  # shares of games, games and answers
LEAN = 0.05  # p of the first-read answer's wins, below which the judge minds the place
MOVED = 0.02  # of the win rate by lengths: above, it is a warning
SEVERAL = 3  # comparisons, from which one that is due to chance is to be expected now and then


def warnings(report: Figures) -> list[dict[str, Any]]:
    """Everything worth knowing before a figure is believed, warnings first."""
    found = [doubt for one in report["comparisons"] for doubt in _of_comparison(one, report)]
    alike = [
        (one, why) for one in report["others"] if (why := same(one, report["models"])) is not None
    ]
    found += [
        Finding(
            "note", "same", f"{one['model']} against {one['against']}: {why}, so they are even."
        )
        for one, why in alike
    ]
    found += [*_of_models(report["models"]), *_of_ranking(report["ranking"])]
    if len(report["comparisons"]) + len(report["others"]) >= SEVERAL:
        count = len(report["comparisons"]) + len(report["others"])
        found.append(
            Finding(
                "note",
                "several",
                f"{count} pairs of models are compared, each with an interval of 95 %: of twenty"
                " such intervals one misses by chance.",
            )
        )
    return [finding.to_json() for finding in by_level(found)]


def _of_comparison(one: Figures, report: Figures) -> Iterator[Finding]:
    name, won = f"{one['model']} against {one['against']}", one["win_rate"]
    if (alike := same(one, report["models"])) is not None:
        yield Finding(
            "note", "same", f"{name}: {alike}, so they are even: the 50 % are no finding."
        )
        return
    if won["rate"] is None:
        yield Finding("warning", "no-rate", f"{name}: there is no win rate: {won['why']}.")
        return
    if won["low"] is None:
        yield Finding(
            "warning",
            "no-interval",
            f"{name}: there is no interval: {won['why']}.",
            remedy="Give more prompts.",
        )
        return
    yield from _of_size(name, one)
    yield from _of_verdicts(name, one, report["settings"])
    yield from _of_lengths(name, one)


def same(one: Figures, models: Sequence[Figures]) -> str | None:
    """Why two models cannot but be even; None where they can be anything else."""
    of = {model["name"]: model["same_as"] or model["name"] for model in models}
    if of[one["model"]] == of[one["against"]]:
        return "these are the same weights, asked in the same way, and one's answers stand for both"
    return "all answers are the same to the letter" if one["alike"]["rate"] == 1 else None


def _of_size(name: str, one: Figures) -> Iterator[Finding]:
    won, seen, needed = one["win_rate"], one["detectable"]["difference"], one["needed"]
    if won["low"] <= 0.5 <= won["high"]:
        shown = (
            "no difference at all"
            if seen is None
            else f"a difference of {100 * seen:.0f} points from 50 %, or more,"
        )
        yield Finding(
            "warning",
            "even",
            f"{name}: the interval includes 50 %: either may be better. So many prompts"
            f" ({number(won['prompts'])}) show {shown} four times out of five.",
            remedy=f"For a difference of {100 * needed['difference']:.0f} points give"
            f" {number(needed['prompts'])} prompts.",
        )
    if won["prompts"] < FEW:
        yield Finding(
            "warning",
            "few",
            f"{name}: {number(won['prompts'])} prompts are few.",
            remedy=f"{number(needed['prompts'])} show five points; see docs/evaluation.md.",
        )


def _of_verdicts(name: str, one: Figures, settings: Figures) -> Iterator[Finding]:
    ties, invalid, orders = one["ties"]["rate"], one["invalid"]["rate"], one["orders"]
    if ties > TIED:
        yield Finding(
            "warning",
            "ties",
            f"{name}: {percent(ties)} of games are ties, and count half: they pull the rate to"
            " 50 %.",
            remedy="Look at the sign test beside it.",
        )
    if invalid > INVALID:
        message = (
            f"{name}: {percent(invalid)} of games have no verdict, and are in no figure. If that"
            " has to do with the answers, the rate is off."
        )
        yield Finding(
            "warning",
            "invalid",
            message,
            remedy="Look at the reasons in games.judged.jsonl, and at answers that say nothing.",
        )
    if orders is None:
        return
    if settings["orders"] == "one":
        yield Finding(
            "warning",
            "one-order",
            f"{name}: the judge read each pair in one order only, so its liking for a place is in"
            " the rate.",
            remedy="--orders both",
        )
    elif orders["both"] and orders["alike"] / orders["both"] < STEADY:
        message = (
            f"{name}: asked in the other order the judge says the same in"
            f" {percent(orders['alike'] / orders['both'])} of pairs: it mostly looks at the place."
        )
        yield Finding(
            "warning", "place", message, remedy="Take a stronger judge, or a clearer --question."
        )
    if orders["chance"] is not None and orders["chance"] < LEAN:
        message = (
            f"{name}: what the judge reads first wins"
            f" {percent(orders['first'] / orders['decided'])} of verdicts"
        )
        yield Finding(
            "note",
            "first-read",
            f"{message}; both orders together cancel that."
            if settings["orders"] == "both"
            else f"{message}.",
        )


def _of_lengths(name: str, one: Figures) -> Iterator[Finding]:
    found, longer, won = one["length_controlled"], one["lengths"]["longer"], one["win_rate"]
    if found["rate"] is None:
        yield Finding("note", "no-length", f"{name}: no win rate at equal lengths: {found['why']}.")
        return
    likes = "longer" if found["weight"] > 0 else "shorter"
    differ = (
        longer is not None
        and longer["low"] is not None
        and not longer["low"] <= 0 <= longer["high"]
    )
    if not found["weight_low"] <= 0 <= found["weight_high"] and differ:
        ours = "longer" if longer["mean"] > 0 else "shorter"
        message = (
            f"{name}: verdicts go with length (the {likes} answer is preferred), and these answers"
            f" are {ours} on average. "
        )
        message += (
            f"At equal lengths the rate would be {percent(found['rate'], 1)}, not"
            f" {percent(won['rate'], 1)}."
        )
        moved = abs(found["rate"] - won["rate"]) > MOVED or (found["rate"] > 0.5) != (
            won["rate"] > 0.5
        )
        yield Finding(
            "warning" if moved else "note",
            "length",
            message,
            remedy="Believe the rate at equal lengths only if length is no merit here.",
        )


def _of_models(models: Sequence[Figures]) -> Iterator[Finding]:
    for one in models:
        if one.get("cut", 0.0) > CUT:
            yield Finding(
                "warning",
                "cut",
                f"{one['name']}: {percent(one['cut'])} of its answers were cut off before their"
                " end, and judged so.",
                remedy="--max-new-tokens",
            )
        if one["silent"] > INVALID * (one["answers"] + one["silent"]):
            yield Finding(
                "warning",
                "silent",
                f"{one['name']}: {number(one['silent'])} of its answers have no word, and are not"
                " judged.",
                remedy="Look at its template and end token.",
            )


def _of_ranking(ranking: Figures | None) -> Iterator[Finding]:
    if ranking is None:
        return
    if len(ranking["groups"]) > 1:
        groups = "; ".join(", ".join(row["model"] for row in group) for group in ranking["groups"])
        yield Finding(
            "warning",
            "no-ranking",
            f"There is no ranking of all models: no verdict joins these groups: {groups}.",
            remedy="Look at the games without a verdict.",
        )
    elif len(ranking["settled"]) > 1:
        parts = "; ".join(", ".join(part) for part in ranking["settled"])
        message = (
            f"Between these parts one side won every point: {parts}. How far they are apart nobody"
            " knows; a small ridge alone keeps the strengths finite."
        )
        yield Finding("warning", "ridge", message, remedy="Read the order, not the distance.")
