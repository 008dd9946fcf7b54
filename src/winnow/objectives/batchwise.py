"""What some objectives must know of the whole optimizer batch before any gradient: numbers without
a gradient, or an order.

Axes: M comparisons, J judged completions, C completions. Nats.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_BETA = 1e-3


def running_shift(
    reward_J: Float[Tensor, " J"],
    good_J: Float[Tensor, " J"],
    weight_J: Float[Tensor, " J"],
    before: Mapping[str, float],
) -> dict[str, float]:
    """BCO's shift (arXiv 2404.04656): the mean over all steps so far, this one among them, of (mean
    reward of good + of bad) / 2.

    A step without one of the two counts with the other's mean alone.
    """
    means = [
        (reward_J * side_J * weight_J).sum() / mass
        for side_J in (good_J, 1 - good_J)
        if float(mass := (side_J * weight_J).sum()) > 0
    ]
    now, steps = float(torch.stack(means).mean()), before.get("steps", 0.0)
    return {"shift": (before.get("shift", 0.0) * steps + now) / (steps + 1), "steps": steps + 1}


def mismatched_baseline(ratio_C: Float[Tensor, " C"]) -> dict[str, float]:
    """KTO's z (arXiv 2402.01306): max(0, mean log-ratio of the answers to other prompts), an
    estimate of the KL to the reference.
    """
    return {"baseline": max(0.0, float(ratio_C.mean()))}


def scaled_beta(
    margin_M: Float[Tensor, " M"],
    beta: float,
    alpha: float,
    momentum: float,
    before: Mapping[str, float],
) -> dict[str, float]:
    """beta-DPO's beta of this batch (arXiv 2407.08639): beta (1 + alpha (mean margin - M0)), at
    least 0.001, M0 the running mean margin.

    M0 begins at 0 and takes this batch in first, as in the authors' code; margins are not scaled by
    beta.
    """
    now = float(margin_M.mean())
    mean = momentum * before.get("mean", 0.0) + (1 - momentum) * now
    return {"mean": mean, "beta": max(LEAST_BETA, beta * (1 + alpha * (now - mean)))}


def quantile_differences(
    one: Float[Tensor, " A"], other: Float[Tensor, " B"]
) -> Float[Tensor, " M"]:
    """Differences of the sorted values; the shorter side's are repeated evenly until both have as
    many.
    """
    count = max(len(one), len(other))
    at = torch.arange(count, device=one.device)
    return one.sort().values[at * len(one) // count] - other.sort().values[at * len(other) // count]
