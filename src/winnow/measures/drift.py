"""How far has the policy gone from its reference? Measured on what the policy itself says, which no data set shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.data.render import RenderedGroup, TokenSequence
from winnow.sample import Answer


def as_groups(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Answer]], end: int) -> list[RenderedGroup]:
    """Sampled answers as groups to be scored: exactly the tokens that were drawn, the end token only where it was one of them.

    Answers without a token (cut off at once) are left out; a prompt none of whose answers is left has no group.
    """
    groups: list[RenderedGroup] = []
    for prompt, many in zip(prompts, answers):
        drawn = [(*answer.ids, end) if answer.finished else answer.ids for answer in many]
        sequences = tuple(TokenSequence((*prompt, *ids), len(prompt)) for ids in drawn if ids)
        if sequences:
            groups.append(RenderedGroup(sequences, (), (None,) * len(sequences), "sample"))
    return groups


def kl(policy: Float[Tensor, " all"], reference: Float[Tensor, " all"], count: int) -> float:
    """KL(policy || reference) in nats per answer, from log-probs of the tokens of `count` answers drawn from the policy.

    Per token r - 1 - log r with r = reference / policy (J. Schulman, "Approximating KL divergence", 2020, k3), summed over the
    answer: never negative, unbiased because the mean of r under the policy is 1, and steadier than the mean of -log r. Over
    answers that were cut off at a length it is the KL of that many first tokens.
    """
    log_ratio = reference.double() - policy.double()
    return float((torch.expm1(log_ratio) - log_ratio).sum()) / count
