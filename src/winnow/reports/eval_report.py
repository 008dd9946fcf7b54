"""How an evaluation stands on the terminal and on a page of its own, which `winnow eval --out`
leaves as report.html. No figure is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from winnow.reports.page import (
    Card,
    Page,
    Table,
    TableRow,
    figure_card,
    plain,
    say_table,
    say_warnings,
)
from winnow.reports.page import render as render_page
from winnow.reports.reliability import reliability
from winnow.system.console import safe, say
from winnow.system.figure import Figure, Writer, cell, cited, interval, support, taken_over, value
from winnow.system.format import number, tenths

Report = Mapping[str, Any]
Words = Mapping[str, tuple[str, bool, str]]

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


LOOKED_FOR = (
    "Looked for rows it was trained on, accuracy at chance, displacement, claims that are too sure,"
    " distance from the reference, and what is wrong with the data."
)
FOOTER = (
    "Intervals are 95 %, over prompts: Wilson’s for shares, Student’s t for means; those of the"
    " bins of calibration alone are Wilson’s over comparisons. The same numbers for programs:"
    " report.json; each comparison: rows.jsonl."
)


def numbers(report: Report) -> dict[str, float | int]:
    """Figures as numbers by metric name: of several sets NAME_metric, with _low and _high where
    there is an interval; RewardBench's scores.
    """
    rows: dict[str, Any] = {}
    for part in report["sets"].values():
        head = f"{part['name']}_" if part["name"] else ""
        figures = part["figures"] | ({"kl": part["kl"]["kl"]} if part["kl"] else {})
        rows |= {f"{head}{name}": figure for name, figure in figures.items()}
    if bench := report["rewardbench"]:
        scores = bench.get("rewards") or bench["raw"]
        rows["rewardbench"] = scores["overall"]
        rows |= {f"rewardbench/{name}": row for name, row in scores["sections"].items()}
    return {key: number for name, row in rows.items() for key, number in _flat(name, row)}


def _flat(name: str, row: Any) -> list[tuple[str, float | int]]:
    if not isinstance(row, dict):
        return [] if row is None else [(name, row)]
    ends = ((name, row["value"]), (f"{name}_low", row["low"]), (f"{name}_high", row["high"]))
    return [(key, end) for key, end in ends if end is not None or key == name]


def say_all(report: Report) -> None:
    """Everything that is in the report, set by set, then what it means."""
    for part in report["sets"].values():
        for table in tables(part, f"{report['model']} on {part['title']}"):
            say_table(table)
        _say_loss(report, part)
        if part["calibration"] and "sureness" not in part["calibration"]:
            say(f"calibration: {safe(part['calibration']['why'])}")
        for table in slices(part):
            say_table(table)
    for table, subsets in _bench(report["rewardbench"]):
        say_table(table)
        say_table(subsets)
    say_warnings(report["warnings"])


def _say_loss(report: Report, part: Mapping[str, Any]) -> None:
    figures = part["figures"]
    compared = any(figures.get(name) for name in ("comparisons", "labels"))
    objective, beta = safe(report["objective"]), report["beta"]
    if compared and report["needs_reference"]:
        say("no reference: give --reference for loss, implicit rewards and their accuracy")
    elif "loss" in figures:
        reference = report["reference"]
        beside = f", reference {safe(reference)}" if reference else ", which has no reference"
        say(f"loss: {objective} at beta {beta:g}{beside}")
    elif compared and report["kind"] == "policy":
        why = (
            "it looks at more than log-probs of tokens"
            if report["loss_needs"]
            else "nothing in the data counts for it"
        )
        say(f"no loss of {objective}: {why}; rewards are at beta {beta:g}")


def render(report: Report) -> str:
    """The page. Equal reports give equal bytes."""
    page = Page(
        title=report["model"],
        kind="evaluation",
        verdict=verdict(report),
        subline=subline(report),
        cards=cards(report),
        chips=[(report["kind"], "")],
        warnings=report["warnings"],
        looked_for=LOOKED_FOR,
        bodies=["evaluation.html.jinja"],
        values={
            "report": report,
            "sets": [_set(part) for part in report["sets"].values()],
            "bench": _bench(report["rewardbench"]),
            "sources": _sources(report),
            "settings": _settings(report),
        },
        footer=FOOTER,
    )
    return render_page(page)


def verdict(report: Report) -> str:
    """What was found, in one sentence, with its interval and n."""
    sets = list(report["sets"].values())
    if not sets:
        bench = report["rewardbench"]
        scores = bench.get("rewards") or bench["raw"]
        name = "RewardBench" if scores["overall"] else "RewardBench, all prompts alike"
        score = Figure.read(scores["overall"] or scores["every"])
        return f"{name}: {cited(score, tenths, 'prompts')}."
    figures = sets[0]["figures"]
    where = f"On {sets[0]['name']}: prefers" if len(sets) > 1 else "Prefers"
    for name, words in (
        ("rewards/accuracies", "by its reward"),
        ("raw/accuracies", "by its log-probs"),
    ):
        if name in figures:
            share = Figure.read(figures[name])
            doubt = ", as chance could have done" if share.contains(0.5) else ""
            return (
                f"{where} the chosen answer in {value(share, tenths)} of {number(share.count)}"
                f" held-out comparisons, {words}{doubt} ({support(share, tenths)})."
            )
    if "nll" in figures:
        cost = Figure.read(figures["nll"])
        return (
            f"Held-out answers cost {value(cost, _four)} nats per token ({support(cost, _four)})."
        )
    return "Nothing in the data can be counted."


def _four(x: float) -> str:
    return number(x, 4)


def _writer(share: bool) -> Writer:
    return tenths if share else _four


def subline(report: Report) -> str:
    """What was evaluated, against what."""
    parts = [
        f"{report['kind']} {report['model']}",
        f"reference {report['reference']}" if report["reference"] else "",
        f"{report['objective']} at beta {report['beta']:g}" if report["objective"] else "",
        f"winnow {report['versions']['winnow-lm']}",
        report["made"],
    ]
    return " · ".join(part for part in parts if part)


def cards(report: Report) -> list[Card]:
    """At most eight figures of the first set, by its name where there are several, and
    RewardBench's score.
    """
    first: Mapping[str, Any] = next(iter(report["sets"].values()), {})
    made = _set_cards(first) if first else []
    if len(report["sets"]) > 1:
        made = [replace(card, detail=f"on {first['name']}: {card.detail}") for card in made]
    if bench := report["rewardbench"]:
        scores = bench.get("rewards") or bench["raw"]
        made.append(_card("RewardBench", scores["overall"] or scores["every"], True))
    return made[:8]


def _set_cards(part: Mapping[str, Any]) -> list[Card]:
    figures, names = part["figures"], (*SLICED, "loss")
    made = [
        _card(words, figures[name], share)
        for name, (words, share, _) in WORDS.items()
        if name in names and name in figures
    ]
    if part["displacement"]:
        made.append(_card("Chosen less likely", part["displacement"]["less_likely"], True))
    if (calibration := part["calibration"]) and "sureness" in calibration:
        by_chance = f"{tenths(calibration['chance'])} is what chance alone would show"
        made.append(Card("Calibration error", tenths(calibration["error"]), by_chance))
    if part["kl"]:
        made.append(_card("KL to the reference", part["kl"]["kl"], False))
    return made


def _card(label: str, row: Mapping[str, Any], share: bool) -> Card:
    return figure_card(label, Figure.read(row), _writer(share), bar=share)


def _set(part: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs of one set."""
    figures, calibration = part["figures"], part["calibration"]
    counts = ", ".join(
        f"{number(figures[name])} {name}"
        for name in ("comparisons", "ties", "labels")
        if figures.get(name)
    )
    if calibration and "sureness" in calibration:
        bins, sureness = _calibration(calibration)
        drawn = {"bins": bins, "sureness": sureness, "svg": reliability(calibration["bins"])}
    return {
        "one": part,
        "counts": counts,
        "tables": _figure_tables(part, "Held-out figures"),
        "calibration": drawn if calibration and "sureness" in calibration else calibration,
        "by": slices(part),
    }


def tables(part: Mapping[str, Any], title: str) -> list[Table]:
    """Everything that is known of one set but its slices."""
    calibration = part["calibration"]
    sure = _calibration(calibration) if calibration and "sureness" in calibration else []
    return [*_figure_tables(part, title), *sure]


def _figure_tables(part: Mapping[str, Any], title: str) -> list[Table]:
    made = [_table(title, part["figures"], WORDS)]
    if part["displacement"]:
        made.append(_table("Moved from the reference", part["displacement"], MOVED))
    if far := part["kl"]:
        how = (
            "Exact: at each token over the whole vocabulary."
            if far["how"] == "exact"
            else f"Estimated by k3 from the log-probs of tokens: {far['why']}."
        )
        note = f"{how} Answers of at most {far['most']:,} tokens."
        made.append(_table("On answers of its own", far, FAR, note))
    return made


HEADS = ("", "Value", "95 % interval", "n")


def _table(title: str, figures: Mapping[str, Any], words: Words, note: str = "") -> Table:
    rows = [
        _row(title, figures[name], share, unit)
        for name, (title, share, unit) in words.items()
        if name in figures
    ]
    return Table(title, HEADS, rows, note=note)


def _row(name: str, row: Mapping[str, Any], share: bool, unit: str = "") -> TableRow:
    figure, write = Figure.read(row), _writer(share)
    count = taken_over(figure).removeprefix("n = ")
    return TableRow(name, [value(figure, write), interval(figure, write), count], unit)


def slices(part: Mapping[str, Any]) -> list[Table]:
    """A table for each column whose values slice the set; bars draw the first share of each."""
    return [_slices(column, values) for column, values in part["by"].items()]


def _slices(column: str, parts: Mapping[str, Mapping[str, Any]]) -> Table:
    names = [name for name in SLICED if any(name in part for part in parts.values())]
    shown = [
        (part, [Figure.read(part[name]) if name in part else None for name in names])
        for part in parts.values()
    ]
    rows = []
    for title, (part, figures) in zip(parts, shown, strict=True):
        first = figures[0] if figures else None
        count = f"{part.get('comparisons', part.get('labels', 0)):,}"
        cells = [taken_over(first).removeprefix("n = ") if first else count]
        for name, figure in zip(names, figures, strict=True):
            write = _writer(WORDS[name][1])
            cells.append(cell(figure, write, count=False) if figure else "–")
        bar = first is not None and WORDS[names[0]][1]
        at, ends = (first.value, first.ends) if first and bar else (None, None)
        rows.append(TableRow(title, cells, at=at, interval=ends))
    why = dict.fromkeys(f.why for _, figures in shown for f in figures if f and f.ends is None)
    note = f"Without brackets: {'; '.join(why)}." if why else ""
    heads = [column, "n", *(WORDS[name][0] for name in names)]
    return Table(f"By {column}", heads, rows, note=note)


def _bench(bench: Mapping[str, Any] | None) -> list[tuple[Table, Table]]:
    """For each way of scoring RewardBench its sections, and its subsets."""
    made = []
    for name, words in (("rewards", "by reward"), ("raw", "by log-probs alone")):
        if bench and name in bench:
            scores = bench[name]
            top = scores["overall"]
            rows = [_row("Overall: the mean of the sections", top, True)] if top else []
            rows += [_row(section, row, True) for section, row in scores["sections"].items()]
            rows.append(_row("All prompts alike", scores["every"], True))
            subsets = [
                _row(subset, row, True, scores["section_of"][subset])
                for subset, row in scores["subsets"].items()
            ]
            titles = f"RewardBench, {words}", f"RewardBench, {words}: subsets"
            made.append((Table(titles[0], HEADS, rows), Table(titles[1], HEADS, subsets)))
    return made


def _calibration(calibration: Mapping[str, Any]) -> list[Table]:
    """What the model claims beside what labels say, and how sure it is of itself."""
    rows = []
    for part in calibration["bins"]:
        agreed = Figure(part["agreed"], part["low"], part["high"], part["count"], part["count"])
        cells = [value(agreed, tenths), interval(agreed, tenths), number(part["count"])]
        rows.append(TableRow(tenths(part["claimed"]), cells))
    heads = ("The model claims", "Labels agree", "95 % interval", "n")
    note = (
        f"Calibration error {tenths(calibration['error'])}: the mean distance of the first two"
        f" columns. True claims would show {tenths(calibration['chance'])} by chance."
    )
    bins = Table("What the model claims, and labels say", heads, rows, note=note)
    return [bins, _table("", calibration["sureness"], SURE)]


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
