"""Losses as numbers: float64 oracles in plain math, golden starts, gradients, extremes, and what a batch makes of them."""

from __future__ import annotations

import math

import pytest
import torch

import tiny
from winnow.batch import collate
from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.errors import SettingsError
from winnow.objectives import losses, scores
from winnow.objectives.table import TABLE, Demonstration, preference


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


ORACLES = {
    losses.logistic: lambda m, beta: softplus(-beta * m),
    losses.square: lambda m, beta: (m - 1 / (2 * beta)) ** 2,
    losses.hinge: lambda m, beta: max(0.0, 1 - beta * m),
}
SLOPES = {
    losses.logistic: lambda m, beta: -beta / (1 + math.exp(beta * m)) if beta * m < 700 else 0.0,
    losses.square: lambda m, beta: 2 * (m - 1 / (2 * beta)),
    losses.hinge: lambda m, beta: -beta if beta * m < 1 else 0.0,
}


@pytest.mark.parametrize("loss", ORACLES)
@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 5.0])
def test_values_and_slopes_equal_the_oracle(loss, beta):
    values = [-7.3, -1.0, -0.2, 0.0, 0.3, 2.0, 11.0]
    margin_M = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    found_M = loss(margin_M, beta)
    (slope_M,) = torch.autograd.grad(found_M.sum(), margin_M)
    assert found_M.tolist() == pytest.approx([ORACLES[loss](m, beta) for m in values], rel=1e-13, abs=1e-15)
    assert slope_M.tolist() == pytest.approx([SLOPES[loss](m, beta) for m in values], rel=1e-12, abs=1e-15)
    if loss is not losses.hinge:
        assert torch.autograd.gradcheck(lambda m: loss(m, beta), margin_M)


@pytest.mark.parametrize("loss", ORACLES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes_are_finite_in_float32(loss, sign):
    beta, margin = 0.1, sign * 1e4  # |beta m| = 1e3
    margin_M = torch.tensor([margin], requires_grad=True)
    soft = losses.soft(loss, margin_M, beta, torch.tensor([0.9]))
    (slope,) = torch.autograd.grad(soft.sum(), margin_M)
    oracle = 0.9 * ORACLES[loss](margin, beta) + 0.1 * ORACLES[loss](-margin, beta)
    oracle_slope = 0.9 * SLOPES[loss](margin, beta) - 0.1 * SLOPES[loss](-margin, beta)
    assert float(soft.detach()) == pytest.approx(oracle, rel=1e-6)
    assert float(slope) == pytest.approx(oracle_slope, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("loss", ORACLES)
def test_swapping_the_sides_and_the_label_is_the_same(loss):
    margin_M, p_M = torch.randn(20, dtype=torch.float64), torch.rand(20, dtype=torch.float64)
    torch.testing.assert_close(losses.soft(loss, margin_M, 0.7, p_M), losses.soft(loss, -margin_M, 0.7, 1 - p_M), rtol=1e-14, atol=0)


def test_logistic_falls_with_the_margin_and_square_has_its_minimum_where_it_should():
    grid = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert bool((losses.logistic(grid, 0.1).diff() < 0).all())
    assert float(grid[losses.square(grid, 0.1).argmin()]) == pytest.approx(5.0)
    assert bool((losses.hinge(grid, 0.1).diff() <= 0).all())


def test_noise_moves_the_minimisers_where_the_docstrings_say():
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    for p in (0.6, 0.8, 0.95):
        p_M = torch.full_like(grid, p)
        assert float(grid[losses.soft(losses.logistic, grid, 0.5, p_M).argmin()]) == pytest.approx(math.log(p / (1 - p)) / 0.5, abs=2e-4)
        assert float(grid[losses.soft(losses.square, grid, 0.5, p_M).argmin()]) == pytest.approx((2 * p - 1) / (2 * 0.5), abs=2e-4)
    assert losses.smoothed(torch.tensor([1.0, 0.0, 0.5]), 0.1).tolist() == pytest.approx([0.9, 0.1, 0.5])


@pytest.mark.parametrize(("name", "start"), [("dpo", math.log(2)), ("ipo", 25.0), ("hinge", 1.0), ("dpo_norm", math.log(2))])
def test_golden_values_at_the_start(name, start):
    objective, batch = preference(name), collate(tiny.groups(3))
    logp_N = -torch.rand(len(batch.target_N), dtype=torch.float64)
    assert objective.at_start() == pytest.approx(start, abs=1e-12)
    assert float(objective.total(logp_N, logp_N, batch)) / objective.weight(batch) == pytest.approx(start, abs=1e-9)
    assert set(TABLE) == {"dpo", "ipo", "hinge", "dpo_norm"}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_batch_is_its_comparisons_one_by_one(name, smoothing):
    """Scores, margins, weights, soft labels and the sum, written once more in plain Python."""
    groups = tiny.groups(4)
    objective, batch = preference(name, label_smoothing=smoothing), collate(groups)
    generator = torch.Generator().manual_seed(0)
    logp_N, ref_N = (-torch.rand(len(batch.target_N), generator=generator, dtype=torch.float64) for _ in range(2))
    ratios, lengths, at = [], [], 0
    for length in batch.length_C.tolist():
        ratios.append(math.fsum((logp_N - ref_N)[at : at + length].tolist()))
        lengths.append(length)
        at += length
    expected, weight, first = 0.0, 0.0, 0
    for group in groups:
        for c in group.comparisons:
            w, v = first + c.winner, first + c.loser
            m = ratios[w] / lengths[w] - ratios[v] / lengths[v] if objective.mean else ratios[w] - ratios[v]
            p = c.probability * (1 - smoothing) + (1 - c.probability) * smoothing
            oracle = ORACLES[objective.loss]
            expected += c.weight * (p * oracle(m, objective.beta) + (1 - p) * oracle(-m, objective.beta))
            weight += c.weight
        first += len(group.sequences)
    assert objective.weight(batch) == weight
    assert float(objective.total(logp_N, ref_N, batch)) == pytest.approx(expected, rel=1e-6)  # labels are float32
    demonstration = Demonstration()
    assert float(demonstration.total(logp_N, None, batch)) == pytest.approx(-float(logp_N.sum()))
    assert demonstration.weight(batch) == len(batch.target_N)


def hand_made():
    """Three answers of 2, 1 and 4 tokens, log-ratios 3, -1 and 2; a soft, weighted comparison beside a hard one."""
    sequences = tuple(TokenSequence((0, *([1] * n)), 1) for n in (2, 1, 4))
    comparisons = (Comparison(0, 1), Comparison(2, 0, probability=0.75, weight=2.0))
    ratio_N = torch.tensor([1.0, 2.0, -1.0, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    return collate([RenderedGroup(sequences, comparisons, (None,) * 3, "made")]), ratio_N


@pytest.mark.parametrize(
    ("settings", "margins"),
    [  # of sums: 3 - -1 and 2 - 3; of means: 3/2 - -1 and 2/4 - 3/2
        ({"name": "dpo", "beta": 0.5}, (4.0, -1.0)),
        ({"name": "dpo", "beta": 0.5, "label_smoothing": 0.25}, (4.0, -1.0)),
        ({"name": "hinge", "beta": 0.5}, (4.0, -1.0)),
        ({"name": "ipo", "beta": 0.5}, (2.5, -1.0)),
        ({"name": "ipo", "beta": 0.5, "score": "sum"}, (4.0, -1.0)),
        ({"name": "ipo", "beta": 0.5, "label_smoothing": 0.25}, (2.5, -1.0)),
        ({"name": "dpo_norm"}, (2.5, -1.0)),
    ],
)
def test_a_hand_made_batch_to_the_last_digit(settings, margins):
    batch, ratio_N = hand_made()
    objective = preference(**settings)
    oracle, beta, e = ORACLES[objective.loss], objective.beta, settings.get("label_smoothing", 0.0)
    expected = 0.0
    for m, p, weight in zip(margins, (1.0, 0.75), (1.0, 2.0)):
        p = p * (1 - e) + (1 - p) * e
        expected += weight * (p * oracle(m, beta) + (1 - p) * oracle(-m, beta))
    assert objective.weight(batch) == 3.0
    assert float(objective.total(ratio_N - 1, torch.full_like(ratio_N, -1.0), batch)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", TABLE)
def test_the_gradient_of_a_batch(name):
    """Off the hinge's corner every objective's slope is its finite difference, and none flows into the reference by itself."""
    batch, ratio_N = hand_made()
    objective = preference(name, beta=0.3, label_smoothing=0.1)
    logp_N, ref_N = (ratio_N - 1).requires_grad_(), torch.full_like(ratio_N, -1.0)
    assert torch.autograd.gradcheck(lambda value: objective.total(value, ref_N, batch), logp_N)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_batch_far_out_is_finite_in_float32(name, sign):
    """|beta D| = 1e3: values and the slope of every token equal the oracle's in float64."""
    n = 4
    group = RenderedGroup((TokenSequence((0, *([1] * n)), 1),) * 2, (Comparison(0, 1, probability=0.75),), (None, None), "far")
    objective, batch = preference(name), collate([group])
    per_token = sign * 1e3 / objective.beta / (1 if objective.mean else n) / 2  # half of D on each side
    reference_N = torch.tensor([-1.0] * 2 * n)
    logp_N = (reference_N + torch.tensor([per_token] * n + [-per_token] * n)).requires_grad_()
    total = objective.total(logp_N, reference_N, batch)
    (slope_N,) = torch.autograd.grad(total, logp_N)
    moved = (logp_N.detach() - reference_N).double().tolist()
    m = (math.fsum(moved[:n]) - math.fsum(moved[n:])) / (n if objective.mean else 1)
    oracle, slope, beta = ORACLES[objective.loss], SLOPES[objective.loss], objective.beta
    assert beta * m == pytest.approx(sign * 1e3, rel=1e-3)
    assert float(total.detach()) == pytest.approx(0.75 * oracle(m, beta) + 0.25 * oracle(-m, beta), rel=1e-6)
    expected = (0.75 * slope(m, beta) - 0.25 * slope(-m, beta)) / (n if objective.mean else 1)
    assert slope_N.tolist() == pytest.approx([expected] * n + [-expected] * n, rel=1e-6)


def test_log_ratios_are_subtracted_before_they_are_summed():
    """Two sums of -6,000 nats in float32 lose what the difference of tokens keeps."""
    n = 3000
    group = RenderedGroup((TokenSequence((0,) * (n + 1), 1), TokenSequence((0, 1), 1)), (Comparison(0, 1),), (None, None), "long")
    batch = collate([group])
    exact = torch.full((n + 1,), -2.0, dtype=torch.float64)
    moved = exact + 1e-5
    ratio_C = scores.log_ratio(moved.float(), exact.float(), batch, mean=False)
    per_token = float((moved.float() - exact.float()).double()[0])
    assert float(ratio_C[0]) == pytest.approx(n * per_token, rel=1e-5)
    summed_first = float(moved.float()[:n].cumsum(0)[-1] - exact.float()[:n].cumsum(0)[-1])
    assert abs(summed_first - n * per_token) > 100 * abs(float(ratio_C[0]) - n * per_token)


def test_what_dashboards_show():
    """Rewards are beta times the summed ratio; accuracy counts strict wins; ties count nowhere; p < 0.5 swaps the sides."""
    sequences = tuple(TokenSequence((0, *([1] * n)), 1) for n in (2, 1, 3))
    comparisons = (Comparison(0, 1), Comparison(0, 2, probability=0.1), Comparison(1, 2, probability=0.5))
    batch = collate([RenderedGroup(sequences, comparisons, (None,) * 3, "made")])
    reference_N = torch.full((6,), -1.0)
    logp_N = reference_N + torch.tensor([0.5, 0.5, -1.0, 1.0, 1.0, 1.0])  # ratios 1, -1, 3
    sums = scores.preference_sums(logp_N, reference_N, batch, beta=0.1)
    means = {name: total / count for name, (total, count) in sums.items()}
    assert means["rewards/chosen"] == pytest.approx(0.1 * (1 + 3) / 2)
    assert means["rewards/rejected"] == pytest.approx(0.1 * (-1 + 1) / 2)
    assert means["rewards/margins"] == pytest.approx(0.1 * (2 + 2) / 2)
    assert means["rewards/accuracies"] == 1.0
    assert means["logratio/chosen"] == pytest.approx((1 + 3) / (2 + 3))
    assert means["length/chosen"] == pytest.approx(2.5)
    flat = scores.preference_sums(reference_N, reference_N, batch, beta=0.1)
    assert flat["rewards/accuracies"] == (0.0, 2.0)  # equal is not a win


def test_unfit_options_are_refused():
    with pytest.raises(SettingsError, match="dpo takes always sum"):
        preference("dpo", score="mean")
    assert preference("ipo").mean
    assert not preference("ipo", score="sum").mean
