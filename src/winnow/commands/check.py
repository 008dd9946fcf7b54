"""Everything but training: what would be trained on, token by token, what is wrong with it, and
whether it fits.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from winnow.config.evaluation import CheckSettings
from winnow.config.options import parse_follow
from winnow.config.resolve import Resolved, handed_on
from winnow.config.training import RewardSettings, SFTSettings
from winnow.data.account import DataAccount
from winnow.data.dataset import Dataset, Wanted
from winnow.data.layouts import unread
from winnow.data.order import epoch_size
from winnow.data.render import Renderer, TokenSequence
from winnow.errors import SettingsError
from winnow.objectives.objective import DEMONSTRATION, Objective
from winnow.system.console import console, safe, say, visible
from winnow.training import dpo, reward, sft
from winnow.training.job import possible, refuse_idle
from winnow.training.loop import Plan
from winnow.training.plan import memory_line, planned, prepared, wanted, with_rate

SHOWN_GROUPS = 2
HIDDEN = "dim"  # style of what stands for tokens there is no room for
SHOWN_TOKENS = 160
ANSWER = {False: "green", True: "default"}  # what is not scored has no colour
LEVELS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def run(resolved: Resolved[CheckSettings]) -> bool:
    """Print the whole check. False when the data has errors (training would refuse)."""
    recipe = resolved.settings.recipe
    made, resolved = _chosen(resolved)
    settings: Any = resolved.settings
    renderer, epoch, held_out = prepared(
        settings, Wanted("demonstration") if recipe == "sft" else wanted(made, settings.pairs)
    )
    possible(settings, renderer, settings.reference if recipe == "dpo" else None)
    train_set = epoch(0)
    sets = {"train": train_set, **{prefix.rstrip("_"): one for prefix, one in held_out.items()}}
    for name, one in sets.items():
        _say_account(name, one, made)
    for group in train_set.groups[:SHOWN_GROUPS]:
        for k, sequence in enumerate(group.sequences[:2]):
            name = (
                f"completion {k}"
                if k < len(group.sequences) - group.mismatched
                else "an answer to another prompt, which kto measures its baseline on"
            )
            console.print(
                Text(visible(f"{group.where}, {name}: "), style="dim")
                + _lint(renderer, sequence, last=made.rewards)
            )
    legend = (
        "reverse: where the head's number is read"
        if made.rewards
        else "green: scored; reverse: end token"
    )
    say(f"[dim]grey: prompt; {legend}[/]")
    findings = [(name, finding) for name, one in sets.items() for finding in one.account.findings]
    for name, finding in findings:
        say(
            f"[{LEVELS[finding.level]}]{finding.level}[/] {name}: {finding.code}:"
            f" {safe(finding.message)}"
            + (f": {safe(finding.named())}" if finding.rows else "")
            + (f" -> {safe(finding.remedy)}" if finding.remedy else "")
        )
    resolved, plan = planned(resolved, train_set)
    refuse_idle(
        made, train_set, plan, parse_follow(settings.moving_reference) if recipe == "dpo" else None
    )
    _say_plan(resolved.settings, plan, train_set)
    return not any(finding.level == "error" for _, finding in findings)


def _chosen(resolved: Resolved[CheckSettings]) -> tuple[Objective, Resolved[Any]]:
    """What the recipe trains on, and the settings with its own defaults. Raises SettingsError for
    what does not go together.
    """
    recipe = resolved.settings.recipe
    if recipe == "dpo":
        made, asked = dpo.chosen(resolved)  # type: ignore[arg-type]
        return made, with_rate(asked, dpo.RATE, dpo.ADAPTER_RATE)
    kind: type[Any] = {"sft": SFTSettings, "reward": RewardSettings}[recipe]
    known = {field.alias or name for name, field in kind.model_fields.items()} | {"recipe"}
    idle = [
        name
        for name, origin in resolved.origins.items()
        if origin != "default" and name not in known
    ]
    if idle:
        raise SettingsError(
            f"{', '.join(idle)}: of no meaning to winnow {recipe}", remedy="leave it away"
        )
    own = handed_on(kind, resolved, {"out": resolved.settings.out or Path()})
    if recipe == "sft":
        return DEMONSTRATION, with_rate(own, sft.RATE, sft.ADAPTER_RATE)
    return reward.chosen(own.settings), with_rate(own, reward.RATE, reward.ADAPTER_RATE)


def _say_account(name: str, one: Dataset, objective: Objective) -> None:
    account = one.account
    table = Table(
        title=f"{name} data",
        title_justify="left",
        show_header=False,
        box=None,
        padding=(0, 2, 0, 0),
    )
    _add_sources(table, account)
    for reason, count in account.dropped.items():
        table.add_row("dropped", f"{count:,} {reason}")
    if account.not_chosen:
        table.add_row("pairs", f"{account.not_chosen:,} comparisons left out, as --pairs asks")
    if account.margins and not objective.margins:
        table.add_row(
            "margins",
            f"{account.margins:,} comparisons have one; {objective.name} does not look at it"
            " (odpo does, or --offset)",
        )
    if account.identical:
        table.add_row(
            "dropped",
            f"{account.identical:,} comparisons of identical completions, in rows that keep others",
        )
    lengths = np.sort(one.groups.columns["length"])
    at = [int(lengths[int(q * (len(lengths) - 1))]) for q in (0.0, 0.5, 0.9, 0.99, 1.0)]
    tokens = account.tokens
    table.add_row(
        "groups",
        f"{account.used:,} with {account.completions:,} completions and"
        f" {account.comparisons:,} comparisons",
    )
    table.add_row(
        "length",
        f"tokens of prompt + completion: least {at[0]:,}, median {at[1]:,}, 90 % {at[2]:,}, 99 %"
        f" {at[3]:,}, most {at[4]:,}",
    )
    cut = f"{tokens.cut:,} cut ({tokens.cut_share:.2%}, budget {tokens.cut_budget:.0%})"
    scored = "of answers, of which the last of each is scored" if objective.rewards else "scored"
    table.add_row(
        "tokens",
        f"{tokens.prompt:,} of prompts (each once), {tokens.scored:,} {scored}, {cut}",
    )
    console.print(table)


def _add_sources(table: Table, account: DataAccount) -> None:
    for source in account.sources:
        extra = (
            f", columns not read: {unread(source.layout, source.ignored)}" if source.ignored else ""
        )
        table.add_row(
            "source",
            f"{safe(source.name)}: layout [bold]{source.layout}[/], {source.rows:,} rows,"
            f" {source.used:,} used{safe(extra)}",
        )
        if source.ties:
            fate = (
                "not compared"
                if source.layout in ("scored", "ranked")
                else "chosen still counts as preferred"
            )
            table.add_row("ties", f"{source.ties:,} pairs of equal score: {fate}")


def _lint(renderer: Renderer, sequence: TokenSequence, *, last: bool = False) -> Text:
    """The sequence as decoded tokens: prompt, scored tokens and end token told apart by colour.
    last: the last token alone is scored, cut or not.
    """
    ids, half = sequence.ids, SHOWN_TOKENS // 2
    ends = len(ids) - 1 if last or not sequence.cut else len(ids)

    def style(i: int) -> str:
        if half <= i < len(ids) - half:
            return HIDDEN
        return (
            "reverse bold green"
            if i == ends
            else ANSWER[last]
            if i >= sequence.start
            else "bright_black"
        )

    shown = Text()
    for kind, several in groupby(range(len(ids)), style):
        run = list(several)
        if kind == HIDDEN:
            shown.append(f" ... {len(run):,} tokens ... ", style=HIDDEN)
            continue
        # together: a letter may take several
        text = renderer.tokenizer.decode(
            ids[run[0] : run[-1] + 1], clean_up_tokenization_spaces=False
        )
        shown.append(visible(text).replace("\n", "\\n"), style=kind)
        shown.append("|" if run[-1] + 1 == sequence.start else "", style="bold red")
    return shown


def _say_plan(settings: Any, plan: Plan, train_set: Dataset) -> None:
    account = train_set.account
    per_step = account.comparisons / len(train_set.groups) * plan.batch_size
    rest = epoch_size(train_set.shares) % plan.batch_size if settings.stream is None else 0
    last = f" (the last of an epoch of {rest})" if rest else ""
    say(
        f"plan: {plan.steps:,} steps of {plan.batch_size} groups{last}, {per_step:,.1f} comparisons"
        f" per step, {plan.tokens:,} tokens per micro-batch"
    )
    say(f"rate: {plan.schedule} from {plan.lr:g} after {plan.warmup} steps of warm-up")
    say(memory_line(settings, train_set, plan.tokens))
