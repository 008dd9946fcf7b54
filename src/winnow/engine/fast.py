"""The fast engines: hidden states by one of several ways, log-probs of the scored ones by
`engine.head`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from winnow.engine import head, masks, output_head, segments, unpadded, varlen
from winnow.engine.base import Columns, NextTokenDistribution, Slope
from winnow.engine.batch import Batch
from winnow.models import fsdp
from winnow.models.adapters import is_adapter
from winnow.models.fsdp import Shards, released, through


@dataclass(frozen=True)
class Tiled:
    """An engine: `hidden(model, batch)` gives the hidden states that predict something, while
    `inside(model, batch)` holds.
    """

    NAME: str
    hidden: Callable[[Any, Batch], Tensor]
    inside: Callable[[Any, Batch], AbstractContextManager[None]]

    def logps(
        self,
        model: Any,
        batch: Batch,
        want: Sequence[str] = (),
        other: NextTokenDistribution | None = None,
    ) -> Columns:
        """log p of every scored token (nats, float32 or better), differentiable; what `want` names
        is not.
        """
        inner = bare(model)
        with self.inside(inner, batch):
            state_UH = through(model, lambda: self.hidden(inner, batch))
        columns = output_head.logps(head.head_of(inner), state_UH, batch, want, other)
        released(model)
        return columns

    def backward(
        self,
        model: Any,
        batch: Batch,
        slope: Slope,
        want: Sequence[str] = (),
        other: NextTokenDistribution | None = None,
    ) -> Columns:
        """One forward pass; the slopes of the loss, group by group; one backward pass."""
        inner = bare(model)
        with self.inside(inner, batch):
            state_UH = through(model, lambda: self.hidden(inner, batch))
            return output_head.backward(head.head_of(inner), state_UH, batch, slope, want, other)

    def said(self, model: Any, batch: Batch) -> NextTokenDistribution:
        """What the model says of the batch: its hidden states and the head they were made for."""
        inner = bare(model)
        with torch.no_grad(), self.inside(inner, batch):
            state_UH = through(model, lambda: self.hidden(inner, batch))
            said = output_head.Distribution(
                head.head_of(inner).detached(copy=isinstance(model, Shards)), state_UH
            )
            released(model)
            return said


def bare(model: Any) -> Any:
    """The transformers model, whether or not it is sharded or an adapter is laid on it."""
    inner = fsdp.bare(model)
    return inner.get_base_model() if is_adapter(inner) else inner


VARLEN = Tiled(varlen.NAME, varlen.hidden, varlen.inside)
SEGMENTS = Tiled(segments.NAME, segments.hidden, segments.inside)
MASKS = Tiled(masks.NAME, masks.hidden, masks.inside)
SINGLE = Tiled(unpadded.NAME, unpadded.hidden, unpadded.inside)
