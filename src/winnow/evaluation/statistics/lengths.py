"""The win rate at equal lengths: what is left of it when the judge's liking for longer answers is
taken out.

P(win) = s(theta + phi tanh(d / sd)), d our length minus theirs, sd the standard deviation of d over
all games, s the logistic function: s(theta) is the win rate where both are equally long. (Dubois et
al., "Length-Controlled AlpacaEval", arXiv 2404.04475, without its terms for single prompts.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import t

from winnow.evaluation.statistics.winrate import JudgedGame

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
