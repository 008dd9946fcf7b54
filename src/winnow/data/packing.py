"""Groups -> micro-batches under a token budget: groups that share a prompt together, the work even,
a group never cut apart.

The result depends on nothing but its input, and which groups make up a step is not decided here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from winnow.data.prefix_tree import PrefixTreeBuilder, root, size
from winnow.data.render import RenderedGroup
from winnow.data.tokens import tokens_of
from winnow.errors import DataError, Problem

WINDOW = 2048  # groups packed together where a whole data set is walked through
# distinct tokens per micro-batch where none is asked for and no group needs more: a CPU is hardly
# quicker with more
BUDGET = 1024
GPU_BUDGET = 8192  # the same where a GPU computes


@dataclass(frozen=True, slots=True)
class Work:
    """What a group costs to train on, in any unit: per distinct token, per scored token, per
    position attended to.
    """

    token: float = 1.0
    scored: float = 0.0
    position: float = 0.0

    def of(self, group: RenderedGroup) -> float:
        """Of one group, the prompt counted once."""
        prompt = min(s.start for s in group.sequences)
        answers = [len(s.ids) - prompt for s in group.sequences]
        positions = prompt * prompt / 2 + sum(n * (prompt + n / 2) for n in answers)
        scored = sum(s.scored for s in group.sequences)
        return (
            self.token * (prompt + sum(answers)) + self.scored * scored + self.position * positions
        )


def cost(group: RenderedGroup) -> int:
    """Distinct tokens of a group, which it occupies in a micro-batch: what its sequences share
    stands once.
    """
    return size([group.sequences])


def largest(groups: Sequence[RenderedGroup]) -> int:
    """Distinct tokens of the group that has most. Few groups are built for it."""
    most = tokens_of(groups).at_most
    found = 0
    for i in np.argsort(-most, kind="stable").tolist():
        if most[i] <= found:
            break
        found = max(found, cost(groups[i]))
    return found


def budget(groups: Sequence[RenderedGroup], asked: int | None, default: int = BUDGET) -> int:
    """The token budget: what was asked for, or the default, or what the largest group needs. Raises
    DataError by row.
    """
    if asked is None:
        return max(default, largest(groups))
    suspects = np.flatnonzero(tokens_of(groups).at_most > asked).tolist()
    needs = {i: tokens for i in suspects if (tokens := cost(groups[i])) > asked}
    if not needs:
        return asked
    rows = [
        Problem(
            groups[i].where,
            "",
            f"needs {tokens:,} tokens in one micro-batch, max_tokens is {asked:,}",
        )
        for i, tokens in needs.items()
    ]
    raise DataError(
        f"groups that are larger than a micro-batch: {len(needs):,}",
        rows,
        remedy=f"--max-tokens {max(needs.values())}, or a smaller --max-length",
    )


def pack(
    groups: Sequence[RenderedGroup], tokens: int, work: Work | None = None, ranks: int = 1
) -> list[list[int]]:
    """Indices of `groups` in micro-batches of at most `tokens` distinct tokens, of nearly the same
    work each, the most expensive first.

    With several ranks, micro-batch i is rank i % ranks's; there are as many for each (some may be
    empty).
    """
    work = work or Work()
    units = sorted(_units(groups, tokens, work), key=lambda unit: (-unit.work, unit.items))
    halves = sum(2 * unit.tokens > tokens for unit in units)  # no two of them fit together
    count = math.ceil(max(1, halves, sum(unit.tokens for unit in units) / tokens) / ranks) * ranks
    while (packed := _fill(units, count, tokens)) is None:
        count += math.ceil(count / 64 / ranks) * ranks
    packed.sort(key=lambda unit: (-unit.work, unit.items))
    return [sorted(unit.items) for unit in packed if unit.items or ranks > 1]


def pack_all(
    groups: Sequence[RenderedGroup], tokens: int, work: Work | None = None, ranks: int = 1
) -> Iterator[list[int]]:
    """A whole data set in micro-batches, window by window, so that what is planned at a time stays
    small. Several ranks: as in `pack`.
    """
    for first in range(0, len(groups), WINDOW):
        window = [groups[i] for i in range(first, min(first + WINDOW, len(groups)))]
        for part in pack(window, tokens, work, ranks):
            yield [first + i for i in part]


def most_expensive(groups: Sequence[RenderedGroup], tokens: int, most: int) -> list[int]:
    """The fullest micro-batch that a step of `most` groups can have: the largest group, then the
    largest that still fits, and so on.
    """
    size_G = tokens_of(groups).at_most
    order = np.argsort(-size_G, kind="stable")
    falling = -size_G[order]
    chosen: list[int] = []
    at, room = 0, tokens
    while len(chosen) < most and at < len(order):
        chosen.append(int(order[at]))
        room -= cost(groups[chosen[-1]])
        at = max(at + 1, int(np.searchsorted(falling, -room)))
    return chosen


@dataclass
class _Unit:
    """Groups that stay together, their distinct tokens and their work; also a micro-batch while it
    is filled.
    """

    items: list[int]
    tokens: int = 0
    work: float = 0.0


def _units(groups: Sequence[RenderedGroup], tokens: int, work: Work) -> list[_Unit]:
    """Groups that begin alike as one unit, as far as the budget allows."""
    units: list[_Unit] = []
    alike: dict[tuple[int, ...], tuple[_Unit, PrefixTreeBuilder]] = {}
    for i, group in enumerate(groups):
        begin = root(group.sequences)
        unit, growing = alike.get(begin) or (_Unit([]), PrefixTreeBuilder())
        if (
            unit.items and unit.tokens + _most(group) > tokens
        ):  # a new trunk for those that might not fit
            unit, growing = _Unit([]), PrefixTreeBuilder()
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
    """The units in `count` micro-batches, heaviest first, each to where least work is and room;
    None where that does not do.
    """
    bins = [_Unit([]) for _ in range(count)]
    lightest = [(0.0, i) for i in range(count)]
    for unit in units:
        full = []
        while lightest:
            work, i = heapq.heappop(lightest)
            if not bins[i].items or bins[i].tokens + unit.tokens <= tokens:
                break
            full.append((work, i))
        else:
            return None
        bins[i].items += unit.items
        bins[i].tokens += unit.tokens
        bins[i].work += unit.work
        for one in (*full, (bins[i].work, i)):
            heapq.heappush(lightest, one)
    return bins


def _most(group: RenderedGroup) -> int:
    """No fewer tokens than the group occupies, quickly: the shared prompt once, the answers
    whole.
    """
    shared = len(root(group.sequences)) if len(group.sequences) > 1 else 0
    return sum(len(s.ids) for s in group.sequences) - shared * (len(group.sequences) - 1)
