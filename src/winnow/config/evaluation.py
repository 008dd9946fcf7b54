"""Settings of the commands that look at models and runs, and of the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from winnow.config.collection import AnswerSettings, JudgingSettings
from winnow.config.options import DataSettings, FrozenSettings, ModelSettings, Settings, setting
from winnow.config.training import DPOSettings


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


class WinrateSettings(AnswerSettings, JudgingSettings):
    """winnow winrate: how often models' answers are preferred to a baseline's, and how sure that
    is.
    """

    models: tuple[str, ...] = setting(
        ...,
        "two or more: a model (folder, run folder, hub name), or a file of answers (rows with"
        " prompt and completion); the last is the baseline",
        "needed",
    )
    prompts: str = setting(
        ...,
        "prompts: a text file with one per line, or any data set; what they were answered with"
        " there is not read",
        "data",
    )
    limit: int | None = setting(None, "only the first so many prompts", "data", ge=1)
    k: int = setting(
        1,
        "answers of each model to a prompt; each is a game against one of the other's",
        "amount",
        ge=1,
    )
    temperatures: tuple[float, ...] = setting(
        (),
        "also sample each model at these, 0,0.25,0.5,0.75,1 for example, and judge that against the"
        " baseline, whose answers stay as they are",
        "amount",
    )
    sampler: Literal["transformers", "vllm"] = setting(
        "transformers", "what samples; vllm: on a GPU, where it is installed", "model"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = setting(
        "auto", "of models and a reward model; auto: float32 on CPU, bfloat16 on GPU", "model"
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1 ...", "model")
    quantize: Literal["nf4"] | None = setting(
        None, "nf4: weights in 4 bits, on a GPU; default: as each run was trained", "model"
    )
    trust_remote_code: bool = setting(
        False, "run code that comes with a model (only from the command line)", "model"
    )
    out: Path = setting(..., "a folder; the same command again goes on where it stopped", "run")

    @field_validator("temperatures", mode="before")
    @classmethod
    def _listed(cls, values: Any) -> Any:
        """`0,0.5,1` is three of them."""
        return (
            tuple(
                part
                for value in values
                for part in (value.split(",") if isinstance(value, str) else (value,))
            )
            if isinstance(values, tuple | list)
            else values
        )

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if len(self.models) < 2:
            raise ValueError("models: give two or more, the baseline last")
        if self.judge.startswith("column:"):
            raise ValueError(
                "judge: answers have no column beside them: a function module:function can look up"
                " what is right for a prompt"
            )
        if any(value < 0 for value in self.temperatures) or len(set(self.temperatures)) < len(
            self.temperatures
        ):
            raise ValueError(
                "temperatures: expected different numbers from 0, for example 0,0.25,0.5,0.75,1"
            )
        if self.k > 1 and self.temperature == 0:
            raise ValueError(
                "k: at temperature 0 all answers of a model to a prompt are the same: leave k away"
            )
        return self
