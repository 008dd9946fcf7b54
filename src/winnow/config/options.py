"""Typed, frozen settings of every command: names, types, defaults, limits, and the sentence
`--help` prints.

No torch here: `--help` is quick.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def setting(default: Any, help: str, group: str, **limits: Any) -> Any:
    """A field with the sentence `--help` prints and the panel it stands in."""
    return Field(default, description=help, json_schema_extra={"group": group}, **limits)


# What a run may be resumed with without a word, because no number depends on it; and what can
# change though it is no setting.
FREE = ("out", "allow_change", "async_save", "keep", "rank_timeout", "save_every", "trackers")
BESIDES = ("data", "tokenizer", "template", "weights", "reference")


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown names are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _one_of_several(cls, values: Any) -> Any:
        """A single name where several may stand: `data: pairs.jsonl` is a list of one."""
        several = {
            name
            for name, field in cls.model_fields.items()
            if get_origin(field.annotation) is tuple
        }
        return {
            name: (value,) if name in several and isinstance(value, str) else value
            for name, value in values.items()
        }

    @field_validator("*")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        """A number that no file, list or tensor counts to is a slip of the finger."""
        if isinstance(value, int) and value >= 2**63:
            raise ValueError(f"must be below 2**63, got {value:.3g}")
        return value


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


class ModelSettings(Settings):
    """Which model, in which precision, on which device."""

    model: str = setting(
        ..., "a transformers folder, a hub name, or a run folder (then its model/)", "model"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = setting(
        "auto",
        "of the weights; auto: float32 on CPU, bfloat16 with float32 master weights on GPU"
        " (bfloat16 is trained on a GPU only)",
        "model",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1 ...", "model")
    trust_remote_code: bool = setting(
        False, "run code that comes with the model (only from the command line)", "model"
    )


class FrozenSettings(ModelSettings):
    """A model whose frozen weights may be held in fewer bits than they were saved in."""

    quantize: Literal["nf4"] | None = setting(
        None,
        "nf4: frozen weights in 4 bits under an adapter (QLoRA), on a GPU, with bitsandbytes; eval"
        " and generate: as the run was trained",
        "model",
    )

    @model_validator(mode="after")
    def _computes_in_bfloat16(self) -> Self:
        if self.quantize is not None and self.dtype not in ("auto", "bfloat16"):
            raise ValueError(
                "quantize and dtype: weights in 4 bits are computed with in bfloat16, got dtype"
                f" {self.dtype}: leave dtype away"
            )
        return self


class DataSettings(Settings):
    """How rows become tokens, and what to do with rows that cannot."""

    as_: Literal["text", "chat"] | None = Field(
        None,
        alias="as",
        description=(
            "string prompts: text leaves them as they are, chat makes them one user turn; default:"
            " by layout"
        ),
        json_schema_extra={"group": "data"},
    )
    chat_template: Path | None = setting(
        None, "a Jinja file to use instead of the tokenizer's chat template", "data"
    )
    max_length: int | None = setting(
        None,
        "tokens of prompt and completion together; default: the model's limit, and nothing may"
        " be cut",
        "data",
        ge=2,
    )
    cut_budget: float | None = setting(
        None,
        "share of completion tokens max_length may cut; default: 0, or 0.1 where max_length is"
        " given",
        "data",
        ge=0,
        le=1,
    )
    on_bad_row: Literal["error", "skip"] = setting(
        "error", "a row that cannot be used stops the run, or is left out and counted", "data"
    )
    limit: int | None = setting(
        None, "use only the first so many rows of each data set", "data", ge=1
    )
    max_tokens: int | None = setting(
        None,
        "distinct tokens per micro-batch; default: 1024, or what the largest group needs",
        "amount",
        ge=2,
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


class CheckSettings(DPOSettings):
    """winnow check: everything but training."""

    out: Path | None = setting(
        None,
        "not used, a check writes nothing: taken so that a training command can be checked as it"
        " stands",
        "run",
    )  # type: ignore[assignment]
    recipe: Literal["dpo", "sft", "reward"] = setting(
        "dpo", "which training to check for", "objective"
    )


class EvalSettings(FrozenSettings, DataSettings):
    """winnow eval: a policy or a reward model against held-out preferences."""

    data: tuple[str, ...] = setting(
        (), "a held-out set, or NAME=SET; may be repeated: each is evaluated by itself", "data"
    )
    rewardbench: str | None = setting(
        None,
        "a file of RewardBench's rows: scores per subset, per section and overall, a tie counts as"
        " wrong",
        "data",
    )
    by: tuple[str, ...] = setting(
        (), "a column of the data: the same figures for each of its values; may be repeated", "data"
    )
    reference: str | None = setting(
        None,
        "the reference of the implicit rewards; default for a run: what it was trained against",
        "model",
    )
    objective: str | None = setting(
        None,
        "which loss to report, listed by `winnow objectives`; default for a run: its own, else dpo",
        "objective",
    )
    beta: float | None = setting(
        None,
        "scales the implicit rewards; default for a run: its own, else the objective's",
        "objective",
        gt=0,
        le=1e6,
    )
    pairs: Literal["all", "adjacent", "best", "listwise"] | None = setting(
        None,
        "which of several answers are compared; default for a run: as it was trained, else all",
        "objective",
    )
    engine: Literal["auto", "varlen", "segments", "masks", "single", "rows"] = setting(
        "auto",
        "how log-probs are computed; auto: the fastest way that gives this model's own numbers,"
        " proved at start-up",
        "model",
    )
    label_noise: bool = setting(
        False,
        "rank comparisons by how likely their label is wrong, estimate the share of flipped ones,"
        " say whether margins are probabilities",
        "objective",
    )
    kl_samples: int = setting(
        0,
        "answers sampled to the held-out prompts, to measure kl to the reference; 0: none",
        "run",
        ge=0,
        le=1_000_000,
    )
    seed: int = setting(0, "of the answers that are sampled", "run", ge=0, lt=2**63)
    out: Path | None = setting(None, "a folder for report.html, report.json and rows.jsonl", "run")

    @model_validator(mode="after")
    def _has_something_to_look_at(self) -> Self:
        if not self.data and self.rewardbench is None:
            raise ValueError(
                "data and rewardbench: neither is given, and there is nothing to evaluate on: give"
                " data"
            )
        if self.by and not self.data:
            raise ValueError(
                "by: splits the held-out sets, and only rewardbench is given, which has subsets of"
                " its own: give data"
            )
        return self


class ExportSettings(ModelSettings):
    """winnow export: a plain model folder, proved to be the model that was trained."""

    out: Path = setting(..., "a new folder", "run")
    merge: bool = setting(False, "add the adapter into the weights of its base model", "model")


class DemoSettings(Settings):
    """winnow demo: the whole way on a small world made here."""

    out: Path = setting(Path("runs/demo"), "a folder for the runs and the report", "run")
    seed: int = setting(0, "of everything in it", "run", ge=0, lt=2**62)
    frontier: bool = setting(
        False,
        "then reward against KL for several methods, as winnow frontier --quick does: some minutes"
        " more",
        "amount",
    )


class FrontierSettings(Settings):
    """winnow frontier: reward against KL for every method, beside the most there can be."""

    out: Path = setting(
        ...,
        "a folder for the runs and the report; the same command again goes on where it stopped",
        "run",
    )
    quick: bool = setting(False, "fewer, shorter runs: minutes instead of half an hour", "amount")
    seeds: int | None = setting(
        None,
        "trainings of each setting, each with labels of its own, in both worlds (default 3, quick"
        " 2, reviews 1, or as many as there are); more of them go on",
        "amount",
        ge=1,
        le=100,
    )
    seed: int = setting(
        0, "of the worlds, and the first one of the trainings", "run", ge=0, lt=2**62
    )


def scores(settings: Settings) -> bool:
    """Whether the model that is trained gives answers numbers: a reward model."""
    return isinstance(settings, RewardSettings)


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter: rank, alpha, and the names of the modules it stands beside ("auto": by
    architecture).
    """

    r: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("auto",)


def parse_lora(text: str | None) -> Lora | None:
    """`r=16,alpha=32,targets=q_proj+v_proj`, each part optional; `auto` for all defaults. Raises
    ValueError.
    """
    if text is None:
        return None
    values: dict[str, Any] = {}
    for part in text.split(",") if text != "auto" else []:
        name, _, value = part.strip().partition("=")
        if name == "dropout":
            raise ValueError(
                "lora: dropout would make log-probs random, so it is always 0: leave it away"
            )
        if name not in ("r", "alpha", "targets") or not value:
            raise ValueError(
                f"lora: got {part.strip()!r}, expected r=16,alpha=32,targets=auto or"
                " targets=q_proj+v_proj"
            )
        if name != "targets" and not (value.isdecimal() and 0 < int(value) <= 1_000_000):
            raise ValueError(
                f"lora: {name} must be a whole number above 0, at most 1,000,000, got {value!r}"
            )
        values[name] = tuple(value.split("+")) if name == "targets" else int(value)
    return Lora(**values)


@dataclass(frozen=True, slots=True)
class Follow:
    """How a moving reference follows: every so many steps it becomes mix times the policy plus the
    rest of itself.
    """

    mix: float = 1.0
    every: int = 1


def parse_follow(text: str | None) -> Follow | None:
    """`mix=0.6`, `every=512`, or both. Raises ValueError."""
    if text is None:
        return None
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            values[name] = {"mix": float, "every": int}[name](value)
        except (KeyError, ValueError):
            raise ValueError(
                f"moving_reference: got {part.strip()!r}, expected mix=0.6 or every=512, or both"
            ) from None
    follow = Follow(**values)
    if not 0 < follow.mix <= 1 or follow.every < 1:
        raise ValueError(
            f"moving_reference: got {text!r}, expected mix above 0, at most 1, and every from 1 on"
        )
    if follow == Follow():
        raise ValueError(
            "moving_reference: mix=1 at every step makes policy and reference the same, and nothing"
            " is learnt"
        )
    return follow
