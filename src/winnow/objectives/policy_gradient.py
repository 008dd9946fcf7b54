"""PPO and its relatives as pure functions: token rewards, advantages, clipped losses, group
baselines, KL estimate and controller

Axes: N scored tokens of several answers laid end to end, an answer's tokens in their order
(`completion_N` says whose; there is no padding), C completions. All log-probs in nats. Rollouts are
sampled by the policy as it was, `old_N` are its log-probs of the sampled tokens; several steps are
then made from the same rollouts, `logp_N` are the log-probs now. `value_N` is the critic's guess,
before a token is drawn, of the rewards still to come, from this token on. Losses and estimates are
one number per token: the caller sums and divides once.

"Unchecked" is an equation's number where the paper's text could not be read; the formula stands in
the code that follows it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

Token = Float[Tensor, " N"]
Score = Float[Tensor, " C"]
Moments = Float64[Tensor, "3"]  # count, sum, sum of squares
# nats: beyond it a ratio is continued by its tangent, so that float32 holds it, its gradient and
# the gradient's square
FAR = 20.0
LEAST_VARIANCE = 1e-8  # as in the code of arXiv 1909.08593
LEAST_DEVIATION = (
    1e-4  # in units of the score, as in TRL: below it a group's differences are taken for noise
)
ROUNDING = 1e-14  # of a mean of squares in float64


# ---------------------------------------------------------------- from scores to advantages


@torch.no_grad()
def token_rewards(
    score_C: Score, logp_N: Token, reference_N: Token, completion_N: Int[Tensor, " N"], beta: float
) -> Token:
    """r(x, y) = r_phi(x, y) - beta (log pi - log pi_ref), the reward for eq. 3 of arXiv 2305.18290,
    on the tokens it belongs to: each pays for its own log-ratio, the last one also gets the score.

    An answer's rewards sum to r(x, y). logp is the policy's that sampled. Numbers without a
    gradient.
    """
    last_C = _lengths(completion_N).cumsum(0) - 1
    return (-beta * (logp_N - reference_N)).index_add(0, last_C, score_C[completion_N[last_C]])


@torch.no_grad()
def gae(
    reward_N: Token, value_N: Token, completion_N: Int[Tensor, " N"], *, gamma: float, lam: float
) -> tuple[Token, Token]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16 unchecked), and the returns A + V
    the critic is taught: A_t = delta_t + gamma lambda A_{t+1},  delta_t = r_t + gamma V_{t+1} -
    V_t; behind an answer's last token both are 0.

    lambda = 0: A = delta, little variance, and biased where V is wrong. lambda = 1: A = sum_l
    gamma^l r_{t+l} - V_t, not biased whatever V is. An answer that was cut off at the longest
    length ends there, too. Numbers without a gradient.
    """
    length_C = _lengths(completion_N)
    last_C = length_C.cumsum(0) - 1
    advantage_N = reward_N + gamma * value_N.roll(-1).index_fill(0, last_C, 0.0) - value_N
    for back in range(1, max(length_C.tolist(), default=0)):  # all answers at once, from their ends
        at = last_C[length_C > back] - back
        advantage_N[at] += gamma * lam * advantage_N[at + 1]
    return advantage_N, advantage_N + value_N


def rloo(score_C: Score, group_C: Int[Tensor, " C"]) -> Score:
    """REINFORCE leave-one-out (arXiv 2402.14740): A_i = r_i - mean of the other k - 1 answers' r =
    k / (k - 1) (r_i - mean of all k).

    The whole answer is one action, so r is the score after the KL penalty: the sum of its
    `token_rewards`. The baseline does not depend on answer i, so the gradient's expectation is that
    of the expected reward, whatever k. ValueError for a group of one.
    """
    lead_C, size_C = _lead(score_C, group_C)
    return size_C / (size_C - 1) * lead_C


def grpo(score_C: Score, group_C: Int[Tensor, " C"]) -> Score:
    """GRPO with outcome rewards (arXiv 2402.03300): A_i = (r_i - mean) / std of the group's k
    answers (k - 1 under the root, plus 1e-4).

    What the deviation does: the unit of the rewards drops out, and every group pulls about alike. A
    prompt whose answers hardly differ weighs as much as one where they differ most, so what rises
    is not the expected reward any more: with scores 0 and 1 and many answers it is sum_x 2 arcsin
    sqrt(p_x) instead of sum_x p_x. For few answers it is also biased within a prompt, since it
    depends on answer i itself. Subtracting the mean alone would only scale the gradient, by (k - 1)
    / k. Equal scores: 0. ValueError for a group of one.
    """
    lead_C, size_C = _lead(score_C, group_C)
    return lead_C / ((_group_sum(lead_C.square(), group_C) / (size_C - 1)).sqrt() + LEAST_DEVIATION)


# ---------------------------------------------------------------- losses, per token


def ratio(logp_N: Token, old_N: Token) -> Token:
    """pi / pi_old of each token; beyond e^20 its tangent, which goes on pulling a lost token back
    with a gradient that float32 can hold.
    """
    far_N = logp_N - old_N
    return far_N.clamp(max=FAR).exp() * (1 + F.relu(far_N - FAR))


def clipped_surrogate(logp_N: Token, old_N: Token, advantage_N: Token, clip: float) -> Token:
    """PPO, arXiv 1707.06347 eq. 7, as a loss, u = pi / pi_old:  L = -min(u A, clamp(u, 1 - clip, 1
    + clip) A).

    Start (u = 1): -A, with slope -A in log pi: the policy gradient. A token that has moved by more
    than clip in the direction of its advantage has no slope; one that has moved the other way keeps
    it, however far. clip = inf switches clipping off.
    """
    ratio_N = ratio(logp_N, old_N)
    return -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - clip, 1 + clip) * advantage_N)


def clipped(logp_N: Token, old_N: Token, advantage_N: Token, clip: float) -> Bool[Tensor, " N"]:
    """Which tokens `clipped_surrogate` gives no slope to, because they have moved far enough; their
    share is the clip fraction.
    """
    ratio_N = ratio(logp_N, old_N)
    return torch.where(
        advantage_N > 0, ratio_N > 1 + clip, (ratio_N < 1 - clip) & (advantage_N < 0)
    )


def value_loss(value_N: Token, old_value_N: Token, return_N: Token, clip: float) -> Token:
    """The critic's squared error (arXiv 1707.06347, eq. 9 unchecked), clipped as in its authors'
    code and that of arXiv 1909.08593: L = 1/2 max((V - R)^2, (clamp(V, V_old - clip, V_old + clip)
    - R)^2).

    No slope where V has moved towards R by more than clip; clip is in units of the reward, inf
    switches it off.
    """
    kept_N = torch.maximum(torch.minimum(value_N, old_value_N + clip), old_value_N - clip)
    return 0.5 * torch.maximum((value_N - return_N).square(), (kept_N - return_N).square())


# ---------------------------------------------------------------- how far from whom


def approximate_kl(logp_N: Token, other_N: Token) -> Token:
    """k3 (J. Schulman, "Approximating KL divergence", 2020) of KL(pi || other), tokens drawn from
    pi, u = other / pi:  (u - 1) - log u.

    Unbiased and never negative. Of the rollouts against the policy now: `approximate_kl(old_N,
    logp_N)`; against the reference: `approximate_kl(old_N, reference_N)`. Of tokens, which are then
    summed: a whole answer's u has hopeless variance. As a loss on fresh samples, which is GRPO's KL
    term, the slope in log pi is 1 - u, whose expected gradient is that of the *other* KL, KL(other
    || pi).
    """
    far_N = other_N - logp_N
    near_N = far_N.clamp(max=FAR)
    return torch.expm1(near_N) - near_N + math.expm1(FAR) * F.relu(far_N - FAR)


def kl_controller(
    coefficient: float, kl: float, target: float, horizon: float, steps: int
) -> float:
    """The next KL coefficient (arXiv 1909.08593 sec. 2.2), kl what was seen per answer, steps the
    answers it was seen on: beta' = beta (1 + clamp(kl / target - 1, -0.2, 0.2) steps / horizon).

    The paper's gain of 0.1 is steps / horizon. It stays above 0 where steps < 5 horizon; horizon =
    inf is a fixed coefficient.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * steps / horizon)


# ---------------------------------------------------------------- mean and variance of all there is


def moments(value_N: Token) -> Moments:
    """(count, sum, sum of squares), on the CPU. They add up: over micro-batches and over
    processes.
    """
    value = value_N.detach().cpu().double()
    return torch.stack([value.new_tensor(len(value)), value.sum(), value.square().sum()])


def whitened(value_N: Token, known: Moments) -> Token:
    """(x - mean) / sqrt(variance + 1e-8), the moments being those of all tokens of the step.

    The code of arXiv 1909.08593, there of each minibatch by itself. The variance is the
    population's.
    """
    mean, variance = _mean_and_variance(known)
    return (value_N - mean) / math.sqrt(variance + LEAST_VARIANCE)


def scaled(value_N: Token, known: Moments) -> Token:
    """x / sqrt(variance + 1e-8), for rewards. The code of arXiv 1909.08593 divides what is left
    without the mean and puts the mean back: then a token that earned nothing gets mean (1 - 1 /
    deviation), and an answer is paid by its length.
    """
    return value_N / math.sqrt(_mean_and_variance(known)[1] + LEAST_VARIANCE)


def explained_variance(returns: Moments, errors: Moments) -> float:
    """1 - Var(R - V) / Var(R), from the moments of R and of R - V: 1 is a perfect critic, 0 one
    that says a constant, below 0 it is worse than that.

    NaN where all returns are equal: there is nothing to explain.
    """
    spread = _mean_and_variance(returns)[1]
    return 1 - _mean_and_variance(errors)[1] / spread if spread > 0 else math.nan


def _mean_and_variance(known: Moments) -> tuple[float, float]:
    """As from all values at once; a variance that is no more than rounding is 0."""
    count, total, squares = known.tolist()
    variance = squares / count - (total / count) ** 2
    return total / count, variance if variance > ROUNDING * squares / count else 0.0


# ---------------------------------------------------------------- of answers and groups


def _lengths(completion_N: Int[Tensor, " N"]) -> Int[Tensor, " C"]:
    """Tokens of each answer that has some, in their order."""
    lengths_C: Tensor = completion_N.unique_consecutive(return_counts=True)[1]
    return lengths_C


def _group_sum(value_C: Score, group_C: Int[Tensor, " C"]) -> Score:
    """The sum over a completion's group, for each completion."""
    _, group_C, size_G = group_C.unique(return_inverse=True, return_counts=True)
    return value_C.new_zeros(len(size_G)).index_add(0, group_C, value_C)[group_C]


def _lead(score_C: Score, group_C: Int[Tensor, " C"]) -> tuple[Score, Score]:
    """Each score minus its group's mean, and the group's size."""
    size_C = _group_sum(torch.ones_like(score_C), group_C)
    if len(alone := group_C[size_C == 1]):
        raise ValueError(
            f"group {int(alone[0])} has one answer, and a baseline of the others' scores needs two"
            " or more"
        )
    return score_C - _group_sum(score_C, group_C) / size_C, size_C
