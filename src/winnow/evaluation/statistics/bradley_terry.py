"""Bradley-Terry strengths of whatever was compared: P(i beats j) = s(strength_i - strength_j), with
intervals, and what the games cannot tell.

Bradley and Terry, "Rank analysis of incomplete block designs", 1952. A tie is half a win for either
side. A ridge keeps strengths finite where somebody never lost; s is the logistic function.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from winnow.system.format import Z95

RIDGE = 0.01  # as much as a few hundredths of a game: it decides nothing but what no game decides


@dataclass(frozen=True, slots=True)
class Game:
    """`first` got `score` of one point from `second`: 1 a win, 0.5 a tie, or a judge's share. Games
    of one `cluster` (a prompt) may depend on each other.
    """

    first: int
    second: int
    score: float
    cluster: Hashable = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Strengths in nats, their mean 0; `covariance` (K, K) of them. components: who was compared
    with whom, by however many steps.
    """

    strengths: np.ndarray
    covariance: np.ndarray
    components: tuple[tuple[int, ...], ...]

    def interval(self, i: int) -> tuple[float, float]:
        """95 % interval of a strength."""
        half = Z95 * float(np.sqrt(self.covariance[i, i]))
        return float(self.strengths[i]) - half, float(self.strengths[i]) + half

    def beats(self, i: int, j: int) -> tuple[float, float, float] | None:
        """P(i beats j) with its 95 % interval; None where no chain of games leads from one to the
        other.
        """
        if not any(i in part and j in part for part in self.components):
            return None
        gap = float(self.strengths[i] - self.strengths[j])
        half = Z95 * float(
            np.sqrt(
                max(0.0, self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j])
            )
        )
        return float(expit(gap)), float(expit(gap - half)), float(expit(gap + half))


def fit(
    count: int, games: Sequence[Game], *, ridge: float = RIDGE, center: np.ndarray | None = None
) -> Fit:
    """The strengths (count,) that make the games most likely, less ridge / 2 |strengths -
    center|^2.

    Covariance: the inverse curvature, or where games have clusters, and these say that it is wider,
    the sandwich over clusters; the wider one by the sum of variances (a sandwich of few clusters,
    or of ten wins to none, is far too narrow). Raises ValueError without a ridge where games do not
    settle all strengths: where some part never lost to the rest.
    """
    if not ridge and (loose := settled(count, games)) and len(loose) > 1:
        raise ValueError(
            f"the games settle no strengths between {' and '.join(map(str, loose))}: one never lost"
            " to the other, or they never met"
        )
    first, second = (
        np.array([game.first for game in games], int),
        np.array([game.second for game in games], int),
    )
    score, middle = (
        np.array([game.score for game in games], float),
        (np.zeros(count) if center is None else center - center.mean()),
    )
    strengths = _newton(middle, first, second, score, ridge)
    likely = expit(strengths[first] - strengths[second])
    inverse = _inverse(_curvature(count, first, second, likely), ridge)
    return Fit(
        strengths,
        _wider(inverse, _sandwich(inverse, games, score - likely)),
        _parts(count, games, "weak"),
    )


def points(count: int, games: Sequence[Game]) -> np.ndarray:
    """Matrix (count, count): points that the row's got from the column's."""
    table = np.zeros((count, count))
    for game in games:
        table[game.first, game.second] += game.score
        table[game.second, game.first] += 1 - game.score
    return table


def settled(count: int, games: Sequence[Game]) -> tuple[tuple[int, ...], ...]:
    """Who got points from whom in both directions, by however many steps; more than one such part:
    between them the ridge alone keeps strengths finite.
    """
    return _parts(count, games, "strong")


def _newton(
    middle: np.ndarray, first: np.ndarray, second: np.ndarray, score: np.ndarray, ridge: float
) -> np.ndarray:
    """Newton's method, each step halved until it does not make things worse; the function is
    concave, so there is one top.
    """

    def worth(at: np.ndarray) -> float:
        gap = at[first] - at[second]
        return float(
            -np.logaddexp(0, -gap) @ score
            - np.logaddexp(0, gap) @ (1 - score)
            - ridge / 2 * ((at - middle) ** 2).sum()
        )

    now = middle.copy()
    for _ in range(100):
        likely = expit(now[first] - now[second])
        slope = -ridge * (now - middle)
        np.add.at(slope, first, score - likely)
        np.subtract.at(slope, second, score - likely)
        step, size = _inverse(_curvature(len(now), first, second, likely), ridge) @ slope, 1.0
        while (
            worth(now + size * step) < worth(now) * (1 + 1e-12) and size > 1e-6
        ):  # worth is below 0; the rest is rounding
            size /= 2
        now = now + size * step
        if np.abs(step).max() < 1e-9:
            break
    return now


def _curvature(count: int, first: np.ndarray, second: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """Fisher information of the games, without the ridge."""
    table, weight = np.zeros((count, count)), likely * (1 - likely)
    np.add.at(table, (first, second), -weight)
    np.add.at(table, (second, first), -weight)
    table[np.diag_indices(count)] = -table.sum(1)
    return table


def _inverse(curvature: np.ndarray, ridge: float) -> np.ndarray:
    """Inverse among strengths of mean 0: what is added to all of them changes no game."""
    count = len(curvature)
    mean = np.full((count, count), 1 / count)
    return np.linalg.inv(curvature + ridge * np.eye(count) + mean) - mean / (1 + ridge)


def _sandwich(
    inverse: np.ndarray, games: Sequence[Game], left_over: np.ndarray
) -> np.ndarray | None:
    """Covariance from the spread of the clusters' own scores; None with fewer than two clusters."""
    names = {name: i for i, name in enumerate(dict.fromkeys(game.cluster for game in games))}
    if len(names) < 2:
        return None
    scores = np.zeros((len(names), len(inverse)))
    for game, rest in zip(games, left_over):
        scores[names[game.cluster], game.first] += rest
        scores[names[game.cluster], game.second] -= rest
    sandwich = inverse @ scores.T @ scores @ inverse * (len(names) / (len(names) - 1))
    return np.asarray(sandwich)


def _wider(one: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    return one if other is None or np.trace(one) >= np.trace(other) else other


def _parts(count: int, games: Sequence[Game], kind: str) -> tuple[tuple[int, ...], ...]:
    """Who hangs together: weak, by any games; strong, by chains of points in both directions."""
    _, names = connected_components(points(count, games) > 0, directed=True, connection=kind)
    return tuple(
        tuple(i for i in range(count) if names[i] == name) for name in dict.fromkeys(names.tolist())
    )
