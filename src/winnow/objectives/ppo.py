"""Sampled answers as objectives: their advantages, and PPO's two losses bound to what was known of
each token when it was drawn

Axes: N scored tokens, C completions, G groups (a prompt's answers). All log-probs in nats, scores
in units of the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.engine.base import Columns
from winnow.engine.batch import Batch
from winnow.engine.dataset_logps import PerToken
from winnow.objectives import policy_gradient as pg
from winnow.objectives.scores import Sums
from winnow.objectives.terms import Known

Estimate = Literal["gae", "rloo", "grpo"]


# ---------------------------------------------------------------- advantages


@dataclass(frozen=True)
class Answers:
    """What is known of answers that were sampled: whose each token is, whose each answer; scores,
    log-probs of policy and reference, and the critic's values where there is a critic.
    """

    completion_N: Int[Tensor, " N"]
    group_C: Int[Tensor, " C"]
    score_C: Float[Tensor, " C"]
    logp_N: Float[Tensor, " N"]
    reference_N: Float[Tensor, " N"]
    value_N: Float[Tensor, " N"] | None = None

    def reward_N(self, beta: float) -> Float[Tensor, " N"]:
        """Rewards per token (`policy_gradient.token_rewards`)."""
        return pg.token_rewards(
            self.score_C, self.logp_N, self.reference_N, self.completion_N, beta
        )

    def summed(self, value_N: Float[Tensor, " N"]) -> Float[Tensor, " C"]:
        """Per answer."""
        return value_N.new_zeros(len(self.score_C)).index_add(0, self.completion_N, value_N)


def by_gae(
    answers: Answers, beta: float, gamma: float, lam: float, *, whiten_rewards: bool
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Advantages and returns from a critic's values; rewards divided by their deviation first where
    asked for.
    """
    assert answers.value_N is not None
    reward_N = answers.reward_N(beta)
    if whiten_rewards:
        reward_N = pg.scaled(reward_N, pg.moments(reward_N))
    return pg.gae(reward_N, answers.value_N, answers.completion_N, gamma=gamma, lam=lam)


def by_group(answers: Answers, kind: Estimate, beta: float) -> Float[Tensor, " N"]:
    """Advantages without a critic, the same for all tokens of an answer. rloo: of scores that have
    paid for the KL. grpo: of the scores alone, whose KL is a term of the loss.
    """
    advantage_C = (
        pg.rloo(answers.summed(answers.reward_N(beta)), answers.group_C)
        if kind == "rloo"
        else pg.grpo(answers.score_C, answers.group_C)
    )
    return advantage_C[answers.completion_N]


# ---------------------------------------------------------------- losses


@dataclass(frozen=True)
class TokenLoss:
    """A mean over scored tokens as an objective (`train.step.Steps`): the loss of each token, from
    what an engine says of it now, and what dashboards show beside it.
    """

    name: str
    loss: Callable[[Tensor, Batch], Tensor]
    shown: Callable[[Tensor, Batch], Sums]
    want: tuple[str, ...] = ()
    whole: bool = False

    def counts(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        """Tokens."""
        return (float(sum(len(batch.target_N) for batch in batches)),)

    def slopes(
        self, columns: Columns, batch: Batch, counts: Sequence[float], known: Known
    ) -> tuple[Float[Tensor, " terms"], Columns]:
        """The sum of the loss over the batch's tokens, and its slopes divided by the count."""
        leaf = columns["logp"].detach().requires_grad_()
        with torch.enable_grad():
            total = self.loss(leaf, batch).sum()
        return total.detach()[None], {"logp": torch.autograd.grad(total, leaf)[0] / counts[0]}

    def losses(self, totals: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
        """The mean over tokens."""
        return {self.name: totals[0] / counts[0]}

    def known(
        self, columns: Columns, batch: Batch, before: Known, *, train: bool
    ) -> dict[str, float]:
        """Nothing: a batch is not seen whole."""
        return {}

    def sums(self, logp_N: Float[Tensor, " N"], batch: Batch) -> Sums:
        """What dashboards show."""
        return self.shown(logp_N, batch)


def surrogate(
    old: PerToken,
    advantage: PerToken,
    clip: float,
    reference: PerToken | None = None,
    beta: float = 0.0,
) -> TokenLoss:
    """The policy's loss: the clipped surrogate. With a reference the KL term of GRPO (arXiv
    2402.03300, eq. 3 unchecked) is added, beta k3(pi, reference).

    Shown: the share of tokens whose slope was clipped away, and how far the policy has gone from
    the one that sampled (k3, nats per token).
    """

    def loss(logp_N: Tensor, batch: Batch) -> Tensor:
        loss_N = pg.clipped_surrogate(logp_N, old.of(batch), advantage.of(batch), clip)
        return (
            loss_N
            if reference is None
            else loss_N + beta * pg.approximate_kl(logp_N, reference.of(batch))
        )

    def shown(logp_N: Tensor, batch: Batch) -> Sums:
        old_N, count = old.of(batch), float(len(logp_N))
        clipped_N = pg.clipped(logp_N, old_N, advantage.of(batch), clip)
        return {
            "clip_fraction": (float(clipped_N.sum()), count),
            "kl/step": (float(pg.approximate_kl(old_N, logp_N).double().sum()), count),
        }

    return TokenLoss("loss/policy", loss, shown, want=("entropy",))


def value_error(old: PerToken, returns: PerToken, clip: float) -> TokenLoss:
    """The critic's loss: the clipped squared error of its values, which stand where log-probs stand
    (`engine.scalar`).

    Shown: the share of values that have moved by more than the clip since they were asked.
    """

    def shown(value_N: Tensor, batch: Batch) -> Sums:
        moved_N = (value_N - old.of(batch)).abs() > clip
        return {"value_clip_fraction": (float(moved_N.sum()), float(len(value_N)))}

    return TokenLoss(
        "loss/value",
        lambda value_N, batch: pg.value_loss(value_N, old.of(batch), returns.of(batch), clip),
        shown,
    )
