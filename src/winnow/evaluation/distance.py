"""How far a policy has gone from its reference, on answers of its own to held-out prompts: KL with
its interval, and how it was taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from winnow.data.packing import budget
from winnow.data.render import RenderedGroup, Renderer
from winnow.engine.base import Engine
from winnow.engine.dataset_logps import dataset_logps
from winnow.evaluation import kl as drift
from winnow.evaluation.datasets import HeldOut
from winnow.evaluation.statistics.intervals import mean, share
from winnow.generation import prompts as asking
from winnow.generation.sampler import Sampling, sample
from winnow.models.device import available
from winnow.models.loading import LoadedModel
from winnow.system.console import ProgressBar
from winnow.system.figure import Figure

# a second model is loaded beside the first where so many times its bytes are free: weights, and
# what a pass needs
ROOM = 1.25


@dataclass(frozen=True)
class Drawn:
    """Answers of the policy to prompts of one set; ours: the policy's log-probs of each prompt's
    answers, laid end to end.
    """

    groups: list[RenderedGroup]
    longest: int
    finished: list[bool]
    ours: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Distance:
    """kl: KL(policy || reference), nats per answer of at most `most` tokens. how: exact, at each
    token over the whole vocabulary; or k3, from log-probs of the tokens alone, and `why`.
    """

    kl: Figure
    length: Figure
    finished: Figure
    how: str
    why: str
    most: int


def draw(
    one: HeldOut, loaded: LoadedModel, engine: Engine, rendered: Renderer, count: int, seed: int
) -> Drawn:
    """`count` answers, or a few more: to prompts of the set drawn at random, or equally many to
    each where there are fewer prompts than that.
    """
    asked = asking.probe({"eval_": one.data}, one.data, rendered, seed)
    prompts = asked.prompts[:count]
    each = -(-count // len(prompts)) if prompts else 0
    with ProgressBar("answers", len(prompts)) as steps:
        answers = (
            sample(
                loaded,
                prompts,
                Sampling(asked.end, max_new_tokens=asked.room, seed=seed),
                k=each,
                tick=steps.advance,
            )
            if prompts
            else []
        )
    groups = drift.as_groups(prompts, answers, asked.end)
    return Drawn(
        groups,
        asked.room,
        [made.finished for own in answers for made in own],
        _by_group(engine, loaded, groups, f"the policy ({loaded.source})"),
    )


def fits(loaded: LoadedModel) -> str:
    """Why a second model like this one cannot be loaded beside it; empty where it can."""
    need, free = (
        ROOM * sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
        available(loaded.device),
    )
    return (
        ""
        if need < free
        else (
            f"two models at once need about {need / 2**30:,.1f} GiB more, and {free / 2**30:,.1f}"
            " GiB are free"
        )
    )


def measure(
    drawn: Drawn,
    policy: LoadedModel | None,
    reference: LoadedModel,
    ours: Engine,
    theirs: Engine,
    why: str,
) -> Distance | None:
    """KL of what was drawn; None where no answer has a token. policy: None where it is gone, and
    `why`; ours, theirs: how the two are computed.
    """
    groups = drawn.groups
    if not groups:
        return None
    if policy is not None and (wide := _width(policy)) != (other := _width(reference)):
        policy, why = (
            None,
            (
                f"the output layers have {wide:,} and {other:,} rows, so the distributions cannot"
                " be set side by side"
            ),
        )
    if policy is not None:
        exact = drift.exact(
            policy.model,
            reference.model,
            groups,
            budget(groups, None),
            ours,
            theirs,
            reference.device,
        )
    else:
        said = _by_group(theirs, reference, groups, f"the reference ({reference.source})")
        exact = [_k3(group, a, b) for group, a, b in zip(groups, drawn.ours, said, strict=True)]
    number = [i for i, own in enumerate(exact) for _ in own]
    lengths = [sequence.scored for group in groups for sequence in group.sequences]
    kl = mean([value for own in exact for value in own], number)
    return Distance(
        kl,
        mean(lengths, number),
        share(drawn.finished, number),
        "k3" if policy is None else "exact",
        why if policy is None else "",
        drawn.longest,
    )


def _k3(group: RenderedGroup, ours: torch.Tensor, theirs: torch.Tensor) -> list[float]:
    lengths = [sequence.scored for sequence in group.sequences]
    return [drift.kl(a, b, 1) for a, b in zip(ours.split(lengths), theirs.split(lengths))]


def _by_group(
    engine: Engine, loaded: LoadedModel, groups: list[RenderedGroup], whose: str
) -> list[torch.Tensor]:
    """Log-probs of each group's tokens."""
    if not groups:
        return []
    logp_N = dataset_logps(
        engine, loaded.model, groups, budget(groups, None), loaded.device, whose=whose
    )
    return list(
        logp_N.split([sum(sequence.scored for sequence in group.sequences) for group in groups])
    )


def _width(loaded: LoadedModel) -> int:
    layer: Any = loaded.model.get_output_embeddings()
    return int(layer.weight.shape[0])
