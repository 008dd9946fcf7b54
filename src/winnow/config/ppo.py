"""Settings of training on rewards: answers are sampled, scored, and what scored well is made
likelier
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from winnow.config.collection import PromptSettings
from winnow.config.judges import RewardName, parse_reward
from winnow.config.options import ModelSettings, parse_lora, setting
from winnow.config.training import unknown_change


class PPOSettings(PromptSettings, ModelSettings):
    """winnow ppo: the policy is trained on rewards of its own answers."""

    prompts: str = setting(
        ...,
        "prompts: a text file with one per line, or any data set; what they were answered with"
        " there is not read",
        "data",
    )
    reward: str = setting(
        ...,
        "who scores answers: a reward model (winnow reward RUN, or a sequence classifier), or a"
        " Python function score(prompt, completion) -> number, as module:function or"
        " FILE.py:function; it may name columns of the prompts as further parameters",
        "objective",
    )
    out: Path = setting(..., "the run folder; the same command again resumes it", "run")
    limit: int | None = setting(None, "only the first so many prompts", "data", ge=1)
    eval_fraction: float = setting(
        0.0,
        "set this share of the prompts aside: score with interval, and exact KL, while training",
        "data",
        ge=0,
        lt=1,
    )
    seed: int = setting(
        0,
        "of the order of prompts, of what is sampled, and of the minibatches",
        "data",
        ge=0,
        lt=2**63,
    )

    steps: int = setting(
        100,
        "iterations: each samples answers anew, scores them, and trains on them",
        "amount",
        ge=1,
    )
    batch_size: int = setting(128, "prompts per iteration", "amount", ge=1)
    k: int = setting(4, "answers to each prompt", "amount", ge=1)
    epochs: int = setting(4, "passes over an iteration's answers", "amount", ge=1)
    minibatches: int = setting(
        1, "optimizer steps per pass, each with an equal share of the prompts", "amount", ge=1
    )
    max_tokens: int | None = setting(
        None,
        "distinct tokens per micro-batch; default: 1024 (GPU: 8192), or what a prompt with its"
        " answers needs",
        "amount",
        ge=2,
    )

    advantage: Literal["gae", "rloo", "grpo"] = setting(
        "gae",
        "gae: from a critic's values; rloo, grpo: without a critic, from the other answers to the"
        " same prompt",
        "objective",
    )
    beta: float = setting(
        0.05,
        "what a nat of KL to the reference costs, in units of the reward; with target_kl: the first"
        " value",
        "objective",
        ge=0,
        le=1e6,
    )
    target_kl: float | None = setting(
        None,
        "nats per answer: beta is moved until the KL is this; default: beta is fixed",
        "objective",
        gt=0,
    )
    horizon: float = setting(
        10_000,
        "answers in which beta is moved by a factor e where the KL is far off (with target_kl)",
        "objective",
        gt=0,
    )
    clip_range: float = setting(
        0.2, "how far a token's probability ratio may move in one iteration", "objective", gt=0
    )
    value_clip: float | None = setting(
        None,
        "how far a value may move in one iteration, in units of the reward; default: any way",
        "objective",
        gt=0,
    )
    gamma: float = setting(1.0, "discount per token", "objective", ge=0, le=1)
    lam: float = setting(
        0.95,
        "of generalised advantage estimation: 1 trusts what was sampled, 0 the critic",
        "objective",
        ge=0,
        le=1,
    )
    whiten_rewards: bool = setting(
        False, "divide rewards by their deviation over the iteration, with a critic", "objective"
    )
    whiten_advantages: bool | None = setting(
        None,
        "advantages of mean 0 and deviation 1 over the iteration; default: with a critic",
        "objective",
    )
    unfinished: float | None = setting(
        None,
        "the score of an answer that was cut off at max_new_tokens; default: what the reward says"
        " of it",
        "objective",
    )
    critic: str | None = setting(
        None,
        "whose weights the critic begins with, under a head of zeros: a model; default: the reward"
        " model, where there is none the policy",
        "objective",
    )

    lr: float | None = setting(
        None,
        "the policy's peak learning rate; default: 3e-6, for an adapter 3e-5; a small model wants"
        " it, and critic_lr, up to 100 times higher",
        "optimizer",
        gt=0,
    )
    critic_lr: float | None = setting(
        None, "the critic's; default: 3 times lr where lr is given, else 9e-6", "optimizer", gt=0
    )
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "linear", "of both rates, over the iterations", "optimizer"
    )
    warmup: float = setting(
        0.0, "below 1: share of the iterations; from 1: number of iterations", "optimizer", ge=0
    )
    weight_decay: float = setting(0.0, "decoupled, on matrices only", "optimizer", ge=0)
    clip: float | None = setting(
        1.0, "largest gradient norm; none for no clipping", "optimizer", gt=0
    )
    lora: str | None = setting(None, "train an adapter: r=16,alpha=32,targets=auto", "model")

    save_every: int = setting(10, "iterations between checkpoints", "run", ge=1)
    keep: int = setting(2, "checkpoints kept", "run", ge=1)
    eval_every: int | None = setting(
        None, "iterations between evaluations; default: ten times a run", "run", ge=1
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting(
        (), "also send the metrics there", "run"
    )

    allow_change: tuple[str, ...] = setting(
        (),
        "go on although this setting (or prompts, weights, critic, reward) is another one now;"
        " recorded; may be repeated",
        "run",
    )

    @property
    def reward_name(self) -> RewardName:
        """The reward, parsed."""
        return parse_reward(self.reward)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        unknown_change(type(self), self.allow_change, ("weights",))
        critics = {
            "critic": self.critic,
            "critic_lr": self.critic_lr,
            "whiten_rewards": self.whiten_rewards or None,
        }
        critics |= {
            name: (
                getattr(self, name)
                if getattr(self, name) != PPOSettings.model_fields[name].default
                else None
            )
            for name in ("gamma", "lam", "value_clip")
        }
        idle = [name for name, value in critics.items() if value is not None]
        if self.advantage != "gae" and idle:
            raise ValueError(
                f"{', '.join(idle)}: of no use to {self.advantage}, which has no critic"
            )
        if self.advantage != "gae" and self.k < 2:
            raise ValueError(
                f"k: {self.advantage} compares answers to one prompt, and k is 1: give 2 or more"
            )
        if self.target_kl is not None and (self.beta == 0 or self.advantage == "grpo"):
            raise ValueError(
                "target_kl moves beta by factors: give a beta above 0, and an advantage that pays"
                " for the KL in its rewards (gae, rloo)"
            )
        if self.target_kl is None and self.horizon != PPOSettings.model_fields["horizon"].default:
            raise ValueError("horizon says how fast beta moves, and without target_kl it is fixed")
        if self.target_kl is not None and self.batch_size * self.k >= 5 * self.horizon:
            raise ValueError(
                f"horizon: {self.batch_size * self.k:,} answers per iteration would turn beta below"
                " 0: give more than a fifth of that"
            )
        if self.minibatches > self.batch_size:
            raise ValueError(
                f"minibatches: {self.minibatches} of {self.batch_size} prompts would be empty: give"
                " at most batch_size"
            )
        if (
            self.epochs == self.minibatches == 1
            and self.clip_range != PPOSettings.model_fields["clip_range"].default
        ):
            raise ValueError(
                "clip_range: with one pass and one minibatch every ratio is 1 and nothing is"
                " clipped: leave it away"
            )
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup:g} is more than the {self.steps} steps")
        if self.eval_every is not None and not self.eval_fraction:
            raise ValueError("eval_every: there are no prompts to evaluate on: give eval_fraction")
        parse_lora(self.lora)
        return self
