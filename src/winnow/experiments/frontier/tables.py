"""The tables of `winnow frontier`: settings, RLHF beside DPO, every training."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.experiments.frontier.words import (
    STYLES,
    TITLES,
    Figures,
    mean_of,
    methods_shown,
    setting,
    shared,
)
from winnow.reports.page import Table, TableRow
from winnow.system.format import number, percent, tenths

HEADS = (
    "",
    "Setting",
    "KL",
    "True reward",
    "Fluent",
    "Wins over SFT",
    "Share of the limit",
    "Seeds",
)


def table(facts: Figures, rows: Sequence[Figures]) -> Table:
    """A row for each method and setting."""
    start = facts["start"]
    fluent, wins = percent(start["fluency"]["mean"], 1), percent(start["win"]["mean"])
    first = ["", "0", number(start["reward"]["mean"]), fluent, wins, "", ""]
    made = [TableRow("The SFT model", first)]
    for row in sorted(rows, key=lambda row: (list(STYLES).index(row["method"]), row["kl"]["mean"])):
        share = shared(row["share"]) if row["share"] and row["share"]["mean"] is not None else "–"
        seeds = number(row["seeds"]) if row["seeds"] else "–"
        made.append(
            TableRow(STYLES[row["method"]][0], [setting(row), *_figures(row), share, seeds])
        )
    return Table("", HEADS, made)


def _figures(row: Figures) -> list[str]:
    """KL, reward, fluency and wins, each with its interval."""
    return [
        *(mean_of(row[name]) for name in ("kl", "reward")),
        *(shared(row[name], tenths) for name in ("fluency", "win")),
    ]


RATES = ("Setting", "Rate", "KL", "True reward", "Fluent", "Share of the limit")


def rlhf(ledger: Figures) -> list[Table]:
    """For each world the two beside each other, and how much each minds its rate."""
    made = []
    for cost in ledger["costs"]:
        columns, title = [_cost(cost[name]) for name in ("dpo", "ppo")], TITLES[cost["world"]]
        rows = [TableRow(name, [column[name] for column in columns]) for name in columns[0]]
        heads = ("", "DPO", "PPO, learned reward")
        made.append(Table(title, heads, rows, [ABOUT_COSTS]))
        rates = [
            TableRow(STYLES[name][0], _rate(row))
            for name in ("dpo", "ppo")
            for row in cost["rates"][name]
        ]
        if rates:
            title = f"{title}: how much it minds the rate"
            made.append(Table(title, ("", *RATES), rates, [ABOUT_RATES]))
    return made


ABOUT_COSTS = (
    "Medians over runs. SFT model, answers and comparisons are the same ones for both, and not"
    " counted. Processor seconds are of one thread."
)


ABOUT_RATES = (
    "The same setting and seed at three rates; the one in the middle is its own. Brackets: 95 %"
    " over prompts."
)


def _cost(one: Figures) -> dict[str, str]:
    best, models = one["best"], one["models"]
    held = ", ".join(f"{name} {_bytes(size)}" for name, size in models.items())
    spread = ", ".join(
        f"{name} {number(one[key])}"
        for name, key in (("reward", "spread_reward"), ("KL", "spread_kl"))
        if one[key] is not None
    )
    return {
        "Trainings": f"{len(one['trainings'])}: {', '.join(one['trainings'])}",
        "Models in memory while it trains": f"{len(models)}: {held}",
        "Weights, gradients, moments of what is trained": _bytes(one["trained"]),
        "Comparisons": number(one["labels"]),
        "Tokens sampled before": number(one["sampled"]),
        "Tokens sampled while it trains": number(round(one["generated"])),
        "Seconds of the processor, a run": _both(one, "cpu"),
        "Seconds of the clock, a run": _both(one, "seconds"),
        "Runs": number(one["runs"]),
        "Nearest to the limit": (
            "–" if best is None else f"{shared(best['share'])}, {setting(best)}"
        ),
        "True reward there": "–" if best is None else mean_of(best["reward"]),
        "KL there": "–" if best is None else mean_of(best["kl"]),
        "Deviation over seeds": (
            f"{spread}, {one['seeds']} seeds of each setting" if spread else "one seed"
        ),
    }


def _both(one: Figures, name: str) -> str:
    before = one[f"{name}_before"]
    return number(one[name]) + (
        "" if before is None else f", and {number(before)} for the reward model"
    )


def _bytes(size: float) -> str:
    return f"{number(size / 2**20)} MiB"


def _rate(row: Figures) -> list[str]:
    share = "–" if row["share"] is None else percent(row["share"])
    figures = [mean_of(row["kl"]), mean_of(row["reward"]), shared(row["fluency"], tenths)]
    return [setting(row), number(row["lr"]), *figures, share]


GRID = (
    "",
    "Setting",
    "Rate",
    "Seed",
    "KL",
    "True reward",
    "Fluent",
    "Wins over SFT",
    "Share of the limit",
    "Prompts",
    "Answers",
    "Seconds",
)


def runs(ledger: Figures) -> tuple[Table, list[tuple[str, str]]]:
    """The whole grid: a row for each training and seed, with intervals over its prompts, and the
    settings that all of a kind share.
    """
    rows = []
    for point in (p for p in ledger["points"] if p["method"] in methods_shown(ledger)):
        share = percent(point["share"]) if point["share"] is not None else "–"
        answers = "all" if point["answers"] is None else number(point["answers"])
        rows.append(
            TableRow(
                f"{TITLES[point['world']]}: {STYLES[point['method']][0]}",
                [
                    *(setting(point), number(point["lr"]), number(point["seed"])),
                    *_figures(point),
                    *(share, number(point["prompts"]), answers, number(point["seconds"])),
                ],
            )
        )
    fixed = [
        (f"{TITLES[name]}: {what}", ", ".join(f"{key} {value}" for key, value in own.items()))
        for name, of in ledger["fixed"].items()
        for what, own in of.items()
    ]
    return Table("", GRID, rows), fixed
