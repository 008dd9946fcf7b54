"""Everything but training: what would be trained on, token by token, what is wrong with it, and whether it fits."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from winnow.config import CheckSettings, parse_follow
from winnow.console import console, safe, say, visible
from winnow.data.dataset import Dataset, Wanted
from winnow.data.layouts import unread
from winnow.data.render import Renderer, TokenSequence
from winnow.data.stream import epoch_size
from winnow.objectives.terms import DEMONSTRATION, Objective
from winnow.recipes import dpo, sft
from winnow.recipes.planning import memory_line, planned, prepared, wanted, with_rate
from winnow.recipes.training import possible, refuse_idle
from winnow.resolved import Resolved
from winnow.train.loop import Plan

SHOWN_GROUPS = 2
HIDDEN = "dim"  # style of what stands for tokens there is no room for
SHOWN_TOKENS = 160
LEVELS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def run(resolved: Resolved[CheckSettings]) -> bool:
    """Print the whole check. False when the data has errors (training would refuse)."""
    settings = resolved.settings
    is_sft = settings.recipe == "sft"
    made = DEMONSTRATION
    if not is_sft:
        made, resolved = dpo.chosen(resolved)  # type: ignore[arg-type, assignment]
    resolved = with_rate(resolved, *((sft.RATE, sft.ADAPTER_RATE) if is_sft else (dpo.RATE, dpo.ADAPTER_RATE)))
    renderer, epoch, held_out = prepared(settings, Wanted("demonstration") if is_sft else wanted(made, resolved.settings.pairs))
    possible(settings, renderer, None if is_sft else settings.reference)
    train_set = epoch(0)
    sets = {"train": train_set, **{prefix.rstrip("_"): one for prefix, one in held_out.items()}}
    for name, one in sets.items():
        _say_account(name, one, made)
    for group in train_set.groups[:SHOWN_GROUPS]:
        for k, sequence in enumerate(group.sequences[:2]):
            name = f"completion {k}" if k < len(group.sequences) - group.mismatched else "an answer to another prompt, which kto measures its baseline on"
            console.print(Text(visible(f"{group.where}, {name}: "), style="dim") + _lint(renderer, sequence))
    say("[dim]grey: prompt; green: scored; reverse: end token[/]")
    findings = [(name, finding) for name, one in sets.items() for finding in one.findings]
    for name, finding in findings:
        say(
            f"[{LEVELS[finding.level]}]{finding.level}[/] {name}: {finding.code}: {safe(finding.message)}"
            + (f": {safe(finding.named())}" if finding.rows else "")
            + (f" -> {safe(finding.remedy)}" if finding.remedy else "")
        )
    resolved, plan = planned(resolved, train_set)
    refuse_idle(made, train_set, plan, None if is_sft else parse_follow(settings.moving_reference))
    _say_plan(resolved.settings, plan, train_set)
    return not any(finding.level == "error" for _, finding in findings)


def _say_account(name: str, one: Dataset, objective: Objective) -> None:
    account = one.account
    table = Table(title=f"{name} data", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for source in account["sources"]:
        extra = f", columns not read: {unread(source['layout'], source['ignored'])}" if source["ignored"] else ""
        table.add_row("source", f"{safe(source['name'])}: layout [bold]{source['layout']}[/], {source['rows']:,} rows, {source['used']:,} used{safe(extra)}")
        if source["ties"]:
            fate = "not compared" if source["layout"] in ("scored", "ranked") else "chosen still counts as preferred"
            table.add_row("ties", f"{source['ties']:,} pairs of equal score: {fate}")
    for reason, count in account["dropped"].items():
        table.add_row("dropped", f"{count:,} {reason}")
    if account["not_chosen"]:
        table.add_row("pairs", f"{account['not_chosen']:,} comparisons left out, as --pairs asks")
    if account["margins"] and not objective.margins:
        table.add_row("margins", f"{account['margins']:,} comparisons have one; {objective.name} does not look at it (odpo does, or --offset)")
    if account["identical"]:
        table.add_row("dropped", f"{account['identical']:,} comparisons of identical completions, in rows that keep others")
    lengths = np.sort(one.groups.columns["length"])
    at = [int(lengths[int(q * (len(lengths) - 1))]) for q in (0.0, 0.5, 0.9, 0.99, 1.0)]
    tokens = account["tokens"]
    table.add_row("groups", f"{account['used']:,} with {account['completions']:,} completions and {account['comparisons']:,} comparisons")
    table.add_row("length", f"tokens of prompt + completion: least {at[0]:,}, median {at[1]:,}, 90 % {at[2]:,}, 99 % {at[3]:,}, most {at[4]:,}")
    cut = f"{tokens['cut']:,} cut ({tokens['cut_share']:.2%}, budget {tokens['cut_budget']:.0%})"
    table.add_row("tokens", f"{tokens['prompt']:,} of prompts (each once), {tokens['scored']:,} scored, {cut}")
    console.print(table)


def _lint(renderer: Renderer, sequence: TokenSequence) -> Text:
    """The sequence as decoded tokens: prompt, scored tokens and end token told apart by colour."""
    ids, half = sequence.ids, SHOWN_TOKENS // 2
    ends = len(ids) - 1 if not sequence.cut else len(ids)

    def style(i: int) -> str:
        if half <= i < len(ids) - half:
            return HIDDEN
        return "reverse bold green" if i == ends else "green" if i >= sequence.start else "bright_black"

    shown = Text()
    for kind, several in groupby(range(len(ids)), style):
        run = list(several)
        if kind == HIDDEN:
            shown.append(f" ... {len(run):,} tokens ... ", style=HIDDEN)
            continue
        text = renderer.tokenizer.decode(ids[run[0] : run[-1] + 1], clean_up_tokenization_spaces=False)  # together: a letter may take several
        shown.append(visible(text).replace("\n", "\\n"), style=kind)
        shown.append("|" if run[-1] + 1 == sequence.start else "", style="bold red")
    return shown


def _say_plan(settings: Any, plan: Plan, train_set: Dataset) -> None:
    account = train_set.account
    per_step = account["comparisons"] / len(train_set.groups) * plan.batch_size
    rest = epoch_size(train_set.shares) % plan.batch_size if settings.stream is None else 0
    last = f" (the last of an epoch of {rest})" if rest else ""
    say(f"plan: {plan.steps:,} steps of {plan.batch_size} groups{last}, {per_step:,.1f} comparisons per step, {plan.tokens:,} tokens per micro-batch")
    say(f"rate: {plan.schedule} from {plan.lr:g} after {plan.warmup} steps of warm-up")
    say(memory_line(settings, train_set, plan.tokens))
