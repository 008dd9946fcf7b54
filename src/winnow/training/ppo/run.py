"""`winnow ppo`: the policy is trained on rewards of its own answers. Resumable anywhere, as every
training
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from winnow.config.model_spec import model_spec
from winnow.config.options import parse_lora
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import Resolved
from winnow.data.order import Cursor, MixShare, batches
from winnow.engine.micro_batches import Data
from winnow.engine.scalar_head import scalar_head
from winnow.engine.selection import engine_for
from winnow.generation import prompts as asking
from winnow.models import hashes, loading, reward_models
from winnow.models.device import keep_memory
from winnow.models.loading import LoadedModel
from winnow.objectives.policy_gradient import kl_controller
from winnow.objectives.ppo import TokenLoss, surrogate, value_error
from winnow.system import signals
from winnow.system.console import ProgressBar, safe, say
from winnow.system.run_folder import RunFolder
from winnow.training import monitoring, references, run_record
from winnow.training.checkpoint import Checkpoint, Progress, Saver
from winnow.training.loop import State, to_the_end
from winnow.training.metrics import MetricsFile, Row
from winnow.training.optimizer import Optimizer, rate
from winnow.training.ppo import rewards, setup
from winnow.training.ppo.evaluation import held_out
from winnow.training.ppo.rewards import Reward
from winnow.training.ppo.rollouts import Actor, Clock, Players, Rollout, advantages, figures, roll
from winnow.training.ppo.setup import PPOJob
from winnow.training.reference import Frozen
from winnow.training.step import take_step


def run(resolved: Resolved[PPOSettings], command: str = "") -> RunFolder:
    """Run, or resume, or notice that it is finished. Raises before anything is loaded when settings
    or prompts cannot be used.
    """
    folder = RunFolder(resolved.settings.out)
    keep_memory()
    folder.create()
    with folder.lock():
        job = setup.begun(setup.filled(resolved), folder, command)
        if job is not None:
            _train(job)
    return folder


# ---------------------------------------------------------------- with models


def _train(job: PPOJob) -> None:
    settings = job.settings
    reward = rewards.reward(settings)
    players = _players(job, reward)
    policy = players.policy
    identity = _identity(job, players)
    # the policy is still as it began
    reference = references.described(settings.model, policy.loaded, None, len(job.tokenizer))
    kept = run_record.newest(
        job.run,
        identity,
        settings.allow_change,
        ("weights", "critic", "reward"),
        job.plan.steps,
    )
    progress = _restore(job, players, kept)
    counts = loading.parameter_counts(policy.loaded.model)
    run_record.note(
        job.run,
        engine=policy.engine.NAME,
        parameters=counts,
        models=_bytes(players),
        weights_hash=identity["weights"],
        reward=reward.identity,
    )
    run_record.note(job.run, reference=reference)
    _say_head(job, players, counts)
    prompts = [job.asked.ids[i] for i in job.held_out or job.train]
    shown = asking.shuffled(
        prompts,
        job.asked.how.max_new_tokens,
        job.asked.how.end,
        held_out=bool(job.held_out),
        seed=job.settings.seed,
    )
    if progress.step == 0:
        monitoring.write(job.run, policy.loaded, job.tokenizer, shown, 0)
    with ProgressBar("training", job.plan.steps, progress.step) as steps, signals.patient():
        progress = to_the_end(
            progress,
            job.plan,
            lambda at: _iterate(job, players, at),
            (lambda at: _look(job, players, at)) if job.held_out else None,
            lambda: _state(players),
            saver=Saver(
                job.run.checkpoints, identity, keep=job.plan.keep, keep_best=False, aside=False
            ),
            metrics=MetricsFile(
                job.run.metrics,
                trackers=settings.trackers,
                resume_at=progress.step,
                evaluated=progress.evaluated,
            ),
            show=steps.show,
        )
    monitoring.write(job.run, policy.loaded, job.tokenizer, shown, progress.step)
    run_record.finish(job.run, policy.loaded, job.tokenizer, known=progress.known)


def _players(job: PPOJob, reward: Reward) -> Players:
    """All that takes part, as it is before the first step."""
    settings = job.settings
    loaded = loading.load(
        model_spec(settings, settings.model),
        lora=parse_lora(settings.lora),
        seed=settings.seed,
        train=True,
    )
    assert settings.lr is not None
    policy = _actor(job, loaded, settings.lr)
    critic = None
    if settings.advantage == "gae":
        assert settings.critic_lr is not None
        critic = _actor(
            job,
            reward_models.load(
                model_spec(settings, setup.critic_name(settings)), train=True, seed=settings.seed
            ),
            settings.critic_lr,
        )
        with (
            torch.no_grad()
        ):  # not before its engine is proved: of a head of zeros everything is right
            for weight in scalar_head(critic.loaded.model).parameters():
                weight.zero_()
    return Players(policy, Frozen(loaded.net, loaded.device), reward, critic)


def _actor(job: PPOJob, loaded: LoadedModel, lr: float) -> Actor:
    engine = engine_for(loaded, "auto", job.longest, train=True)
    return Actor(
        loaded,
        engine,
        Optimizer(
            loaded.net, kind="adamw", weight_decay=job.settings.weight_decay, clip=job.settings.clip
        ),
        lr,
    )


def _bytes(players: Players) -> dict[str, int]:
    """Weights that are held at the same time, by whose they are."""
    found = {
        "policy": _size(players.policy.loaded.model),
        "reference": sum(t.nbytes for t in players.reference.weights.values()),
    }
    others = {
        "critic": players.critic.loaded if players.critic else None,
        "reward": players.reward.model,
    }
    return found | {
        name: _size(loaded.model) for name, loaded in others.items() if loaded is not None
    }


def _size(model: torch.nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def _say_head(job: PPOJob, players: Players, counts: dict[str, int]) -> None:
    settings, weight = job.settings, next(players.policy.loaded.model.parameters())
    say(
        f"model: {safe(settings.model)}, {counts['total']:,} parameters, {counts['trainable']:,}"
        f" train, {weight.dtype} on {players.policy.loaded.device}"
    )
    held = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in _bytes(players).items())
    say(
        f"models held (MiB of weights): {held}; engines: {players.policy.engine.NAME}"
        + (f", {players.critic.engine.NAME}" if players.critic else "")
    )
    say(
        f"data:  {len(job.train):,} prompts"
        + (f", {len(job.held_out):,} more held out" if job.held_out else "")
        + f"; reward: {safe(players.reward.name)}"
    )
    say(
        f"plan:  {job.plan.steps} iterations of {settings.batch_size} prompts with {settings.k}"
        f" answers of at most {job.asked.how.max_new_tokens} tokens,"
        f" {settings.epochs * settings.minibatches} optimizer steps each, peak rate {job.plan.lr:g}"
    )


# ---------------------------------------------------------------- one iteration


def _iterate(job: PPOJob, players: Players, progress: Progress) -> tuple[Row, Progress]:
    """Answers sampled and scored, then the policy, and the critic, trained on them."""
    settings, step = job.settings, progress.step + 1
    places, cursor = _prompts(len(job.train), settings.batch_size, settings.seed, progress.cursor)
    beta = (
        settings.beta if settings.target_kl is None else progress.known.get("beta", settings.beta)
    )
    rollout = roll(
        players,
        settings,
        job.asked,
        job.places,
        [job.train[i] for i in places],
        _seed(settings.seed, step),
    )
    advantage, returns = advantages(rollout, settings, beta)
    row = figures(rollout, beta, returns)
    clock = Clock()
    old = rollout.per_token(rollout.answers.logp_N)
    reference = (
        rollout.per_token(rollout.answers.reference_N) if settings.advantage == "grpo" else None
    )
    losses = {
        "policy": surrogate(
            old, advantage, settings.clip_range, reference, beta if reference else 0.0
        )
    }
    if returns is not None and rollout.answers.value_N is not None:
        losses["critic"] = value_error(
            rollout.per_token(rollout.answers.value_N),
            returns,
            math.inf if settings.value_clip is None else settings.value_clip,
        )
    row |= _trained(job, players, rollout, losses, step)
    clock.passed("training")
    seconds = rollout.seconds | clock.seconds
    answers, tokens = len(rollout.answers.score_C), len(rollout.answers.logp_N)
    if settings.target_kl is not None:
        beta = kl_controller(beta, float(row["kl"]), settings.target_kl, settings.horizon, answers)
    known = {"beta": beta, "answers": float(progress.known.get("answers", 0) + answers)}
    progress = dataclasses.replace(
        progress, step=step, cursor=cursor, tokens=progress.tokens + tokens, moved=True, known=known
    )
    epoch = cursor.epoch + cursor.position / len(job.train)
    told: Row = {
        "step": step,
        "epoch": round(epoch, 4),
        "num_tokens": progress.tokens,
        "num_answers": int(known["answers"]),
    }
    return row | told | seconds | {"tokens_per_second": tokens / sum(seconds.values())}, progress


def _prompts(count: int, size: int, seed: int, cursor: Cursor) -> tuple[list[int], Cursor]:
    """Which prompts an iteration is about, always equally many: what an epoch has left begins the
    iteration that the next epoch fills.
    """
    found: list[int] = []
    while len(found) < size:
        more, cursor = next(batches([MixShare(count)], size - len(found), seed, cursor))
        found += more
    return found, cursor


def _seed(seed: int, step: int) -> int:
    """Of the answers of an iteration; step 0 are those of evaluations, the same each time."""
    return (seed << 32) + step


def _trained(
    job: PPOJob, players: Players, rollout: Rollout, losses: dict[str, TokenLoss], step: int
) -> Row:
    """Optimizer steps on an iteration's answers; the mean of what each measured before it moved
    anything.
    """
    settings, data = job.settings, Data(rollout.groups, [], None)
    rows: list[Row] = []
    for epoch in range(settings.epochs):
        turn = np.random.Generator(np.random.PCG64([settings.seed, step, epoch])).permutation(
            len(rollout.groups)
        )
        for part in np.array_split(turn, min(settings.minibatches, len(turn))):
            micro = data.micro_batches(part.tolist(), rollout.tokens)
            row: Row = {}
            for name, actor in (("policy", players.policy), ("critic", players.critic)):
                if actor is not None:
                    lr = rate(
                        step - 1,
                        lr=actor.lr,
                        schedule=job.plan.schedule,
                        warmup=job.plan.warmup,
                        steps=job.plan.steps,
                    )
                    made, _ = take_step(
                        actor.loaded.net,
                        micro,
                        objective=losses[name],
                        engine=actor.engine,
                        optimizer=actor.optimizer,
                        lr=lr,
                        before={},
                        live=None,
                    )
                    row |= (
                        made
                        if name == "policy"
                        else {RENAMED.get(key, key): value for key, value in made.items()}
                    )
            rows.append(row)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


RENAMED = {"grad_norm": "critic/grad_norm", "learning_rate": "critic/learning_rate"}


def _look(job: PPOJob, players: Players, progress: Progress) -> tuple[Row, Progress]:
    row = held_out(
        players, job.settings, job.asked, job.places, job.held_out, _seed(job.settings.seed, 0)
    )
    return {"step": progress.step, **row}, dataclasses.replace(progress, evaluated=progress.step)


# ---------------------------------------------------------------- checkpoints


def _actors(players: Players) -> dict[str, Actor]:
    return {"policy": players.policy} | ({"critic": players.critic} if players.critic else {})


def _state(players: Players) -> State:
    """All tensors of a checkpoint, each with the name of whose it is before its own."""
    weights = {
        f"{who}:{name}": t
        for who, actor in _actors(players).items()
        for name, t in actor.optimizer.weights().items()
    }
    moments = {
        f"{who}:{name}": t
        for who, actor in _actors(players).items()
        for name, t in actor.optimizer.state().items()
    }
    return weights, moments, {}


def _identity(job: PPOJob, players: Players) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    known = run_record.settings_hash(job.settings.model_dump(by_alias=True, mode="json"))
    weights = hashes.weights_hash(players.policy.loaded.model)
    critic = hashes.weights_hash(players.critic.loaded.model) if players.critic else None
    return {
        "settings": known,
        "weights": weights,
        "critic": critic,
        "reward": players.reward.identity,
    }


def _restore(job: PPOJob, players: Players, kept: Checkpoint | None) -> Progress:
    """The checkpoint's state put back; the start where there is none."""
    if kept is None:
        return Progress()
    for who, actor in _actors(players).items():
        actor.optimizer.load_weights(_of(who, kept.weights))
        actor.optimizer.load_state(_of(who, kept.optimizer))
    say(f"resumed at step {kept.progress.step}")
    if {"beta", "target_kl"} & {
        *job.differ
    }:  # what the controller had come to was for other settings
        return dataclasses.replace(
            kept.progress,
            known={name: value for name, value in kept.progress.known.items() if name != "beta"},
        )
    return kept.progress


def _of(who: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{who}:"): t for name, t in tensors.items() if name.startswith(f"{who}:")
    }
