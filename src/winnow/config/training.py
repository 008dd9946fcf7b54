"""Settings of the trainings: SFT, preferences, reward models."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from winnow.config.options import (
    DataSettings,
    FrozenSettings,
    Settings,
    parse_follow,
    parse_lora,
    setting,
)

# What a run may be resumed with without a word, because no number depends on it; and what can
# change though it is no setting.
FREE = ("out", "allow_change", "async_save", "keep", "rank_timeout", "save_every", "trackers")


BESIDES = ("data", "tokenizer", "template", "weights", "reference")


def unknown_change(kind: type[Settings], names: tuple[str, ...], besides: tuple[str, ...]) -> None:
    """Raises ValueError for a name to be changed that is no setting of its kind, nor what can
    change besides.
    """
    changeable = {
        *FREE,
        *besides,
        *(field.alias or name for name, field in kind.model_fields.items()),
    }
    for name in names:
        if name not in changeable:
            near = difflib.get_close_matches(name, changeable, 1)
            raise ValueError(
                f"allow_change: there is no {name!r} to change"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )


class TrainSettings(FrozenSettings, DataSettings):
    """What every trainer shares."""

    data: tuple[str, ...] = setting(
        ...,
        "file, folder or hub name (NAME:split); repeat it to mix several, with weights: --data"
        " a.jsonl@2 --data b.jsonl",
        "data",
        min_length=1,
    )
    stream: int | None = setting(
        None,
        "read, examine, tokenise and shuffle so many rows at a time while training goes on;"
        " default: all of them first",
        "data",
        ge=1,
    )
    eval_data: tuple[str, ...] = setting(
        (), "a held-out set, or NAME=SET, evaluated while training; may be repeated", "data"
    )
    eval_fraction: float = setting(
        0.0, "set this share of the prompts aside for evaluation", "data", ge=0, lt=1
    )
    out: Path = setting(..., "the run folder; the same command again resumes it", "run")
    max_tokens: Annotated[int, Field(ge=2)] | Literal["auto"] | None = setting(  # type: ignore[assignment]
        None,
        "distinct tokens per micro-batch; auto: what fits the memory, up to 16384; default: 1024"
        " (GPU: 8192), or what the largest group needs",
        "amount",
    )
    epochs: float | None = setting(None, "passes over the data (default 1)", "amount", gt=0, le=1e6)
    steps: int | None = setting(None, "optimizer steps, instead of epochs", "amount", ge=1)
    batch_size: int = setting(
        64, "groups (prompts) per optimizer step, whatever the micro-batches", "amount", ge=1
    )
    lr: float | None = setting(None, "peak learning rate", "optimizer", gt=0)
    optimizer: Literal["adamw", "rmsprop"] = setting(
        "adamw", "adamw (betas 0.9, 0.999) or rmsprop (alpha 0.99)", "optimizer"
    )
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "linear", "of the rate after the warm-up", "optimizer"
    )
    warmup: float = setting(
        0.1, "below 1: share of the steps; from 1: number of steps", "optimizer", ge=0
    )
    weight_decay: float = setting(0.0, "decoupled, on matrices only", "optimizer", ge=0)
    clip: float | None = setting(
        1.0, "largest gradient norm; none for no clipping", "optimizer", gt=0
    )
    checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, a third slower", "model"
    )
    engine: Literal["auto", "varlen", "segments", "masks", "single", "rows"] = setting(
        "auto",
        "how log-probs are computed; auto: the fastest way that gives this model's own numbers,"
        " proved at start-up",
        "model",
    )
    compile: bool = setting(
        False,
        "compile the model's layers, for a GPU: a minute at each start, then fewer and larger"
        " kernels (a CPU gains nothing)",
        "model",
    )
    lora: str | None = setting(None, "train an adapter: r=16,alpha=32,targets=auto", "model")
    seed: int = setting(
        0, "of the data order, the evaluation split and new adapters", "data", ge=0, lt=2**63
    )
    save_every: int = setting(100, "steps between checkpoints", "run", ge=1)
    async_save: bool = setting(
        False,
        "copy the state and write it while training goes on (takes memory for the copy)",
        "run",
    )
    keep: int = setting(2, "checkpoints kept (the best one is kept besides)", "run", ge=1)
    save_best: bool = setting(
        False,
        "model/ is the checkpoint with the lowest eval_loss of the first evaluation set, not the"
        " last",
        "run",
    )
    eval_every: int | None = setting(
        None, "steps between evaluations; default: ten times a run", "run", ge=1
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting(
        (), "also send the metrics there", "run"
    )
    allow_change: tuple[str, ...] = setting(
        (),
        "go on although this setting (or data, tokenizer, template, weights, reference) is another"
        " one now; recorded; may be repeated",
        "run",
    )
    rank_timeout: float = setting(
        600,
        "several processes: seconds after which one that gives no sign of life ends the job",
        "run",
        gt=0,
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given: choose one")
        if self.save_best and not (self.eval_data or self.eval_fraction):
            raise ValueError("save_best needs an evaluation set: give eval_data or eval_fraction")
        if self.eval_data and self.eval_fraction:
            raise ValueError("eval_data and eval_fraction are both given: choose one")
        if self.stream is not None and self.steps is None:
            raise ValueError(
                "stream: nobody has counted the rows of a stream, so epochs have no length: give"
                " steps"
            )
        if self.stream is not None and len(self.data) > 1:
            raise ValueError(f"stream reads one data set, and data names {len(self.data)}")
        if self.stream is not None and self.eval_fraction:
            raise ValueError(
                "eval_fraction sets prompts of the whole data aside, and a stream is never seen"
                " whole: give eval_data"
            )
        unknown_change(type(self), self.allow_change, BESIDES)
        if self.compile and self.checkpointing:
            raise ValueError(
                "compile and checkpointing: a compiled layer decides itself what it keeps:"
                " choose one"
            )
        if self.compile and self.quantize:
            raise ValueError(
                "compile and quantize: layers that hold weights in 4 bits are not compiled:"
                " choose one"
            )
        parse_lora(self.lora)
        return self


class SFTSettings(TrainSettings):
    """winnow sft: supervised fine-tuning on demonstrations, or on the preferred completions of
    preference data.
    """

    lr: float | None = setting(
        None, "peak learning rate; default: 2e-5, for an adapter 2e-4", "optimizer", gt=0
    )


class DPOSettings(TrainSettings):
    """winnow dpo: preference training."""

    lr: float | None = setting(
        None, "peak learning rate; default: 5e-7, for an adapter 5e-6", "optimizer", gt=0
    )

    objective: str = setting(
        "dpo",
        "which loss, with settings (simpo:gamma=1.4) or mixed (dpo:0.8,sft:0.2); listed by `winnow"
        " objectives`",
        "objective",
    )
    beta: float | None = setting(
        None,
        "higher keeps the policy closer to the reference; default: the objective's own",
        "objective",
        gt=0,
        le=1e6,
    )
    label_smoothing: float | None = setting(
        None,
        "the share of labels believed to be flipped; default: the objective's own, mostly 0",
        "objective",
        ge=0,
        lt=0.5,
    )
    pairs: Literal["all", "adjacent", "best", "listwise"] | None = setting(
        None,
        "of several answers compare all, neighbours in the ranking, the best with the rest, or take"
        " the ranking whole (plackett_luce); default: all",
        "objective",
    )
    score: Literal["sum", "mean"] | None = setting(
        None,
        "ipo only: margin of summed or of per-token mean log-ratios (default mean)",
        "objective",
    )
    offset: float | None = setting(
        None,
        "beta times the margin a winner must have, per unit of the data's margin (or score gap)",
        "objective",
        ge=0,
    )
    tail_weight: float | None = setting(
        None,
        "LD-DPO: weight of the tokens beyond the shorter answer's length (default 1)",
        "objective",
        ge=0,
        le=1,
    )
    wpo: bool | None = setting(
        None,
        "weigh comparisons by how likely the policy itself would write them (default no)",
        "objective",
    )
    divergence: (
        Literal["reverse_kl", "forward_kl", "js"] | Annotated[float, Field(gt=0, lt=1)] | None
    ) = setting(
        None,
        "f-DPO: reverse_kl, forward_kl, js, or the alpha of an alpha-divergence (default"
        " reverse_kl)",
        "objective",
    )
    moving_reference: str | None = setting(
        None,
        "TR-DPO: the reference follows the policy: mix=0.6 moves it so far each step, every=512"
        " replaces it every so many steps",
        "objective",
    )
    preset: Literal["paper", "zephyr", "tulu3", "simpo", "mpo", "seed"] | None = setting(
        None, "settings people trust, listed in docs/presets.md", "objective"
    )
    kl_samples: int = setting(
        32,
        "answers sampled at each evaluation to measure kl to the reference; 0: none",
        "run",
        ge=0,
    )
    reference: str | None = setting(
        None,
        "another reference than the policy at step 0: a model folder, hub name or run folder",
        "objective",
    )

    @model_validator(mode="after")
    def _follows(self) -> Self:
        if parse_follow(self.moving_reference) is not None and self.reference is not None:
            raise ValueError(
                "moving_reference begins at the policy's own weights, and reference names other"
                " ones: choose one"
            )
        if self.moving_reference is not None and self.save_best:
            raise ValueError(
                "save_best picks the lowest held-out loss; with moving_reference each step's is"
                " against another reference: choose one"
            )
        return self


class RewardSettings(TrainSettings):
    """winnow reward: a reward model, which gives each answer a number."""

    lr: float | None = setting(
        None, "peak learning rate; default: 1e-5, for an adapter 1e-4", "optimizer", gt=0
    )
    pairs: Literal["all", "adjacent", "best", "listwise"] = setting(
        "all",
        "of several answers compare all, neighbours in the ranking, the best with the rest, or take"
        " the ranking whole (Plackett-Luce)",
        "objective",
    )
    label_smoothing: float = setting(
        0.0, "the share of labels believed to be flipped", "objective", ge=0, lt=0.5
    )
    offset: float = setting(
        0.0,
        "by how many nats a winner must be ahead, per unit of the data's margin (or score gap)",
        "objective",
        ge=0,
    )

    @model_validator(mode="after")
    def _scores(self) -> Self:
        if self.quantize is not None:
            raise ValueError(
                "quantize: a reward model's weights are not held in 4 bits: leave quantize away;"
                " lora alone trains an adapter"
            )
        if self.pairs == "listwise" and (self.label_smoothing or self.offset):
            name = "label_smoothing" if self.label_smoothing else "offset"
            raise ValueError(
                f"{name} is about two answers, and pairs listwise takes the ranking as a whole:"
                " choose one"
            )
        return self


def scores(settings: Settings) -> bool:
    """Whether the model that is trained gives answers numbers: a reward model."""
    return isinstance(settings, RewardSettings)
