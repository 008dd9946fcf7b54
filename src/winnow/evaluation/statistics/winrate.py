"""Win rates: how often does one model's answer beat the other's, how sure can one be, and how small
a difference would have been seen?

The prompt is the unit: answers to one prompt are not independent games, so intervals are taken over
prompts, and every prompt weighs the same.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binomtest, norm, t

from winnow.system.figure import Figure
from winnow.system.format import wilson


@dataclass(frozen=True, slots=True)
class JudgedGame:
    """An answer of ours against one of theirs to a prompt. looks: what a judge gave ours, one per
    order it was asked in: 1 a win, 0.5 a tie, 0 a loss, or its probability; None where it gave no
    verdict. longer: our length minus theirs, in one unit for all games.
    """

    prompt: Hashable
    looks: tuple[float | None, ...]
    longer: float = 0.0

    def __post_init__(self) -> None:
        if not all(look is None or 0 <= look <= 1 for look in self.looks):
            raise ValueError(
                f"prompt {self.prompt!r}: looks are {self.looks}, expected numbers from 0 to 1, or"
                " None"
            )

    @property
    def score(self) -> float | None:
        """Mean of all orders, so that liking a side cancels; None where one is missing: the others
        alone would not cancel.
        """
        said = [look for look in self.looks if look is not None]
        return fmean(said) if said and len(said) == len(self.looks) else None


@dataclass(frozen=True, slots=True)
class Share:
    """Share of games won, ties half: the mean of the prompts' own shares. Shares are in [0, 1];
    None: not defined, and `why` says why.

    low, high: 95 % interval. prompts: those with a valid game. spread: standard deviation of the
    prompts' shares. ties: of the valid games those of score 0.5. invalid: of all games those
    without a score.
    """

    rate: float | None
    low: float | None
    high: float | None
    prompts: int
    games: int
    spread: float | None
    ties: float | None
    invalid: float | None
    why: str = ""


def share(games: Sequence[JudgedGame]) -> Share:
    """The share of games we won, with Wilson's interval.

    One binary game per prompt: Wilson's own, n the prompts. Otherwise n is how many independent
    games would vary as much as the prompts' shares did, p (1 - p) / (s^2 / prompts), and z is
    Student's t (Franco, Little, Louis and Slud, "Comparative study of confidence intervals for
    proportions in complex sample surveys", J. Survey Statistics and Methodology 7, 2019). Where all
    prompts have one share, n is the prompts: nothing in [0, 1] varies more than a binary game. What
    the plain t interval covers near 0 and 1, which is too little, stands in docs/log.md.
    """
    valid = [(game.prompt, score) for game in games if (score := game.score) is not None]
    invalid = 1 - len(valid) / len(games) if games else None
    if not valid:
        return Share(
            None,
            None,
            None,
            0,
            len(games),
            None,
            None,
            invalid,
            "no game has a verdict" if games else "there are no games",
        )
    rates = list(by_prompt(valid).values())
    ties = sum(score == 0.5 for _, score in valid) / len(valid)
    if len(rates) < 2:
        return Share(
            rates[0],
            None,
            None,
            1,
            len(games),
            None,
            ties,
            invalid,
            "one prompt has no spread to make an interval of",
        )
    low, high = interval(rates)
    return Share(fmean(rates), low, high, len(rates), len(games), stdev(rates), ties, invalid)


def interval(rates: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two or more prompts' shares, as `share` says."""
    mean, spread, n = fmean(rates), stdev(rates), float(len(rates))
    z = float(norm.ppf(0.975))
    if spread and not set(rates) <= {0.0, 1.0}:
        n, z = mean * (1 - mean) / (spread**2 / n), float(t.ppf(0.975, n - 1))
    return wilson(mean, n, z)


def by_prompt(scores: Sequence[tuple[Hashable, float]]) -> dict[Hashable, float]:
    """Each prompt's own share of its games, in the order in which prompts first came up."""
    found: dict[Hashable, list[float]] = {}
    for prompt, score in scores:
        found.setdefault(prompt, []).append(score)
    return {prompt: fmean(own) for prompt, own in found.items()}


@dataclass(frozen=True, slots=True)
class Signs:
    """Prompts on which ours won more than half of its games, less, and just half; p: how likely a
    split as uneven is if neither is better.
    """

    better: int
    worse: int
    even: int
    p: float | None
    why: str = ""


def sign_test(games: Sequence[JudgedGame]) -> Signs:
    """Exact two-sided sign test over prompts, even ones left out (Dixon and Mood, "The statistical
    sign test", 1946). p None where all are even.
    """
    rates = by_prompt(
        [(game.prompt, score) for game in games if (score := game.score) is not None]
    ).values()
    better, worse = sum(rate > 0.5 for rate in rates), sum(rate < 0.5 for rate in rates)
    even = len(rates) - better - worse
    if not better + worse:
        return Signs(
            0, 0, even, None, "no prompt has a winner" if even else "no game has a verdict"
        )
    return Signs(better, worse, even, float(binomtest(better, better + worse).pvalue))


def prompts_needed(difference: float, spread: float = 0.5, power: float = 0.8) -> int:
    """Prompts from which a win rate that is `difference` away from one half (0.05: 55 %) is told
    from it, two-sided at 5 %, with probability `power`.

    n = ((z_0.975 + z_power) spread / difference)^2, with the normal approximation. spread: standard
    deviation of the prompts' shares; 0.5, the most there is, for one game without ties. (J. Cohen,
    "Statistical Power Analysis for the Behavioral Sciences", 1988.)
    """
    if not (0 < difference <= 0.5 and spread > 0 and 0 < power < 1):
        raise ValueError(
            f"difference {difference}, spread {spread}, power {power}: expected 0 < difference <="
            " 0.5, 0 < spread, 0 < power < 1"
        )
    return math.ceil((_quantiles(power) * spread / difference) ** 2)


def detectable(prompts: int, spread: float = 0.5, power: float = 0.8) -> float | None:
    """The smallest distance from one half that so many prompts show: the inverse of
    `prompts_needed`.

    None where no win rate is far enough from one half, and where nothing is known of the spread: no
    prompts, or all of one share (spread 0).
    """
    found = _quantiles(power) * spread / math.sqrt(prompts) if prompts and spread else math.inf
    return found if found <= 0.5 else None


def _quantiles(power: float) -> float:
    return float(norm.ppf(0.975) + norm.ppf(power))


def win_rate(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Share:
    """Every answer of ours against every answer of theirs to the same prompt, by reward: ours[i],
    theirs[i] are the rewards of the answers to prompt i.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"need the same prompts on both sides, got {len(ours)} and {len(theirs)}")
    return share(
        [
            JudgedGame(i, ((a > b) + 0.5 * (a == b),))
            for i, (left, right) in enumerate(zip(ours, theirs))
            for a in left
            for b in right
        ]
    )


def over_prompts(values: Sequence[float], least: float = -math.inf) -> Figure:
    """The mean of one value per prompt, with Student's t interval, cut off at the `least` that
    there can be. Raises ValueError with fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"need two or more prompts, got {len(values)}")
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(
        math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
    )
    half = float(t.ppf(0.975, len(values) - 1)) * spread
    many = len(values)
    return Figure(mean, max(least, mean - half), mean + half, many, many)


Vector = NDArray[np.float64]


LEAST = 3  # prompts, for two numbers and a spread


FLAT = 1e-6  # tanh(d / sd) that varies less than this does not vary


@dataclass(frozen=True, slots=True)
class Controlled:
    """Win rate at equal lengths, and the weight of length (phi, nats between equal lengths and far
    longer), with 95 % intervals over prompts.

    sd: of the differences in length, in their unit. None: not defined, and `why` says why.
    """

    rate: float | None
    low: float | None
    high: float | None
    weight: float | None
    weight_low: float | None
    weight_high: float | None
    sd: float | None
    prompts: int
    why: str = ""


def controlled(games: Sequence[JudgedGame]) -> Controlled:
    """The most likely theta and phi, every prompt weighing the same, as in `winrate.share`; games
    without a score are left out.

    Scores between 0 and 1 count in parts (Papke and Wooldridge, "Econometric methods for fractional
    response variables", 1996), and the covariance is the sandwich over prompts times P / (P - 1),
    with Student's t of P - 1 (Cameron and Miller, "A practitioner's guide to cluster-robust
    inference", 2015).
    """
    valid = [(game, score) for game in games if (score := game.score) is not None]
    names = {prompt: i for i, prompt in enumerate(dict.fromkeys(game.prompt for game, _ in valid))}
    prompt_N = np.array([names[game.prompt] for game, _ in valid], dtype=int)
    score_N, longer_N = (
        np.array([score for _, score in valid], dtype=float),
        np.array([game.longer for game, _ in valid], dtype=float),
    )
    sd = float(longer_N.std()) if len(valid) else 0.0
    column_N = np.tanh(longer_N / sd) if sd else np.zeros(len(valid))
    if why := _undefined(len(names), score_N, column_N):
        return Controlled(None, None, None, None, None, None, sd or None, len(names), why)
    weight_N = 1 / np.bincount(prompt_N)[prompt_N]
    found, covariance = _fit(
        np.stack([np.ones_like(column_N), column_N], 1), score_N, weight_N, prompt_N
    )
    half = t.ppf(0.975, len(names) - 1) * np.sqrt(np.diag(covariance))
    (theta, low, high), (phi, phi_low, phi_high) = (
        map(float, three) for three in zip(found, found - half, found + half)
    )
    return Controlled(
        float(expit(theta)),
        float(expit(low)),
        float(expit(high)),
        phi,
        phi_low,
        phi_high,
        sd,
        len(names),
    )


def _undefined(prompts: int, score_N: Vector, column_N: Vector) -> str:
    """Why there is no finite answer; empty where there is one."""
    if prompts < LEAST:
        return (
            f"{prompts} prompts with a verdict are too few to tell lengths from models, {LEAST} are"
            " needed"
        )
    if not np.ptp(column_N) > FLAT:
        return (
            "the difference in length is the same in all games: what it does cannot be told from"
            " what the models do"
        )
    if score_N.min() == 1 or score_N.max() == 0:
        return "one side won every game, at all lengths"
    for side, name in ((column_N, "longer"), (-column_N, "shorter")):
        if (
            side[score_N < 1].max() <= side[score_N > 0].min()
        ):  # the two sets do not overlap: phi has no limit
            return (
                f"length alone settles every game, for the {name} answer: nothing is left by which"
                " to compare the models"
            )
    return ""


def _fit(
    design_NK: Vector, score_N: Vector, weight_N: Vector, prompt_N: NDArray[np.int_]
) -> tuple[Vector, Vector]:
    """Coefficients (K,) and their covariance (K, K). The function is convex, and has one lowest
    point.
    """

    def cost(at: Vector) -> tuple[float, Vector]:
        z = design_NK @ at
        return float(weight_N @ (np.logaddexp(0, z) - score_N * z)), design_NK.T @ (
            weight_N * (expit(z) - score_N)
        )

    def curvature(at: Vector) -> Vector:
        p = expit(design_NK @ at)
        return np.asarray((design_NK * (weight_N * p * (1 - p))[:, None]).T @ design_NK)

    at = np.asarray(
        minimize(
            cost,
            np.zeros(design_NK.shape[1]),
            jac=True,
            hess=curvature,
            method="trust-exact",
            options={"gtol": 1e-9},
        ).x
    )
    slope_PK = np.zeros((prompt_N.max() + 1, design_NK.shape[1]))
    np.add.at(
        slope_PK, prompt_N, design_NK * (weight_N * (score_N - expit(design_NK @ at)))[:, None]
    )
    inverse = np.linalg.inv(curvature(at))
    return at, inverse @ slope_PK.T @ slope_PK @ inverse * (len(slope_PK) / (len(slope_PK) - 1))
