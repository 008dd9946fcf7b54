"""How `winnow frontier` stands on a report's page: drawings and tables of cells. No figure is made
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from winnow.errors import RunError
from winnow.experiments.frontier.tables import rlhf, runs, table
from winnow.experiments.frontier.words import (
    STYLES,
    TITLES,
    by_seeds,
    claims,
    mean_of,
    methods_shown,
    setting,
    shared,
)
from winnow.reports import run_report
from winnow.reports.page import Card
from winnow.reports.page import render as render_page
from winnow.reports.panels import Panel
from winnow.reports.plots import RUN_INKS, Drawing, Line, draw_one
from winnow.system.files import read_json
from winnow.system.format import number, percent, tenths
from winnow.system.run_folder import RunFolder

LEDGER = "frontier.json"
Figures = Mapping[str, Any]

ENOUGH = 3  # seeds from which intervals are drawn
NEEDED = (
    "claims",
    "closest",
    "costs",
    "fixed",
    "ppo",
    "points",
    "rows",
    "seeds",
    "settings",
    "worlds",
)


def build(given: Sequence[str | Path]) -> dict[str, Any]:
    """The numbers of a report, with those of `winnow frontier` where its folder, or the demo before
    it, is the only one. Its dozens of runs are not shown.
    """
    roots = list(
        dict.fromkeys(path for one in given if not (path := Path(one).resolve()).is_file())
    )
    made = run_report.build(
        given, without_runs=[root for root in roots if (root / LEDGER).exists()]
    )
    return {**made, "frontier": read(roots[0]) if len(roots) == 1 else {}}


def render(made: Figures) -> str:
    """The page of a report that `build` made: the frontier stands before the runs, and heads a page
    without runs.
    """
    page, ledger = run_report.page_of(made), made["frontier"]
    if ledger:
        page = replace(
            page,
            bodies=["frontier.html.jinja", *page.bodies],
            values={**page.values, **top(ledger)},
            footer="The same numbers for programs: report.json.",
        )
    if ledger and not made["runs"]:
        page = replace(
            page,
            kind="reward against KL",
            verdict=verdict(ledger),
            subline=subline(ledger),
            cards=cards(ledger),
        )
    return render_page(page)


def write(folder: str | Path) -> Path:
    """Leave `report.html`, then `report.json`, in a run folder, a demo's or a frontier's. Returns
    the page's path.
    """
    made = build([folder])
    run_report.save(folder, made, render(made))
    return RunFolder(folder).report_html


def write_again(given: Sequence[str | Path]) -> Path:
    """Draw the report of one folder anew, in its place. Raises RunError for several, and for a
    file, which have no page of their own.
    """
    if len(given) != 1 or not Path(given[0]).is_dir():
        raise RunError(
            f"{', '.join(map(str, given))}: not one run folder, so the page needs a name",
            remedy="name the HTML file to write: --out report.html",
        )
    return write(given[0])


def page(given: Sequence[str | Path], out: str | Path) -> Path:
    """One page from one or more folders and files of votes; none of them is changed."""
    return run_report.save_page(given, out, render(build(given)))


def read(root: Path) -> dict[str, Any]:
    """What `winnow frontier` left in a folder, or behind a demo; nothing where it left nothing, or
    is under way. Raises RunError for what is damaged.
    """
    path = next(
        (path for path in (root / LEDGER, root / "frontier" / LEDGER) if path.exists()), None
    )
    if path is None:
        return {}
    found = read_json(path)
    if isinstance(found, dict) and found.get("points") == []:
        return {}
    found = read_json(path, *NEEDED)
    rows = (
        found["rows"]
        if isinstance(found["rows"], list) and isinstance(found["points"], list)
        else [None]
    )
    if not all(
        isinstance(row, dict) and isinstance(row.get("kl"), dict) and row.get("method") in STYLES
        for row in [*rows, *found["points"]]
    ):
        raise RunError(
            f"{path}: damaged: its points are none",
            remedy="the same command again, into another --out",
        )
    return dict(found)


def top(ledger: Figures) -> dict[str, Any]:
    """What the template needs."""
    grid, fixed = runs(ledger)
    drawn = {
        "worlds": [world(ledger, name) for name in ledger["worlds"]],
        "claims": claims(ledger),
        "rlhf": rlhf(ledger),
        "runs": grid,
        "fixed": fixed,
    }
    return {"frontier": drawn}


def verdict(ledger: Figures) -> str:
    """What it comes to, in a sentence: DPO and PPO over the same KLs, or DPO where it is nearest to
    the limit.
    """
    both = next(
        (
            c
            for c in ledger["claims"]
            if (c["name"], c["world"], c.get("against")) == ("above", "small", "ppo")
            and c["shares"]
        ),
        None,
    )
    if both:
        low, high = (number(kl) for kl in both["reach"])
        ours, theirs = (shared(both["shares"][name]) for name in ("dpo", "ppo"))
        found = (
            f"from KL {low} to {high} DPO comes to {ours} of the most reward there is, PPO on a"
            f" learned reward to {theirs}, {by_seeds(both['seeds'])}."
        )
        return f"Where all answers are counted, {found}"
    best = _closest(ledger, "small", "dpo")
    if best is None:
        return "Reward against KL."
    share, kl = shared(best["share"]), mean_of(best["kl"])
    return (
        f"Where all answers are counted, DPO comes to {share} of the most reward there is at KL"
        f" {kl}, its nearest setting, {by_seeds(best['seeds'])}."
    )


def subline(ledger: Figures) -> str:
    """How much was done."""
    parts = [
        f"{TITLES[name]}: {number(facts['start']['prompts'])} prompts"
        for name, facts in ledger["worlds"].items()
    ]
    minutes = [f"{number(ledger['seconds'] / 60, 2)} minutes"] if ledger.get("seconds") else []
    trained = sum(p["lr"] is not None for p in ledger["points"])
    return " · ".join(
        [
            f"{number(trained)} trainings, up to {max(ledger['seeds'].values())} seeds",
            *parts,
            *minutes,
        ]
    )


def cards(ledger: Figures) -> list[Card]:
    """The nearest each method comes to the limit in the world that is counted: each at a KL of its
    own, which is said.
    """
    found = []
    for method in methods_shown(ledger):
        best = _closest(ledger, "small", method)
        if best is not None:
            seeds = f", {by_seeds(best['seeds'])}" if best["seeds"] else ""
            span = shared(best["share"]).partition(" % ")[2]
            at = (
                f"of the limit{f' {span}' if span else ''} at KL {mean_of(best['kl'])},"
                f" {setting(best)}{seeds}"
            )
            found.append(Card(STYLES[method][0], percent(best["share"]["mean"]), at))
    return found


def _closest(ledger: Figures, world: str, method: str) -> Figures | None:
    return next(
        (row for row in ledger["closest"] if row["world"] == world and row["method"] == method),
        None,
    )


# ---------------------------------------------------------------- a world


def shown(ledger: Figures, name: str) -> list[Figures]:
    """A world's rows (settings, over seeds) at each method's own rate; PPO only where it has proved
    itself; the best of n among them.
    """
    return [
        row
        for row in ledger["rows"]
        if row["world"] == name and row["own_rate"] and row["method"] in methods_shown(ledger)
    ]


def world(ledger: Figures, name: str) -> dict[str, Any]:
    """A world's drawings, the table below them, and what is to be known of it."""
    facts, rows = ledger["worlds"][name], shown(ledger, name)
    return {
        "title": TITLES[name],
        "sentences": _about(ledger, name),
        "drawings": drawings(ledger, name),
        "table": table(facts, rows),
    }


def _about(ledger: Figures, name: str) -> list[str]:
    facts = ledger["worlds"][name]
    given = {
        "prompts": number(facts["start"]["prompts"]),
        "samples": number(facts.get("samples")),
        "far": number(facts.get("trusted")),
    }
    found = [(COUNTED if facts["exact"] else DRAWN).format(**given)]
    return [*found, _ppo(ledger["ppo"])]


COUNTED = """Everything here is computed, nothing is sampled: all answers to all {prompts} \
prompts, their probability under every policy, and their true reward. The line is the most reward \
there can be at each KL: π* = π_ref exp(r/β)/Z for every β."""
DRAWN = """Figures of {prompts} held-out prompts; the KL is exact at each token of what the \
policy itself says. The dotted line is made of {samples} samples of the SFT model, weighted by \
exp(r/β), all prompts together. Since that may also choose among prompts, it is an upper bound of \
what a policy can do. It ends at {far} nats, beyond which fewer than 100 samples carry it. The KL \
of the best of n is its bound, log n − (n − 1)/n."""


def _ppo(ppo: Figures) -> str:
    """Whether PPO proved itself, by how much."""
    if not ppo["tried"]:
        return "PPO is not among the methods here."
    given = {
        "share": shared(ppo["share"], tenths),
        "needed": percent(ppo["needed"]),
        "targets": ppo["targets"],
        "seeds": by_seeds(ppo["share"]["seeds"]),
    }
    return (PROVEN if ppo["shown"] else WEAK).format(**given)


PROOF = (
    "with the exact reward, in the world that is counted, it came to {share} of the limit, the mean"
    " over {targets} target KLs with {seeds}"
)
PROVEN = f"PPO may stand here: {PROOF}; {{needed}} are asked for."
WEAK = (
    f"PPO is missing: {PROOF}, and {{needed}} are asked for before it may stand beside the others."
    " A weak PPO would prove nothing."
)


def drawings(ledger: Figures, name: str) -> list[Drawing]:
    """Reward against KL with the limit; the share of fluent texts against KL; and the way there,
    where it was looked at.
    """
    facts, rows = ledger["worlds"][name], shown(ledger, name)
    far = max(row["kl"]["mean"] for row in rows) * 1.05
    limit = [(p["kl"], p["reward"]) for p in facts["limit"] if p["kl"] <= far]
    label = "the most there is" if facts["exact"] else "no more than this"
    edge = Line(limit, "", label, "ink", "solid" if facts["exact"] else "dotted")
    methods = [method for method in STYLES if any(row["method"] == method for row in rows)]
    reward = Panel(
        "Reward against KL",
        "Mean true reward, by nats per answer from the SFT model. Bars: 95 % over seeds, or over"
        " prompts where there is one seed.",
        (),
        axis="KL",
    )
    fluent = Panel(
        "Fluency against KL",
        "Share of texts that the language allows. The grey line is the SFT model's.",
        (),
        facts["start"]["fluency"]["mean"],
        axis="KL",
    )
    found = [
        draw_one(reward, [edge, *(_line(rows, method, "reward") for method in methods)]),
        draw_one(fluent, [_line(rows, m, "fluency") for m in methods]),
    ]
    return found + _ways(ledger, name)


def _line(rows: Sequence[Figures], method: str, figure: str) -> Line:
    title, ink, dash, marker = STYLES[method]
    mine = sorted(
        (row for row in rows if row["method"] == method), key=lambda row: row["kl"]["mean"]
    )
    # two seeds have an interval that says nothing and hides everything
    few = any(1 < row["seeds"] < ENOUGH for row in mine)
    spans = () if few else tuple((row[figure]["low"], row[figure]["high"]) for row in mine)
    return Line(
        [(row["kl"]["mean"], row[figure]["mean"]) for row in mine],
        "",
        title,
        ink,
        dash,
        marker,
        spans=spans,
    )


def _ways(ledger: Figures, name: str) -> list[Drawing]:
    """DPO's way through the plane, checkpoint by checkpoint."""
    facts = ledger["worlds"][name]
    points = [
        p
        for p in ledger["points"]
        if p["world"] == name and p["method"] == "dpo" and p["path"] and p["own_rate"]
    ]
    lines = []
    for i, value in enumerate(sorted({p["value"] for p in points})):
        same = [p["path"] for p in points if p["value"] == value]
        start = (0.0, facts["start"]["reward"]["mean"])
        way = [
            (fmean(at["kl"] for at in column), fmean(at["reward"] for at in column))
            for column in zip(*same)
        ]
        lines.append(
            Line([start, *way], "", f"β {value:g}", RUN_INKS[i % len(RUN_INKS)], "solid", "o")
        )
    if not lines:
        return []
    limit = Line(
        [
            (p["kl"], p["reward"])
            for p in facts["limit"]
            if p["kl"] <= max(x for line in lines for x, _ in line.points)
        ],
        "",
        "the limit",
        "ink",
        "solid",
    )
    return [
        draw_one(
            Panel(
                "DPO along its training",
                "From the SFT model, checkpoint by checkpoint; means over seeds.",
                (),
                axis="KL",
            ),
            [limit, *lines],
        )
    ]


# ---------------------------------------------------------------- RLHF beside DPO


# ---------------------------------------------------------------- every run
