"""PPO's functions against plain loops and slopes derived by hand, in float64; and what theory says
of them in worlds that can be enumerated.
"""

from __future__ import annotations

import math
import statistics
from itertools import product

import pytest
import torch
from torch import Tensor

import closed
from winnow.objectives import policy_gradient as pg

F64 = torch.float64
LENGTHS = (3, 1, 7, 2, 1, 5)


def t(*values) -> Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def owners(lengths=LENGTHS) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def slope(function, at_N: Tensor) -> Tensor:
    """The derivative of the sum of a per-token function, by autograd."""
    at_N = at_N.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at_N).sum(), at_N)
    return found


def differences(function, at_N: Tensor, step: float = 1e-6) -> Tensor:
    """The same by central differences, token by token."""
    return (function(at_N + step) - function(at_N - step)) / (2 * step)


# ---------------------------------------------------------------- rewards


def test_each_token_pays_for_its_own_log_ratio_and_the_last_one_gets_the_score():
    reward_N = pg.token_rewards(
        t(1.0, -2.0), t(-1.0, -2.0, -0.5), t(-1.5, -1.0, -0.75), torch.tensor([0, 0, 1]), 0.1
    )
    torch.testing.assert_close(reward_N, t(-0.05, 0.1 + 1.0, -0.025 - 2.0), rtol=0, atol=1e-15)


def test_an_answers_rewards_sum_to_the_papers():
    logp_N, reference_N, score_C = -normal(19).abs(), -normal(19, seed=1).abs(), normal(6, seed=2)
    reward_N = pg.token_rewards(score_C, logp_N, reference_N, owners(), 0.3)
    for c in range(6):
        own = owners() == c
        assert float(reward_N[own].sum()) == pytest.approx(
            float(score_C[c] - 0.3 * (logp_N[own].sum() - reference_N[own].sum())), abs=1e-13
        )
    assert not pg.token_rewards(
        score_C, logp_N.requires_grad_(), reference_N, owners(), 0.3
    ).requires_grad


# ---------------------------------------------------------------- advantages


def by_k_steps(reward: list[float], value: list[float], gamma: float, lam: float) -> list[float]:
    """GAE as the paper builds it, from the k-step estimators: (1 - lambda) sum_k lambda^(k-1)
    A^(k), all from the end on being the same.
    """
    found = []
    for at in range(len(reward)):
        left = len(reward) - at
        estimates = []
        for k in range(1, left + 1):
            seen = sum(gamma**i * reward[at + i] for i in range(k))
            estimates.append(seen + (gamma**k * value[at + k] if k < left else 0.0) - value[at])
        found.append(
            sum((1 - lam) * lam ** (k - 1) * estimates[k - 1] for k in range(1, left))
            + lam ** (left - 1) * estimates[-1]
        )
    return found


@pytest.mark.parametrize(
    ("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 1.0), (1.0, 0.0), (0.0, 0.7)]
)
def test_gae_is_the_mixture_of_k_step_estimators_of_each_answer(gamma, lam):
    reward_N, value_N = normal(19), normal(19, seed=1)
    advantage_N, return_N = pg.gae(reward_N, value_N, owners(), gamma=gamma, lam=lam)
    expected = [
        a
        for r, v in zip(reward_N.split(LENGTHS), value_N.split(LENGTHS))
        for a in by_k_steps(r.tolist(), v.tolist(), gamma, lam)
    ]
    torch.testing.assert_close(advantage_N, t(*expected), rtol=0, atol=1e-13)
    torch.testing.assert_close(return_N, t(*expected) + value_N, rtol=0, atol=1e-13)


def test_gae_at_its_limits():
    reward_N, value_N = normal(19), normal(19, seed=1)
    togo_N = torch.cat([r.flip(0).cumsum(0).flip(0) for r in reward_N.split(LENGTHS)])
    advantage_N, return_N = pg.gae(reward_N, value_N, owners(), gamma=1.0, lam=1.0)
    torch.testing.assert_close(return_N, togo_N, rtol=0, atol=1e-13)
    torch.testing.assert_close(advantage_N, togo_N - value_N, rtol=0, atol=1e-13)
    after_N = torch.cat([torch.cat([v.roll(-1)[:-1], t(0.0)]) for v in value_N.split(LENGTHS)])
    assert torch.equal(
        pg.gae(reward_N, value_N, owners(), gamma=0.9, lam=0.0)[0],
        reward_N + 0.9 * after_N - value_N,
    )


def test_answers_laid_end_to_end_are_each_answer_alone():
    reward_N, value_N = normal(19), normal(19, seed=1)
    together = torch.stack(pg.gae(reward_N, value_N, owners(), gamma=0.9, lam=0.8))
    alone = [
        torch.stack(pg.gae(r, v, torch.zeros(len(r), dtype=torch.long), gamma=0.9, lam=0.8))
        for r, v in zip(reward_N.split(LENGTHS), value_N.split(LENGTHS))
    ]
    assert torch.equal(together, torch.cat(alone, 1))
    # numbers of answers that do not begin at 0
    late = torch.stack(pg.gae(reward_N[4:], value_N[4:], owners()[4:], gamma=0.9, lam=0.8))
    assert torch.equal(late, together[:, 4:])


def test_advantages_are_numbers():
    advantage_N, return_N = pg.gae(
        normal(19), normal(19, seed=1).requires_grad_(), owners(), gamma=1.0, lam=0.9
    )
    assert not advantage_N.requires_grad
    assert not return_N.requires_grad
    empty = torch.zeros(0, dtype=torch.long)
    assert len(pg.gae(normal(0), normal(0), empty, gamma=1.0, lam=0.9)[0]) == 0


# ---------------------------------------------------------------- group baselines

GROUPS = (2, 0, 2, 0, 2, 0, 0, 7, 7)  # in any order, under any numbers


def by_group(score_C: Tensor, of):
    groups: dict[int, list[float]] = {}
    for group, score in zip(GROUPS, score_C.tolist()):
        groups.setdefault(group, []).append(score)
    left = {group: list(range(len(scores))) for group, scores in groups.items()}
    return t(*(of(groups[group], left[group].pop(0)) for group in GROUPS))


def test_group_baselines_against_the_papers_words():
    score_C, group_C = 3 * normal(9) + 5, torch.tensor(GROUPS)

    def leave_one_out(scores, i):
        return scores[i] - statistics.fmean(scores[:i] + scores[i + 1 :])

    torch.testing.assert_close(
        pg.rloo(score_C, group_C), by_group(score_C, leave_one_out), rtol=0, atol=1e-13
    )

    def standardised(scores, i):
        return (scores[i] - statistics.fmean(scores)) / (statistics.stdev(scores) + 1e-4)

    torch.testing.assert_close(
        pg.grpo(score_C, group_C), by_group(score_C, standardised), rtol=0, atol=1e-13
    )


def test_group_baselines_of_equal_scores_and_of_one():
    group_C = torch.tensor([0, 0, 0, 1, 1])
    for baseline in (pg.rloo, pg.grpo):
        assert baseline(t(0.1, 0.1, 0.1, 7.0, 7.0), group_C).abs().max() < 1e-11
        with pytest.raises(ValueError, match="group 3 has one answer"):
            baseline(t(1.0, 2.0, 3.0), torch.tensor([0, 3, 0]))
    score_C = normal(5)
    torch.testing.assert_close(
        pg.rloo(score_C + 100, group_C), pg.rloo(score_C, group_C), rtol=0, atol=1e-12
    )
    # 1e-4 beside the deviation
    torch.testing.assert_close(
        pg.grpo(1000 * score_C - 5, group_C), pg.grpo(score_C, group_C), rtol=1e-3, atol=0
    )


def expected_gradient(baseline, logits_XA: Tensor, reward_XA: Tensor, k: int) -> Tensor:
    """E of the surrogate's gradient when every prompt is answered k times: all draws are
    enumerated, each prompt by itself.
    """
    total_XA = torch.zeros_like(logits_XA)
    for x, (logits_A, reward_A) in enumerate(zip(logits_XA, reward_XA)):
        logp_A = logits_A.log_softmax(-1)
        for drawn in product(range(len(logits_A)), repeat=k):
            drawn = torch.tensor(drawn)
            advantage_C = baseline(reward_A[drawn], torch.zeros(k, dtype=torch.long))
            # the slope of log pi(drawn) in the logits
            score_CA = torch.eye(len(logits_A), dtype=F64)[drawn] - logp_A.exp()
            total_XA[x] += logp_A[drawn].sum().exp() * (advantage_C[:, None] * score_CA).mean(0)
    return total_XA


def test_rloo_is_unbiased_and_grpos_deviation_is_not():
    # the second prompt's answers differ a tenth as much
    logits_XA, reward_XA = (
        normal(2, 3),
        t([0.0, 1.0, 0.3], [0.0, 0.1, 0.02]),
    )
    probability_XA = logits_XA.softmax(-1)
    exact_XA = probability_XA * (reward_XA - (probability_XA * reward_XA).sum(-1, keepdim=True))
    for k in (2, 3, 4):
        torch.testing.assert_close(
            expected_gradient(pg.rloo, logits_XA, reward_XA, k), exact_XA, rtol=0, atol=1e-14
        )
        alone = expected_gradient(lambda r, g: r - r.mean(), logits_XA, reward_XA, k)
        # the mean alone: the same direction
        torch.testing.assert_close(alone, (k - 1) / k * exact_XA, rtol=0, atol=1e-14)
        found_XA = expected_gradient(pg.grpo, logits_XA, reward_XA, k)
        strength_X = found_XA.norm(dim=-1) / exact_XA.norm(dim=-1)
        assert strength_X[1] / strength_X[0] > 5  # the prompt with less to gain pulls as much
        cosine_X = torch.cosine_similarity(found_XA, exact_XA, dim=-1)
        assert cosine_X.max() < 0.999, "within a prompt it turns, too"


def test_grpo_with_many_answers_climbs_the_arcsine_of_the_success_rate():
    rate, k = 0.1, 400
    gradient = 0.0  # in p, of k answers of which j are right: E of mean A d log pi / dp
    for j in range(k + 1):
        chance = math.exp(
            math.lgamma(k + 1)
            - math.lgamma(j + 1)
            - math.lgamma(k - j + 1)
            + j * math.log(rate)
            + (k - j) * math.log1p(-rate)
        )
        advantage_C = pg.grpo(t(*([1.0] * j + [0.0] * (k - j))), torch.zeros(k, dtype=torch.long))
        gradient += (
            chance * float(advantage_C[:j].sum() / rate - advantage_C[j:].sum() / (1 - rate)) / k
        )
    deviation = math.sqrt(rate * (1 - rate))
    # The bias of the mean, which is 1 / k too near, and of the deviation:
    # E s = deviation (1 - (kurtosis - 1) / 8 k).
    few = (1 + (1 / deviation**2 - 4) / 8) / k
    # 1 / deviation: the slope of 2 arcsin sqrt p
    assert gradient == pytest.approx((1 - few - 1e-4 / deviation) / deviation, rel=1e-4)
    assert gradient > 3  # where the success rate's own slope is 1


# ---------------------------------------------------------------- the surrogate

CLIP = 0.2
MOVED = (-1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0)  # log u; 0.8 and 1.2 lie between


def surrogate_oracle(moved: float, advantage: float) -> tuple[float, float]:
    """-min(u A, clip(u) A) and its slope in log pi, spelled out."""
    u = math.exp(moved)
    if advantage > 0 and u > 1 + CLIP:
        return -(1 + CLIP) * advantage, 0.0
    if advantage < 0 and u < 1 - CLIP:
        return -(1 - CLIP) * advantage, 0.0
    return -u * advantage, -u * advantage


@pytest.mark.parametrize("advantage", [1.7, 0.0, -0.6])
def test_the_clipped_surrogate_and_its_slope(advantage):
    old_N, moved_N = -normal(len(MOVED)).abs() - 1, t(*MOVED)
    advantage_N = torch.full_like(old_N, advantage)

    def loss(logp_N):
        return pg.clipped_surrogate(logp_N, old_N, advantage_N, CLIP)

    value, gradient = zip(*(surrogate_oracle(moved, advantage) for moved in MOVED))
    torch.testing.assert_close(loss(old_N + moved_N), t(*value), rtol=0, atol=1e-14)
    torch.testing.assert_close(slope(loss, old_N + moved_N), t(*gradient), rtol=0, atol=1e-14)
    torch.testing.assert_close(differences(loss, old_N + moved_N), t(*gradient), rtol=0, atol=1e-8)
    still = [advantage != 0 and g == 0.0 for g in gradient]
    assert pg.clipped(old_N + moved_N, old_N, advantage_N, CLIP).tolist() == still
    assert torch.equal(pg.ratio(old_N, old_N), torch.ones_like(old_N))


def test_at_the_start_the_loss_is_the_policy_gradients():
    """Ratio 1: the slope is -A whatever the clip, and none where A is 0; with it, sum A d log pi /
    d logits, the one-hot minus the softmax.
    """
    logits_NV, drawn_N, advantage_N = normal(19, 5), torch.arange(19) % 5, normal(19, seed=1)
    old_N = logits_NV.log_softmax(-1)[torch.arange(19), drawn_N]
    for clip in (math.inf, CLIP, 0.0):
        assert torch.equal(
            slope(
                lambda logp_N, clip=clip: pg.clipped_surrogate(logp_N, old_N, advantage_N, clip),
                old_N,
            ),
            -advantage_N,
        )
        assert not slope(
            lambda logp_N, clip=clip: pg.clipped_surrogate(
                logp_N, old_N, torch.zeros(19, dtype=F64), clip
            ),
            old_N,
        ).any()
    assert not pg.clipped(old_N, old_N, advantage_N, CLIP).any()

    leaf_NV = logits_NV.clone().requires_grad_()
    logp_N = leaf_NV.log_softmax(-1)[torch.arange(19), drawn_N]
    (found_NV,) = torch.autograd.grad(
        pg.clipped_surrogate(logp_N, logp_N.detach(), advantage_N, math.inf).sum(), leaf_NV
    )
    by_hand_NV = -advantage_N[:, None] * (torch.eye(5, dtype=F64)[drawn_N] - logits_NV.softmax(-1))
    torch.testing.assert_close(found_NV, by_hand_NV, rtol=0, atol=1e-15)


def test_without_clipping_it_is_importance_sampling():
    logp_N, old_N, advantage_N = -normal(19).abs(), -normal(19, seed=1).abs(), normal(19, seed=2)
    expected = [
        -math.exp(a - b) * c
        for a, b, c in zip(logp_N.tolist(), old_N.tolist(), advantage_N.tolist())
    ]
    torch.testing.assert_close(
        pg.clipped_surrogate(logp_N, old_N, advantage_N, math.inf), t(*expected), rtol=1e-14, atol=0
    )
    assert not pg.clipped(logp_N, old_N, advantage_N, math.inf).any()


def test_the_gradient_is_the_expected_rewards_in_a_world_of_token_sequences():
    """All answers of a world weighed by their probability: the slope of the surrogate over tokens,
    with the KL paid token by token and a baseline of each prefix, is the slope of eq. 3, found
    without any of it. lambda = 1, gamma = 1.
    """
    world, beta = closed.World(prompts=2, vocabulary=3, length=3), 0.5
    policy_XPV = world.reference_XPV + 0.5 * normal(*world.reference_XPV.shape, seed=3)
    found_XPV = surrogate_slope(
        world, policy_XPV, beta, value_XPV=normal(*world.reference_XPV.shape, seed=4)
    )
    leaf_XPV = policy_XPV.clone().requires_grad_()
    logp_XA = world.tabular(leaf_XPV)
    objective = closed.expected(logp_XA, world.reward_XA) - beta * closed.kl(
        logp_XA, world.reference_XA
    )
    (exact_XPV,) = torch.autograd.grad(objective, leaf_XPV)
    torch.testing.assert_close(found_XPV, -exact_XPV, rtol=0, atol=1e-14)


def surrogate_slope(
    world: closed.World, policy_XPV: Tensor, beta: float, value_XPV: Tensor
) -> Tensor:
    """The slope of E[clipped surrogate] in the logits, through rewards and GAE; a token's value is
    its prefix's, the first token's entry.
    """
    lengths = torch.tensor([len(steps) for steps in world.steps] * world.prompts)
    completion_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    leaf_XPV = policy_XPV.clone().requires_grad_()
    logp_N = world.by_token(leaf_XPV)
    weight_C = world.tabular(policy_XPV).exp().flatten() / world.prompts
    prefix = [step // world.vocabulary for steps in world.steps for step in steps]
    value_N = value_XPV[:, prefix, 0].flatten()
    reward_N = pg.token_rewards(
        world.reward_XA.flatten(),
        logp_N.detach(),
        world.by_token(world.reference_XPV),
        completion_N,
        beta,
    )
    advantage_N, _ = pg.gae(reward_N, value_N, completion_N, gamma=1.0, lam=1.0)
    loss = (
        weight_C[completion_N] * pg.clipped_surrogate(logp_N, logp_N.detach(), advantage_N, CLIP)
    ).sum()
    (found_XPV,) = torch.autograd.grad(loss, leaf_XPV)
    return found_XPV


def test_gradient_ascent_on_it_reaches_the_closed_form_optimum():
    """pi_ref exp(r / beta) / Z (arXiv 2305.18290 eq. 4), in a bandit of six answers and in a world
    of sequences, by plain gradient steps.
    """
    for world in (
        closed.World(prompts=2, vocabulary=6, length=1),
        closed.World(prompts=2, vocabulary=3, length=2),
    ):
        policy_XPV, zero_XPV = world.reference_XPV.clone(), torch.zeros_like(world.reference_XPV)
        best_XA = closed.optimum(world.reference_XA, world.reward_XA, 0.5)
        assert closed.kl(world.reference_XA, best_XA) > 0.1
        for _ in range(1500):
            policy_XPV -= 4.0 * surrogate_slope(world, policy_XPV, 0.5, zero_XPV)
        assert closed.kl(world.tabular(policy_XPV), best_XA) < 1e-6


# ---------------------------------------------------------------- critic, entropy


def test_the_critics_loss_and_its_slope():
    old_N = t(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    value_N, return_N = t(0.1, 0.5, 0.5, -0.5, 0.5, -0.6), t(1.0, 1.0, 0.1, 1.0, 0.4, -2.0)
    # within; beyond, towards R; beyond and past R; away from R; past R, where the clipped one is
    # the nearer; beyond, towards R
    value = (0.5 * 0.9**2, 0.5 * 0.8**2, 0.5 * 0.4**2, 0.5 * 1.5**2, 0.5 * 0.2**2, 0.5 * 1.8**2)
    gradient = (-0.9, 0.0, 0.4, -1.5, 0.0, 0.0)

    def loss(value_N):
        return pg.value_loss(value_N, old_N, return_N, 0.2)

    torch.testing.assert_close(loss(value_N), t(*value), rtol=0, atol=1e-15)
    torch.testing.assert_close(slope(loss, value_N), t(*gradient), rtol=0, atol=1e-15)
    torch.testing.assert_close(differences(loss, value_N), t(*gradient), rtol=0, atol=1e-8)
    assert torch.equal(
        pg.value_loss(value_N, old_N, return_N, math.inf), 0.5 * (value_N - return_N) ** 2
    )
    assert torch.equal(
        slope(lambda v_N: pg.value_loss(v_N, old_N, return_N, math.inf), value_N),
        value_N - return_N,
    )


# ---------------------------------------------------------------- KL


def test_the_kl_estimate_is_unbiased_never_negative_and_of_the_right_direction():
    p_V, q_V = normal(7).log_softmax(-1), normal(7, seed=1).log_softmax(-1)
    estimate_V = pg.approximate_kl(p_V, q_V)
    assert estimate_V.min() >= 0
    assert float((p_V.exp() * estimate_V).sum()) == pytest.approx(
        float((p_V.exp() * (p_V - q_V)).sum()), abs=1e-15
    )
    assert not pg.approximate_kl(p_V, p_V).any()
    expected = [math.exp(b - a) - 1 - (b - a) for a, b in zip(p_V.tolist(), q_V.tolist())]
    torch.testing.assert_close(estimate_V, t(*expected), rtol=0, atol=1e-14)


def test_as_a_loss_its_expected_slope_is_the_other_kls():
    logits_V, q_V = normal(7).requires_grad_(), normal(7, seed=1).log_softmax(-1)
    logp_V = logits_V.log_softmax(-1)
    (found_V,) = torch.autograd.grad(
        (logp_V.exp().detach() * pg.approximate_kl(logp_V, q_V)).sum(), logits_V, retain_graph=True
    )
    (forward_V,) = torch.autograd.grad((q_V.exp() * (q_V - logp_V)).sum(), logits_V)
    torch.testing.assert_close(found_V, forward_V, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (600.0, 0.2), (0.0, -0.2), (7.2, 0.2), (-1.0, -0.2)],
)
def test_the_controller_is_proportional_and_clipped(kl, error):
    # the paper's gain
    assert pg.kl_controller(0.15, kl, 6.0, 10_000.0, 1000) == pytest.approx(
        0.15 * (1 + error * 0.1), rel=1e-14
    )
    assert pg.kl_controller(0.15, kl, 6.0, math.inf, 1000) == 0.15
    assert math.isnan(pg.kl_controller(0.15, math.nan, 6.0, 10_000.0, 1000)), (
        "what is not a number is not hidden"
    )


def test_the_controller_finds_the_coefficient_that_gives_the_target():
    coefficient = 0.01
    for _ in range(400):
        # a policy whose KL is 1 / beta
        coefficient = pg.kl_controller(coefficient, 1 / coefficient, 5.0, 100.0, 50)
    assert coefficient == pytest.approx(0.2, rel=1e-6)


# ---------------------------------------------------------------- mean and variance of all there is


def test_whitening_against_the_statistics_of_all_tokens():
    value_N = 3 * normal(50) + 1000
    mean, deviation = statistics.fmean(value_N.tolist()), statistics.pstdev(value_N.tolist())
    found_N = pg.whitened(value_N, pg.moments(value_N))
    torch.testing.assert_close(found_N, (value_N - mean) / deviation, rtol=0, atol=1e-8)
    assert float(found_N.mean()) == pytest.approx(0, abs=1e-12)
    assert float(found_N.var(correction=0)) == pytest.approx(1, abs=1e-8)
    torch.testing.assert_close(
        pg.scaled(value_N, pg.moments(value_N)), value_N / deviation, rtol=0, atol=1e-6
    )
    same_N = torch.full((9,), 0.1, dtype=F64)
    assert pg.whitened(same_N, pg.moments(same_N)).abs().max() < 1e-10
    assert pg.whitened(value_N.float(), pg.moments(value_N)).dtype == torch.float32


def test_cutting_a_step_changes_nothing():
    """Whitened advantages, losses and slopes of two cuts of the same tokens: sums, divided once."""
    logp_N, old_N = -normal(19).abs(), -normal(19, seed=1).abs()
    advantage_N, value_N, return_N = (
        2 * normal(19, seed=2) + 1,
        normal(19, seed=3),
        normal(19, seed=4),
    )

    def step(lengths):
        known = sum(
            (pg.moments(part) for part in advantage_N.split(lengths)), torch.zeros(3, dtype=F64)
        )
        errors = sum(
            (pg.moments(part) for part in (return_N - value_N).split(lengths)),
            torch.zeros(3, dtype=F64),
        )
        returns = sum(
            (pg.moments(part) for part in return_N.split(lengths)), torch.zeros(3, dtype=F64)
        )
        total, slopes = 0.0, []
        for now, old, advantage, value, back in zip(
            *(column.split(lengths) for column in (logp_N, old_N, advantage_N, value_N, return_N))
        ):
            now = now.clone().requires_grad_()
            loss_N = pg.clipped_surrogate(
                now, old, pg.whitened(advantage, known), CLIP
            ) + 0.1 * pg.value_loss(value, 0.9 * value, back, CLIP)
            loss = (loss_N + 0.05 * pg.approximate_kl(old, now)).sum() / 19
            loss.backward()
            total += float(loss.detach())
            slopes.append(now.grad)
        return total, torch.cat(slopes), pg.explained_variance(returns, errors)

    whole, cut = step([19]), step([3, 1, 7, 8])
    assert cut[0] == pytest.approx(whole[0], rel=1e-14)
    torch.testing.assert_close(cut[1], whole[1], rtol=0, atol=1e-15)
    assert cut[2] == pytest.approx(whole[2], rel=1e-12)


def test_explained_variance():
    return_N, value_N = normal(50), normal(50, seed=1)

    def explained(value_N):
        return pg.explained_variance(pg.moments(return_N), pg.moments(return_N - value_N))

    expected = 1 - statistics.pvariance((return_N - value_N).tolist()) / statistics.pvariance(
        return_N.tolist()
    )
    assert explained(value_N) == pytest.approx(expected, rel=1e-12)
    assert explained(value_N) < 0
    assert explained(return_N) == 1
    # a constant error is no variance: look at the loss, too
    assert explained(return_N + 3) == pytest.approx(1, abs=1e-12)
    assert explained(torch.full_like(return_N, 0.7)) == pytest.approx(0, abs=1e-12)
    assert explained(return_N / 2) == pytest.approx(0.75, rel=1e-12)
    for count in range(2, 60):  # equal returns, whose variance rounds to something else than 0
        assert math.isnan(
            pg.explained_variance(
                pg.moments(torch.full((count,), 1 / 3, dtype=F64)), pg.moments(value_N)
            )
        )


# ---------------------------------------------------------------- extremes


@pytest.mark.parametrize("far", [1e3, -1e3, 25.0, -25.0])
@pytest.mark.parametrize("advantage", [8.0, 0.0, -8.0])
@pytest.mark.parametrize("clip", [CLIP, math.inf])
def test_a_thousand_nats_are_finite_in_float32(far, advantage, clip):
    old_N = torch.full((4,), -3.0)
    advantage_N = torch.full((4,), advantage)
    logp_N = old_N + far
    for function in (
        lambda logp_N: pg.clipped_surrogate(logp_N, old_N, advantage_N, clip),
        lambda logp_N: pg.approximate_kl(old_N, logp_N),
        lambda logp_N: pg.approximate_kl(logp_N, old_N),
    ):
        assert function(logp_N).isfinite().all()
        assert slope(function, logp_N).square().sum().isfinite()  # the norm, too
    lost = far > 0 and advantage < 0  # likely by now, and bad
    pulled = slope(lambda logp_N: pg.clipped_surrogate(logp_N, old_N, advantage_N, clip), logp_N)
    assert not lost or (pulled > 1e9).all(), "it is pulled back, however far it went"


def test_the_tangent_begins_smoothly():
    far_N = t(19.9, 20.0, 20.1, 20.0 + 1e-9)
    zero_N = torch.zeros(4, dtype=F64)
    peak = math.exp(20)
    torch.testing.assert_close(
        pg.ratio(far_N, zero_N),
        t(math.exp(19.9), peak, 1.1 * peak, (1 + 1e-9) * peak),
        rtol=1e-12,
        atol=0,
    )
    torch.testing.assert_close(
        slope(lambda x_N: pg.ratio(x_N, zero_N), far_N),
        t(math.exp(19.9), peak, peak, peak),
        rtol=1e-14,
        atol=0,
    )
    torch.testing.assert_close(
        slope(lambda x_N: pg.approximate_kl(zero_N, x_N), far_N),
        t(math.exp(19.9) - 1, peak - 1, peak - 1, peak - 1),
        rtol=1e-14,
        atol=0,
    )
    expected = t(
        math.exp(19.9) - 20.9,
        peak - 21,
        peak - 21 + 0.1 * (peak - 1),
        peak - 21 + 1e-9 * (peak - 1),
    )
    torch.testing.assert_close(pg.approximate_kl(zero_N, far_N), expected, rtol=1e-12, atol=0)
