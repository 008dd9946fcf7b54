"""Groups -> micro-batches under a token budget. A group is never cut apart; the result depends on nothing but its input."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.data.render import RenderedGroup
from winnow.errors import DataError, Problem

BUDGET = 4096  # tokens per micro-batch where none is asked for and no group needs more


def cost(groups: Sequence[RenderedGroup]) -> int:
    """Tokens a micro-batch of these groups occupies: every completion a row, all rows as long as the longest."""
    rows = [len(sequence.ids) for group in groups for sequence in group.sequences]
    return len(rows) * max(rows)


def budget(groups: Sequence[RenderedGroup], asked: int | None) -> int:
    """The token budget: what was asked for, or 4096, or what the largest group needs. Raises DataError by row."""
    largest = max((cost([group]) for group in groups), default=1)
    if asked is None:
        return max(BUDGET, largest)
    over = [
        Problem(group.where, "", f"needs {cost([group]):,} tokens in one micro-batch, max_tokens is {asked:,}") for group in groups if cost([group]) > asked
    ]
    if over:
        raise DataError(f"{len(over):,} groups are larger than a micro-batch", over, remedy=f"--max-tokens {largest}, or a smaller --max-length")
    return asked


def pack(groups: Sequence[RenderedGroup], tokens: int) -> list[list[int]]:
    """Indices of `groups` in micro-batches of at most `tokens`: longest first, so padding is small and memory peaks early."""
    longest = [max(len(s.ids) for s in group.sequences) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: (-longest[i], i))
    packed: list[list[int]] = []
    rows = width = 0
    for i in order:
        more = len(groups[i].sequences)
        if not packed or (rows + more) * max(width, longest[i]) > tokens:
            packed.append([])
            rows = width = 0
        packed[-1].append(i)
        rows, width = rows + more, max(width, longest[i])
    return packed
