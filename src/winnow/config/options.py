"""Typed, frozen settings of every command: names, types, defaults, limits, and the sentence
`--help` prints.

No torch here: `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def setting(default: Any, help: str, group: str, **limits: Any) -> Any:
    """A field with the sentence `--help` prints and the panel it stands in."""
    return Field(default, description=help, json_schema_extra={"group": group}, **limits)


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
