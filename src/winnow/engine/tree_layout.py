"""Who attends to whom in a packed forest, and in how many calls.

Queries of a segment see their own segment and its ancestors, causally. A segment and its first
child, that one's first child and so on lie side by side, so they are one item; every other child
begins an item of its own, which gathers its ancestors' keys and values. Small items are padded to a
common shape and share a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from winnow.engine.batch import Run

# Queries x keys of an item up to which it shares a call: a call costs about as much as this
# many products.
SMALL = 64 * 64
STEP = 16  # items of one call differ by less than this in queries and in keys


@dataclass(frozen=True)
class AttentionItem:
    """Queries that lie side by side: `own` are their segments, `before` the ancestors' segments,
    first the root's.
    """

    own: tuple[int, ...]
    before: tuple[int, ...]


@dataclass(frozen=True)
class Shared:
    """Small items of one call, padded: which packed tokens they ask from and look at."""

    query_BQ: Int[Tensor, "B Q"]
    key_BK: Int[Tensor, "B K"]
    # positions from the key to the query: negative for padded keys; 0 for padded queries
    distance_BQK: Int[Tensor, "B Q K"]


@dataclass(frozen=True)
class AttentionPlan:
    """A batch's attention. Its masks are made once and used by every layer."""

    lengths: tuple[int, ...]  # of the segments
    items: tuple[AttentionItem, ...]
    spans: tuple[int, ...]  # queries of the items
    alone: tuple[int, ...]  # items with a call of their own
    shared: tuple[Shared, ...]
    # of each packed token in the results of all calls laid end to end; None: in order
    place_T: Int[Tensor, " T"] | None
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """0 where the last `queries` of `keys` positions may look, -inf elsewhere: causal, and
        within the window.
        """
        key = (queries, keys, window, like.dtype)
        if key not in self.masks:
            distance = torch.arange(keys - queries, keys, device=like.device)[
                :, None
            ] - torch.arange(keys, device=like.device)
            self.masks[key] = _blind(distance, window, like)
        return self.masks[key]

    def shared_mask(self, number: int, window: int | None, like: Tensor) -> Tensor:
        """The same for shared call `number`, (B, 1, Q, K)."""
        key = (number, window, like.dtype)
        if key not in self.masks:
            self.masks[key] = _blind(self.shared[number].distance_BQK, window, like)[:, None]
        return self.masks[key]


def items_of(runs: Sequence[Run]) -> tuple[AttentionItem, ...]:
    """The items of a batch's segments."""
    found: list[list[int]] = []
    for s, run in enumerate(runs):
        if s and run.parent == s - 1:
            found[-1].append(s)
        else:
            found.append([s])
    return tuple(AttentionItem(tuple(own), _ancestors(runs, own[0])) for own in found)


def arrange(
    runs: Sequence[Run], items: Sequence[AttentionItem], device: torch.device
) -> AttentionPlan:
    """The calls that compute these items: the larger ones each its own, then the small ones
    together, alike with alike.
    """
    spans = tuple(sum(runs[s].length for s in item.own) for item in items)
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        queries, keys = spans[number], spans[number] + sum(runs[s].length for s in item.before)
        small = queries * keys <= SMALL
        alike.setdefault((queries // STEP, keys // STEP) if small else (number,), []).append(number)
    alone = tuple(sorted(mine[0] for mine in alike.values() if len(mine) == 1))
    padded = [
        _padded(runs, [items[number] for number in mine])
        for mine in alike.values()
        if len(mine) > 1
    ]
    # the packed token each result belongs to
    owners = [t for number in alone for t in _tokens(runs, items[number].own)]
    owners += [t for _, mine in padded for t in mine]
    order = [n for _, n in sorted((t, n) for n, t in enumerate(owners) if t >= 0)]
    place_T = torch.tensor(order).to(device, non_blocking=True) if padded else None
    shared = tuple(
        Shared(
            *(x.to(device, non_blocking=True) for x in (one.query_BQ, one.key_BK, one.distance_BQK))
        )
        for one, _ in padded
    )
    return AttentionPlan(
        tuple(run.length for run in runs), tuple(items), spans, alone, shared, place_T
    )


def _padded(runs: Sequence[Run], items: Sequence[AttentionItem]) -> tuple[Shared, list[int]]:
    """A shared call, and which packed token each of its results belongs to (-1: none)."""
    queries = [_tokens(runs, item.own) for item in items]
    keys = [_tokens(runs, item.before + item.own) for item in items]
    most_Q, most_K = max(map(len, queries)), max(map(len, keys))
    count_B11, seen_B11 = (
        torch.tensor([len(x) for x in found])[:, None, None] for found in (queries, keys)
    )
    query_Q1, key_K = torch.arange(most_Q)[:, None], torch.arange(most_K)
    # padded keys come after all real queries
    distance_BQK = (seen_B11 - count_B11 + query_Q1 - key_K).masked_fill(query_Q1 >= count_B11, 0)
    query_BQ, key_BK = (
        torch.tensor([[*x, *[x[0]] * (most - len(x))] for x in found])
        for found, most in ((queries, most_Q), (keys, most_K))
    )
    return Shared(query_BQ, key_BK, distance_BQK), [
        t for x in queries for t in [*x, *[-1] * (most_Q - len(x))]
    ]


def _tokens(runs: Sequence[Run], segments: Sequence[int]) -> list[int]:
    """The packed tokens of some segments."""
    return [t for s in segments for t in range(runs[s].start, runs[s].start + runs[s].length)]


def _ancestors(runs: Sequence[Run], s: int) -> tuple[int, ...]:
    found: list[int] = []
    while (s := runs[s].parent) >= 0:
        found.append(s)
    return tuple(found[::-1])


def _blind(distance: Tensor, window: int | None, like: Tensor) -> Tensor:
    blind = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(distance.shape, dtype=like.dtype, device=like.device).masked_fill_(
        blind, float("-inf")
    )
