"""Groups -> micro-batches under a token budget: groups that share a prompt together, the work even, a group never cut apart.

The result depends on nothing but its input, and which groups make up a step is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from winnow.data.render import RenderedGroup
from winnow.data.tokens import tokens_of
from winnow.data.tree import Growing, root, size
from winnow.errors import DataError, Problem

CANDIDATES = 256  # largest groups that are looked at for the most expensive micro-batch
WINDOW = 2048  # groups packed together where a whole data set is walked through
BUDGET = 1024  # distinct tokens per micro-batch where none is asked for and no group needs more: a CPU is hardly quicker with more
GPU_BUDGET = 8192  # the same where a GPU computes


@dataclass(frozen=True, slots=True)
class Work:
    """What a group costs to train on, in any unit: per distinct token, per scored token, per position attended to."""

    token: float = 1.0
    scored: float = 0.0
    position: float = 0.0

    def of(self, group: RenderedGroup) -> float:
        """Of one group, the prompt counted once."""
        prompt = min(s.start for s in group.sequences)
        answers = [len(s.ids) - prompt for s in group.sequences]
        positions = prompt * prompt / 2 + sum(n * (prompt + n / 2) for n in answers)
        scored = sum(len(s.ids) - s.start for s in group.sequences)
        return self.token * (prompt + sum(answers)) + self.scored * scored + self.position * positions


def cost(group: RenderedGroup) -> int:
    """Tokens a group occupies in a micro-batch: what its sequences share stands once."""
    return size([group.sequences])


def budget(groups: Sequence[RenderedGroup], asked: int | None, default: int | None = None) -> int:
    """The token budget: what was asked for, or the default, or what the largest group needs. Raises DataError by row."""
    least = asked if asked is not None else BUDGET if default is None else default
    over = [(group, cost(group)) for group in groups if _most(group) > least]
    over = [(group, tokens) for group, tokens in over if tokens > least]
    largest = max((tokens for _, tokens in over), default=least)
    if asked is None or not over:
        return largest
    rows = [Problem(group.where, "", f"needs {tokens:,} tokens in one micro-batch, max_tokens is {asked:,}") for group, tokens in over]
    raise DataError(f"{len(over):,} groups are larger than a micro-batch", rows, remedy=f"--max-tokens {largest}, or a smaller --max-length")


def pack(groups: Sequence[RenderedGroup], tokens: int, work: Work | None = None, ranks: int = 1) -> list[list[int]]:
    """Indices of `groups` in micro-batches of at most `tokens` distinct tokens, of nearly the same work each, the most expensive first.

    With several ranks, micro-batch i is rank i % ranks's; there are as many for each (some may be empty).
    """
    work = work or Work()
    units = sorted(_units(groups, tokens, work), key=lambda unit: (-unit.work, unit.items))
    count = max(1, math.ceil(sum(unit.tokens for unit in units) / tokens))
    count = math.ceil(count / ranks) * ranks
    while (packed := _fill(units, count, tokens)) is None:
        count += ranks
    packed.sort(key=lambda unit: (-unit.work, unit.items))
    return [sorted(unit.items) for unit in packed if unit.items or ranks > 1]


def pack_all(groups: Sequence[RenderedGroup], tokens: int) -> Iterator[list[int]]:
    """A whole data set in micro-batches, window by window, so that what is planned at a time stays small."""
    for first in range(0, len(groups), WINDOW):
        window = [groups[i] for i in range(first, min(first + WINDOW, len(groups)))]
        for part in pack(window, tokens):
            yield [first + i for i in part]


def most_expensive(groups: Sequence[RenderedGroup], tokens: int) -> list[int]:
    """The micro-batch of most work that a data set can give: its largest groups, as many as the budget holds."""
    columns = tokens_of(groups)
    largest = np.argsort(-columns.per_group("length"), kind="stable")[:CANDIDATES].tolist()
    chosen = [groups[i] for i in largest]
    return [largest[i] for i in pack(chosen, tokens)[0]]


@dataclass
class _Unit:
    """Groups that stay together, their distinct tokens and their work; also a micro-batch while it is filled."""

    items: list[int]
    tokens: int = 0
    work: float = 0.0


def _units(groups: Sequence[RenderedGroup], tokens: int, work: Work) -> list[_Unit]:
    """Groups that begin alike as one unit, as far as the budget allows."""
    units: list[_Unit] = []
    alike: dict[tuple[int, ...], tuple[_Unit, Growing]] = {}
    for i, group in enumerate(groups):
        begin = root(group.sequences)
        unit, growing = alike.get(begin) or (_Unit([]), Growing())
        if unit.items and unit.tokens + _most(group) > tokens:  # a new trunk for those that might not fit
            unit, growing = _Unit([]), Growing()
        if not unit.items:
            units.append(unit)
            alike[begin] = unit, growing
        before = growing.tokens
        growing.add(group.sequences)
        unit.items.append(i)
        unit.work += work.of(group) * (growing.tokens - before) / cost(group)
        unit.tokens = growing.tokens
    return units


def _fill(units: Sequence[_Unit], count: int, tokens: int) -> list[_Unit] | None:
    """The units in `count` micro-batches, heaviest first, each to where least work is and room; None where that does not do."""
    bins = [_Unit([]) for _ in range(count)]
    for unit in units:
        room = [one for one in bins if not one.items or one.tokens + unit.tokens <= tokens]
        if not room:
            return None
        chosen = min(room, key=lambda one: one.work)
        chosen.items += unit.items
        chosen.tokens += unit.tokens
        chosen.work += unit.work
    return bins


def _most(group: RenderedGroup) -> int:
    """No fewer tokens than the group occupies, quickly: the shared prompt once, the answers whole."""
    shared = len(root(group.sequences)) if len(group.sequences) > 1 else 0
    return sum(len(s.ids) for s in group.sequences) - shared * (len(group.sequences) - 1)
