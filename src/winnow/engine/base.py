"""The waist: numbers per scored token come out, slopes go back in, nothing else passes.

Whatever an engine does inside, its values and gradients equal those of `engine.rows`. Columns, in
nats, at least float32:

logp: log p(target), always. On request: entropy of the whole distribution; collision, log sum_v
p(v)^2, which is the log of the probability that two draws agree; kl, KL(q || p) from what another
model says there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.engine.batch import Batch

Columns = dict[str, Float[Tensor, " N"]]
# d loss / d column, for "logp" and, where it was asked for, "kl"
Slope = Callable[[Columns, Batch], Columns]


def no_slope(columns: Columns, part: Batch) -> Columns:
    """A loss that depends on nothing: for a backward pass whose gradients are to be 0."""
    return {name: torch.zeros_like(columns[name]) for name in ("logp", "kl") if name in columns}


@runtime_checkable
class NextTokenDistribution(Protocol):
    """What another model says of a batch: log-probs of the whole vocabulary at each hidden state
    that predicts something.
    """

    def logp(self, first: int, last: int) -> Float[Tensor, "U V"]:
        """Of the states from `first` to `last`."""
        ...

    def targets(self, batch: Batch) -> Float[Tensor, " N"]:
        """Of the batch's scored tokens alone."""
        ...


@runtime_checkable
class Engine(Protocol):
    """What every engine offers."""

    @property
    def NAME(self) -> str:
        """How messages, run folders and the reference store call it."""
        ...

    def logps(
        self,
        model: nn.Module,
        batch: Batch,
        want: Sequence[str] = (),
        other: NextTokenDistribution | None = None,
    ) -> Columns:
        """log p(target | everything before it) of every scored token, differentiable, and what
        `want` names, which is not.
        """
        ...

    def backward(
        self,
        model: nn.Module,
        batch: Batch,
        slope: Slope,
        want: Sequence[str] = (),
        other: NextTokenDistribution | None = None,
    ) -> Columns:
        """Add d loss / d parameter to the gradients, where `slope(columns, part)` is d loss / d
        column of a part of the batch: whole groups, each asked for once, in order. Columns are of
        the whole batch, detached. other: for "kl".
        """
        ...

    def said(self, model: nn.Module, batch: Batch) -> NextTokenDistribution:
        """What a model says of the batch, without gradients, whatever becomes of its weights
        afterwards.
        """
        ...
