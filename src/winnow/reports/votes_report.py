"""How a collection of votes stands on a report's page: a sentence, cards, drawings, tables of
cells. No figure is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from winnow.reports.page import Card, Table, TableRow, figure_card
from winnow.reports.panels import Panel
from winnow.reports.plots import DASHES, MARKERS, RUN_INKS, Drawing, Line, draw_one
from winnow.reports.winrate_report import strength_row
from winnow.system.figure import Figure, cell, interval, value
from winnow.system.format import chance, number, percent, plural

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


def bodies(report: Figures) -> tuple[list[str], dict[str, Any]]:
    """The templates for the collections and judges of a report, with what they need."""
    values = {
        "collections": [page(one) for one in report["collections"]],
        "judges": [_judge(one) for one in report["judges"]],
    }
    names = {"judge.html.jinja": "judges", "collection.html.jinja": "collections"}
    return [template for template, name in names.items() if values[name]], values


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
    return {
        "figures": one,
        "cards": cards(one),
        "drawings": drawings(one),
        "tables": [agreement_table(one["agreement"]), *voter_tables(one["voters"])],
        "models": {"sentences": model_sentences(one["models"]), "groups": _groups(one["models"])},
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
    sides = f"looks; {chance(one['left']['p'])} if sides are no matter"
    shares = [
        ("Two voters agree", one["agreement"]["raw"], "times two saw a pair"),
        ("Left answer preferred", one["left"], sides),
    ]
    if len(one["voters"]) == 1 and one["voters"][0]["swapped"]["value"] is not None:
        shares.append(("Same verdict in both orders", one["voters"][0]["swapped"], "pairs"))
    found += [
        figure_card(label, Figure.read(row), percent, noun, bar=True) for label, row, noun in shares
    ]
    if one["seconds"] is not None:
        found.append(
            Card(
                "Time per vote",
                f"{number(one['seconds'])} s",
                f"median of {plural(one['votes'], 'vote')}",
            )
        )
    return found


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


def voter_tables(voters: Sequence[Figures]) -> list[Table]:
    """Who voted how; then whether a voter minds the side, and says the same again."""
    return [_voters(voters), _trust(voters)]


def _voters(voters: Sequence[Figures]) -> Table:
    """What nobody did is left out."""
    shown = [name for name in OUTCOMES if any(row["outcomes"][name] for row in voters)]
    timed = any(row["seconds"] is not None for row in voters)
    rows = []
    for row in voters:
        cells = [number(row[name]) for name in ("votes", "pairs")]
        cells += [number(row["outcomes"][name]) for name in shown]
        if timed:
            cells.append("–" if row["seconds"] is None else f"{number(row['seconds'])} s")
        rows.append(TableRow(row["name"], cells))
    heads = ["Voter", "Votes", "Pairs", *(OUTCOMES[name] for name in shown)]
    return Table("Who voted", [*heads, *(["Median time"] if timed else [])], rows)


def _trust(voters: Sequence[Figures]) -> Table:
    """What is undefined for all voters is said once, in words."""
    defined = [name for name in TRUST if any(row[name]["value"] is not None for row in voters)]
    sentences = [
        f"{title}: undefined, {voters[0][name]['why']}."
        for name, title in TRUST.items()
        if name not in defined and voters
    ]
    heads = ["Voter"]
    for name in defined:
        heads += [TRUST[name], *(["If sides are no matter"] if name == "left" else [])]
    rows = []
    for row in voters:
        cells = []
        for name in defined:
            cells.append(share(row[name]))
            cells += [chance(row["p_left"])] if name == "left" else []
        rows.append(TableRow(row["name"], cells))
    note = "Shares with 95 % intervals; p is the exact binomial one, of both sides."
    sentences = [note, *sentences] if defined else sentences
    return Table("Sides, repeats, known answers", heads, rows if defined else [], sentences)


def agreement_table(agreement: Figures) -> Table:
    """How alike voters are beyond chance."""
    couples = agreement["kappa"]
    rows = [
        TableRow("All voters: the same verdict", [share(agreement["raw"])]),
        TableRow("All voters: Krippendorff's alpha", [_plain(agreement["alpha"])]),
    ]
    rows += [
        TableRow(f"{couple['one']} and {couple['other']}: Cohen's kappa", [_plain(couple)])
        for couple in couples[:TWOS]
    ]
    more = f"Of {number(len(couples))} couples the {TWOS} who share the most pairs."
    return Table("Agreement", [], rows, [more] if len(couples) > TWOS else [])


def judge_tables(one: Figures) -> list[Table]:
    """A judge beside people: pairs by what both say, and how often that is the same."""
    labels = list(one["table"])
    rows = [
        TableRow(LABELS[label], [number(one["table"][label][other]) for other in labels])
        for label in labels
    ]
    heads = ["People ↓ judge →", *(LABELS[label] for label in labels)]
    names = (
        ("Same verdict, all pairs", "all_pairs"),
        ("Same verdict, pairs both decided", "decided"),
        ("Same verdict in both orders (the judge alone)", "swapped"),
    )
    shares = [TableRow(name, [share(one[key])]) for name, key in names if key in one]
    title = f"{one['judge']} against people"
    return [Table(title, heads, rows), Table("", [], shares)]


def _judge(one: Figures) -> dict[str, Any]:
    """A judge beside people for the page, whose table of both is coloured."""
    counted, shares = judge_tables(one)
    most = max(max(row.values()) for row in one["table"].values()) or 1
    rows = [
        {
            "name": LABELS[label],
            "cells": [
                {"value": number(n), "tint": round(40 * n / most), "same": label == other}
                for other, n in row.items()
            ],
        }
        for label, row in one["table"].items()
    ]
    return {
        "judge": one["judge"],
        "file": one["file"],
        "people": plural(one["people"], "person", "people"),
        "heads": counted.heads[1:],
        "rows": rows,
        "shares": shares,
    }


def model_sentences(models: Figures) -> list[str]:
    """What the votes can tell of the models, and what not."""
    if "undefined" in models:
        sentences = [f"Undefined: {models['undefined']}."]
    else:
        sentences = [
            f"Bradley-Terry over {plural(models['votes'], 'vote')} on"
            f" {plural(models['prompts'], 'prompt')}; ties and both bad are half a win."
        ]
    groups = models.get("groups", ())
    if len(groups) > 1:
        names = [", ".join(row["model"] for row in group["strengths"]) for group in groups]
        sentences.append(
            "No chain of votes leads from one of these groups to another, so their models cannot"
            f" be compared: {'; '.join(names)}."
        )
    if models["unseen"]:
        sentences.append(f"Without a vote beside another model: {', '.join(models['unseen'])}.")
    return sentences


def strengths(group: Figures) -> Table:
    """The models of a group, the strongest first."""
    heads = ["Model", "Votes", "Strength in nats (95 % interval)", "Wins against mean strength"]
    rows = [strength_row(row, before=[number(row["votes"])]) for row in group["strengths"]]
    return Table("Models", heads, rows)


def wins(group: Figures) -> Table:
    """How likely each model of a group is to beat each other one, by the strengths."""
    names = [row["model"] for row in group["strengths"]]
    rows = [
        TableRow(name, ["" if row is None else share(row) for row in line])
        for name, line in zip(names, group["wins"], strict=True)
    ]
    return Table("Wins against", ["", *names], rows)


def _groups(models: Figures) -> list[dict[str, Any]]:
    return [
        {
            "strengths": strengths(group),
            "matrix": [[_cell(row) for row in line] for line in group["wins"]],
        }
        for group in models.get("groups", ())
    ]


def _cell(row: Figures | None) -> dict[str, Any]:
    """A cell of the matrix of wins; `tint` is how strongly it is coloured, in percent."""
    if row is None:
        return {"value": "", "detail": "", "kind": "same", "tint": 0}
    figure = Figure.read(row)
    return {
        "value": value(figure, percent),
        "detail": f"{interval(figure, percent)}, n = {number(figure.count)}",
        "kind": "wins" if row["share"] > 0.5 else "loses",
        "tint": round(80 * abs(row["share"] - 0.5)),
    }


def share(row: Figures) -> str:
    """A share with its interval and what it was taken over, or in words why there is none."""
    return cell(Figure.read(row), percent)


def _plain(row: Figures) -> str:
    """Of pairs, without an interval."""
    figure = Figure.read(row)
    text = value(figure, lambda x: f"{x:.2f}".replace("-", "−"))
    return text if figure.value is None else f"{text} (n = {number(figure.count)} pairs)"


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
