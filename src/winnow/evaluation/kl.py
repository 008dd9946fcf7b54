"""How far has the policy gone from its reference? Measured on what the policy itself says, which no
data set shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.data.packing import pack_all
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.base import Engine, NextTokenDistribution
from winnow.engine.batch import Batch, collate
from winnow.generation.sampler import Answer
from winnow.objectives.scores import per_completion


def as_groups(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Answer]], end: int
) -> list[RenderedGroup]:
    """Sampled answers as groups to be scored: exactly the tokens that were drawn, the end token
    only where it was one of them.

    Answers without a token (cut off at once) are left out; a prompt none of whose answers is left
    has no group.
    """
    groups: list[RenderedGroup] = []
    for prompt, many in zip(prompts, answers):
        drawn = [(*answer.ids, end) if answer.finished else answer.ids for answer in many]
        sequences = tuple(TokenSequence((*prompt, *ids), len(prompt)) for ids in drawn if ids)
        if sequences:
            groups.append(RenderedGroup(sequences, (), (None,) * len(sequences), "sample"))
    return groups


def kl(policy: Float[Tensor, " all"], reference: Float[Tensor, " all"], count: int) -> float:
    """KL(policy || reference) in nats per answer, from log-probs of the tokens of `count` answers
    drawn from the policy.

    Per token r - 1 - log r with r = reference / policy (J. Schulman, "Approximating KL divergence",
    2020, k3), summed over the answer: never negative, unbiased because the mean of r under the
    policy is 1, and steadier than the mean of -log r. Over answers that were cut off at a length it
    is the KL of that many first tokens. Where distributions can be had, `exact` is steadier.

    It must be taken token by token: with the r of a whole answer it hangs on answers that are never
    drawn, and k2, (log r)^2 / 2, which is biased everywhere, is then far off
    (tests/oracles/test_statistics.py has both in numbers).
    """
    return float(k3(policy, reference).sum()) / count


def k3(policy: Float[Tensor, " all"], reference: Float[Tensor, " all"]) -> Float[Tensor, " all"]:
    """Of each token what `kl` sums: r - 1 - log r, in nats, float64."""
    log_ratio = reference.double() - policy.double()
    return torch.expm1(log_ratio) - log_ratio


def exact(
    policy: nn.Module,
    reference: nn.Module,
    groups: Sequence[RenderedGroup],
    tokens: int,
    engine: Engine,
    theirs: Engine,
    device: torch.device,
) -> list[list[float]]:
    """KL(policy || reference) of each answer of each group, in nats: at each of its tokens over the
    whole vocabulary, summed.

    Of answers drawn from the policy the mean is the KL of answers, without bias. Steadier than k3,
    and as a rule than the mean of -log r (Amini, Vieira and Cotterell, arXiv 2504.10637, who say
    always: tests/oracles/test_statistics.py has two models for which it is not). tokens: of a
    micro-batch; engine, theirs: how policy and reference are computed.
    """
    found: list[list[float]] = [[] for _ in groups]
    for items in pack_all(groups, tokens):
        batch = collate([groups[i] for i in items], items).to(device)
        kl_C = of_batch(engine.said(policy, batch), theirs, reference, batch)
        for i, own_C in zip(items, kl_C.split([len(groups[i].sequences) for i in items])):
            found[i] = own_C.tolist()
    return found


def of_batch(
    policy: NextTokenDistribution, engine: Engine, reference: nn.Module, batch: Batch
) -> Float[Tensor, " C"]:
    """The same for a batch, where the policy has said what it says of it (and the reference may be
    the same module with other weights inside).
    """
    with torch.no_grad():
        kl_N = engine.logps(reference, batch, ("kl",), policy)["kl"]
        return per_completion(kl_N.double(), batch)
