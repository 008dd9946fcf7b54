"""Answers to other prompts beside each group's own: what KTO measures the policy's distance from
its reference on.

Which answer goes to which prompt is a pure function of the seed, so the reference's log-probs of
them are stored like all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from winnow.data import tokens
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.data.tokens import Tokens
from winnow.errors import NothingLeft

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
