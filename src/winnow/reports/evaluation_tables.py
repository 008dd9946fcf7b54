"""An evaluation on the terminal: tables of figures with intervals and n, and sentences. No figure
is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from winnow.reports.evaluation_signs import beside, counted, reasons, shown, span
from winnow.system.console import console, safe, say

Report = Mapping[str, Any]
SHARES = ("accuracies", "auc")  # what is told in percent


def plain(report: Report) -> dict[str, float | int]:
    """Figures as numbers by metric name: of several sets NAME_metric, with _low and _high where
    there is an interval; RewardBench's scores.
    """
    found: dict[str, float | int] = {}
    for one in report["sets"].values():
        head = f"{one['name']}_" if one["name"] else ""
        figures = one["figures"] | ({"kl": one["kl"]["kl"]} if one["kl"] else {})
        for name, figure in figures.items():
            found |= _numbers(f"{head}{name}", figure)
    if bench := report["rewardbench"]:
        scores = bench.get("rewards") or bench["raw"]
        for name, figure in {
            "rewardbench": scores["overall"],
            **{f"rewardbench/{name}": one for name, one in scores["sections"].items()},
        }.items():
            found |= _numbers(name, figure) if figure else {}
    return found


def _numbers(name: str, figure: Any) -> dict[str, float | int]:
    if not isinstance(figure, dict):
        return {name: figure}
    return {name: figure["value"]} | {
        f"{name}_{end}": figure[end] for end in ("low", "high") if figure[end] is not None
    }


def say_all(report: Report) -> None:
    """Everything that is in the report, set by set, then what it means."""
    for one in report["sets"].values():
        _say_set(report, one)
    if report["rewardbench"]:
        _say_bench(report["rewardbench"])
    for sign in report["warnings"]:
        mark = {"warning": "[yellow]warning:[/]", "error": "[red]error:[/]"}.get(
            sign["level"], "note:"
        )
        say(f"{mark} {safe(sign['message'])} {safe(sign['advice'])}")


def _say_set(report: Report, one: Mapping[str, Any]) -> None:
    figures = dict(one["figures"])
    if one["displacement"]:
        moved = one["displacement"]
        figures |= {
            "moved/chosen": moved["chosen"],
            "moved/rejected": moved["rejected"],
            "less likely/chosen": moved["less_likely"],
            "less likely/both": moved["both"],
        }
    if one["kl"]:
        figures |= {
            "kl": one["kl"]["kl"],
            "length/sampled": one["kl"]["length"],
            "finished/sampled": one["kl"]["finished"],
        }
    if one["calibration"] and "sureness" in one["calibration"]:
        figures |= {
            f"calibration/{name}": figure for name, figure in one["calibration"]["sureness"].items()
        }
    table = _table(f"{report['model']} on {one['title']}", "measure")
    for name, figure in figures.items():
        _row(
            table,
            name,
            figure,
            share=name.endswith(SHARES) or name.startswith(("less likely", "finished")),
        )
    console.print(table)
    _say_loss(report, one)
    if one["kl"]:
        how = (
            "exact at each token, over the whole vocabulary"
            if one["kl"]["how"] == "exact"
            else f"k3, from the log-probs of tokens: {one['kl']['why']}"
        )
        say(f"kl: {safe(how)}; answers of at most {one['kl']['most']:,} tokens")
    if one["calibration"]:
        _say_calibration(one["calibration"])
    for column, parts in one["by"].items():
        _say_slices(column, parts)


def _say_loss(report: Report, one: Mapping[str, Any]) -> None:
    compared, policy = (
        {"comparisons", "labels"} & {name for name, value in one["figures"].items() if value},
        report["kind"] == "policy",
    )
    if compared and report["needs_reference"]:
        say("no reference: give --reference for loss, implicit rewards and their accuracy")
    elif "loss" in one["figures"]:
        beside = (
            f", reference {safe(report['reference'])}"
            if report["reference"]
            else ", which has no reference"
        )
        say(f"loss: {safe(report['objective'])} at beta {report['beta']:g}{beside}")
    elif compared and policy:
        why = (
            "it looks at more than log-probs of tokens"
            if report["loss_needs"]
            else "nothing in the data counts for it"
        )
        say(
            f"no loss of {safe(report['objective'])}: {why}; rewards are at beta {report['beta']:g}"
        )


def _say_calibration(found: Mapping[str, Any]) -> None:
    if "sureness" not in found:
        say(f"calibration: {safe(found['why'])}")
        return
    table = Table(title="is s(margin) a probability?", title_justify="left", box=None)
    for column in ("the model claims", "labels agree", "95 % interval", "comparisons"):
        table.add_column(column, justify="right")
    for one in found["bins"]:
        table.add_row(
            f"{one['claimed']:.1%}",
            f"{one['agreed']:.1%}",
            f"{one['low']:.1%} to {one['high']:.1%}",
            f"{one['count']:,}",
        )
    console.print(table)
    say(
        f"calibration error: {found['error']:.1%} (mean distance of the first two columns);"
        f" {found['chance']:.1%} is what chance alone would show"
    )


def _say_slices(column: str, parts: Mapping[str, Mapping[str, Any]]) -> None:
    names = [
        name
        for name in ("rewards/accuracies", "raw/accuracies", "rewards/margins", "rewards/auc")
        if any(name in part for part in parts.values())
    ]
    table = Table(title=safe(f"by {column}, with 95 % intervals"), title_justify="left", box=None)
    table.add_column(safe(column))
    for head in ("n", *names):
        table.add_column(head, justify="right")
    for value, part in parts.items():
        first = next((part[name] for name in names if name in part), None)
        count = (
            f"{part.get('comparisons', part.get('labels', 0)):,}"
            if first is None
            else counted(first).removeprefix("n = ")
        )
        table.add_row(
            safe(value),
            count,
            *(
                beside(part[name], share=name.endswith(SHARES)) if name in part else ""
                for name in names
            ),
        )
    console.print(table)
    if why := reasons(parts, names):
        say(why)


def _say_bench(bench: Mapping[str, Any]) -> None:
    for name, words in (("rewards", "by reward"), ("raw", "by log-probs alone")):
        if name not in bench:
            continue
        scores = bench[name]
        table = _table(f"RewardBench {words}: {bench['title']}", "part")
        for section, figure in scores["sections"].items():
            _row(table, section, figure, share=True)
        for subset, figure in scores["subsets"].items():
            _row(table, f"  {subset} ({scores['section_of'][subset]})", figure, share=True)
        _row(table, "all prompts alike", scores["every"], share=True)
        if scores["overall"]:
            _row(table, "overall, the mean of the sections", scores["overall"], share=True)
        console.print(table)


def _table(title: str, what: str) -> Table:
    table = Table(title=safe(title), title_justify="left", box=None)
    table.add_column(what)
    for name in ("value", "95 % interval", "n"):
        table.add_column(name, justify="right")
    return table


def _row(table: Table, name: str, figure: Any, *, share: bool) -> None:
    if isinstance(figure, dict):
        table.add_row(
            safe(name),
            shown(figure["value"], share=share),
            span(figure, share=share),
            counted(figure).removeprefix("n = "),
        )
    else:
        table.add_row(safe(name), f"{figure:,}", "", "")
