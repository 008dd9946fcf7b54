"""The most reward there is for a given distance from the reference: exact where all answers are
known, estimated from samples where they are not.

Axes: X prompts, A answers of a prompt (the same number for each). float64, nats. A policy is its
log-probs of all answers, (X, A).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

Answers = Float[Tensor, "X A"]
CLOSED = 1e-5  # how far a prompt's probabilities may be from 1: log-probs come from float32
TIGHT, LOOSE = 1e-4, 1e4  # betas between which the limit is looked for


@dataclass(frozen=True, eq=False)
class RewardTable:
    """The reference's log-probs of all answers and their rewards. Raises ValueError where a
    prompt's probabilities do not sum to 1.
    """

    reference_XA: Answers
    reward_XA: Answers

    def __post_init__(self) -> None:
        if (
            self.reference_XA.dtype != torch.float64
            or self.reward_XA.shape != self.reference_XA.shape
        ):
            raise ValueError("log-probs and rewards are float64 and of one shape")
        closed(self.reference_XA)

    @cached_property
    def start_X(self) -> Float[Tensor, " X"]:
        """The reference's own mean reward."""
        return reward(self, self.reference_XA)

    @cached_property
    def levels_XA(self) -> Tensor:
        """Of each answer: the number of its reward among the prompt's different ones, in ascending
        order.
        """
        found = [row.unique(return_inverse=True)[1] for row in self.reward_XA]
        return torch.stack(found)


def closed(logp_XA: Answers) -> None:
    """Raises ValueError where a prompt's probabilities are not 1 together: then these are not all
    its answers.
    """
    off = float((logp_XA.exp().sum(-1) - 1).abs().max())
    if not off <= CLOSED:
        raise ValueError(
            f"probabilities of all answers sum to 1 within {CLOSED}, got a sum that is"
            f" {off:.3g} off"
        )


def kl(table: RewardTable, logp_XA: Answers) -> Float[Tensor, " X"]:
    """KL(policy || reference) of each prompt; an answer of probability 0 adds nothing."""
    return torch.where(
        logp_XA > -torch.inf, logp_XA.exp() * (logp_XA - table.reference_XA), 0.0
    ).sum(-1)


def reward(table: RewardTable, logp_XA: Answers) -> Float[Tensor, " X"]:
    """E[r] of each prompt."""
    return (logp_XA.exp() * table.reward_XA).sum(-1)


def wins(table: RewardTable, logp_XA: Answers) -> Float[Tensor, " X"]:
    """How often the policy's answer has the higher reward than the reference's; ties count half."""
    theirs_XL, _, below_XL = _by_level(table, table.reference_XA)
    ours_XL = _summed(logp_XA.exp(), table.levels_XA, theirs_XL.shape[1])
    return (ours_XL * (below_XL + theirs_XL / 2)).sum(-1)


def optimum(table: RewardTable, beta: float) -> Answers:
    """log pi* = log pi_ref + r / beta - log Z: the best policy by E[r] - beta KL (arXiv 2305.18290
    eq. 4).
    """
    return (table.reference_XA + table.reward_XA / beta).log_softmax(-1)


def best_of(table: RewardTable, n: int) -> Answers:
    """The best of n draws of the reference, ties to any of them:  P(y) = pi_ref(y) (F(r)^n -
    F(r-)^n) / P(reward = r), F over the reference's rewards.

    Its KL is at most log n - (n - 1) / n (arXiv 2401.01879, theorem 1), and less where rewards tie.
    """
    mass_XL, upto_XL, below_XL = _by_level(table, table.reference_XA)
    # log(F^n - F-^n) = n log F + log(1 - (F- / F)^n); a level without mass says -inf, and nobody
    # takes it
    log_XL = n * upto_XL.log() + torch.log1p(-((below_XL / upto_XL) ** n)) - mass_XL.log()
    # softmax: float32 log-probs do not sum to 1 to the last digit
    return (table.reference_XA + log_XL.gather(1, table.levels_XA)).log_softmax(-1)


def bound(n: int) -> float:
    """log n - (n - 1) / n: the KL of the best of n, at most (arXiv 2401.01879, theorem 1)."""
    return math.log(n) - (n - 1) / n


def _by_level(table: RewardTable, logp_XA: Answers) -> tuple[Tensor, Tensor, Tensor]:
    """P(reward = l), P(reward <= l) and P(reward < l) of each level l."""
    mass_XL = _summed(logp_XA.exp(), table.levels_XA, int(table.levels_XA.max()) + 1)
    mass_XL = mass_XL / mass_XL.sum(-1, keepdim=True)
    upto_XL = mass_XL.cumsum(-1)
    return mass_XL, upto_XL, upto_XL - mass_XL


def _summed(value_XA: Tensor, levels_XA: Tensor, count: int) -> Tensor:
    return torch.zeros(len(value_XA), count, dtype=value_XA.dtype).scatter_add(
        1, levels_XA, value_XA
    )


@dataclass(frozen=True, slots=True)
class Point:
    """A policy's place: KL to the reference (nats per answer) and reward, means over prompts; beta
    where it is pi*.
    """

    kl: float
    reward: float
    beta: float | None = None


def place(table: RewardTable, logp_XA: Answers, beta: float | None = None) -> Point:
    """Where a policy stands."""
    return Point(float(kl(table, logp_XA).mean()), float(reward(table, logp_XA).mean()), beta)


def curve(table: RewardTable, most: float, count: int = 60) -> list[Point]:
    """The limit from KL 0 to `most`, in steps that are equal in KL."""
    return [limit(table, most * i / (count - 1)) for i in range(count)]


def limit(table: RewardTable, distance: float) -> Point:
    """The most mean reward at a mean KL of at most `distance`: pi* of the one beta whose KL that
    is, found by bisection.

    One beta for all prompts is right: they share the KL as they like, and at the optimum all have d
    reward / d KL = beta. Beyond the KL at which nothing but best answers is left there is no more
    to be had.
    """
    if distance <= 0:
        return Point(0.0, float(table.start_X.mean()), math.inf)
    low, high = math.log(TIGHT), math.log(LOOSE)
    for _ in range(60):
        middle = (low + high) / 2
        far = float(kl(table, optimum(table, math.exp(middle))).mean()) > distance
        low, high = (middle, high) if far else (low, middle)
    return place(table, optimum(table, math.exp(high)), math.exp(high))


def share(table: RewardTable, distance: float, gained: float) -> float | None:
    """A reward gain as a share of the most there is at this KL; None at a KL of nothing."""
    most = limit(table, distance).reward - float(table.start_X.mean())
    return gained / most if most > 1e-9 else None


def drawn(reward_XA: Answers) -> RewardTable:
    """A table made of samples of the reference, each as likely as another: what is computed of it
    is estimated.
    """
    return RewardTable(torch.full_like(reward_XA, -math.log(reward_XA.shape[1])), reward_XA)


def effective(logp_XA: Answers) -> float:
    """How many equally likely answers would vary as these do, 1 / sum p^2, of the prompt with
    fewest (L. Kish, "Survey Sampling", 1965).
    """
    return float((-(2 * logp_XA).logsumexp(-1)).exp().min())


def best_drawn(rewards: Sequence[float], n: int) -> list[float]:
    """Probability of each of these samples to be the best of n of them, drawn without replacement,
    which has no bias; ties: the later one.

    The i-th smallest of m is the best of n with probability C(i - 1, n - 1) / C(m, n).
    """
    order = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    found = [0.0] * len(rewards)
    for rank, i in enumerate(order):
        found[i] = math.comb(rank, n - 1) / math.comb(len(rewards), n)
    return found
