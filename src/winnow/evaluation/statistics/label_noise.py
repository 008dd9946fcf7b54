"""What implicit rewards say about labels: which are most likely wrong, how many are, and whether
s(margin) is a probability.

The model of the noise: the label's winner wins with probability s(t m), m its margin in implicit
reward (nats), and a share e of the labels was then flipped, so a label is seen with probability q =
(1-e) s(t m) + e s(-t m). t is the temperature at which the policy's margins are probabilities; a
policy whose margins ran away needs a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import binomtest, chi2

Margins = NDArray[np.float64]
BINS = 10
LEAST = 20  # rows from which a flip rate is estimated
_RATES = np.linspace(0.0, 0.49, 99)


@dataclass(frozen=True, slots=True)
class Noise:
    """An estimate of the flips: their rate with its 95 % interval (profile likelihood), and the
    temperature of the margins.
    """

    rate: float
    low: float
    high: float
    temperature: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Comparisons of like confidence: what the policy claims for the side it prefers, and how often
    the labels agree (95 % Wilson interval).
    """

    claimed: float
    agreed: float
    low: float
    high: float
    count: int


def estimate(margin_M: Margins) -> Noise:
    """The most likely flip rate and temperature, from the margins of the labels' winners. Raises
    ValueError for fewer than LEAST.

    Rate and temperature are told apart by the large margins: where the policy is certain, only
    flips contradict it.
    """
    if len(margin_M) < LEAST:
        raise ValueError(
            f"{len(margin_M)} comparisons are too few to estimate a flip rate, {LEAST} are needed"
        )
    found = [_temperature(margin_M, float(rate)) for rate in _RATES]
    likelihoods = np.array([likelihood for _, likelihood in found])
    best = int(likelihoods.argmax())
    inside = np.flatnonzero(2 * (likelihoods[best] - likelihoods) <= chi2.ppf(0.95, 1))
    return Noise(
        float(_RATES[best]), float(_RATES[inside[0]]), float(_RATES[inside[-1]]), found[best][0]
    )


def flipped(margin_M: Margins, noise: Noise) -> Margins:
    """Probability that each label is a flipped one, given its winner's margin: e s(-t m) / q."""
    right, wrong = (
        (1 - noise.rate) * expit(noise.temperature * margin_M),
        noise.rate * expit(-noise.temperature * margin_M),
    )
    return np.asarray(wrong / (right + wrong))


def calibration(margin_M: Margins) -> list[Bin]:
    """Is s(|margin|) the probability that the policy's side wins? Bins of equal count, the least
    confident first.
    """
    order = np.argsort(np.abs(margin_M))
    bins = []
    for part in np.array_split(margin_M[order], min(BINS, max(1, len(margin_M) // 10))):
        agreed = int((part > 0).sum())
        interval = binomtest(agreed, len(part)).proportion_ci(0.95, method="wilson")
        bins.append(
            Bin(
                float(expit(np.abs(part)).mean()),
                agreed / len(part),
                float(interval.low),
                float(interval.high),
                len(part),
            )
        )
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between claimed and agreed, weighed by count (ECE)."""
    return sum(one.count * abs(one.claimed - one.agreed) for one in bins) / sum(
        one.count for one in bins
    )


def _temperature(margin_M: Margins, rate: float) -> tuple[float, float]:
    """The most likely temperature at a flip rate, and the log-likelihood there."""

    def cost(log_t: float) -> float:
        return -float(
            np.log(
                (1 - rate) * expit(np.exp(log_t) * margin_M)
                + rate * expit(-np.exp(log_t) * margin_M)
                + 1e-300
            ).sum()
        )

    scale = 1 / max(1e-12, float(np.abs(margin_M).mean()))
    result = minimize_scalar(cost, bounds=(np.log(scale) - 6, np.log(scale) + 6), method="bounded")
    return float(np.exp(result.x)), -float(result.fun)
