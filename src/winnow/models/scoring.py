"""How good is each answer? The scores of a reward model: a sequence classifier with one label."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from winnow.data.records import Text
from winnow.data.render import Renderer
from winnow.errors import DataError, Problem
from winnow.models.loading import LoadedModel

ROWS, TOKENS = 64, 2**14  # most answers that are scored together, and most of their tokens
# the longest of a batch is at most so many times as long as its shortest: the rest would be padding
SLACK = 1.1


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A prompt with one answer; `where` it stands, for messages."""

    prompt: Text
    answer: Text
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    where: str = ""


def scores(loaded: LoadedModel, dialogues: Sequence[Dialogue]) -> list[float]:
    """A score for each; what stands there several times is scored once.

    Where the tokenizer has a chat template, text is one turn of the user and one of the assistant.
    Raises DataError for what is too long, and where a score is no number. What is scored together
    is padded to one length, which moves a score by rounding: the same dialogues, the same scores.
    """
    renderer = Renderer(loaded.tokenizer, whole=True)
    ids = [renderer.whole_ids(one.prompt, one.answer, one.tools, one.where) for one in dialogues]
    _refuse_long(loaded, dialogues, ids)
    config: Any = loaded.model.config.get_text_config()
    padded = config.pad_token_id is not None and config.pad_token_id >= 0
    if not padded:
        # no token is this one, and none is written: transformers wants it named before it takes
        # several rows
        config.pad_token_id = -1
    known: dict[tuple[int, ...], float] = {}
    for part in _batches(
        sorted(set(ids), key=lambda row: (len(row), row)), SLACK if padded else 1.0
    ):
        known |= dict(zip(part, _scored(loaded, part, config.pad_token_id)))
    bad = [
        Problem(one.where, "", "has a score that is no finite number")
        for one, row in zip(dialogues, ids)
        if not math.isfinite(known[row])
    ]
    if bad:
        raise DataError(
            f"{loaded.source}: answers without a score: {len(bad):,}",
            bad,
            remedy="--dtype float32, or another reward model",
        )
    return [known[row] for row in ids]


def _batches(rows: Sequence[tuple[int, ...]], slack: float) -> Iterator[list[tuple[int, ...]]]:
    """Rows in ascending length, cut where the longest would be more than `slack` times the
    shortest.
    """
    part: list[tuple[int, ...]] = []
    for row in rows:
        if part and (
            len(row) > slack * len(part[0])
            or len(part) == ROWS
            or (len(part) + 1) * len(row) > TOKENS
        ):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


@torch.no_grad()
def _scored(loaded: LoadedModel, rows: Sequence[tuple[int, ...]], pad: int) -> list[float]:
    """The model's own scores of rows that are padded to the longest, which is the last."""
    width = len(rows[-1])
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=loaded.device)
    mask = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in rows], device=loaded.device
    )
    return [
        float(score)
        for score in loaded.model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
    ]


def _refuse_long(
    loaded: LoadedModel, dialogues: Sequence[Dialogue], ids: Sequence[tuple[int, ...]]
) -> None:
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return
    long = [
        Problem(one.where, "", f"has {len(row):,} tokens, the model's limit is {limit:,}")
        for one, row in zip(dialogues, ids)
        if len(row) > limit
    ]
    if long:
        raise DataError(
            f"{loaded.source}: answers that cannot be scored: {len(long):,}",
            long,
            remedy="leave them away, or take a model that reads more",
        )
