"""Bradley-Terry strengths against closed forms, an independent optimizer, and what is known of
simulated games.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from winnow.evaluation.statistics.bradley_terry import Game, fit, points


def games(*scores):
    """(i, j, score) several times."""
    return [Game(i, j, score) for i, j, score in scores]


def won(i, j, wins, losses, ties=0):
    return games(*[(i, j, 1.0)] * wins, *[(i, j, 0.0)] * losses, *[(i, j, 0.5)] * ties)


def simulated(strengths, count, seed):
    rng = np.random.default_rng(seed)
    pairs = [tuple(rng.choice(len(strengths), 2, replace=False)) for _ in range(count)]
    return [
        Game(int(i), int(j), float(rng.random() < expit(strengths[i] - strengths[j])))
        for i, j in pairs
    ]


@pytest.mark.parametrize(("wins", "losses", "ties"), [(3, 1, 0), (7, 2, 3), (1, 1, 5)])
def test_two_are_the_logit_of_their_share(wins, losses, ties):
    found = fit(2, won(0, 1, wins, losses, ties), ridge=0.0)
    n, share = wins + losses + ties, (wins + ties / 2) / (wins + losses + ties)
    gap = math.log(share / (1 - share))
    assert found.strengths == pytest.approx([gap / 2, -gap / 2], abs=1e-9)
    se = 1 / math.sqrt(n * share * (1 - share))  # of a logit
    p, low, high = found.beats(0, 1)
    assert (p, low, high) == pytest.approx(
        (share, expit(gap - 1.959963984540054 * se), expit(gap + 1.959963984540054 * se))
    )
    assert found.interval(0) == pytest.approx(
        (gap / 2 - 0.9799819922700270 * se, gap / 2 + 0.9799819922700270 * se)
    )


def test_whoever_stands_first_and_in_whatever_order():
    told = simulated([0.5, 0.0, -0.5, 1.0], 200, 0)
    turned = [Game(game.second, game.first, 1 - game.score) for game in reversed(told)]
    one, other = fit(4, told), fit(4, turned)
    assert one.strengths == pytest.approx(other.strengths, abs=1e-9)
    assert one.covariance == pytest.approx(other.covariance, abs=1e-9)
    assert points(4, told) == pytest.approx(points(4, turned))


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_scipy_finds_the_same_top(ridge, seed):
    told = simulated([1.0, 0.0, -1.0, 0.3, -0.3], 150, seed)

    def cost(at):
        return -sum(
            g.score * math.log(expit(at[g.first] - at[g.second]))
            + (1 - g.score) * math.log(expit(at[g.second] - at[g.first]))
            for g in told
        ) + (ridge / 2 * float(at @ at))

    expected = minimize(cost, np.zeros(5), tol=1e-9).x
    found = fit(5, told, ridge=ridge)
    assert found.strengths == pytest.approx(expected - expected.mean(), abs=1e-4)
    assert found.strengths.sum() == pytest.approx(0, abs=1e-9)
    # adding to all of them changes nothing
    assert found.covariance.sum(0) == pytest.approx(np.zeros(5), abs=1e-9)


def test_the_covariance_is_the_inverse_curvature():
    told = simulated([0.8, 0.0, -0.8], 60, 4)
    found = fit(3, told, ridge=0.25)
    hessian = 0.25 * np.eye(3)
    for game in told:
        e = np.zeros(3)
        e[game.first], e[game.second] = 1, -1
        p = expit(e @ found.strengths)
        hessian += p * (1 - p) * np.outer(e, e)
    across = np.eye(3) - 1 / 3
    assert found.covariance == pytest.approx(across @ np.linalg.inv(hessian) @ across, abs=1e-12)


def test_a_center_is_where_strengths_stay_without_games():
    found = fit(3, [], ridge=1.0, center=np.array([2.0, 1.0, 0.0]))
    assert found.strengths == pytest.approx([1.0, 0.0, -1.0])
    assert found.covariance == pytest.approx(np.eye(3) - 1 / 3)


def test_ten_wins_to_none_are_finite_and_uncertain():
    found = fit(2, won(0, 1, 10, 0))
    p, low, high = found.beats(0, 1)
    assert 0.95 < p < 1
    assert low < 0.5 < 0.99 < high
    # with a ridge r the top of 10 log s(2t) - r t^2 is where 10 (1 - s(2t)) = r t
    t = found.strengths[0]
    assert 10 * (1 - expit(2 * t)) == pytest.approx(0.01 * t)
    with pytest.raises(ValueError, match=r"\(0,\) and \(1,\)"):
        fit(2, won(0, 1, 10, 0), ridge=0.0)


def test_those_who_never_met_are_not_compared():
    told = won(0, 1, 3, 2) + won(2, 3, 1, 4)
    found = fit(5, told)
    assert found.components == ((0, 1), (2, 3), (4,))
    assert found.beats(0, 2) is None
    assert found.beats(4, 0) is None
    assert found.beats(0, 1)[0] == pytest.approx(0.6, abs=0.01)
    with pytest.raises(ValueError, match=r"\(0, 1\) and \(2, 3\) and \(4,\)"):
        fit(5, told, ridge=0.0)


def test_games_on_one_prompt_are_one_piece_of_evidence():
    told = simulated([0.4, 0.0, -0.4], 300, 1)
    alone = fit(3, [Game(g.first, g.second, g.score, i) for i, g in enumerate(told)], ridge=0.0)
    fivefold = fit(
        3,
        [Game(g.first, g.second, g.score, i) for i, g in enumerate(told) for _ in range(5)],
        ridge=0.0,
    )
    blind = fit(3, told * 5, ridge=0.0)
    assert fivefold.strengths == pytest.approx(alone.strengths, abs=1e-8)
    widths = [np.sqrt(np.trace(one.covariance)) for one in (alone, fivefold, blind)]
    assert widths[1] / widths[0] == pytest.approx(1, abs=0.1)
    assert widths[2] / widths[0] == pytest.approx(1 / math.sqrt(5), abs=0.05)


@pytest.mark.slow
def test_intervals_hold_what_they_promise():
    truth, held = np.array([1.0, 0.3, -0.3, -1.0]), []
    for seed in range(500):
        found = fit(4, simulated(truth, 200, 100 + seed))
        held += [
            low <= strength <= high
            for i, strength in enumerate(truth)
            for low, high in [found.interval(i)]
        ]
    assert 0.93 <= np.mean(held) <= 0.97


def test_half_points_are_ties_and_shares():
    shares = fit(2, games((0, 1, 0.7), (0, 1, 0.7), (1, 0, 0.3)), ridge=0.0)
    assert shares.beats(0, 1)[0] == pytest.approx(0.7)
    assert fit(3, games((0, 1, 0.5), (1, 2, 0.5)), ridge=0.0).strengths == pytest.approx(
        [0, 0, 0], abs=1e-12
    )


def test_many_games_take_few_steps(monkeypatch):
    """Near the top of many games rounding is all there is to gain: nothing is halved for it."""
    from winnow.evaluation.statistics import bradley_terry

    solved, inverse = [], bradley_terry._inverse
    monkeypatch.setattr(
        bradley_terry, "_inverse", lambda *given: solved.append(1) or inverse(*given)
    )
    for count in (1000, 4000, 8000):
        solved.clear()
        fit(4, simulated([1.5, 0.5, -0.5, -1.5], count, count), ridge=1.0)
        assert len(solved) < 12
