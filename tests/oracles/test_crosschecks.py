"""Figures of an evaluation beside other people's programs, where those are right; and where they
are not, a test that says so.
"""

from __future__ import annotations

import itertools
import math

import choix
import evalica
import numpy as np
import pandas
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import bootstrap, t
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.descriptivestats import sign_test as their_sign_test
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.tools.sm_exceptions import SpecificationWarning

from winnow.evaluation.statistics.bradley_terry import Game as Met
from winnow.evaluation.statistics.bradley_terry import fit, settled
from winnow.evaluation.statistics.winrate import (
    JudgedGame,
    controlled,
    detectable,
    interval,
    prompts_needed,
    share,
    sign_test,
)

NAMES = [f"m{i}" for i in range(5)]
WINNER = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}


def played(seed, *, ties=0.15, count=300, models=5):
    """Games of models of known strengths, some of them tied."""
    rng = np.random.default_rng(seed)
    strengths = np.linspace(0.8, -0.8, models)
    met = []
    for _ in range(count):
        i, j = (int(one) for one in rng.choice(models, 2, replace=False))
        won = float(rng.random() < expit(strengths[i] - strengths[j]))
        met.append(Met(i, j, 0.5 if rng.random() < ties else won))
    return met


def evalicas(met):
    """Its strengths as ours: logs of its scores, their mean 0."""
    told = evalica.bradley_terry(
        [NAMES[one.first] for one in met],
        [NAMES[one.second] for one in met],
        [WINNER[one.score] for one in met],
        tolerance=1e-12,
    )
    scores = np.log([told.scores[name] for name in NAMES if name in told.scores])
    return scores - scores.mean()


def wins(met):
    return [(one.first, one.second) if one.score == 1 else (one.second, one.first) for one in met]


# ---------------------------------------------------------------- Bradley-Terry


@pytest.mark.parametrize("seed", range(3))
def test_evalica_finds_the_same_strengths_with_ties_as_halves(seed):
    met = played(seed)
    assert fit(5, met, ridge=0.0).strengths == pytest.approx(evalicas(met), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_choix_finds_the_same_strengths_without_ties(seed):
    met = played(seed, ties=0.0)
    assert fit(5, met, ridge=0.0).strengths == pytest.approx(
        choix.ilsr_pairwise(5, wins(met), alpha=0.0), abs=1e-6
    )
    ridge = 0.5  # its penalty is alpha |s|^2, ours ridge / 2 |s|^2
    assert fit(5, met, ridge=ridge).strengths == pytest.approx(
        choix.opt_pairwise(5, wins(met), alpha=ridge / 2), abs=1e-5
    )


def test_the_covariance_is_that_of_statsmodels_logit():
    """Strengths are coefficients of a logistic regression on who met whom, one of them held at
    0.
    """
    met = played(4, ties=0.0)
    design = np.zeros((len(met), 5))
    for row, one in zip(design, met):
        row[one.first], row[one.second] = 1, -1
    told = sm.GLM([one.score for one in met], design[:, 1:], family=sm.families.Binomial()).fit(
        tol=1e-12
    )
    found = fit(5, met, ridge=0.0)
    assert found.strengths[1:] - found.strengths[0] == pytest.approx(told.params, abs=1e-6)
    apart = [
        found.covariance[i, i] + found.covariance[0, 0] - 2 * found.covariance[i, 0]
        for i in range(1, 5)
    ]
    assert np.sqrt(apart) == pytest.approx(told.bse, rel=1e-5)


def test_the_covariance_over_prompts_is_that_of_statsmodels_clusters():
    """Where prompts differ in who is strong there the sandwich is the wider one, and it is the
    textbook's.
    """
    rng = np.random.default_rng(0)
    met = []
    for prompt in range(40):
        own = np.array([0.5, 0.0, -0.5]) + 2 * rng.standard_normal(3)
        met += [
            Met(i, j, float(rng.random() < expit(own[i] - own[j])), prompt)
            for i, j in itertools.combinations(range(3), 2)
            for _ in range(4)
        ]
    design = np.zeros((len(met), 3))
    for row, one in zip(design, met):
        row[one.first], row[one.second] = 1, -1
    prompts = np.array([one.cluster for one in met])
    made = sm.GLM([one.score for one in met], design[:, 1:], family=sm.families.Binomial())
    told = made.fit(
        cov_type="cluster", cov_kwds={"groups": prompts, "use_correction": False}, tol=1e-12
    )
    found = fit(3, met, ridge=0.0)
    apart = [
        found.covariance[i, i] + found.covariance[0, 0] - 2 * found.covariance[i, 0] for i in (1, 2)
    ]
    assert np.sqrt(apart) == pytest.approx(told.bse * math.sqrt(40 / 39), rel=1e-5)


def test_ten_wins_to_none_are_even_for_evalica_and_without_end_for_choix():
    """Where others are not right: evalica gives both the same score; choix has no answer, or one
    that its own stopping rule decides. Ours has one by its ridge, an interval as wide as that
    deserves, and says that no point went the other way.
    """
    met = [Met(0, 1, 1.0)] * 10
    assert evalicas(met) == pytest.approx([0, 0])
    with pytest.raises(ValueError, match="stationary distribution"):
        choix.ilsr_pairwise(2, wins(met), alpha=0.0)
    assert choix.opt_pairwise(2, wins(met), alpha=0.0)[0] > 5  # the likeliest is infinite
    found = fit(2, met)
    # our ridge, by its program
    assert found.strengths == pytest.approx(choix.opt_pairwise(2, wins(met), alpha=0.005), abs=1e-6)
    assert found.beats(0, 1)[1] < 0.5
    assert settled(2, met) == ((0,), (1,))


def test_models_that_never_met_are_ranked_by_evalica_all_the_same():
    """m0 beats m1 two to one, m2 beats m3 nine to one; nothing joins them, so whether m2 is better
    than m0 nobody knows.
    """
    met = [*[Met(0, 1, 1.0)] * 2, Met(0, 1, 0.0), *[Met(2, 3, 1.0)] * 9, Met(2, 3, 0.0)]
    assert evalicas(met)[2] > evalicas(met)[0]
    found = fit(4, met)
    assert found.components == ((0, 1), (2, 3))
    assert found.beats(2, 0) is None


# ---------------------------------------------------------------- win rates


@pytest.mark.parametrize(("won", "count"), [(3, 7), (0, 12), (60, 100), (100, 100)])
def test_wilsons_interval_is_statsmodels(won, count):
    games = [JudgedGame(i, (float(i < won),)) for i in range(count)]
    found = share(games)
    assert (found.low, found.high) == pytest.approx(
        proportion_confint(won, count, method="wilson"), abs=1e-12
    )


def test_the_spread_over_prompts_is_statsmodels_clustered_error():
    rng = np.random.default_rng(3)
    won = (rng.random((60, 4)) < rng.beta(3, 2, 60)[:, None]).astype(float)
    found = share([JudgedGame(i, (one,)) for i, row in enumerate(won.tolist()) for one in row])
    told = sm.OLS(won.ravel(), np.ones(won.size)).fit(
        cov_type="cluster",
        cov_kwds={"groups": np.repeat(np.arange(60), 4), "use_correction": False},
    )
    assert (found.rate, found.spread / math.sqrt(60)) == pytest.approx(
        (told.params[0], told.bse[0] * math.sqrt(60 / 59))
    )


def test_the_interval_is_about_the_bootstraps_over_prompts():
    """scipy draws prompts again and again: no formula at all."""
    rates = np.random.default_rng(1).beta(4, 2, 300)
    told = bootstrap(
        (rates,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert interval(rates.tolist()) == pytest.approx((told.low, told.high), abs=0.003)


def test_a_mixed_model_agrees_about_the_mean_and_its_error():
    """statsmodels' random effect of each prompt, fitted to the same games: with as many games on
    each, mean and error are the same.
    """
    rng = np.random.default_rng(5)
    won = (rng.random((80, 5)) < rng.beta(2, 2, 80)[:, None]).astype(float)
    told = MixedLM(won.ravel(), np.ones((won.size, 1)), np.repeat(np.arange(80), 5)).fit(reml=True)
    found = share([JudgedGame(i, (one,)) for i, row in enumerate(won.tolist()) for one in row])
    assert (found.rate, found.spread / math.sqrt(80)) == pytest.approx(
        (told.fe_params[0], told.bse_fe[0]), rel=1e-3
    )


@pytest.mark.parametrize(("better", "worse"), [(9, 2), (30, 41), (5, 5)])
def test_the_sign_test_is_statsmodels(better, worse):
    scores = [1.0] * better + [0.0] * worse + [0.5] * 4
    found = sign_test([JudgedGame(i, (score,)) for i, score in enumerate(scores)])
    assert found.p == pytest.approx(their_sign_test(np.array(scores), mu0=0.5)[1])


@pytest.mark.parametrize("difference", [0.05, 0.1, 0.2])
def test_prompts_needed_are_statsmodels(difference):
    told = NormalIndPower().solve_power(
        effect_size=difference / 0.5, alpha=0.05, power=0.8, ratio=0, alternative="two-sided"
    )
    assert prompts_needed(difference) == math.ceil(told)
    assert NormalIndPower().solve_power(
        nobs1=300, alpha=0.05, power=0.8, ratio=0
    ) * 0.5 == pytest.approx(detectable(300), rel=1e-5)


# ---------------------------------------------------------------- lengths


@pytest.mark.parametrize("seed", range(3))
def test_length_control_is_statsmodels_glm_over_clusters(seed):
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(50), rng.integers(1, 5, 50))
    longer = rng.normal(30, 80, len(prompts))
    won = (
        rng.random(len(prompts))
        < expit(0.3 + 0.8 * np.tanh(longer / 80) + rng.standard_normal(50)[prompts])
    ).astype(float)
    found = controlled(
        [JudgedGame(int(p), (w,), d) for p, w, d in zip(prompts, won.tolist(), longer.tolist())]
    )
    rows = pandas.DataFrame(
        {"won": won, "column": np.tanh(longer / longer.std()), "prompt": prompts}
    )
    weight = 1 / np.bincount(prompts)[prompts]
    made = sm.GLM(
        rows["won"],
        sm.add_constant(rows["column"]),
        family=sm.families.Binomial(),
        var_weights=weight,
    )
    with pytest.warns(SpecificationWarning, match="not fully supported"):
        told = made.fit(
            cov_type="cluster",
            cov_kwds={"groups": rows["prompt"], "use_correction": False},
            tol=1e-12,
        )
    half = t.ppf(0.975, 49) * told.bse.to_numpy() * math.sqrt(50 / 49)
    theta, phi = told.params
    assert (logit(found.rate), logit(found.low), logit(found.high)) == pytest.approx(
        (theta, theta - half[0], theta + half[0]), rel=1e-6
    )
    assert (found.weight, found.weight_low, found.weight_high) == pytest.approx(
        (phi, phi - half[1], phi + half[1]), rel=1e-6
    )
