"""Is s(margin) a probability? Reliability in bins, calibration error and what of it is chance,
Brier score with its parts, log loss.

A margin (nats) is the labelled winner's reward minus the loser's; s(|margin|) is what the model
claims for the side it prefers, and the label agrees with that side or not. Bins count comparisons
of one prompt as if they were independent; the intervals of `excess`, Brier score and log loss are
over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from winnow.evaluation.statistics import label_noise
from winnow.evaluation.statistics.intervals import mean
from winnow.evaluation.statistics.label_noise import Bin, Margins
from winnow.system.figure import Figure


@dataclass(frozen=True, slots=True)
class Brier:
    """Mean of (claimed - agreed)^2, which is 0.25 for a model that always claims one half, and
    exactly reliability - resolution + uncertainty + within.

    reliability: how far bins' claims are from what agreed (0 is best); resolution: how far bins
    agree more or less than all do (more is better); uncertainty: variance of `agreed`; all from
    Murphy, "A new vector partition of the probability score", 1973. within: what is lost by putting
    unequal claims into one bin (Stephenson, Coelho and Jolliffe, "Two extra components in the Brier
    score decomposition", 2008).
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Bins of like confidence, each with its 95 % interval, and what they come to. log_loss: mean
    of -log s(margin) (nats; log 2 says nothing).

    error: mean distance of claimed and agreed. It is never 0, because a bin's share scatters even
    where every claim is true: `chance` is what true claims would show in these bins, so an error
    near it is no fault found (Bröcker, "Estimating reliability and resolution of probability
    forecasts through decomposition of the empirical score", 2012; Kumar, Liang and Ma, "Verified
    uncertainty calibration", arXiv 1909.10155). None, and `why`, where there are no comparisons.
    """

    count: int
    bins: tuple[Bin, ...]
    error: float | None
    chance: float | None
    brier: Brier | None
    log_loss: float | None
    why: str = ""


def calibration(margin_M: Margins) -> Calibration:
    """All of it. margin_M: of decided comparisons, ties left out; a margin of 0 takes no side, and
    counts as one that the label contradicts.
    """
    if not len(margin_M):
        return Calibration(0, (), None, None, None, None, "there are no decided comparisons")
    bins = label_noise.calibration(margin_M)
    log_loss = float(np.logaddexp(0, -margin_M).mean())
    return Calibration(
        len(margin_M),
        tuple(bins),
        label_noise.calibration_error(bins),
        chance(bins),
        brier(margin_M, bins),
        log_loss,
    )


@dataclass(frozen=True, slots=True)
class Sureness:
    """Means over decided comparisons with intervals over prompts. excess: claimed minus agreed,
    above 0 for a model that is too sure of itself; brier: (claimed - agreed)^2; log_loss: -log
    s(margin), nats.
    """

    excess: Figure
    brier: Figure
    log_loss: Figure


def sureness(margin_M: Margins, prompts: Sequence[Hashable]) -> Sureness:
    """prompts: what each comparison's prompt is called. Raises ZeroDivisionError where there are no
    comparisons.
    """
    claimed_M, agreed_M = expit(np.abs(margin_M)), (margin_M > 0).astype(float)
    excess_M = claimed_M - agreed_M
    return Sureness(
        *(
            mean(list(value_M), prompts)
            for value_M in (excess_M, excess_M**2, np.logaddexp(0, -margin_M))
        )
    )


def chance(bins: Sequence[Bin]) -> float:
    """The calibration error to be expected where every claim is true: E|k / n - c| of n games won
    with probability c is about sqrt(2 c (1 - c) / (pi n)).
    """
    total = sum(one.count for one in bins)
    return (
        sum(
            one.count * math.sqrt(2 * one.claimed * (1 - one.claimed) / (math.pi * one.count))
            for one in bins
        )
        / total
    )


def brier(margin_M: Margins, bins: Sequence[Bin]) -> Brier:
    """The Brier score and its parts in these bins, which are `noise.calibration`'s of the same
    margins.
    """
    claimed_M, agreed_M = expit(np.abs(margin_M)), (margin_M > 0).astype(float)
    count_B, claimed_B, agreed_B = (
        np.array([getattr(one, name) for one in bins]) for name in ("count", "claimed", "agreed")
    )
    share_B, mean = count_B / count_B.sum(), float(agreed_M.mean())
    score = float(((claimed_M - agreed_M) ** 2).mean())
    reliability = float(share_B @ (claimed_B - agreed_B) ** 2)
    resolution, uncertainty = float(share_B @ (agreed_B - mean) ** 2), mean * (1 - mean)
    order = np.argsort(np.abs(margin_M))
    ends = np.cumsum(count_B)[:-1]
    off = [
        (x - x.mean(), y - y.mean())
        for x, y in zip(np.split(claimed_M[order], ends), np.split(agreed_M[order], ends))
    ]
    within = sum(float(x @ x - 2 * x @ y) for x, y in off) / len(margin_M)
    return Brier(score, reliability, resolution, uncertainty, within)
