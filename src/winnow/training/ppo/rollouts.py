"""One iteration's answers: sampled, scored, with their log-probs under policy and reference and the
critic's values
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from winnow.config.ppo import PPOSettings
from winnow.data.packing import BUDGET, GPU_BUDGET, budget
from winnow.data.render import RenderedGroup
from winnow.engine.base import Engine
from winnow.engine.dataset_logps import PerToken, dataset_logps, offsets
from winnow.evaluation import kl as drift
from winnow.evaluation.statistics.intervals import flat, mean
from winnow.generation.prompts import PromptBatch
from winnow.generation.sampler import Answer, sample, words
from winnow.models.loading import LoadedModel
from winnow.objectives import policy_gradient as pg
from winnow.objectives.ppo import Answers, by_gae, by_group
from winnow.system import distributed
from winnow.training.metrics import Row
from winnow.training.optimizer import Optimizer
from winnow.training.ppo.rewards import PromptAnswers, Reward
from winnow.training.reference import Frozen


@dataclass(frozen=True)
class Actor:
    """A model that is trained, how it is computed, and what trains it."""

    loaded: LoadedModel
    engine: Engine
    optimizer: Optimizer
    lr: float


@dataclass(frozen=True)
class Players:
    """All that takes part. The reference is the policy at step 0: its trainable weights, which
    change places with the policy's while it is asked.
    """

    policy: Actor
    reference: Frozen
    reward: Reward
    critic: Actor | None


@dataclass(frozen=True)
class Rollout:
    """Answers of one iteration: their groups, one per prompt; what is known of them, token by
    token; and seconds by what they went into.
    """

    groups: list[RenderedGroup]
    start: NDArray[np.int64]
    answers: Answers
    finished: int
    tokens: int  # that an answer to these prompts is cut into micro-batches of
    seconds: Row

    def per_token(self, value_N: Float[Tensor, " N"]) -> PerToken:
        """Numbers of its tokens, as objectives look them up."""
        return PerToken(value_N, self.start)


def drawn(
    policy: LoadedModel, asked: PromptBatch, items: Sequence[int], k: int, seed: int
) -> list[list[Answer]]:
    """`k` answers to each of the prompts numbered `items`. Raises Halt where a signal cut them
    short.
    """
    answers = sample(policy, [asked.ids[i] for i in items], replace(asked.how, seed=seed), k=k)
    distributed.obey()  # answers a signal has cut short are nobody's
    return answers


def scored(
    policy: LoadedModel,
    asked: PromptBatch,
    places: Sequence[str],
    items: Sequence[int],
    answers: Sequence[Sequence[Answer]],
    reward: Reward,
    unfinished: float | None,
) -> list[list[float]]:
    """Their scores; of an answer that was cut off, `unfinished` where that is given. Raises
    JudgeError, DataError with the prompt's place.
    """
    said = [
        PromptAnswers(
            asked.texts[i],
            places[i],
            [
                words(policy.tokenizer, asked.ids[i], answer)
                for answer in many
                if answer.finished or unfinished is None
            ],
        )
        for i, many in zip(items, answers)
    ]
    found = [iter(scores) for scores in reward.scores(said)]
    return [
        [next(own) if answer.finished or unfinished is None else unfinished for answer in many]
        for own, many in zip(found, answers)
    ]


def roll(
    players: Players,
    settings: PPOSettings,
    asked: PromptBatch,
    places: Sequence[str],
    items: Sequence[int],
    seed: int,
) -> Rollout:
    """Answers to the prompts numbered `items`, and all that is known of them before the policy
    moves.

    Log-probs are the engine's, as training computes them, and not the sampler's: ratios are 1 at
    the first step, up to rounding.
    """
    clock = Clock()
    policy = players.policy
    answers = drawn(policy.loaded, asked, items, settings.k, seed)
    clock.passed("sampling")
    scores = scored(
        policy.loaded, asked, places, items, answers, players.reward, settings.unfinished
    )
    clock.passed("scoring")
    groups = as_groups(asked, places, items, answers)
    tokens = budget(
        groups, settings.max_tokens, BUDGET if policy.loaded.device.type == "cpu" else GPU_BUDGET
    )
    logp_N, reference_N = (
        _per_token(policy, groups, tokens, "the policy"),
        _reference(players, groups, tokens),
    )
    value_N = (
        _per_token(players.critic, groups, tokens, "the critic", "values")
        if players.critic
        else None
    )
    clock.passed("looking")
    lengths = torch.tensor([sequence.scored for group in groups for sequence in group.sequences])
    known = Answers(
        completion_N=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        group_C=torch.repeat_interleave(
            torch.arange(len(groups)), torch.tensor([len(group.sequences) for group in groups])
        ),
        score_C=torch.tensor([score for many in scores for score in many], dtype=logp_N.dtype),
        logp_N=logp_N,
        reference_N=reference_N,
        value_N=value_N,
    )
    return Rollout(
        groups,
        offsets(groups),
        known,
        sum(answer.finished for many in answers for answer in many),
        tokens,
        clock.seconds,
    )


def as_groups(
    asked: PromptBatch,
    places: Sequence[str],
    items: Sequence[int],
    answers: Sequence[Sequence[Answer]],
) -> list[RenderedGroup]:
    """Answers as groups, each with the place of its prompt."""
    groups = drift.as_groups([asked.ids[i] for i in items], answers, asked.how.end)
    return [replace(group, where=places[i]) for i, group in zip(items, groups)]


def advantages(
    rollout: Rollout, settings: PPOSettings, beta: float
) -> tuple[PerToken, PerToken | None]:
    """Advantages of its tokens, and with a critic the returns it is taught."""
    returns_N = None
    if settings.advantage == "gae":
        advantage_N, returns_N = by_gae(
            rollout.answers,
            beta,
            settings.gamma,
            settings.lam,
            whiten_rewards=settings.whiten_rewards,
        )
    else:
        advantage_N = by_group(rollout.answers, settings.advantage, beta)
    if settings.whiten_advantages is True or (
        settings.whiten_advantages is None and settings.advantage == "gae"
    ):
        advantage_N = pg.whitened(advantage_N, pg.moments(advantage_N))
    return rollout.per_token(advantage_N), (
        None if returns_N is None else rollout.per_token(returns_N)
    )


def figures(rollout: Rollout, beta: float, returns: PerToken | None) -> Row:
    """What dashboards show of an iteration's answers, all of them drawn from the policy as it was
    before the iteration's steps.

    score: the mean; reward: after the KL penalty; kl: nats per answer to the reference (k3 per
    token, `drift.kl`); NAME_low, NAME_high: `intervals`.
    """
    known = rollout.answers
    count = len(known.score_C)
    kl = drift.kl(known.logp_N, known.reference_N, count)
    row: Row = {
        "score": float(known.score_C.double().mean()),
        "score/deviation": float(known.score_C.double().std(correction=0)),
        "kl": kl,
    }
    row |= {
        "reward": float(known.summed(known.reward_N(beta)).double().mean()),
        "beta": beta,
        "finished": rollout.finished / count,
    }
    row |= {"length/sampled": len(known.logp_N) / count, "answers": count, **intervals(rollout)}
    if returns is not None and known.value_N is not None:
        errors_N = returns.value - known.value_N
        explained = pg.explained_variance(pg.moments(returns.value), pg.moments(errors_N))
        row |= {
            "value": float(known.value_N.double().mean()),
            "return": float(returns.value.double().mean()),
        }
        row |= {} if math.isnan(explained) else {"explained_variance": explained}
    return row


def intervals(rollout: Rollout) -> Row:
    """95 % intervals over prompts of mean score, KL and length, as NAME_low and NAME_high, and how
    many prompts there are; of one prompt no interval.
    """
    known, prompts = (
        rollout.answers,
        [group.where for group in rollout.groups for _ in group.sequences],
    )
    values = {"score": known.score_C, "kl": known.summed(drift.k3(known.logp_N, known.reference_N))}
    values["length/sampled"] = known.completion_N.bincount(minlength=len(prompts))
    found = flat({name: mean(value_C.tolist(), prompts) for name, value_C in values.items()})
    return {
        "prompts": len(set(prompts)),
        **{name: value for name, value in found.items() if name not in values},
    }


def _per_token(
    actor: Actor, groups: Sequence[RenderedGroup], tokens: int, whose: str, kind: str = "log-probs"
) -> Tensor:
    return dataset_logps(
        actor.engine,
        actor.loaded.model,
        groups,
        tokens,
        actor.loaded.device,
        whose=whose,
        kind=kind,
    )


def _reference(players: Players, groups: Sequence[RenderedGroup], tokens: int) -> Tensor:
    with players.reference.inside(players.policy.loaded.net):
        return _per_token(players.policy, groups, tokens, "the reference")


class Clock:
    """Seconds by name, each since the one before."""

    def __init__(self) -> None:
        self.last, self.seconds = time.perf_counter(), Row()

    def passed(self, name: str) -> None:
        """What was done since the last call was this."""
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"] = now - self.last
        self.last = now
