"""What the doctor looks for in lengths and in tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.data.records import Comparison, PreferenceGroup, plain
from winnow.data.render import RenderedGroup
from winnow.data.tokens import Tokens, tokens_of
from winnow.system.findings import Finding


def length_findings(
    groups: Sequence[PreferenceGroup], rendered: Sequence[RenderedGroup] | None
) -> Iterator[Finding]:
    characters = np.array(
        [len(plain(completion.text)) for group in groups for completion in group.completions]
    )
    yield from _length_bias(groups, characters, "characters")
    if rendered is not None:
        columns = tokens_of(rendered).columns
        yield from _length_bias(groups, columns["length"] - columns["start"], "tokens")


def _length_bias(
    groups: Sequence[PreferenceGroup], length: NDArray[Any], unit: str
) -> Iterator[Finding]:
    """How long the preferred and the rejected are, and how often the longer wins: a policy learns
    that first. `length`: of each completion.
    """
    first = accumulate((len(group.completions) for group in groups), initial=0)
    judged = [
        at + side
        for at, group in zip(first, groups)
        for pair in map(preference, group.comparisons)
        if pair is not None
        for side in pair
    ]
    if not judged:
        return
    pairs = length[np.array(judged).reshape(-1, 2)]
    preferred, rejected = (float(side) for side in pairs.mean(axis=0))
    unequal = int((pairs[:, 0] != pairs[:, 1]).sum())
    won = int((pairs[:, 0] > pairs[:, 1]).sum())
    longer = won / unequal if unequal else 0.5
    # a bias: beyond 60:40, and beyond three standard errors of a fair coin
    biased = abs(longer - 0.5) > 0.1 and abs(2 * won - unequal) > 3 * unequal**0.5
    wins = f"the longer one wins {longer:.1%} of {unequal:,} unequal pairs"
    message = (
        f"preferred answers have {preferred:.1f} {unit} on average, rejected {rejected:.1f}; {wins}"
    )
    remedy = (
        "watch the length of answers while training, or use a length-normalized objective"
        if biased
        else ""
    )
    yield Finding("warning" if biased else "note", f"length_{unit}", message, (), remedy)


def token_findings(rendered: Sequence[RenderedGroup]) -> Iterator[Finding]:
    tokens = tokens_of(rendered)
    group_of = np.repeat(np.arange(len(tokens)), tokens.columns["sequences"])  # of each sequence
    yield from _cut(tokens, group_of)
    yield from _spelling(tokens, group_of)


def _cut(tokens: Tokens, group_of: NDArray[Any]) -> Iterator[Finding]:
    """What max_length takes away."""
    c = tokens.columns

    def rows(sequences: NDArray[Any]) -> tuple[str, ...]:
        return tuple(tokens.where(np.unique(group_of[sequences])))

    cut = rows(c["cut"] > 0)
    if cut:
        lost = int(c["cut"].sum())
        scored = lost + int((c["length"] - c["start"]).sum())
        yield Finding(
            "warning",
            "cut",
            f"max_length cuts {lost:,} of {scored:,} completion tokens ({lost / scored:.2%})",
            cut,
            "raise max_length",
        )
    emptied = rows(c["length"] <= c["start"])
    if emptied:
        yield Finding(
            "error",
            "emptied",
            f"{len(emptied):,} groups have a completion without a single token left",
            emptied,
            "raise max_length or skip them",
        )
    shortened = (tokens[int(g)] for g in np.unique(group_of[c["cut"] > 0]))
    merged = tuple(
        group.where
        for group in shortened
        for comparison in group.comparisons
        if _identical_by_cut(group, comparison)
    )
    if merged:
        yield Finding(
            "error",
            "identical_by_cut",
            f"{len(merged):,} comparisons are between completions that max_length made identical",
            merged,
            "raise max_length",
        )


def _spelling(tokens: Tokens, group_of: NDArray[Any]) -> Iterator[Finding]:
    """Where the tokens of a text depend on what is beside it, or spell a special one."""
    c = tokens.columns
    moved = tuple(tokens.where(group_of[c["moved"]]))
    if moved:
        yield Finding(
            "note",
            "moved",
            f"in {len(moved):,} completions the prompt's last tokens are others than alone: what"
            " begins before the answer and reaches into it is scored",
            moved,
        )
    special = tuple(tokens.where(np.flatnonzero(c["special"])))
    if special:
        count = int(c["special"].sum())
        fix = "if a chat template was already applied to the data, give it without"
        yield Finding(
            "warning",
            "special_text",
            f"{count:,} texts in the data spell a special token; they are read as plain text",
            special,
            fix,
        )


def _identical_by_cut(group: RenderedGroup, c: Comparison) -> bool:
    one, other = group.sequences[c.winner], group.sequences[c.loser]
    return bool(one.cut or other.cut) and one.ids == other.ids


def preference(c: Comparison) -> tuple[int, int] | None:
    """(better, worse) by the comparison's probability; None for a tie."""
    if c.probability == 0.5:
        return None
    return (c.winner, c.loser) if c.probability > 0.5 else (c.loser, c.winner)
