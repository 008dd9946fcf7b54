"""The loss of an objective on held-out data, from stored log-probs, with an interval over
prompts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from scipy.stats import t
from torch import Tensor

from winnow.data.order import MixShare
from winnow.data.render import RenderedGroup
from winnow.engine.base import Columns
from winnow.engine.batch import Batch, joined
from winnow.engine.dataset_logps import Reference, offsets
from winnow.engine.micro_batches import Data
from winnow.evaluation import heldout
from winnow.evaluation.statistics.intervals import ONE
from winnow.objectives.objective import Objective
from winnow.objectives.terms import Known
from winnow.system.figure import Figure

BLOCKS = 200  # most parts the prompts are dealt into: each costs a pass of the loss over its rows
WHOLE = "this objective sorts all comparisons together, so none has a share of its own in it"


def loss(
    made: Objective,
    groups: Sequence[RenderedGroup],
    shares: Sequence[MixShare],
    policy: Tensor,
    reference: Tensor | None,
    tokens: int,
    before: Known,
) -> Figure | None:
    """None where nothing in the data counts for the objective, or log-probs are not enough for it.
    before: what the training had come to know.

    Interval: prompts are dealt at random into blocks (one each, where there are few), and the loss
    is a sum of ratios of their sums; variance B / (B - 1) sum_b u_b^2 with u_b = sum over members
    of weight (total_b - mean count_b) / count, Student's t with B - 1 degrees. Its count is of the
    units of its first member: comparisons, as a rule.
    """
    start = offsets(groups)
    ours, theirs = (
        Reference("", policy, start),
        (None if reference is None else Reference("", reference, start)),
    )
    fed = Data(groups, shares, theirs)
    batches = list(fed.everything(tokens))
    if made.want != ("entropy",) or not any(made.counts(batches)):
        return None
    columns, whole = _columns(ours, batches)
    known = made.known(columns, whole, before, train=False)
    totals, counts = (
        [float(total) for total in made.totals(columns, whole, known)],
        made.counts([whole]),
    )
    value, count = made.losses(totals, counts)["loss"], round(next(n for n in counts if n))
    numbers = heldout.prompts(groups)
    blocks = _blocks(numbers)
    if len(blocks) < 2:
        return Figure(value, None, None, count, 1, ONE)
    if any((term.entry.batch or "").startswith("quantile") for term in made.terms):
        return Figure(value, None, None, count, len(set(numbers)), WHOLE)
    parts = [_columns(ours, [fed.batch(items)]) for items in blocks]
    sums = [
        ([float(total) for total in made.totals(own, batch, known)], made.counts([batch]))
        for own, batch in parts
    ]
    weights = [term.choice.weight for term in made.terms]
    slopes = [
        math.fsum(
            w * (total - whole * n / of) / of
            for w, total, n, whole, of in zip(weights, *own, totals, counts)
            if of
        )
        for own in sums
    ]
    spread = math.sqrt(
        len(blocks) / (len(blocks) - 1) * math.fsum(slope * slope for slope in slopes)
    )
    half = float(t.ppf(0.975, len(blocks) - 1)) * spread
    return Figure(value, value - half, value + half, count, len(set(numbers)))


def _columns(ours: Reference, batches: list[Batch]) -> tuple[Columns, Batch]:
    return {"logp": torch.cat([ours.of(batch) for batch in batches])}, joined(batches)


def _blocks(numbers: list[int]) -> list[list[int]]:
    """Groups by block: those of one prompt are never apart."""
    order = list(range(max(numbers) + 1))
    random.Random(0).shuffle(order)
    block_of = {number: i % BLOCKS for i, number in enumerate(order)}
    blocks: list[list[int]] = [[] for _ in range(min(BLOCKS, len(order)))]
    for i, number in enumerate(numbers):
        blocks[block_of[number]].append(i)
    return blocks
