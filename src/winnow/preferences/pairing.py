"""Which two answers of an item are asked about next: the pair whose outcome would tell most, and
now and then any pair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.special import expit, xlog1py, xlogy

from winnow.data.records import as_json
from winnow.evaluation.statistics.bradley_terry import Fit, Game, fit
from winnow.preferences.items import Item

# nats: standard deviation of answers' strengths around what their models' would make one expect
SPREAD = 1.0
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on its parts alone: the same on every machine, in every
    process.
    """
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:13], 16) / 16**13


def different(item: Item) -> tuple[int, ...]:
    """Indices of answers that are not the same text as an earlier one: nobody is asked which of two
    equal texts is better.
    """
    texts = [json.dumps(as_json(answer), sort_keys=True) for answer in item.answers]
    return tuple(i for i, text in enumerate(texts) if text not in texts[:i])


def chosen(
    item: Item,
    games: Sequence[Game],
    asked: Collection[tuple[int, int]],
    models: Mapping[str, float],
    *,
    seed: int,
    random_share: float,
) -> tuple[int, int] | None:
    """The next pair (lower index first) that was not asked yet; None when all were. The same for
    the same votes and seed.

    games: votes on this item so far. What the rows came with counts as much as a vote: a
    `probability`, or a `margin` (implicit rewards, scores) as s(margin). models: strengths of
    models over all items; answers are expected to be as good as their models.
    """
    left = [pair for pair in combinations(different(item), 2) if pair not in set(asked)]
    if not left:
        return None
    if draw(seed, item.id, len(asked), "random") >= random_share:
        known = [
            Game(c.winner, c.loser, float(expit(c.margin)) if c.margin else c.probability)
            for c in item.known
        ]
        center = np.array([models.get(name, 0.0) for name in item.models])
        told = gain(fit(len(item.answers), [*games, *known], ridge=SPREAD**-2, center=center), left)
        left = [pair for pair, one in zip(left, told) if one > max(told) - 1e-9]
    return left[int(draw(seed, item.id, len(asked), "pair") * len(left))]


def gain(now: Fit, pairs: Sequence[tuple[int, int]]) -> list[float]:
    """How many nats a vote on each pair would tell about the strengths: entropy of its outcome,
    less what stays open if strengths were known.

    I(outcome; strengths) = H(E p) - E H(p) with p = s(gap), gap normal as fitted (Houlsby and
    others, "Bayesian active learning for classification and preference learning", 2011). Greatest
    where the outcome is open because strengths are, not because answers are alike.
    """
    i, j = np.array(pairs).T
    spread = np.sqrt(
        np.maximum(0.0, now.covariance[i, i] + now.covariance[j, j] - 2 * now.covariance[i, j])
    )
    p = expit((now.strengths[i] - now.strengths[j])[:, None] + spread[:, None] * NODES)
    weights = WEIGHTS / WEIGHTS.sum()
    return [float(bits) for bits in _entropy(p @ weights) - _entropy(p) @ weights]


def _entropy(p: np.ndarray) -> np.ndarray:
    return np.asarray(-xlogy(p, p) - xlog1py(1 - p, -p))
