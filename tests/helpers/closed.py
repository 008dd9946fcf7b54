"""A world that can be enumerated: every prompt, every answer, every comparison, the reward. What
theory says of it can be computed.

An answer ends with END, or at `length` tokens without one, so a prompt's answers are all that can
be said and their probabilities sum to 1. Axes: X prompts, A answers of a prompt, P prefixes (the
answers' unfinished beginnings), V vocabulary, S = P * V steps. float64, nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product

import torch
from torch import Tensor, nn

from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine import rows
from winnow.engine.batch import Batch, collate
from winnow.objectives import divergences, losses
from winnow.objectives.scores import per_completion

END = 0
F64 = torch.float64
Loss = Callable[[Tensor], Tensor]  # of margins


@dataclass(frozen=True)
class World:
    """Prompts, a vocabulary, the longest answer; a reference policy as logits and a reward, both
    from a seed.
    """

    prompts: int = 3
    vocabulary: int = 4
    length: int = 4
    seed: int = 0

    @cached_property
    def prefixes(self) -> list[tuple[int, ...]]:
        """All unfinished answers, the shortest first; the empty one is number 0."""
        words = range(1, self.vocabulary)
        return [prefix for length in range(self.length) for prefix in product(words, repeat=length)]

    @cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """All answers: a prefix and END, or as long as an answer may be."""
        whole = product(range(1, self.vocabulary), repeat=self.length)
        return [*((*prefix, END) for prefix in self.prefixes), *whole]

    @cached_property
    def steps(self) -> list[list[int]]:
        """The steps each answer takes: step S is token S % V after prefix S // V."""
        number = {prefix: p for p, prefix in enumerate(self.prefixes)}
        return [
            [number[answer[:t]] * self.vocabulary + token for t, token in enumerate(answer)]
            for answer in self.answers
        ]

    @cached_property
    def step_AS(self) -> Tensor:
        """1 where answer A takes step S."""
        step_AS = torch.zeros(len(self.answers), len(self.prefixes) * self.vocabulary, dtype=F64)
        for a, steps in enumerate(self.steps):
            step_AS[a, steps] = 1
        return step_AS

    @cached_property
    def reference_XPV(self) -> Tensor:
        """The reference's logits: a standard normal number for each prompt, prefix and token."""
        return torch.randn(
            self.prompts,
            len(self.prefixes),
            self.vocabulary,
            dtype=F64,
            generator=torch.Generator().manual_seed(self.seed),
        )

    @cached_property
    def reference_XA(self) -> Tensor:
        """The reference's log-probs."""
        return self.tabular(self.reference_XPV)

    @cached_property
    def reward_XA(self) -> Tensor:
        """r(x, y), uniform between -1 and 1."""
        return (
            2
            * torch.rand(
                self.prompts,
                len(self.answers),
                dtype=F64,
                generator=torch.Generator().manual_seed(self.seed + 1),
            )
            - 1
        )

    def tabular(self, logits_XPV: Tensor) -> Tensor:
        """Log-probs of all answers (X, A) under a table of next-token logits."""
        return logits_XPV.log_softmax(-1).flatten(1) @ self.step_AS.T

    def by_token(self, logits_XPV: Tensor) -> Tensor:
        """The same token by token, in the order a batch of all answers scores them: (N,)."""
        return (
            logits_XPV.log_softmax(-1)
            .flatten(1)[:, [step for steps in self.steps for step in steps]]
            .flatten()
        )

    def groups(self, comparisons: Sequence[Sequence[Comparison]]) -> list[RenderedGroup]:
        """A group for each prompt, of all its answers and these comparisons. Prompt x is the one
        token x + 1.
        """
        none = (None,) * len(self.answers)
        sequences = [
            tuple(TokenSequence((x + 1, *answer), 1) for answer in self.answers)
            for x in range(self.prompts)
        ]
        return [
            RenderedGroup(sequences[x], tuple(some), none, f"prompt {x}")
            for x, some in enumerate(comparisons)
        ]

    def batch(self, probability_XAA: Tensor | None = None) -> Batch:
        """All answers to all prompts; with probabilities also every pair, once, as a comparison
        that is that certain.
        """
        some: list[list[Comparison]] = [[] for _ in range(self.prompts)]
        if probability_XAA is not None:
            pairs = torch.combinations(torch.arange(len(self.answers))).tolist()
            some = [
                [Comparison(i, j, probability=row[i][j]) for i, j in pairs]
                for row in probability_XAA.tolist()
            ]
        return collate(self.groups(some))

    def spoken(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probs of all answers (X, A) under a language model of this vocabulary, by the
        project's plain engine.
        """
        return per_completion(rows.logps(model, batch)["logp"], batch).view(self.prompts, -1)


# ---------------------------------------------------------------- the theory


def log_partition(reference_XA: Tensor, reward_XA: Tensor, beta: float) -> Tensor:
    """log Z(x) = log sum_y pi_ref(y|x) e^(r/beta), term by term: (X,)."""
    return (reference_XA + reward_XA / beta).logsumexp(-1)


def optimum(reference_XA: Tensor, reward_XA: Tensor, beta: float) -> Tensor:
    """log pi*(y|x) = log pi_ref + r/beta - log Z (arXiv 2305.18290 eq. 4)."""
    return reference_XA + reward_XA / beta - log_partition(reference_XA, reward_XA, beta)[:, None]


def soft_values(world: World, reward_XA: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Backwards through the tree of prefixes: V(whole answer) = r, V(prefix) = beta log sum_v
    pi_ref(v|prefix) e^(V(prefix, v)/beta).

    Gives V of each prefix (X, P) and the logits log pi_ref + V(next)/beta (X, P, V), which are the
    best policy's.
    """
    logp_XPV = world.reference_XPV.log_softmax(-1)
    value = {answer: reward_XA[:, a] for a, answer in enumerate(world.answers)}
    logits: dict[tuple[int, ...], Tensor] = {}
    for p, prefix in reversed(list(enumerate(world.prefixes))):
        logits[prefix] = (
            logp_XPV[:, p]
            + torch.stack([value[(*prefix, token)] for token in range(world.vocabulary)], -1) / beta
        )
        value[prefix] = beta * logits[prefix].logsumexp(-1)
    return torch.stack([value[prefix] for prefix in world.prefixes], 1), torch.stack(
        [logits[prefix] for prefix in world.prefixes], 1
    )


def kl(logp_XA: Tensor, other_XA: Tensor) -> Tensor:
    """KL(p || q), the mean over prompts."""
    return (logp_XA.exp() * (logp_XA - other_XA)).sum(-1).mean()


def expected(logp_XA: Tensor, value_XA: Tensor) -> Tensor:
    """E_x E_y~p of a value."""
    return (logp_XA.exp() * value_XA).sum(-1).mean()


# ---------------------------------------------------------------- comparisons


def bradley_terry(reward_XA: Tensor) -> Tensor:
    """P(row beats column) = s(r - r'): (X, A, A)."""
    return (reward_XA[:, :, None] - reward_XA[:, None, :]).sigmoid()


def flipped(probability: Tensor, rate: float) -> Tensor:
    """What the labels say when a share `rate` of them was turned round."""
    return (1 - rate) * probability + rate * (1 - probability)


def comparison_loss(
    ratio_XA: Tensor, probability_XAA: Tensor, loss: Loss, weight_XAA: Tensor | None = None
) -> Tensor:
    """The exact expectation of a loss of margins over all ordered pairs of different answers and
    their labels; pairs weigh alike, or `weight_XAA`.
    """
    margin_XAA = ratio_XA[:, :, None] - ratio_XA[:, None, :]
    loss_M = divergences.soft(
        probability_XAA.flatten(), loss(margin_XAA.flatten()), loss(-margin_XAA.flatten())
    )
    if weight_XAA is None:
        weight_XAA = 1.0 - torch.eye(ratio_XA.shape[1], dtype=F64).expand_as(probability_XAA)
    return (weight_XAA.flatten() * loss_M).sum() / weight_XAA.sum()


def rankings(reward_XA: Tensor, subset_BK: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
    """Each order of a subset's K answers, as ranks, and its Plackett-Luce probability for every
    prompt and subset: (X, B).
    """
    reward_XBK = reward_XA[:, subset_BK]
    found = []
    for order in permutations(range(subset_BK.shape[1])):
        stages = [
            reward_XBK[..., k] - reward_XBK[..., list(order[i:])].logsumexp(-1)
            for i, k in enumerate(order)
        ]
        found.append(
            (tuple(order.index(k) for k in range(len(order))), torch.stack(stages).sum(0).exp())
        )
    return found


def ranking_loss(
    ratio_XA: Tensor,
    subset_BK: Tensor,
    ranked: Sequence[tuple[tuple[int, ...], Tensor]],
    beta: float,
) -> Tensor:
    """The exact expectation of the Plackett-Luce loss over subsets and their orders."""
    score_MK = ratio_XA[:, subset_BK].flatten(0, 1)
    total = torch.zeros((), dtype=F64)
    for ranks, probability_XB in ranked:
        loss_M = torch.vmap(
            lambda score_K, ranks=ranks: losses.plackett_luce(score_K, ranks, beta)
        )(score_MK)
        total = total + (probability_XB.flatten() * loss_M).sum()
    return total / len(score_MK)


def minimise(
    parameters: Iterable[Tensor],
    loss: Callable[[], Tensor],
    *,
    steps: int = 1000,
    history: int = 100,
) -> float:
    """L-BFGS with a strong Wolfe line search, until nothing moves. Returns the last loss."""
    parameters = list(parameters)
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        max_eval=2 * steps,
        history_size=history,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return float(loss().detach())


def fitted(
    world: World, probability_XAA: Tensor, loss: Loss, weight_XAA: Tensor | None = None
) -> Tensor:
    """Log-probs of the tabular policy that minimises a comparison loss, begun at the reference."""
    logits_XPV = world.reference_XPV.clone().requires_grad_()
    minimise(
        [logits_XPV],
        lambda: comparison_loss(
            world.tabular(logits_XPV) - world.reference_XA, probability_XAA, loss, weight_XAA
        ),
    )
    return world.tabular(logits_XPV).detach()
