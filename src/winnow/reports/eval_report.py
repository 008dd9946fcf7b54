"""How an evaluation stands on a page of its own: what `winnow eval --out` leaves as report.html. No
figure is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from winnow.reports.evaluation_signs import beside, counted, reasons, shown, span
from winnow.reports.headline import Card
from winnow.reports.run_report import from_template, plain
from winnow.system.format import interval, number, percent

Report = Mapping[str, Any]
Figure = Mapping[str, Any]

# Name of a figure -> (words, whether it is a share, unit).
WORDS = {
    "rewards/accuracies": ("Reward accuracy", True, "chosen answer has the larger reward"),
    "raw/accuracies": ("Ranking accuracy", True, "chosen answer is the more likely one as a whole"),
    "rewards/auc": ("Good above bad, by reward", True, "a labelled good answer against a bad one"),
    "raw/auc": ("Good above bad, by log-prob", True, "a labelled good answer against a bad one"),
    "rewards/margins": ("Reward margin", False, "chosen minus rejected"),
    "rewards/chosen": ("Reward of chosen answers", False, ""),
    "rewards/rejected": ("Reward of rejected answers", False, ""),
    "loss": ("Loss", False, ""),
    "nll": ("Negative log-prob", False, "nats per token"),
    "logps/chosen": ("Log-prob of chosen answers", False, "nats per answer"),
    "logps/rejected": ("Log-prob of rejected answers", False, "nats per answer"),
    "length/chosen": ("Length of chosen answers", False, "tokens"),
    "length/rejected": ("Length of rejected answers", False, "tokens"),
}
MOVED = {
    "chosen": ("Chosen answers", False, "nats per answer"),
    "rejected": ("Rejected answers", False, "nats per answer"),
    "chosen_token": ("Chosen answers", False, "nats per token"),
    "rejected_token": ("Rejected answers", False, "nats per token"),
    "less_likely": ("Chosen answer less likely than under the reference", True, ""),
    "both": ("Both answers less likely", True, ""),
}
FAR = {
    "kl": ("KL to the reference", False, "nats per answer"),
    "length": ("Length of own answers", False, "tokens"),
    "finished": ("Own answers that end by themselves", True, ""),
}
SURE = {
    "excess": ("Claimed minus agreed", True, "points; above 0: too sure of itself"),
    "brier": ("Brier score", False, "0.25 for one that always claims one half"),
    "log_loss": ("Log loss", False, "nats; 0.693 says nothing"),
}
SLICED = ("rewards/accuracies", "raw/accuracies", "rewards/margins", "rewards/auc")


def render(report: Report) -> str:
    """The page. Equal reports give equal bytes."""
    sets = [_set(one) for one in report["sets"].values()]
    bench = _bench(report["rewardbench"]) if report["rewardbench"] else None
    values: dict[str, Any] = {
        "report": report,
        "verdict": verdict(report),
        "subline": subline(report),
        "cards": cards(report),
        "sets": sets,
        "bench": bench,
    }
    values |= {"sources": _sources(report), "settings": _settings(report)}
    return from_template("evaluation.html.jinja", values)


def verdict(report: Report) -> str:
    """What was found, in one sentence, with its interval and n."""
    sets = list(report["sets"].values())
    if sets:
        figures = sets[0]["figures"]
        where = f"On {sets[0]['name']}: prefers" if len(sets) > 1 else "Prefers"
        for name, words in (
            ("rewards/accuracies", "by its reward"),
            ("raw/accuracies", "by its log-probs"),
        ):
            if name in figures:
                one = figures[name]
                doubt = (
                    ", as chance could have done"
                    if one["low"] is not None and one["low"] <= 0.5 <= one["high"]
                    else ""
                )
                return (
                    f"{where} the chosen answer in {percent(one['value'], 1)} of"
                    f" {number(one['count'])} held-out comparisons, {words}{doubt}{_brief(one)}."
                )
        if "nll" in figures:
            return (
                f"Held-out answers cost {number(figures['nll']['value'], 4)} nats per token"
                f" ({_between(figures['nll'], False)}, {counted(figures['nll'])})."
            )
        return "Nothing in the data can be counted."
    bench = report["rewardbench"]
    scores = bench.get("rewards") or bench["raw"]
    one, name = (
        (scores["overall"], "RewardBench")
        if scores["overall"]
        else (scores["every"], "RewardBench, all prompts alike")
    )
    return f"{name}: {percent(one['value'], 1)} of {number(one['count'])} prompts{_brief(one)}."


def _brief(figure: Figure) -> str:
    """A share's interval for the headline."""
    return "" if figure["low"] is None else f" (95 % interval {interval(figure, 1)})"


def subline(report: Report) -> str:
    """What was evaluated, against what."""
    parts = [
        f"{report['kind']} {report['model']}",
        f"reference {report['reference']}" if report["reference"] else "",
    ]
    parts += [
        f"{report['objective']} at beta {report['beta']:g}" if report["objective"] else "",
        f"winnow {report['versions']['winnow-lm']}",
        report["made"],
    ]
    return " · ".join(part for part in parts if part)


def cards(report: Report) -> list[Card]:
    """At most eight figures of the first set, by its name where there are several, and
    RewardBench's score.
    """
    found: list[Card] = []
    for one in list(report["sets"].values())[:1]:
        figures = one["figures"]
        for name in (
            "rewards/accuracies",
            "raw/accuracies",
            "rewards/margins",
            "rewards/auc",
            "loss",
        ):
            if name in figures:
                found.append(_card(WORDS[name][0], figures[name], WORDS[name][1]))
        if one["displacement"]:
            found.append(_card("Chosen less likely", one["displacement"]["less_likely"], True))
        if one["calibration"] and "sureness" in one["calibration"]:
            found.append(
                Card(
                    "Calibration error",
                    percent(one["calibration"]["error"], 1),
                    f"{percent(one['calibration']['chance'], 1)} is what chance alone would show",
                )
            )
        if one["kl"]:
            found.append(_card("KL to the reference", one["kl"]["kl"], False))
    if len(report["sets"]) > 1:
        first = next(iter(report["sets"].values()))["name"]
        found = [replace(card, detail=f"on {first}: {card.detail}") for card in found]
    if bench := report["rewardbench"]:
        scores = bench.get("rewards") or bench["raw"]
        found.append(_card("RewardBench", scores["overall"] or scores["every"], True))
    return found[:8]


def _card(label: str, figure: Figure, share: bool) -> Card:
    inside = (figure["low"], figure["high"]) if share and figure["low"] is not None else None
    return Card(
        label,
        shown(figure["value"], share=share),
        f"{_between(figure, share)}, {counted(figure)}",
        figure["value"] if share else None,
        inside,
    )


def _between(figure: Figure, share: bool) -> str:
    return ("" if figure["low"] is None else "95 % interval ") + span(figure, share=share)


def _set(one: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs of one set."""
    figures = one["figures"]
    tables = [_table("Held-out figures", figures, WORDS)]
    counts = ", ".join(
        f"{number(figures[name])} {name}"
        for name in ("comparisons", "ties", "labels")
        if figures.get(name)
    )
    if one["displacement"]:
        tables.append(_table("Moved from the reference", one["displacement"], MOVED))
    if one["kl"]:
        far = one["kl"]
        how = (
            "Exact: at each token over the whole vocabulary."
            if far["how"] == "exact"
            else f"Estimated by k3 from the log-probs of tokens: {far['why']}."
        )
        tables.append(
            _table("On answers of its own", far, FAR)
            | {"note": f"{how} Answers of at most {far['most']:,} tokens."}
        )
    return {
        "one": one,
        "counts": counts,
        "tables": tables,
        "calibration": _calibration(one["calibration"]),
        "by": [_by(*pair) for pair in one["by"].items()],
    }


def _table(
    title: str, figures: Mapping[str, Any], words: Mapping[str, tuple[str, bool, str]]
) -> dict[str, Any]:
    rows = [
        _row(words[name][0], figures[name], words[name][1], words[name][2])
        for name in words
        if name in figures
    ]
    return {"title": title, "rows": rows}


def _row(name: str, figure: Figure, share: bool, unit: str = "") -> dict[str, Any]:
    cells = [
        shown(figure["value"], share=share),
        span(figure, share=share),
        counted(figure).removeprefix("n = "),
    ]
    return {"name": name, "unit": unit, "cells": cells}


def _by(column: str, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A table of slices; `bars` draws the first share of each."""
    names = [name for name in SLICED if any(name in part for part in parts.values())]
    rows = []
    for value, part in parts.items():
        first = part.get(names[0]) if names else None
        cells = [
            (
                f"{part.get('comparisons', part.get('labels', 0)):,}"
                if first is None
                else counted(first).removeprefix("n = ")
            )
        ]
        for name in names:
            cells.append(beside(part[name], share=WORDS[name][1]) if name in part else "–")
        drawn = (
            {
                "at": first["value"],
                "interval": (first["low"], first["high"]) if first["low"] is not None else None,
            }
            if first and WORDS[names[0]][1]
            else {}
        )
        rows.append({"name": value, "cells": cells, "at": None, "interval": None} | drawn)
    return {
        "column": column,
        "heads": ["n", *(WORDS[name][0] for name in names)],
        "rows": rows,
        "why": reasons(parts, names),
    }


def _bench(bench: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, words in (("rewards", "by reward"), ("raw", "by log-probs alone")):
        if name in bench:
            scores = bench[name]
            top = (
                [_row("Overall: the mean of the sections", scores["overall"], True)]
                if scores["overall"]
                else []
            )
            sections = [_row(section, one, True) for section, one in scores["sections"].items()]
            subsets = [
                _row(subset, one, True, scores["section_of"][subset])
                for subset, one in scores["subsets"].items()
            ]
            found.append(
                {
                    "title": f"RewardBench, {words}",
                    "rows": [*top, *sections, _row("All prompts alike", scores["every"], True)],
                    "subsets": subsets,
                }
            )
    return found


def _calibration(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    if "sureness" not in found:
        return {"why": found["why"]}
    rows = [
        {
            "name": percent(one["claimed"], 1),
            "cells": [
                percent(one["agreed"], 1),
                f"{percent(one['low'], 1)} to {percent(one['high'], 1)}",
                number(one["count"]),
            ],
        }
        for one in found["bins"]
    ]
    by_chance = percent(found["chance"], 1)
    said = (
        f"Calibration error {percent(found['error'], 1)}: the mean distance of the first two"
        f" columns. True claims would show {by_chance} by chance."
    )
    return {
        "rows": rows,
        "said": said,
        "svg": reliability(found["bins"]),
        "sureness": _table("", found["sureness"], SURE),
    }


LEFT, TOP, WIDE, HIGH = 44, 12, 340, 176  # of the plot's field, CSS pixels


def reliability(bins: Sequence[Mapping[str, float]]) -> Markup:
    """Agreed against claimed, a point per bin with its interval; on the diagonal claims are true.
    Both axes in percent.
    """
    bottom = min(0.5, *(one["low"] for one in bins)) // 0.1 * 0.1

    def x(claimed: float) -> float:
        return LEFT + WIDE * (claimed - 0.5) / 0.5

    def y(agreed: float) -> float:
        return TOP + HIGH * (1 - agreed) / (1 - bottom)

    parts = []
    for tenth in range(round(10 * bottom), 11):
        at = y(tenth / 10)
        if (10 - tenth) % (1 if bottom > 0.4 else 2) == 0:
            parts.append(
                f'<path d="M{LEFT} {at:.1f}H{LEFT + WIDE}" stroke="var(--rule)"/><text'
                f' x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10 * tenth}</text>'
            )
    parts += [
        f'<text x="{x(tenth / 10):.1f}" y="{TOP + HIGH + 22}"'
        f' text-anchor="middle">{10 * tenth}</text>'
        for tenth in range(5, 11)
    ]
    parts.append(
        f'<path d="M{x(0.5):.1f} {y(0.5):.1f}L{x(1):.1f} {y(1):.1f}" stroke="var(--muted)"'
        ' stroke-dasharray="4 3" fill="none"/>'
    )
    line = "L".join(f"{x(one['claimed']):.1f} {y(one['agreed']):.1f}" for one in bins)
    parts.append(f'<path d="M{line}" stroke="var(--c1)" stroke-width="2" fill="none"/>')
    for one in bins:
        parts.append(
            f'<path d="M{x(one["claimed"]):.1f} {y(one["low"]):.1f}V{y(one["high"]):.1f}"'
            ' stroke="var(--c1)" stroke-width="1.6" opacity=".6"/>'
        )
        parts.append(
            f'<circle cx="{x(one["claimed"]):.1f}" cy="{y(one["agreed"]):.1f}" r="3.6"'
            ' fill="var(--c1)"/>'
        )
    said = "; ".join(
        f"{percent(one['claimed'])} claimed, {percent(one['agreed'])} agreed" for one in bins
    )
    head = (
        '<svg class="plot" viewBox="0 0 400 226" role="img" aria-label="Labels that agree, by'
        f' claim: {said}" font-size="12" fill="var(--muted)">'
    )
    return Markup(head + "".join(parts) + "</svg>")


def _sources(report: Report) -> list[dict[str, Any]]:
    """Every data set with its files and their hashes."""
    ones = [*report["sets"].values(), *([report["rewardbench"]] if report["rewardbench"] else [])]
    return [{"title": one["title"], "data": one["data"], "files": one["files"]} for one in ones]


def _settings(report: Report) -> list[tuple[str, str]]:
    return [
        (name, plain(value))
        for name, value in report["settings"].items()
        if value not in (None, [], False)
    ]
