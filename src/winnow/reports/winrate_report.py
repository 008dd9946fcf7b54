"""How win rates stand on a terminal and on a page of their own: a sentence, cards, a drawing,
tables of cells. No figure is made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from winnow.reports import run_report as pages
from winnow.reports.doubts import same
from winnow.reports.headline import Card
from winnow.reports.plots import DASHES, MARKERS, RUN_INKS, Drawing, Line, Panel, draw_one
from winnow.reports.votes_report import chance, nats
from winnow.system.files import write_atomic
from winnow.system.format import interval, number, percent, plural, signed
from winnow.system.run_folder import RunFolder

Figures = Mapping[str, Any]

# What each figure is made of; the docs say when it is honest.
FIGURES = {
    "win_rate": (
        "measures.winrate.share: mean over prompts of the share of games won, ties half; Wilson's"
        " interval at the effective number of prompts"
    ),
    "ties, invalid, alike": (
        "matches.portion: mean over prompts of the share of games; the same interval"
    ),
    "length_controlled": (
        "measures.lengths.controlled: P(win) = s(theta + phi tanh(d / sd)) at d = 0; sandwich over"
        " prompts, Student's t"
    ),
    "lengths, score_gain": (
        "matches.mean: mean over prompts of means of games, Student's t; lengths in characters"
    ),
    "sign_test": "measures.winrate.sign_test: exact, two-sided, over prompts that have a winner",
    "detectable, needed": (
        "measures.winrate.detectable, prompts_needed: two-sided 5 %, power 80 %, at these prompts'"
        " own spread around 50 %"
    ),
    "orders": (
        "collect.rulings.position: pairs asked in both orders; Wilson's interval; exact binomial p"
    ),
    "ranking": (
        "collect.bradley_terry.fit over the games of all pairs; sandwich over prompts where it is"
        " wider"
    ),
    "temperatures": (
        "the same figures, of answers sampled at that temperature against the baseline's own"
    ),
}


def write(folder: Path, report: Figures) -> None:
    """Draw `report.html` from the figures of `report.json`."""
    write_atomic(RunFolder(folder).report_html, render(report))


def headline(report: Figures) -> str:
    """The outcome in one sentence: of several models the one that does best against the
    baseline.
    """
    one = best(report)
    if (alike := same(one, report["models"])) is not None:
        return f"{one['model']} and {one['against']} are even, 50 %, as they must be: {alike}."
    won = one["win_rate"]
    if won["rate"] is None or won["low"] is None:
        return f"Nothing can be said of {one['model']} against {one['against']}: {won['why']}."
    close = ": too close to tell them apart" if won["low"] <= 0.5 <= won["high"] else ""
    sure = f"95 % interval {interval(won, 1)}, {plural(won['prompts'], 'prompt')}"
    return (
        f"{one['model']} wins {percent(won['rate'], 1)} of games against {one['against']}"
        f" ({sure}){close}."
    )


def best(report: Figures) -> Figures:
    """The comparison with the baseline that the sentence and the cards are of."""
    found: Figures = max(
        report["comparisons"],
        key=lambda one: -1.0 if one["win_rate"]["rate"] is None else one["win_rate"]["rate"],
    )
    return found


def tables(report: Figures) -> list[dict[str, Any]]:
    """Titles, heads and rows of text, for the terminal and the page."""
    ones = report["comparisons"]
    found = [
        {
            "title": f"Against {ones[0]['against']}",
            "heads": ["", *(one["model"] for one in ones)],
            "rows": _rows(ones),
        }
    ]
    if report["others"]:
        rows = [
            {
                "name": f"{one['model']} against {one['against']}",
                "cells": [_share(one["win_rate"]), _share(one["length_controlled"])],
            }
            for one in report["others"]
        ]
        found.append(
            {
                "title": "The others against each other",
                "heads": ["", "Win rate", "At equal lengths"],
                "rows": rows,
            }
        )
    if report["ranking"]:
        found += _ranked(report["ranking"])
    if report["temperatures"]:
        found.append(_heated(report["temperatures"]))
    return found


def _rows(ones: Sequence[Figures]) -> list[dict[str, Any]]:
    """A row per figure, a column per comparison; what no comparison has is left out."""
    shown = (
        ("Win rate, ties half", lambda one: _share(one["win_rate"])),
        ("Win rate at equal lengths", lambda one: _share(one["length_controlled"])),
        ("  weight of length", lambda one: _weight(one["length_controlled"])),
        ("Characters longer", lambda one: _mean(one["lengths"]["longer"], gain=True)),
        ("  its own", lambda one: _mean(one["lengths"]["ours"])),
        ("  the baseline's", lambda one: _mean(one["lengths"]["theirs"])),
        ("Judge's score gained", lambda one: _mean(one["score_gain"], gain=True)),
        (
            "Prompts better, worse, even",
            lambda one: (
                f"{number(one['sign_test']['better'])}, {number(one['sign_test']['worse'])},"
                f" {number(one['sign_test']['even'])}"
            ),
        ),
        ("  sign test", lambda one: chance(one["sign_test"]["p"])),
        ("Ties", lambda one: _share(one["ties"])),
        ("Without a verdict", lambda one: _share(one["invalid"])),
        ("Same answer to the letter", lambda one: _share(one["alike"])),
        ("Same verdict in both orders", lambda one: _steady(one["orders"])),
        ("What is read first wins", lambda one: _place(one["orders"])),
        ("Difference from 50 % that would have been seen", lambda one: _seen(one["detectable"])),
        ("Prompts that show 5 points", lambda one: number(one["needed"]["prompts"])),
        (
            "Prompts with a verdict, games",
            lambda one: (
                f"{number(one['win_rate']['prompts'])} of {number(one['asked'])},"
                f" {number(one['win_rate']['games'])}"
            ),
        ),
    )
    rows = [{"name": title, "cells": [cell(one) for one in ones]} for title, cell in shown]
    return [row for row in rows if any(row["cells"])]


def _share(one: Figures) -> str:
    """A share with its interval and prompts. Why there is none stands among the notes."""
    if one["rate"] is None:
        return "undefined" if one.get("why") else ""
    inner = "no interval" if one["low"] is None else interval(one, 1)
    return f"{percent(one['rate'], 1)} ({inner}, n = {number(one['prompts'])})"


def _weight(one: Figures) -> str:
    return (
        ""
        if one["weight"] is None
        else (
            f"{nats(one['weight'])} nats ({nats(one['weight_low'])} to {nats(one['weight_high'])},"
            f" n = {number(one['prompts'])})"
        )
    )


def _mean(one: Figures | None, *, gain: bool = False) -> str:
    if one is None:
        return ""
    say = signed if gain else number
    inner = "no interval" if one["low"] is None else f"{say(one['low'])} to {say(one['high'])}"
    return f"{say(one['mean'])} ({inner}, n = {number(one['prompts'])})"


def _span(one: Figures) -> str:
    inner = (
        "no interval"
        if one["low"] is None
        else f"95 % interval {signed(one['low'])} to {signed(one['high'])}"
    )
    return f"{inner}, n = {number(one['prompts'])} prompts"


def _steady(one: Figures | None) -> str:
    if not one or not one["both"]:
        return ""
    return (
        f"{percent(one['alike'] / one['both'], 1)} ({interval(one, 1)}, n = {number(one['both'])}"
        " pairs)"
    )


def _place(one: Figures | None) -> str:
    return (
        ""
        if not one or not one["decided"]
        else (
            f"{percent(one['first'] / one['decided'], 1)} of {number(one['decided'])} verdicts,"
            f" {chance(one['chance'])}"
        )
    )


def _seen(one: Figures) -> str:
    return (
        "more than there can be"
        if one["difference"] is None
        else f"{100 * one['difference']:.1f} points (n = {number(one['prompts'])})"
    )


def _ranked(ranking: Figures) -> list[dict[str, Any]]:
    """Strengths of each group of models that verdicts join, the strongest first."""
    heads = ["Model", "Strength in nats", "Wins against mean strength", "Games"]
    found = []
    for group in ranking["groups"]:
        rows = []
        for one in group:
            at, low, high = (1 / (1 + math.exp(-one[name])) for name in ("strength", "low", "high"))
            strength = f"{nats(one['strength'])} ({nats(one['low'])} to {nats(one['high'])})"
            cells = [
                strength,
                f"{percent(at, 1)} ({interval({'low': low, 'high': high}, 1)})",
                number(one["games"]),
            ]
            rows.append({"name": one["model"], "cells": cells, "at": at, "interval": (low, high)})
        found.append(
            {
                "title": f"Bradley-Terry over {plural(ranking['prompts'], 'prompt')}",
                "heads": heads,
                "rows": rows,
            }
        )
    return found


def _heated(points: Sequence[Figures]) -> dict[str, Any]:
    """A row per temperature, a column per model."""
    names = list(dict.fromkeys(one["model"] for one in points))
    known = {(one["model"], one["temperature"]): one for one in points}
    rows = [
        {"name": f"{heat:g}", "cells": [_share(known[name, heat]["win_rate"]) for name in names]}
        for heat in sorted({one["temperature"] for one in points})
    ]
    return {
        "title": f"Win rate over {points[0]['against']} by sampling temperature",
        "heads": ["Temperature", *names],
        "rows": rows,
    }


def drawing(report: Figures) -> Drawing | None:
    """The win rate over the baseline at each temperature, a line per model; None where no
    temperatures were asked for.
    """
    points = [one for one in report["temperatures"] if one["win_rate"]["low"] is not None]
    if not points:
        return None
    panel = Panel(
        f"Win rate over {points[0]['against']}",
        f"By sampling temperature; the answers of {points[0]['against']} stay as they are. Bars: 95"
        " % intervals over prompts. The line across: 50 %.",
        (),
        0.5,
        axis="temperature",
    )
    lines = []
    for i, name in enumerate(dict.fromkeys(one["model"] for one in points)):
        own = [one for one in points if one["model"] == name]
        spans = tuple((one["win_rate"]["low"], one["win_rate"]["high"]) for one in own)
        series = [(one["temperature"], one["win_rate"]["rate"]) for one in own]
        lines.append(
            Line(
                series,
                "",
                name,
                RUN_INKS[i % 6],
                list(DASHES)[i // 6 % 3],
                MARKERS[i % 6],
                spans=spans,
            )
        )
    return draw_one(panel, lines)


def cards(report: Figures) -> list[Card]:
    """The key figures of the headline's comparison."""
    one = best(report)
    if why := same(
        one, report["models"]
    ):  # nothing was drawn that could have come out otherwise: no interval, and nothing to be seen
        return [Card("Win rate", "50 %", f"as it must be: {why}", 0.5)]
    found = [
        _card("Win rate", one["win_rate"]),
        _card("At equal lengths", one["length_controlled"]),
    ]
    if (longer := one["lengths"]["longer"]) is not None:
        found.append(
            Card(
                "Length",
                signed(longer["mean"]),
                f"characters beside {one['against']}’s; {_span(longer)}",
            )
        )
    if one["score_gain"] is not None:
        found.append(
            Card(
                "Judge's score",
                signed(one["score_gain"]["mean"]),
                f"gained; {_span(one['score_gain'])}",
            )
        )
    found += [
        _card("Ties", one["ties"], bar=False),
        _card("Without a verdict", one["invalid"], bar=False),
    ]
    if (orders := one["orders"]) and orders["both"]:
        steady = {
            "rate": orders["alike"] / orders["both"],
            "low": orders["low"],
            "high": orders["high"],
            "prompts": orders["both"],
        }
        found.append(_card("Same verdict in both orders", steady, of="pairs"))
    seen = one["detectable"]
    found.append(
        Card(
            "Would have been seen",
            _seen(seen).partition(" (")[0],
            f"from 50 %, by {plural(seen['prompts'], 'prompt')}, four times out of five",
        )
    )
    return found


def _card(label: str, one: Figures, *, bar: bool = True, of: str = "prompts") -> Card:
    if one["rate"] is None:
        return Card(label, "–", f"undefined: {one['why']}" if one.get("why") else "")
    span = None if one["low"] is None else (one["low"], one["high"])
    detail = (
        f"{'no interval' if span is None else f'95 % interval {interval(one, 1)}'}, n ="
        f" {number(one['prompts'])} {of}"
    )
    return Card(
        label, percent(one["rate"], 1), detail, one["rate"] if bar else None, span if bar else None
    )


def subline(report: Figures) -> str:
    """On what, by whom, when."""
    who = report["judge"].get("model") or report["judge"]["judge"]
    parts = [
        plural(report["prompts"], "prompt"),
        plural(report["settings"]["k"], "answer") + " each",
        f"judged by {who}",
        report["started"],
    ]
    return " · ".join([*parts, f"winnow {report['versions'].get('winnow-lm', '')}"])


def render(report: Figures) -> str:
    """The page. Equal reports give equal bytes."""
    drawn = drawing(report)
    inner = {
        "report": report,
        "tables": tables(report),
        "drawings": [drawn] if drawn else [],
        "baseline": report["comparisons"][0]["against"],
    }
    top = {
        "verdict": report["headline"],
        "subline": subline(report),
        "cards": cards(report),
        "kind": "evaluation",
        "winrate": inner,
    }
    return pages.from_template(
        "report.html.jinja", {"report": {"title": report["title"], "runs": []}, **top}
    )
