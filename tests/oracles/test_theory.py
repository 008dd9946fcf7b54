"""Theory in a world that can be enumerated: optima in closed form and by training, gradients term
by term, what beta and wrong labels do.

`pytest -s` prints the numbers that docs/theory.md quotes. KL is in nats, the mean over the world's
prompts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
import torch

import tiny
from closed import (
    END,
    F64,
    World,
    bradley_terry,
    comparison_loss,
    expected,
    fitted,
    flipped,
    kl,
    log_partition,
    minimise,
    optimum,
    ranking_loss,
    rankings,
    soft_values,
)
from paths import ROOT
from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine import rows
from winnow.engine.batch import Batch, collate
from winnow.objectives import divergences, losses
from winnow.objectives.objective import objective
from winnow.objectives.scores import per_completion

WORLD = World()
REFERENCE_XA, REWARD_XA = WORLD.reference_XA, WORLD.reward_XA
CLEAN_XAA = bradley_terry(REWARD_XA)
BETA = 0.1
BEST_XA = optimum(REFERENCE_XA, REWARD_XA, BETA)
COUNT = len(WORLD.answers)
BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
PAGE = ROOT / "docs" / "theory.md"


def logistic(margin_M):
    return losses.logistic(margin_M, BETA)


def some_policy(seed, scale=1.0):
    """Random logits."""
    return scale * torch.randn(
        WORLD.reference_XPV.shape, dtype=F64, generator=torch.Generator().manual_seed(seed)
    )


def equal(found, wanted, near=1e-12):
    torch.testing.assert_close(found, wanted, rtol=0, atol=near)


# ---------------------------------------------------------------- the world


def test_the_world_is_closed():
    """1 + 3 + 9 + 27 answers with an end, 81 without; what can be said has probability 1, and an
    answer's is that of its tokens.
    """
    assert (COUNT, len(WORLD.prefixes)) == (121, 40)
    assert len(set(WORLD.answers)) == 121
    assert all(
        (answer[-1] == END or len(answer) == 4) and END not in answer[:-1]
        for answer in WORLD.answers
    )
    assert float(REWARD_XA.abs().max()) <= 1
    for seed in range(3):
        logits_XPV = some_policy(seed, scale=3.0)
        logp_XA = WORLD.tabular(logits_XPV)
        equal(logp_XA.exp().sum(-1), torch.ones(3, dtype=F64))
        chance = [
            [math.exp(z) / sum(map(math.exp, row)) for z in row] for row in logits_XPV[1].tolist()
        ]
        for a, answer in enumerate(WORLD.answers):
            tokens = [
                chance[WORLD.prefixes.index(answer[:t])][token] for t, token in enumerate(answer)
            ]
            assert float(logp_XA[1, a]) == pytest.approx(math.log(math.prod(tokens)), abs=1e-12)


def test_comparisons_are_a_matter_of_differences():
    for x, i, j in [(0, 3, 100), (1, 7, 7), (2, 120, 0)]:
        one, other = math.exp(REWARD_XA[x, i]), math.exp(REWARD_XA[x, j])
        assert float(CLEAN_XAA[x, i, j]) == pytest.approx(one / (one + other), abs=1e-15)
    equal(CLEAN_XAA + CLEAN_XAA.mT, torch.ones_like(CLEAN_XAA), 1e-15)


@pytest.mark.parametrize(
    "text", ["dpo", "cdpo:label_smoothing=0.2", "robust:label_smoothing=0.2", "ipo:score=sum"]
)
def test_the_expected_loss_is_what_the_objective_computes(text):
    """From tokens on: all answers as one batch, all 21,780 pairs as comparisons with a
    probability.
    """
    rounded_XAA = CLEAN_XAA.float().double()  # as a batch holds them
    batch = dataclasses.replace(
        WORLD.batch(rounded_XAA), reference_N=WORLD.by_token(WORLD.reference_XPV)
    )
    logits_XPV = some_policy(5)
    kind = objective(text, beta=BETA)
    (total,), (count,) = (
        kind.totals({"logp": WORLD.by_token(logits_XPV)}, batch, {}),
        kind.counts([batch]),
    )
    assert count == 3 * 121 * 120 / 2
    probability_XAA = flipped(rounded_XAA, 0.2) if "cdpo" in text else rounded_XAA
    formula = {
        "robust": lambda m: losses.robust(m, BETA, 0.2, 10.0),
        "ipo": lambda m: losses.square(m, BETA),
    }.get(text.split(":")[0], logistic)
    wanted = comparison_loss(WORLD.tabular(logits_XPV) - REFERENCE_XA, probability_XAA, formula)
    # label_smoothing of a float32 probability is float32
    assert float(total) / count == pytest.approx(float(wanted), rel=1e-7)


# ---------------------------------------------------------------- the KL-constrained objective and
# its optimum


def gain(logp_XA, beta=BETA):
    """E[r] - beta KL(pi || pi_ref)."""
    return expected(logp_XA, REWARD_XA) - beta * kl(logp_XA, REFERENCE_XA)


@pytest.mark.parametrize("beta", BETAS)
def test_nothing_beats_pi_star(beta):
    """E[r] - beta KL(pi || pi_ref) = beta log Z - beta KL(pi || pi*), for every policy: the whole
    of A.1.
    """
    best_XA = optimum(REFERENCE_XA, REWARD_XA, beta)
    equal(best_XA.exp().sum(-1), torch.ones(3, dtype=F64))
    height = beta * log_partition(REFERENCE_XA, REWARD_XA, beta).mean()
    assert float(gain(best_XA, beta)) == pytest.approx(float(height), abs=1e-12)
    for seed in range(4):
        logp_XA = WORLD.tabular(some_policy(seed, scale=2.0))
        distance = kl(logp_XA, best_XA)
        assert float(distance) > 0.01
        assert float(gain(logp_XA, beta)) == pytest.approx(
            float(height - beta * distance), abs=1e-11
        )


@pytest.mark.parametrize("beta", BETAS)
def test_z_both_ways(beta):
    """As a sum over answers, and backwards through the tree of prefixes; on the way that gives pi*
    as next-token logits.
    """
    value_XP, logits_XPV = soft_values(WORLD, REWARD_XA, beta)
    equal(value_XP[:, 0], beta * log_partition(REFERENCE_XA, REWARD_XA, beta), 1e-13)
    best_XA = optimum(REFERENCE_XA, REWARD_XA, beta)
    equal(WORLD.tabular(logits_XPV), best_XA, 1e-11 / beta)
    a = WORLD.answers.index((2, 1, 3, 2))  # each token's reward is what it changes of V
    value = [
        *(value_XP[:, WORLD.prefixes.index((2, 1, 3, 2)[:t])] for t in range(4)),
        REWARD_XA[:, a],
    ]
    ratio_XPV = beta * (logits_XPV.log_softmax(-1) - WORLD.reference_XPV.log_softmax(-1))
    for t, step in enumerate(WORLD.steps[a]):
        equal(ratio_XPV.flatten(1)[:, step], value[t + 1] - value[t], 1e-12)


def test_exact_gradient_ascent_finds_it_too():
    """The gradient is sum_y pi (r - beta log(pi/pi_ref)) grad log pi; divided by each step's own
    probability it arrives in thirty steps.
    """
    logits_XPV = WORLD.reference_XPV.clone().requires_grad_()
    height = float(BETA * log_partition(REFERENCE_XA, REWARD_XA, BETA).mean())
    distances = []
    for step in range(30):
        logp_XA = WORLD.tabular(logits_XPV)
        (slope_XPV,) = torch.autograd.grad(gain(logp_XA), logits_XPV)
        logp_XA = logp_XA.detach()
        assert float(gain(logp_XA)) == pytest.approx(
            height - BETA * float(kl(logp_XA, BEST_XA)), abs=1e-12
        )
        if step == 3:  # by hand, at a point that is neither the start nor the end
            weight_XA = logp_XA.exp() * (REWARD_XA - BETA * (logp_XA - REFERENCE_XA)) / 3
            by_hand_XPV = torch.einsum("xa,axpv->xpv", weight_XA, grad_log_pi(logits_XPV.detach()))
            equal(slope_XPV, by_hand_XPV, 1e-13)
        distances.append(float(kl(logp_XA, BEST_XA)))
        # that an answer takes the step
        chance_XPV = (logp_XA.exp() @ WORLD.step_AS).view_as(slope_XPV)
        with torch.no_grad():
            logits_XPV += 0.5 / BETA * 3 * slope_XPV / chance_XPV
    assert distances[0] > 1
    assert distances[-1] < 1e-12
    # without the division: what is hardly ever said hardly ever learns
    plain_XPV = WORLD.reference_XPV.clone().requires_grad_()
    minimise([plain_XPV], lambda: -gain(WORLD.tabular(plain_XPV)), steps=200)
    plain = float(kl(WORLD.tabular(plain_XPV).detach(), BEST_XA))
    assert 1e-6 < plain < 0.1
    print(
        f"\nascent on E[r] - beta KL: KL(pi || pi*) {distances[-1]:.1e} after 29 natural steps;"
        f" plain L-BFGS {plain:.1e} after 200"
    )


def grad_log_pi(logits_XPV):
    """d log pi(y|x) / d logits of x, written out: at each prefix on the way, the token taken minus
    what the policy expects. (A, X, P, V)
    """
    chance_XPV = logits_XPV.softmax(-1)
    found = torch.zeros(COUNT, *logits_XPV.shape, dtype=F64)
    for a, answer in enumerate(WORLD.answers):
        for t, token in enumerate(answer):
            p = WORLD.prefixes.index(answer[:t])
            found[a, :, p] -= chance_XPV[:, p]
            found[a, :, p, token] += 1
    return found


# ---------------------------------------------------------------- Theorem 1


def test_the_implicit_reward_is_the_reward_but_for_a_constant_of_the_prompt():
    """beta log(pi*/pi_ref) = r - beta log Z; of all rewards that differ by some f(x) it is the one
    whose own Z is 1.
    """
    implicit_XA = BETA * (BEST_XA - REFERENCE_XA)
    shift_X = BETA * log_partition(REFERENCE_XA, REWARD_XA, BETA)
    equal(REWARD_XA - implicit_XA, shift_X[:, None].expand_as(REWARD_XA), 1e-14)
    equal(log_partition(REFERENCE_XA, implicit_XA, BETA), torch.zeros(3, dtype=F64))
    assert float(shift_X.std()) > 1e-3  # the prompts' constants differ
    trained_XA = BETA * (fitted(WORLD, CLEAN_XAA, logistic) - REFERENCE_XA)
    equal(REWARD_XA - trained_XA, shift_X[:, None].expand_as(REWARD_XA), 1e-5)
    print(
        "\nr - beta log(pi/pi_ref) after training: within"
        f" {float((REWARD_XA - trained_XA - shift_X[:, None]).abs().max()):.1e} of the prompt's"
        " constant"
    )


def test_rewards_that_differ_by_a_function_of_the_prompt_are_one():
    moved_XA = REWARD_XA + torch.tensor([[3.0], [-7.0], [0.25]], dtype=F64)
    equal(bradley_terry(moved_XA), CLEAN_XAA, 1e-14)
    equal(optimum(REFERENCE_XA, moved_XA, BETA), BEST_XA)
    other_XA = REWARD_XA.clone()
    other_XA[0, 5] += 1e-3  # and no others are
    assert float((optimum(REFERENCE_XA, other_XA, BETA) - BEST_XA).abs().max()) == pytest.approx(
        1e-2, rel=0.05
    )


def test_every_policy_is_the_optimum_of_its_own_implicit_reward():
    logp_XA = WORLD.tabular(some_policy(8))
    equal(optimum(REFERENCE_XA, BETA * (logp_XA - REFERENCE_XA), BETA), logp_XA)


# ---------------------------------------------------------------- who converges to it


def test_dpo_is_a_reward_model_in_disguise():
    """The loss at pi* is the entropy of the labels, which no reward model can beat."""
    found_XA = fitted(WORLD, CLEAN_XAA, logistic)
    entropy_XAA = -torch.xlogy(CLEAN_XAA, CLEAN_XAA) - torch.xlogy(1 - CLEAN_XAA, 1 - CLEAN_XAA)
    # without the diagonal
    floor = float((entropy_XAA.sum() - math.log(2) * 3 * COUNT) / (3 * COUNT * (COUNT - 1)))
    assert float(comparison_loss(BEST_XA - REFERENCE_XA, CLEAN_XAA, logistic)) == pytest.approx(
        floor, abs=1e-14
    )
    assert float(comparison_loss(found_XA - REFERENCE_XA, CLEAN_XAA, logistic)) == pytest.approx(
        floor, abs=1e-13
    )
    assert float(comparison_loss(torch.zeros_like(BEST_XA), CLEAN_XAA, logistic)) == pytest.approx(
        math.log(2), abs=1e-15
    )
    assert abs(float(kl(found_XA, BEST_XA))) < 1e-8
    print(
        f"\ndpo: KL(pi || pi*) {float(kl(found_XA, BEST_XA)):.1e}, from"
        f" {float(kl(REFERENCE_XA, BEST_XA)):.3f}; loss ln 2 -> {floor:.6f}"
    )


@pytest.mark.slow
def test_rankings_lead_to_the_same_optimum():
    """Plackett-Luce DPO on four answers at a time: all 24 orders with their exact probabilities."""
    subset_BK = (torch.arange(COUNT)[:, None] + torch.tensor([0, 1, 7, 30])) % COUNT
    ranked = rankings(REWARD_XA, subset_BK)
    assert len(ranked) == 24
    equal(
        torch.stack([probability_XB for _, probability_XB in ranked]).sum(0),
        torch.ones(3, COUNT, dtype=F64),
    )
    first_XB = torch.stack(
        [probability_XB for ranks, probability_XB in ranked if ranks[2] == 0]
    ).sum(0)
    # who comes first is a softmax of the rewards
    equal(first_XB, REWARD_XA[:, subset_BK].softmax(-1)[..., 2])
    logits_XPV = WORLD.reference_XPV.clone().requires_grad_()
    minimise(
        [logits_XPV],
        lambda: ranking_loss(WORLD.tabular(logits_XPV) - REFERENCE_XA, subset_BK, ranked, BETA),
        steps=130,
    )
    distance = float(kl(WORLD.tabular(logits_XPV).detach(), BEST_XA))
    assert abs(distance) < 1e-8
    print(f"\nplackett_luce: KL(pi || pi*) {distance:.1e}")


@pytest.mark.parametrize("labels", ["bradley-terry", "circular"])
def test_ipo_has_an_optimum_of_its_own(labels):
    """pi proportional to pi_ref e^(P(y beats mu) / beta): any preferences, also such as go round in
    circles; pairs are drawn from mu twice.
    """
    if labels == "circular":
        noise_XAA = torch.randn(
            3, COUNT, COUNT, dtype=F64, generator=torch.Generator().manual_seed(3)
        )
        probability_XAA, mu_XA = (
            (noise_XAA - noise_XAA.mT).sigmoid(),
            torch.full((3, COUNT), 1 / COUNT, dtype=F64),
        )
        beats = probability_XAA[0] > 0.5
        assert any(
            beats[i, j] and beats[j, k] and beats[k, i]
            for i, j, k in itertools.permutations(range(5), 3)
        )
    else:
        # answers as the reference writes them at temperature 2
        probability_XAA, mu_XA = (
            CLEAN_XAA,
            (REFERENCE_XA / 2).softmax(-1),
        )
    found_XA = fitted(
        WORLD,
        probability_XAA,
        lambda m: losses.square(m, BETA),
        mu_XA[:, :, None] * mu_XA[:, None, :],
    )
    wanted_XA = optimum(REFERENCE_XA, (probability_XAA * mu_XA[:, None, :]).sum(-1), BETA)
    assert abs(float(kl(found_XA, wanted_XA))) < 1e-8
    print(
        f"\nipo, {labels}: KL to its optimum {float(kl(found_XA, wanted_XA)):.1e}, to pi_ref"
        f" {float(kl(found_XA, REFERENCE_XA)):.3f}",
        end="",
    )
    if labels == "bradley-terry":
        assert float(kl(found_XA, BEST_XA)) > 1  # another target than DPO's
        print(f", to pi* {float(kl(found_XA, BEST_XA)):.3f}", end="")


TRANSFORMER = {
    "vocab_size": 4,
    "n_embd": 32,
    "n_positions": 8,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": END,
}


@pytest.mark.slow
def test_a_transformer_gets_there():
    """From tokens to gradients by the project's own path. Learned positions: rotary ones cannot
    tell how often one token was repeated.
    """
    model = tiny.model("gpt2", dtype=F64, **TRANSFORMER)
    batch = WORLD.batch(CLEAN_XAA)
    with torch.no_grad():
        reference_N = rows.logps(model, batch)["logp"]
    batch = dataclasses.replace(batch, reference_N=reference_N)
    reference_XA = per_completion(reference_N, batch).view(3, -1)
    equal(reference_XA.exp().sum(-1), torch.ones(3, dtype=F64))
    best_XA, dpo = optimum(reference_XA, REWARD_XA, BETA), objective("dpo", beta=BETA)
    (count,) = dpo.counts([batch])
    at_start = float(kl(reference_XA, best_XA))
    for steps in (240, 100, 100, 100):
        loss = minimise(
            model.parameters(),
            lambda: dpo.totals(rows.logps(model, batch), batch, {})[0] / count,
            steps=steps,
        )
        with torch.no_grad():
            distance = float(kl(WORLD.spoken(model, batch), best_XA))
        if distance < 5e-4:
            break
    assert at_start > 1
    assert 0 <= distance < 1e-3
    print(
        f"\ntransformer of {sum(p.numel() for p in model.parameters())} weights: KL(pi || pi*)"
        f" {at_start:.2f} -> {distance:.1e}, loss {loss:.6f}"
    )


# ---------------------------------------------------------------- the gradient of A.4


def test_the_gradient_of_a_4_term_by_term():
    """grad L = -beta E[s(r_l - r_w) (grad log pi(w) - grad log pi(l))], from a real batch's slopes
    and from that formula, pair by pair.
    """
    rng = random.Random(4)
    chosen = [rng.sample(list(itertools.permutations(range(COUNT), 2)), 40) for _ in range(3)]
    comparisons = [
        [
            Comparison(
                i, j, probability=rng.choice([1.0, 0.75]), weight=rng.choice([0.5, 1.0, 2.0])
            )
            for i, j in pairs
        ]
        for pairs in chosen
    ]
    batch = dataclasses.replace(
        collate(WORLD.groups(comparisons)), reference_N=WORLD.by_token(WORLD.reference_XPV)
    )
    logits_XPV = some_policy(9).requires_grad_()
    logp_N = WORLD.by_token(logits_XPV)
    dpo = objective("dpo", beta=BETA)
    counts = dpo.counts([batch])
    _, slopes = dpo.slopes({"logp": logp_N.detach()}, batch, counts, {})
    (found_XPV,) = torch.autograd.grad(logp_N, logits_XPV, slopes["logp"])

    reward_XA = (BETA * (WORLD.tabular(logits_XPV) - REFERENCE_XA)).tolist()
    grad_AXPV = grad_log_pi(logits_XPV.detach())
    wanted_XPV = torch.zeros_like(found_XPV)
    for x, some in enumerate(comparisons):
        for c in some:
            for share, w, v in (
                (c.probability, c.winner, c.loser),
                (1 - c.probability, c.loser, c.winner),
            ):
                weight = 1 / (1 + math.exp(reward_XA[x][w] - reward_XA[x][v]))  # s(r_l - r_w)
                wanted_XPV[x] -= (
                    share * c.weight * BETA * weight * (grad_AXPV[w, x] - grad_AXPV[v, x])
                )
    wanted_XPV /= math.fsum(c.weight for some in comparisons for c in some)
    assert float(wanted_XPV.abs().max()) > 1e-3
    equal(found_XPV, wanted_XPV, 1e-15)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_the_weight_shrinks_as_the_winner_is_preferred(beta):
    """Not the other way round: s(r_l - r_w) goes from 1 (hopelessly wrong) over 1/2 (no opinion
    yet) to 0 (already right).
    """
    batch = pair((1, 2, 3), (2, END))
    batch = dataclasses.replace(batch, reference_N=torch.full((5,), -1.0, dtype=F64))
    weights = []
    for margin in range(-60, 61, 5):
        logp_N = torch.full((5,), -1.0, dtype=F64)
        logp_N[0] += margin
        _, slopes = objective("dpo", beta=beta).slopes({"logp": logp_N}, batch, [1.0], {})
        weight = -float(slopes["logp"][0]) / beta
        # every token of a side alike
        assert slopes["logp"].tolist() == pytest.approx(
            [-beta * weight] * 3 + [beta * weight] * 2, abs=1e-15
        )
        assert weight == pytest.approx(1 / (1 + math.exp(beta * margin)), abs=1e-14)
        weights.append(weight)
    assert all(later < earlier for earlier, later in itertools.pairwise(weights))
    assert weights[12] == 0.5


def test_the_sides_of_a_2():
    """P(y1 beats y2) = s(r1 - r2) with r = beta log(pi*/pi_ref). The other order is the probability
    that y1 loses.
    """
    reward_XA = BETA * (BEST_XA - REFERENCE_XA)
    margin_XAA = reward_XA[:, :, None] - reward_XA[:, None, :]
    equal(CLEAN_XAA, margin_XAA.sigmoid())
    equal(1 - CLEAN_XAA, (-margin_XAA).sigmoid())
    assert float((CLEAN_XAA - (-margin_XAA).sigmoid()).abs().max()) > 0.7


def pair(winner, loser) -> Batch:
    """One hard comparison to prompt 0."""
    return collate(
        [
            RenderedGroup(
                (TokenSequence((1, *winner), 1), TokenSequence((1, *loser), 1)),
                (Comparison(0, 1),),
                (None, None),
                "pair",
            )
        ]
    )


# ---------------------------------------------------------------- beta


@pytest.fixture(scope="module")
def by_beta():
    """beta -> the trained policy's log-probs."""
    return {
        beta: fitted(WORLD, CLEAN_XAA, lambda m, beta=beta: losses.logistic(m, beta))
        for beta in BETAS
    }


def test_higher_beta_stays_closer(by_beta):
    """Each beta trained to its optimum: KL to the reference falls, and is the closed form's."""
    distance = [float(kl(by_beta[beta], REFERENCE_XA)) for beta in BETAS]
    best = [optimum(REFERENCE_XA, REWARD_XA, beta) for beta in BETAS]
    assert distance == pytest.approx([float(kl(one_XA, REFERENCE_XA)) for one_XA in best], abs=1e-6)
    assert all(later < earlier for earlier, later in itertools.pairwise(distance))
    reward = [float(expected(by_beta[beta], REWARD_XA)) for beta in BETAS]
    assert reward == pytest.approx(
        [float(expected(one_XA, REWARD_XA)) for one_XA in best], abs=1e-6
    )
    assert all(
        later < earlier
        for earlier, later in itertools.pairwise(
            [*reward, float(expected(REFERENCE_XA, REWARD_XA))]
        )
    )


def test_the_page_quotes_these_numbers(by_beta):
    said = [
        line.strip("| \n").split(" | ")
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith(("| 0.", "| 1 |", "| 5 |"))
    ]
    assert [float(row[0]) for row in said] == list(BETAS)
    for beta, row in zip(BETAS, said):
        found_XA, best_XA = by_beta[beta], optimum(REFERENCE_XA, REWARD_XA, beta)
        wanted = [
            kl(found_XA, REFERENCE_XA),
            kl(best_XA, REFERENCE_XA),
            expected(found_XA, REWARD_XA),
        ]
        assert [float(cell) for cell in row[1:4]] == pytest.approx(
            [float(x) for x in wanted], abs=1.1e-6
        )


def test_beta_is_a_price():
    """dKL/dbeta = -Var(r)/beta^3 < 0, and along the frontier dE[r]/dKL = beta: one nat more buys
    beta of reward.
    """
    for beta in BETAS:
        at = torch.tensor(beta, dtype=F64, requires_grad=True)
        best_XA = optimum(REFERENCE_XA, REWARD_XA, at)
        (dkl,) = torch.autograd.grad(kl(best_XA, REFERENCE_XA), at, retain_graph=True)
        (dreward,) = torch.autograd.grad(expected(best_XA, REWARD_XA), at)
        chance_XA = best_XA.detach().exp()
        mean_X = (chance_XA * REWARD_XA).sum(-1, keepdim=True)
        variance = (chance_XA * (REWARD_XA - mean_X) ** 2).sum(-1).mean()
        assert float(dkl) == pytest.approx(-float(variance) / beta**3, rel=1e-9)
        assert float(dreward / dkl) == pytest.approx(beta, rel=1e-9)


# ---------------------------------------------------------------- wrong labels


RATE = 0.2
FLIPPED_XAA = flipped(CLEAN_XAA, RATE)


def surplus(logp_XA, probability_XAA):
    """For each answer the mean over the others of what its labels say minus what the policy's
    rewards say: 0 at a Bradley-Terry fit.
    """
    reward_XA = BETA * (logp_XA - REFERENCE_XA)
    return (probability_XAA - bradley_terry(reward_XA)).sum(-1) / (COUNT - 1)


def test_robust_undoes_flipped_labels_and_dpo_does_not():
    """A fifth of the labels turned round. Robust finds pi* as if none were; DPO fits what the
    labels say, cDPO less than that.
    """
    smoothed_XAA = flipped(FLIPPED_XAA, RATE)
    found = {
        "robust": fitted(WORLD, FLIPPED_XAA, lambda m: losses.robust(m, BETA, RATE, 10.0)),
        "dpo": fitted(WORLD, FLIPPED_XAA, logistic),
        "cdpo": fitted(WORLD, smoothed_XAA, logistic),
    }
    away = {name: float(kl(logp_XA, BEST_XA)) for name, logp_XA in found.items()}
    gone = {name: float(kl(logp_XA, REFERENCE_XA)) for name, logp_XA in found.items()}
    assert abs(away["robust"]) < 1e-8
    assert 0.2 < away["dpo"] < 0.3
    assert 1.0 < away["cdpo"] < 1.1
    assert gone["cdpo"] < gone["dpo"] < gone["robust"]
    assert gone["robust"] == pytest.approx(float(kl(BEST_XA, REFERENCE_XA)), abs=1e-5)
    # the moment condition of a maximum-likelihood fit: each answer wins as often as its labels say,
    # on average
    assert float(surplus(found["dpo"], FLIPPED_XAA).abs().max()) < 1e-6
    assert float(surplus(found["cdpo"], smoothed_XAA).abs().max()) < 1e-6
    assert float(surplus(found["robust"], CLEAN_XAA).abs().max()) < 1e-6
    # but not pair by pair: the logits of shrunk probabilities are nobody's differences
    off = {
        name: (FLIPPED_XAA - bradley_terry(BETA * (logp_XA - REFERENCE_XA))).abs().max()
        for name, logp_XA in found.items()
    }
    assert 1e-3 < float(off["dpo"]) < 0.1
    print(
        "\nflips at 0.2: "
        + "; ".join(
            f"{name}: KL to pi* {away[name]:.3g}, to pi_ref {gone[name]:.3f}" for name in found
        ),
        end="",
    )
    print(f"; dpo misses single labels by up to {float(off['dpo']):.3f}")


def test_two_answers_closed_forms():
    """Where a prompt has two answers every minimiser is a formula in q, what the labels say, and
    all policies reach it.
    """
    world = World(vocabulary=2, length=1, seed=6)
    p_X = (world.reward_XA[:, 0] - world.reward_XA[:, 1]).sigmoid()
    q_X = flipped(p_X, RATE)
    q_XAA = flipped(bradley_terry(world.reward_XA), RATE)
    cases = {
        "dpo": (q_XAA, logistic, q_X.logit()),
        "cdpo": (flipped(q_XAA, RATE), logistic, ((1 - RATE) * q_X + RATE * (1 - q_X)).logit()),
        "robust": (q_XAA, lambda m: losses.robust(m, BETA, RATE, 10.0), p_X.logit()),
        "ipo": (q_XAA, lambda m: losses.square(m, BETA), (2 * q_X - 1) / 2),
        "exo": (q_XAA, lambda m: losses.exo(m, BETA, 0.01), (2 * q_X - 1) * math.log(99)),
    }
    for probability_XAA, loss, wanted_X in cases.values():
        ratio_XA = fitted(world, probability_XAA, loss) - world.reference_XA
        equal(BETA * (ratio_XA[:, 0] - ratio_XA[:, 1]), wanted_X, 1e-6)
    # so robust has the reward back
    equal(p_X.logit(), world.reward_XA[:, 0] - world.reward_XA[:, 1])


def test_the_page_s_example_of_noise():
    """An answer that is better nine times in ten, a fifth of the labels flipped: where each loss
    wants beta times the margin.
    """
    q_M = flipped(torch.tensor([0.9], dtype=F64), RATE)
    cases = {
        "robust": (q_M, lambda z: losses.robust(z, 1.0, RATE, 10.0), 2.197),
        "dpo": (q_M, lambda z: losses.logistic(z, 1.0), 1.046),
        "cdpo": (divergences.smoothed(q_M, RATE), lambda z: losses.logistic(z, 1.0), 0.593),
        "ipo": (q_M, lambda z: losses.square(z, 1.0), 0.240),
        "exo": (q_M, lambda z: losses.exo(z, 1.0, 1e-3), 3.315),
        "hinge": (q_M, lambda z: losses.hinge(z, 1.0), 1.000),
    }
    found = {}
    for name, (label_M, loss, _) in cases.items():
        z_M = torch.full((1,), 0.1, dtype=F64).requires_grad_()
        minimise(
            [z_M],
            lambda label_M=label_M, loss=loss, z_M=z_M: divergences.soft(
                label_M, loss(z_M), loss(-z_M)
            ).sum(),
            steps=100,
        )
        found[name] = z_M.item()
    assert found == pytest.approx({name: wanted for name, (*_, wanted) in cases.items()}, abs=6e-4)


def test_noise_slows_kto_and_does_not_stop_it():
    """With good labels of probability g its mean slope is (2g - 1) that of a certain one: it goes
    to the majority's side, and all the way.
    """
    score = torch.linspace(-300, 300, 61, dtype=F64, requires_grad=True)
    (clean,) = torch.autograd.grad(losses.kto(score, True, BETA, 0.5).sum(), score)
    for good in (0.95, 0.55, 0.2):
        mean = good * losses.kto(score, True, BETA, 0.5) + (1 - good) * losses.kto(
            score, False, BETA, 0.5
        )
        (slope,) = torch.autograd.grad(mean.sum(), score)
        equal(slope, (2 * good - 1) * clean, 1e-16)
        assert bool((slope < 0).all()) == (good > 0.5)


def test_robust_has_no_floor_on_finite_data_and_the_bound_is_one():
    """One hard label, gradient descent. Without the guard the margin runs at a constant speed; with
    it there is a stop, in a step's reach of the bound.
    """

    def descend(loss, steps):
        logit = torch.zeros(2, dtype=F64, requires_grad=True)
        seen = []
        for _ in range(steps):
            logp = logit.log_softmax(-1)
            value = loss(logp[:1] - logp[1:])[0]
            (slope,) = torch.autograd.grad(value, logit)
            with torch.no_grad():
                logit -= 100 * slope
            seen.append(
                (
                    BETA * float(logit.detach().diff()[0].neg()),
                    float(value.detach()),
                    float(slope[0]),
                )
            )
        return seen

    free = descend(lambda m: losses.robust(m, BETA, RATE, 1e9), 1000)
    speed = BETA * RATE / (1 - 2 * RATE)  # the slope that remains
    assert free[-1][2] == pytest.approx(-speed, abs=1e-12)
    assert free[-1][0] - free[499][0] == pytest.approx(500 * 2 * 100 * speed * BETA, rel=1e-9)
    assert free[-1][1] - free[499][1] == pytest.approx(-500 * 2 * 100 * speed**2, rel=1e-9)
    assert free[-1][1] < -100
    held = descend(lambda m: losses.robust(m, BETA, RATE, 10.0), 1000)
    assert 10 <= held[-1][0] < 10 + 2 * 100 * BETA * speed
    assert held[-1] == held[499]
    assert held[-1][2] == 0
    # DPO's margin grows as a logarithm of the steps, and does not end
    plain = descend(logistic, 1000)
    assert [plain[499][0], plain[-1][0]] == pytest.approx(
        [math.log(n * 2 * 100 * BETA**2) for n in (500, 1000)], abs=0.02
    )
    print(
        f"\none hard label, 500 and 1000 steps: beta m robust {free[499][0]:.1f},"
        f" {free[-1][0]:.1f}, with its bound {held[499][0]:.2f}, {held[-1][0]:.2f}",
        end="",
    )
    print(f"; dpo {plain[499][0]:.2f}, {plain[-1][0]:.2f}; loss of robust {free[-1][1]:.1f}")


# ---------------------------------------------------------------- hard labels, displacement


def test_hard_labels_have_no_optimum_for_dpo_and_one_for_ipo():
    """If the better answer always wins, ever sharper policies lose ever less, and the KL goes to
    -log pi_ref(best answer), whatever beta is.
    """
    certain_XAA = (REWARD_XA[:, :, None] > REWARD_XA[:, None, :]).to(F64) + torch.eye(
        COUNT, dtype=F64
    ) / 2
    losses_seen, distance = [], []
    for sharpness in (0.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6):
        logp_XA = optimum(REFERENCE_XA, sharpness * REWARD_XA, 1.0)
        losses_seen.append(float(comparison_loss(logp_XA - REFERENCE_XA, certain_XAA, logistic)))
        distance.append(float(kl(logp_XA, REFERENCE_XA)))
    assert all(later < earlier for earlier, later in itertools.pairwise(losses_seen))
    assert losses_seen[-1] < 1e-4
    best_X = REWARD_XA.argmax(-1)
    assert distance[-1] == pytest.approx(
        -float(REFERENCE_XA.gather(1, best_X[:, None]).mean()), abs=1e-9
    )
    found_XA = fitted(WORLD, certain_XAA, lambda m: losses.square(m, BETA))
    wanted_XA = optimum(REFERENCE_XA, certain_XAA.mean(-1), BETA)
    spread = (wanted_XA - REFERENCE_XA).amax(-1) - (wanted_XA - REFERENCE_XA).amin(-1)
    assert abs(float(kl(found_XA, wanted_XA))) < 1e-8
    # no two answers are further apart than 1/beta
    equal(spread, torch.full((3,), (1 - 1 / COUNT) / BETA, dtype=F64), 1e-9)
    print(
        f"\nhard labels: dpo's KL to pi_ref -> {distance[-1]:.2f}; ipo's"
        f" {float(kl(found_XA, REFERENCE_XA)):.3f}"
    )


def test_winners_fall_at_the_very_optimum():
    """log pi* - log pi_ref has the sign of r - beta log Z: who wins a comparison and is still below
    that falls. Nothing is wrong there.
    """
    level_X1 = BETA * log_partition(REFERENCE_XA, REWARD_XA, BETA)[:, None]
    assert bool(((BEST_XA > REFERENCE_XA) == (level_X1 < REWARD_XA)).all())
    falls_XA = (BEST_XA < REFERENCE_XA).to(F64)
    share = float((CLEAN_XAA * falls_XA[:, :, None]).sum() - falls_XA.sum() / 2) / (
        3 * COUNT * (COUNT - 1) / 2
    )
    assert 0.7 < share < 0.8
    print(
        f"\nat pi*, beta 0.1: {share:.3f} of all winners are less likely than under pi_ref;"
        f" {1 - float(falls_XA.mean()):.3f} of all answers rise"
    )


def test_a_transformer_displaces_what_a_table_cannot():
    """One hard pair that differs in its last token. In a table the winner rises; in a network,
    which shares its weights, it falls with the loser.
    """
    winner, loser = (1, 2, 3, 1), (1, 2, 3, 2)
    model = tiny.model("gpt2", dtype=F64, **TRANSFORMER)
    batch = pair(winner, loser)
    start_C = per_completion(rows.logps(model, batch)["logp"], batch).detach()
    table_XPV = WORLD.reference_XPV.clone().requires_grad_()
    w, v = WORLD.answers.index(winner), WORLD.answers.index(loser)
    moved = {}
    for _ in range(200):
        ratio_C = per_completion(rows.logps(model, batch)["logp"], batch) - start_C
        ratio_A = (WORLD.tabular(table_XPV) - REFERENCE_XA)[0]
        moved = {"network": ratio_C.tolist(), "table": ratio_A[[w, v]].tolist()}
        losses_M = logistic(torch.stack([ratio_C[0] - ratio_C[1], ratio_A[w] - ratio_A[v]]))
        parameters = [*model.parameters(), table_XPV]
        slopes = torch.autograd.grad(losses_M.sum(), parameters)
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes):
                parameter -= 0.05 * slope
    assert moved["table"][0] > 0 > moved["table"][1]
    assert moved["network"][1] < moved["network"][0] < -1
    print(
        "\none hard pair, 199 steps, log pi - log pi_ref of winner and loser: network"
        f" {moved['network']}, table {moved['table']}"
    )
