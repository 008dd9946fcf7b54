"""The endless order of training data: a pure function of (seed, epoch). The position in it is two
integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where in the order training stands: the epoch, and how many items of it were used."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class MixShare:
    """`size` items in a row that belong to one data set, of which an epoch takes `weight` x
    size.
    """

    size: int
    weight: float = 1.0


def epoch_size(shares: Sequence[MixShare]) -> int:
    """Items in one epoch of the mixture."""
    return sum(round(share.size * share.weight) for share in shares)


def order(shares: Sequence[MixShare], seed: int, epoch: int) -> NDArray[np.int64]:
    """Item indices of one epoch, shuffled. Weight 2 is every item twice; 0.5 a half, another one
    each epoch.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    chosen: list[NDArray[np.int64]] = []
    start = 0
    for share in shares:
        items = np.arange(start, start + share.size)
        whole = math.floor(share.weight)
        rest = round(share.size * share.weight) - whole * share.size
        chosen += [np.tile(items, whole), random.permutation(items)[:rest]]
        start += share.size
    together = np.concatenate(chosen)
    return together[random.permutation(len(together))]


def batches(
    shares: Sequence[MixShare], batch_size: int, seed: int, cursor: Cursor
) -> Iterator[tuple[list[int], Cursor]]:
    """Global batches of item indices from `cursor` on, each with the cursor after it. An epoch's
    last one may be smaller.
    """
    while True:
        items = order(shares, seed, cursor.epoch)
        while cursor.position < len(items):
            end = min(cursor.position + batch_size, len(items))
            after = Cursor(cursor.epoch, end) if end < len(items) else Cursor(cursor.epoch + 1, 0)
            yield items[cursor.position : end].tolist(), after
            if after.epoch != cursor.epoch:
                break
            cursor = after
        cursor = Cursor(cursor.epoch + 1, 0)
