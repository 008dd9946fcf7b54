"""Comparisons of one group as a ranking, and which of them training is to see: all, those of
neighbours, the best against the rest, or the ranking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np

from winnow.data import tokens
from winnow.data.records import Comparison, PreferenceGroup
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.data.tokens import Tokens
from winnow.errors import NothingLeft, Problem

Pairs = Literal["all", "adjacent", "best", "listwise"]
MOST_TIED = 8  # completions of one rank: the mean over their orders takes 2^n terms


def ranks(comparisons: Sequence[Comparison], count: int) -> tuple[int, ...]:
    """For each of `count` completions how many others beat it, directly; ties (probability 0.5)
    beat nobody.
    """
    found = [0] * count
    for _, loser in _decided(comparisons):
        found[loser] += 1
    return tuple(found)


def chosen(group: PreferenceGroup, pairs: Pairs) -> PreferenceGroup | Problem:
    """The group with the comparisons that `pairs` asks for, or why its comparisons are no ranking.

    adjacent: of completions with nobody between them; best: with one of the best; listwise: all
    that the ranking implies, so that `ranks` gives the ranking. A tie stays where its sides' rank
    is asked for.
    """
    if pairs == "all" or not group.comparisons:
        return group
    rank = _ranking(group)
    if isinstance(rank, Problem):
        return rank
    if pairs == "listwise":
        unsure = [c.probability for c in group.comparisons if c.probability not in (0, 0.5, 1)]
        if unsure:
            return Problem(
                group.where,
                "comparisons",
                f"have a probability of {unsure[0]:g}, and a ranking is certain or tied",
                "--pairs all, with dpo",
            )
        kept = [
            Comparison(i, j) if rank[i] < rank[j] else Comparison(j, i)
            for i, j in combinations(range(len(rank)), 2)
            if rank[i] != rank[j]
        ]
        weight = sum(c.weight for c in group.comparisons) / len(group.comparisons)
        return replace(group, comparisons=tuple(replace(c, weight=weight) for c in kept))
    levels = {value: i for i, value in enumerate(sorted(set(rank)))}
    near = [abs(levels[rank[c.winner]] - levels[rank[c.loser]]) <= 1 for c in group.comparisons]
    best = [min(rank[c.winner], rank[c.loser]) == 0 for c in group.comparisons]
    return replace(
        group,
        comparisons=tuple(
            c for c, fits in zip(group.comparisons, near if pairs == "adjacent" else best) if fits
        ),
    )


def _ranking(group: PreferenceGroup) -> list[int] | Problem:
    """How many beat each completion, directly or through others; a Problem where that is no
    order.
    """
    count = len(group.completions)
    above: list[set[int]] = [set() for _ in range(count)]  # who beats it
    for winner, loser in _decided(group.comparisons):
        above[loser].add(winner)
    for between in range(count):  # Warshall's closure
        for better in above:
            if between in better:
                better |= above[between]
    if any(k in better for k, better in enumerate(above)):
        return Problem(
            group.where,
            "comparisons",
            "go round in a circle, so there is no ranking",
            "--pairs all",
        )
    rank = [len(better) for better in above]
    for i, j in combinations(range(count), 2):
        if rank[i] != rank[j] and i not in above[j] and j not in above[i]:
            return Problem(
                group.where,
                "comparisons",
                f"do not say which of completions {i} and {j} is better, so there is no ranking",
                "--pairs all",
            )
    if max(rank.count(value) for value in rank) > MOST_TIED:
        return Problem(
            group.where,
            "comparisons",
            f"leave more than {MOST_TIED} completions tied",
            "--pairs all",
        )
    return rank


def _decided(comparisons: Sequence[Comparison]) -> list[tuple[int, int]]:
    """(better, worse) of each comparison that is no tie."""
    return [
        (c.winner, c.loser) if c.probability > 0.5 else (c.loser, c.winner)
        for c in comparisons
        if c.probability != 0.5
    ]


_BLOCK = 1000  # groups whose new columns are made together


def with_mismatched(groups: Tokens, seed: int, limit: int | None) -> Tokens:
    """The groups, each with one more sequence at its end: its prompt, and the answer to another one
    (cut where `limit` tokens are the most).

    Held in memory. Raises NothingLeft where all prompts are the same.
    """
    random = np.random.Generator(np.random.PCG64([seed, 1]))
    partner = _partners(
        [hash(_prompt(group)) for group in groups], random.permutation(len(groups)).tolist()
    )
    parts = []
    for first in range(0, len(groups), _BLOCK):
        made = [
            _with(groups[i], groups[partner[i]], random, limit)
            for i in range(first, min(first + _BLOCK, len(groups)))
        ]
        parts.append(tokens.packed(made, groups.columns["text"][first : first + _BLOCK].tolist()))
    return tokens.gathered(parts)


def _partners(prompts: Sequence[int], order: Sequence[int]) -> dict[int, int]:
    """For each group one of another prompt. Groups stand prompt by prompt, the most frequent first;
    a shift by its size leaves every prompt.
    """
    counts = Counter(prompts)
    if len(counts) < 2:
        raise NothingLeft(
            "all prompts are the same, so no answer belongs to another one",
            {},
            remedy="kto needs two prompts or more: --objective bco_unpaired",
        )
    most, size = counts.most_common(1)[0]
    line = sorted(order, key=lambda i: (prompts[i] != most, prompts[i]))
    count = len(line)
    return {
        i: line[size + k % (count - size)] if k < size else line[(k + size) % count]
        for k, i in enumerate(line)
    }


def _prompt(group: RenderedGroup) -> Sequence[int]:
    return group.sequences[0].ids[: group.sequences[0].start]


def _with(
    group: RenderedGroup, other: RenderedGroup, random: np.random.Generator, limit: int | None
) -> RenderedGroup:
    answer = other.sequences[int(random.integers(len(other.sequences)))]
    prompt = tuple(_prompt(group))
    sequence = TokenSequence((prompt + answer.ids[answer.start :])[:limit], len(prompt))
    return replace(
        group, sequences=(*group.sequences, sequence), labels=(*group.labels, None), mismatched=1
    )
