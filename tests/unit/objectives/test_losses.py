"""Each loss as a formula: the papers' own expressions in fifty digits, gradients, extremes,
symmetry, and what noise does to the minimiser.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from mpmath import diff, exp, log, mp, mpf

from winnow.objectives import divergences, losses

mp.dps = 50


def s(x):
    return 1 / (1 + exp(-x))


def naive_discopop(m, beta, temperature):
    z = beta * m
    share = s(z / temperature)
    return (1 - share) * -log(s(z)) + share * exp(-z)


def naive_exo(m, beta, label_smoothing):
    won, lost = s(beta * m), s(-beta * m)
    return won * (log(won) - log(1 - label_smoothing)) + lost * (log(lost) - log(label_smoothing))


def naive_robust(m, beta, label_smoothing, bound):
    z, e = min(beta * m, mpf(bound)), label_smoothing
    return (-(1 - e) * log(s(z)) + e * log(s(-z))) / (1 - 2 * e)


def odds(x):
    return exp(x) / (1 - exp(x))


def bent(x, alpha):
    return x if alpha == 0 else (1 - exp(x) ** -alpha) / alpha


@dataclass
class Case:
    """A loss, the paper's expression, settings, how many columns it takes, and where its kinks are
    not.
    """

    loss: Any
    naive: Any
    settings: dict[str, float]
    columns: int = 1
    grid: tuple[float, ...] = (-7.3, -1.0, -0.2, 0.1, 0.3, 2.0, 11.0)
    more: dict[str, Any] = field(default_factory=dict)
    rising: bool = False  # somewhere its slope in the margin is positive


NEGATIVE = (-9.1, -4.0, -1.3, -0.4, -0.02)  # mean log-probs
CASES = {
    "logistic": Case(losses.logistic, lambda m, beta: -log(s(beta * m)), {"beta": 0.3}),
    "robust": Case(
        losses.robust, naive_robust, {"beta": 0.3, "label_smoothing": 0.2, "bound": 2.5}
    ),
    "square": Case(
        losses.square, lambda m, beta: (m - 1 / (2 * mpf(beta))) ** 2, {"beta": 0.3}, rising=True
    ),
    "hinge": Case(losses.hinge, lambda m, beta: max(mpf(0), 1 - beta * m), {"beta": 0.3}),
    "exo": Case(losses.exo, naive_exo, {"beta": 0.3, "label_smoothing": 0.01}, rising=True),
    "discopop": Case(
        losses.discopop, naive_discopop, {"beta": 0.3, "temperature": 0.05}, rising=True
    ),
    "simpo": Case(
        losses.simpo, lambda m, beta, gamma: -log(s(beta * m - gamma)), {"beta": 2.5, "gamma": 1.4}
    ),
    "rdpo": Case(
        losses.rdpo,
        lambda m, longer, beta, alpha: -log(s(beta * m + alpha * longer)),
        {"beta": 0.3, "alpha": 0.05},
        2,
    ),
    "odpo": Case(
        losses.odpo,
        lambda m, gap, beta, alpha: -log(s(beta * m - alpha * log(gap))),
        {"beta": 0.3, "alpha": 0.7},
        2,
        (0.1, 0.4, 2.0, 9.0),
    ),
    "nca": Case(
        losses.nca,
        lambda w, v, beta: -log(s(beta * w)) - log(s(-beta * w)) / 2 - log(s(-beta * v)) / 2,
        {"beta": 0.3},
        2,
        rising=True,
    ),
    "bco": Case(
        losses.bco,
        lambda w, v, beta, shift: -log(s(beta * w - shift)) - log(s(-(beta * v - shift))),
        {"beta": 0.3, "shift": 0.4},
        2,
    ),
    "sppo": Case(
        losses.sppo,
        lambda w, v, beta: (w - 1 / (2 * mpf(beta))) ** 2 + (v + 1 / (2 * mpf(beta))) ** 2,
        {"beta": 0.3},
        2,
        rising=True,
    ),
    "apo_zero": Case(
        losses.apo_zero, lambda w, v, beta: 1 - s(beta * w) + s(beta * v), {"beta": 0.3}, 2
    ),
    "apo_down": Case(
        losses.apo_down,
        lambda w, v, beta: s(beta * w) + 1 - s(beta * (w - v)),
        {"beta": 0.3},
        2,
        rising=True,
    ),
    "dpop": Case(
        losses.dpop,
        lambda w, v, beta, penalty: -log(s(beta * (w - v - penalty * max(mpf(0), -w)))),
        {"beta": 0.3, "penalty": 5.0},
        2,
    ),
    "alphapo": Case(
        losses.alphapo,
        lambda w, v, beta, gamma, alpha: -log(s(beta * (bent(w, alpha) - bent(v, alpha)) - gamma)),
        {"beta": 2.5, "gamma": 0.3, "alpha": 0.25},
        2,
        NEGATIVE,
    ),
    "orpo": Case(
        losses.orpo,
        lambda w, v, weight: -w - weight * log(s(log(odds(w) / odds(v)))),
        {"weight": 0.1},
        2,
        NEGATIVE,
    ),
    "cpo": Case(
        losses.cpo,
        lambda w, v, nll, beta, alpha: -log(s(beta * (w - v))) + alpha * nll,
        {"beta": 0.3, "alpha": 0.8},
        3,
        (-5.0, -0.3, 2.0),
    ),
    "unlikelihood": Case(
        losses.unlikelihood, lambda w, v, alpha: -w + alpha * v, {"alpha": 0.3}, 2
    ),
    "kto good": Case(
        losses.kto,
        lambda r, beta, baseline: 1 - s(beta * (r - baseline)),
        {"beta": 0.3, "baseline": 0.8},
        more={"good": True},
    ),
    "kto bad": Case(
        losses.kto,
        lambda r, beta, baseline: 1 - s(beta * (baseline - r)),
        {"beta": 0.3, "baseline": 0.8},
        more={"good": False},
        rising=True,
    ),
    "bco_unpaired good": Case(
        losses.bco_unpaired,
        lambda r, beta, shift: -log(s(beta * r - shift)),
        {"beta": 0.3, "shift": 0.4},
        more={"good": True},
    ),
    "bco_unpaired bad": Case(
        losses.bco_unpaired,
        lambda r, beta, shift: -log(s(-(beta * r - shift))),
        {"beta": 0.3, "shift": 0.4},
        more={"good": False},
        rising=True,
    ),
    "nll": Case(losses.nll, lambda x: -x, {}),
    "forward_kl": Case(divergences.forward_kl, lambda r: -1 / exp(r), {}, rising=True),
    "jensen_shannon": Case(
        divergences.jensen_shannon, lambda r: log(2 * exp(r) / (1 + exp(r))), {}, rising=True
    ),
    "alpha_divergence": Case(
        divergences.alpha_divergence,
        lambda r, alpha: (1 - exp(r) ** -alpha) / alpha,
        {"alpha": 0.4},
        rising=True,
    ),
    "reverse_kl": Case(divergences.reverse_kl, lambda r: log(exp(r)), {}, rising=True),
}


def looked(case, points, dtype):
    """Values, and slopes in every column, at points (one tuple of columns each)."""
    columns = [torch.tensor(column, dtype=dtype, requires_grad=True) for column in zip(*points)]
    found = case.loss(*columns, **case.more, **case.settings)
    slopes = torch.autograd.grad(found.sum(), columns, materialize_grads=True)
    return found.tolist(), [list(row) for row in zip(*(slope.tolist() for slope in slopes))]


def truth(case, point):
    settings = {name: mpf(value) for name, value in case.settings.items()}
    point = [mpf(x) for x in point]

    def naive(*columns):
        return case.naive(*columns, **settings)

    slopes = [
        diff(naive, tuple(point), tuple(int(i == j) for j in range(len(point))))
        for i in range(len(point))
    ]
    return float(naive(*point)), [float(slope) for slope in slopes]


@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes_are_the_papers(name):
    case = CASES[name]
    points = list(itertools.product(case.grid, repeat=case.columns))
    values, slopes = looked(case, points, torch.float64)
    for point, value, slope in zip(points, values, slopes):
        expected, expected_slope = truth(case, point)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-14), point
        assert slope == pytest.approx(expected_slope, rel=1e-11, abs=1e-14), point


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    case = CASES[name]
    columns = [
        torch.tensor(column, dtype=torch.float64, requires_grad=True)
        for column in zip(*itertools.product(case.grid, repeat=case.columns))
    ]
    assert torch.autograd.gradcheck(
        lambda *given: case.loss(*given, **case.more, **case.settings), columns
    )


# e^1000 is in no float: these go on as a tangent
EXPLODING = {
    "forward_kl",
    "alpha_divergence",
    "alphapo",
}


@pytest.mark.parametrize(
    "name", sorted(set(CASES) - EXPLODING - {"nll", "reverse_kl", "odpo", "orpo"})
)
@pytest.mark.parametrize(
    "signs", [(1, -1), (-1, 1), (1, 1), (-1, -1)], ids=["won", "lost", "both up", "both down"]
)
def test_far_out_in_float32(name, signs):
    """|beta x| = 1e3 on each side: finite, and what fifty digits give, in values and slopes."""
    case = CASES[name]
    far = [sign * 1e3 / case.settings.get("beta", 1.0) for sign in (*signs, 1)[: case.columns]]
    (value,), (slope,) = looked(case, [far], torch.float32)
    seen = [float(torch.tensor(x)) for x in far]  # as float32 has them
    case = Case(
        **{
            **vars(case),
            "settings": {key: float(torch.tensor(x)) for key, x in case.settings.items()},
        }
    )
    expected, expected_slope = truth(case, seen)
    assert math.isfinite(value)
    assert all(map(math.isfinite, slope))
    assert value == pytest.approx(expected, rel=2e-6, abs=1e-30)
    assert slope == pytest.approx(expected_slope, rel=2e-6, abs=1e-30)


@pytest.mark.parametrize("name", ["odpo", "orpo"])
def test_far_out_within_what_they_may_be_given(name):
    """A gap is above 0, a mean log-prob below it; down to -1e3 nats a token, and up to a
    probability that rounds to 1.
    """
    case = CASES[name]
    for point in (
        [(4e3, 3.0), (-4e3, 3.0)]
        if name == "odpo"
        else [(-1e3, -0.5), (-0.5, -1e3), (-1e-6, -2.0), (-2.0, -1e-6)]
    ):
        (value,), (slope,) = looked(case, [point], torch.float32)
        expected, expected_slope = truth(case, [float(torch.tensor(x)) for x in point])
        assert value == pytest.approx(expected, rel=1e-5)
        assert slope == pytest.approx(expected_slope, rel=1e-5, abs=1e-30)
    if name == "orpo":
        (value,), (slope,) = looked(case, [(0.0, -1.0)], torch.float32)
        assert math.isfinite(value)
        assert all(map(math.isfinite, slope))


@pytest.mark.parametrize("name", sorted(EXPLODING))
def test_what_explodes_goes_on_as_its_tangent(name):
    case = CASES[name]
    for x in (-300.0, -1000.0):
        (value,), (slope,) = looked(case, [(x, -0.5)[: case.columns]], torch.float32)
        assert math.isfinite(value)
        assert all(map(math.isfinite, slope))
        assert slope[0] != 0  # a clamp would leave the worst answers without a force
    if name == "alphapo":  # on the loser's side the limit is a number
        assert looked(case, [(-0.5, -1000.0)], torch.float32) == ([0.0], [[-0.0, 0.0]])
    just = -79.0 / case.settings.get("alpha", 1.0)
    (value,), (slope,) = looked(case, [(just, -0.5)[: case.columns]], torch.float64)
    expected, expected_slope = truth(case, (just, -0.5)[: case.columns])
    assert value == pytest.approx(expected, rel=1e-12)
    assert slope[0] == pytest.approx(expected_slope[0], rel=1e-12)


PAIRWISE = [
    name
    for name, case in CASES.items()
    if case.columns == 1
    and name in ("logistic", "robust", "square", "hinge", "exo", "discopop", "simpo")
]


@pytest.mark.parametrize("name", PAIRWISE)
def test_swapping_the_sides_and_the_label_is_the_same(name):
    case, m_M, p_M = (
        CASES[name],
        torch.randn(20, dtype=torch.float64),
        torch.rand(20, dtype=torch.float64),
    )

    def loss(margin_M):
        return case.loss(margin_M, **case.settings)

    torch.testing.assert_close(
        divergences.soft(p_M, loss(m_M), loss(-m_M)),
        divergences.soft(1 - p_M, loss(-m_M), loss(m_M)),
        rtol=1e-14,
        atol=0,
    )


@pytest.mark.parametrize("name", [name for name in PAIRWISE if not CASES[name].rising])
def test_the_loss_falls_with_the_margin(name):
    grid = torch.linspace(-30, 30, 2001, dtype=torch.float64)
    steps = CASES[name].loss(grid, **CASES[name].settings).diff()
    assert bool((steps <= 0).all())
    assert bool((steps[:1000] < 0).all())


def minimiser(loss, low=-40.0, high=40.0):
    """Of a function with one minimum, by golden sections."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return (low + high) / 2


def mixed(loss, p, **settings):
    """The loss of a margin under soft labels, as a function of one number."""

    def value(m):
        margin = torch.tensor([m], dtype=torch.float64)
        return float(
            divergences.soft(
                torch.tensor([p], dtype=torch.float64),
                loss(margin, **settings),
                loss(-margin, **settings),
            )
        )

    return value


def logit(p):
    return math.log(p / (1 - p))


@pytest.mark.parametrize("p", [0.55, 0.7, 0.9])
def test_what_noise_does_to_the_minimiser(p):
    """As each docstring says it."""
    assert minimiser(mixed(losses.logistic, p, beta=0.5)) == pytest.approx(logit(p) / 0.5, abs=1e-6)
    assert minimiser(mixed(losses.square, p, beta=0.5)) == pytest.approx(
        (2 * p - 1) / (2 * 0.5), abs=1e-6
    )
    assert minimiser(mixed(losses.hinge, p, beta=0.5)) == pytest.approx(1 / 0.5, abs=1e-6)
    assert minimiser(mixed(losses.exo, p, beta=0.5, label_smoothing=0.01)) == pytest.approx(
        (2 * p - 1) * logit(0.99) / 0.5, abs=1e-5
    )
    both = {
        side: minimiser(lambda m, side=side: sides(losses.nca, p, side, m, beta=0.5))
        for side in (0, 1)
    }
    assert both == pytest.approx(
        {0: math.log(2 * p) / 0.5, 1: math.log(2 * (1 - p)) / 0.5}, abs=1e-5
    )
    both = {
        side: minimiser(lambda m, side=side: sides(losses.bco, p, side, m, beta=0.5, shift=0.3))
        for side in (0, 1)
    }
    assert both == pytest.approx({0: (0.3 + logit(p)) / 0.5, 1: (0.3 - logit(p)) / 0.5}, abs=1e-5)
    both = {
        side: minimiser(lambda m, side=side: sides(losses.sppo, p, side, m, beta=0.5))
        for side in (0, 1)
    }
    assert both == pytest.approx(
        {0: (2 * p - 1) / (2 * 0.5), 1: -(2 * p - 1) / (2 * 0.5)}, abs=1e-5
    )


@pytest.mark.parametrize("p", [0.55, 0.8, 0.95])
def test_a_lead_is_asked_of_whoever_wins(p):
    """SimPO's gamma and ODPO's offset turn with the label, so the minimiser is no shifted logit."""
    for g, found in (
        (math.exp(1.2), minimiser(mixed(losses.simpo, p, beta=0.5, gamma=1.2))),
        (
            3.0**0.7,
            minimiser(
                mixed(
                    lambda m, beta: losses.odpo(m, torch.full_like(m, 3.0), beta, 0.7), p, beta=0.5
                )
            ),
        ),
        (1.0, minimiser(mixed(losses.simpo, p, beta=0.5, gamma=0.0))),
    ):
        d = 2 * p - 1
        expected = math.log((g * d + math.sqrt(g * g * d * d + 4 * p * (1 - p))) / (2 * (1 - p)))
        assert 0.5 * found == pytest.approx(expected, abs=1e-6)
    assert 0.5 * found == pytest.approx(logit(p), abs=1e-6)  # without a lead


def sides(loss, p, side, m, **settings):
    """The same of one side's score, the other's being 0."""
    scores = [torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    scores[side] = torch.tensor([m], dtype=torch.float64)
    return float(
        divergences.soft(
            torch.tensor([p], dtype=torch.float64),
            loss(*scores, **settings),
            loss(*scores[::-1], **settings),
        )
    )


@pytest.mark.parametrize("e", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("p", [0.6, 0.9])
def test_flipped_labels(e, p):
    """With flips at rate e the labels are right with q = (1-e) p + e (1-p). DPO fits q; cDPO
    shrinks q once more; robust undoes the flips.
    """
    q = (1 - e) * p + e * (1 - p)
    assert minimiser(mixed(losses.logistic, q, beta=0.5)) == pytest.approx(logit(q) / 0.5, abs=1e-6)
    smoothed = float(divergences.smoothed(torch.tensor([q], dtype=torch.float64), e))
    assert smoothed == pytest.approx((1 - e) * q + e * (1 - q))
    assert minimiser(mixed(losses.logistic, smoothed, beta=0.5)) == pytest.approx(
        logit((1 - e) * q + e * (1 - q)) / 0.5, abs=1e-6
    )
    assert minimiser(
        mixed(losses.robust, q, beta=0.5, label_smoothing=e, bound=10.0)
    ) == pytest.approx(logit(p) / 0.5, abs=1e-6)


def test_robust_is_unbiased_and_guarded():
    """Averaged over flips it is DPO's loss; of one label alone it would fall for ever, and the
    bound stops it.
    """
    m, e = torch.linspace(-15, 15, 61, dtype=torch.float64), 0.2
    clean, flipped = (losses.robust(way, 0.5, e, 1e9) for way in (m, -m))
    torch.testing.assert_close(
        (1 - e) * clean + e * flipped, losses.logistic(m, 0.5), rtol=1e-12, atol=1e-12
    )
    margin = torch.tensor([30.0, 3000.0], dtype=torch.float64, requires_grad=True)
    for bound, slope in ((1e9, -0.5 * e / (1 - 2 * e)), (10.0, 0.0)):
        loss = losses.robust(margin, 0.5, e, bound)
        assert torch.autograd.grad(loss.sum(), margin)[0].tolist() == pytest.approx(
            [slope] * 2, abs=1e-5
        )
        assert bool(loss.min() < -400) == (bound == 1e9)


def test_discopop_is_not_convex_and_where():
    z = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    value = losses.discopop(z, 1.0, 0.05)
    turns = z[1:-1][(value.diff()[:-1] * value.diff()[1:]) < 0].tolist()
    assert turns == pytest.approx([-0.1186, 0.0721], abs=2e-4)  # a local minimum, a local maximum


def test_r_dpo_prices_tokens():
    """Where the labels are certain of a reward r*, the fitted b r = r* - alpha n: each extra token
    costs alpha.
    """
    alpha, truth, length = 0.05, [0.3, -0.4, 1.1], [10, 40, 25]
    fitted = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [fitted],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for i, j in itertools.permutations(range(3), 2):
            p = 1 / (1 + math.exp(truth[j] - truth[i]))
            total = (
                total
                + p
                * losses.rdpo(
                    (fitted[i] - fitted[j])[None],
                    torch.tensor([length[i] - length[j]], dtype=torch.float64),
                    0.5,
                    alpha,
                )[0]
            )
        total.backward()
        return total

    optimizer.step(closure)
    rewards = 0.5 * fitted.detach()
    for i, j in itertools.combinations(range(3), 2):
        expected = truth[i] - truth[j] - alpha * (length[i] - length[j])
        assert float(rewards[i] - rewards[j]) == pytest.approx(expected, abs=1e-6)


def test_the_dpo_papers_own_form():
    policy, reference = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-1.5, -1.5, -4.5])
    found, rewards = losses.preference_loss(
        policy, reference, torch.tensor([0, 2]), torch.tensor([1, 1]), 0.5
    )
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(-0.5))])
    assert rewards.tolist() == pytest.approx([0.25, -0.25, 0.25])
    found, _ = losses.preference_loss(
        policy, reference, torch.tensor([0]), torch.tensor([1]), 0.5, loss=losses.hinge
    )
    assert found.tolist() == pytest.approx([0.5])


# ---------------------------------------------------------------- rankings


def ranking(z, order):
    """-log of the Plackett-Luce probability of an order, the best first: choose the best of all,
    then of the rest ...
    """
    return -sum(
        float(log(exp(mpf(z[k])) / sum(exp(mpf(z[j])) for j in order[at:])))
        for at, k in enumerate(order)
    )


def test_plackett_luce_is_a_choice_after_the_other():
    score, beta = [0.4, -2.0, 1.7, 0.3], 0.7
    for order in itertools.permutations(range(4)):
        ranks = [order.index(k) for k in range(4)]
        expected = ranking([beta * x for x in score], order)
        assert float(
            losses.plackett_luce(torch.tensor(score, dtype=torch.float64), ranks, beta)
        ) == pytest.approx(expected, rel=1e-12)
    total = sum(
        math.exp(-ranking([beta * x for x in score], order))
        for order in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1.0, rel=1e-12)


def test_plackett_luce_of_two_is_dpo_and_starts_at_log_k_factorial():
    score = torch.tensor([0.8, -0.5], dtype=torch.float64)
    assert float(losses.plackett_luce(score, [0, 1], 0.3)) == pytest.approx(
        float(losses.logistic(score[:1] - score[1:], 0.3)), rel=1e-14
    )
    for k, ranks in ((2, [0, 1]), (4, [3, 0, 2, 1]), (4, [1, 0, 1, 1]), (5, [0] * 5)):
        assert float(
            losses.plackett_luce(torch.zeros(k, dtype=torch.float64), ranks, 0.1)
        ) == pytest.approx(math.log(math.factorial(k)), rel=1e-12)


@pytest.mark.parametrize(
    "ranks", [[0, 0], [0, 0, 2], [1, 0, 1], [0, 2, 0, 2], [1, 0, 1, 1], [0, 0, 0, 3], [0, 0, 0, 0]]
)
def test_ties_are_the_mean_over_their_orders(ranks):
    score = [0.4, -2.0, 1.7, 0.3][: len(ranks)]
    fitting = [
        order
        for order in itertools.permutations(range(len(ranks)))
        if [ranks[k] for k in order] == sorted(ranks)
    ]
    expected = sum(ranking([0.7 * x for x in score], order) for order in fitting) / len(fitting)
    score_K = torch.tensor(score, dtype=torch.float64, requires_grad=True)
    assert float(losses.plackett_luce(score_K, ranks, 0.7).detach()) == pytest.approx(
        expected, rel=1e-12
    )
    assert torch.autograd.gradcheck(lambda x: losses.plackett_luce(x, ranks, 0.7), score_K)
    if ranks == [0, 0]:  # the tie of soft labels
        m = score_K.detach()[:1] - score_K.detach()[1:]
        tie = divergences.soft(
            torch.tensor([0.5], dtype=torch.float64),
            losses.logistic(m, 0.7),
            losses.logistic(-m, 0.7),
        )
        assert float(tie) == pytest.approx(expected, rel=1e-12)


def test_rankings_far_out_are_finite_in_float32():
    score_K = torch.tensor([1e4, -1e4, 0.0, 5e3], requires_grad=True)
    for ranks in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 2, 2]):
        loss = losses.plackett_luce(score_K, ranks, 0.1)
        (slope_K,) = torch.autograd.grad(loss, score_K)
        orders = [
            order
            for order in itertools.permutations(range(4))
            if [ranks[k] for k in order] == sorted(ranks)
        ]
        expected = sum(
            ranking([0.1 * x for x in score_K.tolist()], order) for order in orders
        ) / len(orders)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        assert bool(torch.isfinite(slope_K).all())
