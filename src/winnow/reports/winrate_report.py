"""How win rates stand on a terminal and on a page of their own: a sentence, cards, a drawing,
tables of cells. No figure is made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from winnow.reports.page import Card, Page, Table, TableRow, figure_card
from winnow.reports.page import render as render_page
from winnow.reports.panels import Panel
from winnow.reports.plots import DASHES, MARKERS, RUN_INKS, Drawing, Line, draw_one
from winnow.reports.winrate_warnings import same
from winnow.system.figure import Figure, Writer, cell, interval, support
from winnow.system.files import write_atomic
from winnow.system.format import chance, nats, number, plural, signed, tenths
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
LOOKED_FOR = (
    "Looked for intervals that include 50 %, few prompts, ties, games without a verdict, a judge"
    " that minds the place, verdicts that go with length, answers cut off or without a word, models"
    " that are the same"
)


def write(folder: Path, report: Figures) -> None:
    """Draw `report.html` from the figures of `report.json`."""
    write_atomic(RunFolder(folder).report_html, render(report))


def headline(report: Figures) -> str:
    """The outcome in one sentence: of several models the one that does best against the
    baseline.
    """
    comparison = best(report)
    model, baseline = comparison["model"], comparison["against"]
    if (alike := same(comparison, report["models"])) is not None:
        return f"{model} and {baseline} are even, 50 %, as they must be: {alike}."
    won = Figure.read(comparison["win_rate"])
    if won.value is None or won.ends is None:
        return f"Nothing can be said of {model} against {baseline}: {won.why}."
    close = ": too close to tell them apart" if won.contains(0.5) else ""
    sure = f"95 % interval {interval(won, tenths)}, {plural(won.prompts, 'prompt')}"
    return f"{model} wins {tenths(won.value)} of games against {baseline} ({sure}){close}."


def best(report: Figures) -> Figures:
    """The comparison with the baseline that the sentence and the cards are of."""
    rates = [comparison["win_rate"]["rate"] for comparison in report["comparisons"]]
    order = [-1.0 if rate is None else rate for rate in rates]
    comparison: Figures = report["comparisons"][order.index(max(order))]
    return comparison


def tables(report: Figures) -> list[Table]:
    """Every figure, for the terminal and the page."""
    comparisons = report["comparisons"]
    heads = ["", *(comparison["model"] for comparison in comparisons)]
    made = [Table(f"Against {comparisons[0]['against']}", heads, _rows(comparisons))]
    if report["others"]:
        rows = [
            TableRow(
                f"{other['model']} against {other['against']}",
                [_share(other["win_rate"]), _share(other["length_controlled"])],
            )
            for other in report["others"]
        ]
        heads = ["", "Win rate", "At equal lengths"]
        made.append(Table("The others against each other", heads, rows))
    if report["ranking"]:
        made += _ranked(report["ranking"])
    if report["temperatures"]:
        made.append(_heated(report["temperatures"]))
    return made


def _rows(comparisons: Sequence[Figures]) -> list[TableRow]:
    """A row per figure, a column per comparison; what no comparison has is left out."""
    columns = [_column(comparison) for comparison in comparisons]
    rows = [TableRow(title, [column[title] for column in columns]) for title in columns[0]]
    return [row for row in rows if any(row.cells)]


def _column(comparison: Figures) -> dict[str, str]:
    """The cells of one comparison by the titles of their rows."""
    won, lengths, signs = comparison["win_rate"], comparison["lengths"], comparison["sign_test"]
    controlled, orders = comparison["length_controlled"], comparison["orders"]
    split = ", ".join(number(signs[name]) for name in ("better", "worse", "even"))
    return {
        "Win rate, ties half": _share(won),
        "Win rate at equal lengths": _share(controlled),
        "  weight of length, nats": _weight(controlled),
        "Characters longer": _mean(lengths["longer"], signed),
        "  its own": _mean(lengths["ours"]),
        "  the baseline's": _mean(lengths["theirs"]),
        "Judge's score gained": _mean(comparison["score_gain"], signed),
        "Prompts better, worse, even": split,
        "  sign test": chance(signs["p"]),
        "Ties": _share(comparison["ties"]),
        "Without a verdict": _share(comparison["invalid"]),
        "Same answer to the letter": _share(comparison["alike"]),
        "Same verdict in both orders": "" if not orders else _steady(orders),
        "What is read first wins": "" if not orders else _first_read(orders),
        "Difference from 50 % that would have been seen": _seen(comparison["detectable"]),
        "Prompts that show 5 points": number(comparison["needed"]["prompts"]),
        "Prompts with a verdict, games": (
            f"{number(won['prompts'])} of {number(comparison['asked'])}, {number(won['games'])}"
        ),
    }


def _share(row: Figures) -> str:
    """A share with its interval and prompts; empty where nobody asked for it."""
    figure = _over_prompts(row)
    return "" if figure.value is None and not figure.why else cell(figure, tenths)


def _over_prompts(row: Figures) -> Figure:
    """A figure of a report of win rates: n is its prompts."""
    return Figure.read({**row, "count": row["prompts"]})


def _weight(row: Figures) -> str:
    if row["weight"] is None:
        return ""
    ends = {"low": row["weight_low"], "high": row["weight_high"], "prompts": row["prompts"]}
    return cell(Figure.read({"value": row["weight"], **ends}), nats)


def _mean(row: Figures | None, write: Writer = number) -> str:
    return "" if row is None else cell(Figure.read(row), write)


def _agreed(orders: Figures) -> Figure:
    """Of pairs asked in both orders the share with the same verdict."""
    both = orders["both"]
    return Figure(orders["alike"] / both, orders["low"], orders["high"], both, both)


def _steady(orders: Figures) -> str:
    return cell(_agreed(orders), tenths, "pairs") if orders["both"] else ""


def _first_read(orders: Figures) -> str:
    if not orders["decided"]:
        return ""
    share = tenths(orders["first"] / orders["decided"])
    return f"{share} of {number(orders['decided'])} verdicts, {chance(orders['chance'])}"


def _seen(row: Figures) -> str:
    if row["difference"] is None:
        return "more than there can be"
    return f"{100 * row['difference']:.1f} points (n = {number(row['prompts'])})"


def _ranked(ranking: Figures) -> list[Table]:
    """Strengths of each group of models that verdicts join, the strongest first."""
    title = f"Bradley-Terry over {plural(ranking['prompts'], 'prompt')}"
    heads = ["Model", "Strength in nats", "Wins against mean strength", "Games"]
    return [
        Table(title, heads, [strength_row(row, after=[number(row["games"])]) for row in group])
        for group in ranking["groups"]
    ]


def strength_row(row: Figures, before: Sequence[str] = (), after: Sequence[str] = ()) -> TableRow:
    """A model's strength, and the chance to win against one of mean strength, also as a bar."""
    strength = Figure(row["strength"], row["low"], row["high"], 0, 0)
    at, low, high = (1 / (1 + math.exp(-row[name])) for name in ("strength", "low", "high"))
    chances = Figure(at, low, high, 0, 0)
    written = [cell(strength, nats, count=False), cell(chances, tenths, count=False)]
    return TableRow(row["model"], [*before, *written, *after], at=at, interval=(low, high))


def _heated(points: Sequence[Figures]) -> Table:
    """A row per temperature, a column per model."""
    names = list(dict.fromkeys(point["model"] for point in points))
    known = {(point["model"], point["temperature"]): point["win_rate"] for point in points}
    rows = [
        TableRow(f"{heat:g}", [_share(known[name, heat]) for name in names])
        for heat in sorted({point["temperature"] for point in points})
    ]
    title = f"Win rate over {points[0]['against']} by sampling temperature"
    return Table(title, ["Temperature", *names], rows)


def drawing(report: Figures) -> Drawing | None:
    """The win rate over the baseline at each temperature, a line per model; None where no
    temperatures were asked for.
    """
    points = [point for point in report["temperatures"] if point["win_rate"]["low"] is not None]
    if not points:
        return None
    baseline = points[0]["against"]
    panel = Panel(
        f"Win rate over {baseline}",
        f"By sampling temperature; the answers of {baseline} stay as they are. Bars: 95"
        " % intervals over prompts. The line across: 50 %.",
        (),
        0.5,
        axis="temperature",
    )
    names = dict.fromkeys(point["model"] for point in points)
    return draw_one(
        panel,
        [
            _line(i, name, [point for point in points if point["model"] == name])
            for i, name in enumerate(names)
        ],
    )


def _line(i: int, name: str, points: Sequence[Figures]) -> Line:
    spans = tuple((point["win_rate"]["low"], point["win_rate"]["high"]) for point in points)
    series = [(point["temperature"], point["win_rate"]["rate"]) for point in points]
    ink, dash, marker = RUN_INKS[i % 6], list(DASHES)[i // 6 % 3], MARKERS[i % 6]
    return Line(series, "", name, ink, dash, marker, spans=spans)


def cards(report: Figures) -> list[Card]:
    """The key figures of the headline's comparison."""
    comparison = best(report)
    if why := same(comparison, report["models"]):
        # nothing could have come out otherwise: there is no interval, and nothing to be seen
        return [Card("Win rate", "50 %", f"as it must be: {why}", 0.5)]

    def share(label: str, name: str, *, bar: bool = False) -> Card:
        figure = _over_prompts(comparison[name])
        return figure_card(label, figure, tenths, "prompts", bar=bar)

    made = [
        share("Win rate", "win_rate", bar=True),
        share("At equal lengths", "length_controlled", bar=True),
    ]
    if (longer := comparison["lengths"]["longer"]) is not None:
        detail = f"characters beside {comparison['against']}’s; "
        made.append(_gain("Length", detail, longer))
    if comparison["score_gain"] is not None:
        made.append(_gain("Judge's score", "gained; ", comparison["score_gain"]))
    made += [share("Ties", "ties"), share("Without a verdict", "invalid")]
    if (orders := comparison["orders"]) and orders["both"]:
        label = "Same verdict in both orders"
        made.append(figure_card(label, _agreed(orders), tenths, "pairs", bar=True))
    detectable = comparison["detectable"]
    detail = f"from 50 %, by {plural(detectable['prompts'], 'prompt')}, four times out of five"
    return [*made, Card("Would have been seen", _seen(detectable).partition(" (")[0], detail)]


def _gain(label: str, detail: str, row: Figures) -> Card:
    figure = Figure.read(row)
    return Card(label, signed(row["mean"]), detail + support(figure, signed, "prompts"))


def render(report: Figures) -> str:
    """The page. Equal reports give equal bytes."""
    drawn, ranked = drawing(report), ", models that cannot be ranked" if report["ranking"] else ""
    judge = report["judge"].get("model") or report["judge"]["judge"]
    parts = [
        plural(report["prompts"], "prompt"),
        plural(report["settings"]["k"], "answer") + " each",
        f"judged by {judge}",
        report["started"],
        f"winnow {report['versions'].get('winnow-lm', '')}",
    ]
    page = Page(
        title=report["title"],
        kind="evaluation",
        verdict=report["headline"],
        subline=" · ".join(parts),
        cards=cards(report),
        warnings=report["warnings"],
        looked_for=f"{LOOKED_FOR}{ranked}.",
        bodies=["winrate.html.jinja"],
        values={
            "report": report,
            "tables": tables(report),
            "drawings": [drawn] if drawn else [],
            "baseline": report["comparisons"][0]["against"],
        },
        footer="The same numbers for programs: report.json.",
    )
    return render_page(page)
