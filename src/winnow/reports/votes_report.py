"""How a collection of votes stands on a report's page: a sentence, cards, drawings, tables of
cells. No figure is made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from winnow.reports.headline import Card
from winnow.reports.plots import DASHES, MARKERS, RUN_INKS, Drawing, Line, Panel, draw_one
from winnow.system.format import interval, number, percent, plural

Figures = Mapping[str, Any]

DRAWN = len(RUN_INKS)  # lines in one drawing: beyond, the rest is one line
TWOS = 10  # couples of voters whose kappa is shown
OUTCOMES = {
    "first": "Left",
    "second": "Right",
    "tie": "Ties",
    "bad": "Both bad",
    "skip": "Skipped",
    "error": "No verdict",
}
TRUST = {
    "left": "Left answer preferred",
    "repeats": "Same when asked again",
    "gold": "Right where it is known",
    "swapped": "Same in both orders",
}
# of two, by their order in the file
LABELS = {
    "low": "Earlier answer",
    "high": "Later answer",
    "tie": "Tie",
}
SAID = {
    "first": "preferred the left answer",
    "second": "preferred the right answer",
    "tie": "saw a tie",
    "bad": "found both bad",
    "skip": "skipped it",
}
SAID |= {"error": "gave no verdict"}


def top(report: Figures, *, alone: bool) -> dict[str, Any]:
    """What the template needs for all collections of a report; alone: nothing else is on the page,
    so its head is theirs.
    """
    found: dict[str, Any] = {
        "collections": [page(one) for one in report["collections"]],
        "judges": [_judge(one) for one in report["judges"]],
    }
    return (
        found
        | {
            "verdict": verdict(report["collections"]),
            "subline": subline(report["collections"]),
        }
        if alone
        else found
    )


def verdict(ones: Sequence[Figures]) -> str:
    """What the votes come to, in one sentence: the strongest model beside the next, or else how
    many votes there are.
    """
    one = next((one for one in ones if "best" in one["models"]), None)
    if one:
        best = one["models"]["best"]
        close = ": too close to tell them apart" if best["low"] <= 0.5 <= best["high"] else ""
        where = f"{one['name']}: " if len(ones) > 1 else ""
        return (
            f"{where}{best['model']} wins {percent(best['share'])} of comparisons with"
            f" {best['against']}{close}."
        )
    votes, many = (
        sum(one["votes"] for one in ones),
        len({row["name"] for one in ones for row in one["voters"]}),
    )
    return (
        f"{plural(votes, 'vote')} by {plural(many, 'voter')}." if votes else "Nobody has voted yet."
    )


def subline(ones: Sequence[Figures]) -> str:
    """How much was collected, file by file."""
    return " · ".join(
        f"{one['name']}: {plural(one['votes'], 'vote')} on {plural(one['pairs']['asked'], 'pair')}"
        for one in ones
    )


def page(one: Figures) -> dict[str, Any]:
    """What the template needs of one collection."""
    voters = one["voters"]
    made = {
        "cards": cards(one),
        "drawings": drawings(one),
        "tables": [_agreement(one["agreement"]), _voters(voters), _trust(voters)],
    }
    return {
        "figures": one,
        **made,
        "models": _models(one["models"]),
        "votes": [_vote(vote) for vote in one["shown"]],
    }


def cards(one: Figures) -> list[Card]:
    """The key figures."""
    outcomes, pairs = one["outcomes"], one["pairs"]
    besides = [
        f"{number(outcomes[name])} {words.lower()}"
        for name, words in list(OUTCOMES.items())[2:]
        if outcomes[name]
    ]
    asked = pairs["asked"] / pairs["of"] if pairs["of"] else 0.0
    found = [
        Card("Votes", number(one["votes"]), ", ".join(besides) or "all for one of two answers")
    ]
    found.append(
        Card(
            "Pairs asked",
            percent(asked),
            f"{number(pairs['asked'])} of {number(pairs['of'])}, of"
            f" {plural(one['items'], 'prompt')}",
        )
    )
    found.append(_share_card("Two voters agree", one["agreement"]["raw"], "times two saw a pair"))
    found.append(
        _share_card(
            "Left answer preferred",
            one["left"],
            f"looks; {chance(one['left']['p'])} if sides are no matter",
        )
    )
    if len(one["voters"]) == 1 and (steady := one["voters"][0]["swapped"])["value"] is not None:
        found.append(_share_card("Same verdict in both orders", steady, "pairs"))
    if one["seconds"] is not None:
        found.append(
            Card(
                "Time per vote",
                f"{number(one['seconds'])} s",
                f"median of {plural(one['votes'], 'vote')}",
            )
        )
    return found


def _share_card(label: str, figure: Figures, of: str) -> Card:
    if figure["value"] is None:
        return Card(label, "–", f"undefined: {figure['why']}")
    detail = f"95 % interval {interval(figure)}, n = {number(figure['count'])} {of}"
    return Card(
        label, percent(figure["value"]), detail, figure["value"], (figure["low"], figure["high"])
    )


def drawings(one: Figures) -> list[Drawing]:
    """Votes so far over the time of the collection, a line per voter; where there are many, those
    who voted least are one line.
    """
    seen = one["over_time"]
    if "undefined" in seen:
        return []
    names = [row["name"] for row in one["voters"]]
    shown = {
        name: seen["so_far"][name]
        for name in (names if len(names) <= DRAWN else names[: DRAWN - 1])
    }
    if rest := [seen["so_far"][name] for name in names if name not in shown]:
        shown[f"{len(rest)} others"] = [sum(counts) for counts in zip(*rest, strict=True)]
    panel = Panel(
        "Votes so far",
        f"At the end of each {seen['unit']} since {seen['began']} UTC.",
        (),
        None,
        0.0,
        axis=seen["unit"],
    )
    return [
        draw_one(panel, [_line(name, i, values) for i, (name, values) in enumerate(shown.items())])
    ]


def _line(name: str, i: int, values: Sequence[int]) -> Line:
    return Line(
        [(place, float(value)) for place, value in enumerate(values)],
        "",
        name,
        RUN_INKS[i],
        list(DASHES)[i // 3],
        MARKERS[i],
    )


def _voters(voters: Sequence[Figures]) -> dict[str, Any]:
    """Who voted how; what nobody did is left out."""
    shown = [name for name in OUTCOMES if any(row["outcomes"][name] for row in voters)]
    timed = any(row["seconds"] is not None for row in voters)
    rows = []
    for row in voters:
        cells = [number(row[name]) for name in ("votes", "pairs")] + [
            number(row["outcomes"][name]) for name in shown
        ]
        time = ["–" if row["seconds"] is None else f"{number(row['seconds'])} s"] if timed else []
        rows.append({"name": row["name"], "cells": cells + time})
    heads = [
        "Voter",
        "Votes",
        "Pairs",
        *(OUTCOMES[name] for name in shown),
        *(["Median time"] if timed else []),
    ]
    return {"title": "Who voted", "sentences": [], "heads": heads, "rows": rows}


def _trust(voters: Sequence[Figures]) -> dict[str, Any]:
    """Does a voter mind the side, and say the same again? What is undefined for all of them is said
    once, in words.
    """
    said = [
        f"{title}: undefined, {voters[0][name]['why']}."
        for name, title in TRUST.items()
        if all(row[name]["value"] is None for row in voters)
    ]
    shown = [name for name in TRUST if any(row[name]["value"] is not None for row in voters)]
    heads, rows = ["Voter"], [{"name": row["name"], "cells": list[str]()} for row in voters]
    for name in shown:
        heads += [TRUST[name], *(["If sides are no matter"] if name == "left" else [])]
        for made, row in zip(rows, voters, strict=True):
            made["cells"] += [
                share(row[name]),
                *([chance(row["p_left"])] if name == "left" else []),
            ]
    note = (
        ["Shares with 95 % intervals; p is the exact binomial one, of both sides."] if shown else []
    )
    return {
        "title": "Sides, repeats, known answers",
        "sentences": note + said,
        "heads": heads,
        "rows": rows if shown else [],
    }


def _agreement(found: Figures) -> dict[str, Any]:
    """How alike voters are beyond chance."""
    rows = [
        ("All voters: the same verdict", share(found["raw"])),
        ("All voters: Krippendorff's alpha", _plain(found["alpha"], "pairs")),
    ]
    rows += [
        (f"{two['one']} and {two['other']}: Cohen's kappa", _plain(two, "pairs"))
        for two in found["kappa"][:TWOS]
    ]
    said = (
        [f"Of {number(len(found['kappa']))} couples the {TWOS} who share the most pairs."]
        if len(found["kappa"]) > TWOS
        else []
    )
    return {
        "title": "Agreement",
        "sentences": said,
        "heads": [],
        "rows": [{"name": name, "cells": [cell]} for name, cell in rows],
    }


def _judge(one: Figures) -> dict[str, Any]:
    """A judge beside people: the table of both, what it comes to, and the whole number of pairs."""
    table, most = one["table"], max(max(row.values()) for row in one["table"].values()) or 1
    rows = [
        {
            "name": LABELS[label],
            "cells": [
                {"value": number(n), "tint": round(40 * n / most), "same": label == other}
                for other, n in row.items()
            ],
        }
        for label, row in table.items()
    ]
    names = (
        ("Same verdict, all pairs", "all_pairs"),
        ("Same verdict, pairs both decided", "decided"),
        ("Same verdict in both orders (the judge alone)", "swapped"),
    )
    said = [{"name": name, "cells": [share(one[key])]} for name, key in names]
    return {
        "judge": one["judge"],
        "file": one["file"],
        "people": plural(one["people"], "person", "people"),
        "heads": [*LABELS.values()],
        "rows": rows,
        "said": said,
    }


def _models(models: Figures) -> dict[str, Any]:
    """Sentences on what the votes can tell of the models and what not; then a table of strengths
    and a matrix of wins for each group.
    """
    if "undefined" in models:
        said = [f"Undefined: {models['undefined']}."]
    else:
        said = [
            f"Bradley-Terry over {plural(models['votes'], 'vote')} on"
            f" {plural(models['prompts'], 'prompt')}; ties and both bad are half a win."
        ]
    groups = models.get("groups", ())
    if len(groups) > 1:
        names = [", ".join(row["model"] for row in group["strengths"]) for group in groups]
        said.append(
            "No chain of votes leads from one of these groups to another, so their models cannot"
            f" be compared: {'; '.join(names)}."
        )
    if models["unseen"]:
        said.append(f"Without a vote beside another model: {', '.join(models['unseen'])}.")
    return {
        "sentences": said,
        "groups": [
            {
                "rows": [_strength(row) for row in group["strengths"]],
                "matrix": _matrix(group["wins"]),
            }
            for group in groups
        ],
    }


def _strength(row: Figures) -> dict[str, Any]:
    """A model's row: its strength, and the chance to win against one of mean strength, also as a
    bar.
    """
    values = [row[name] for name in ("strength", "low", "high")]
    at, low, high = (1 / (1 + math.exp(-value)) for value in values)
    cells = [
        number(row["votes"]),
        f"{nats(values[0])} ({nats(values[1])} to {nats(values[2])})",
        f"{percent(at)} ({interval({'low': low, 'high': high})})",
    ]
    return {"name": row["model"], "cells": cells, "at": at, "interval": (low, high)}


def nats(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−").replace("+0.00", "0.00")


def _matrix(wins: Sequence[Sequence[Figures | None]]) -> list[list[dict[str, Any]]]:
    """Cells of the matrix of wins; `tint` is how strongly a cell is coloured, in percent."""
    return [[_cell(cell) for cell in row] for row in wins]


def _cell(cell: Figures | None) -> dict[str, Any]:
    if cell is None:
        return {"value": "", "detail": "", "kind": "same", "tint": 0}
    tint, kind = round(80 * abs(cell["share"] - 0.5)), "wins" if cell["share"] > 0.5 else "loses"
    return {
        "value": percent(cell["share"]),
        "detail": f"{interval(cell)}, n = {number(cell['count'])}",
        "kind": kind,
        "tint": tint,
    }


def share(figure: Figures) -> str:
    """A share with its interval and what it was taken over, or in words why there is none."""
    if figure["value"] is None:
        return f"undefined: {figure['why']}"
    return f"{percent(figure['value'])} ({interval(figure)}, n = {number(figure['count'])})"


def _plain(figure: Figures, of: str) -> str:
    if figure["value"] is None:
        return f"undefined: {figure['why']}"
    return f"{figure['value']:.2f} (n = {number(figure['count'])} {of})".replace("-", "−")


def chance(value: float | None) -> str:
    return "–" if value is None else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _vote(vote: Figures) -> dict[str, Any]:
    """A vote with its texts; the side that won is told."""
    sides = [
        {
            "title": f"{place}: {side['model']}" if side["model"] else place,
            "text": side["text"],
            "won": vote["outcome"] == which,
        }
        for place, which, side in zip(
            ("Left", "Right"), ("first", "second"), vote["sides"], strict=True
        )
    ]
    kind = {"once": "", "repeat": ", asked again", "gold": ", asked to check the voter"}[
        vote["kind"]
    ]
    said = f"{vote['by']} {SAID[vote['outcome']]}{kind}" + (
        "" if vote["share"] is None else f", left with a probability of {percent(vote['share'])}"
    )
    return {
        "prompt": vote["prompt"],
        "sides": sides,
        "sentence": f"{said}.",
        "reason": vote["reason"],
    }
