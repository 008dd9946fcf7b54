"""The waist: numbers per scored token come out, slopes go back in, nothing else passes.

Whatever an engine does inside, its values and gradients equal those of `engine.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from winnow.batch import Batch

Columns = dict[str, Float[Tensor, " N"]]  # "logp" always; "entropy" on request; nats, at least float32
Slope = Callable[[Float[Tensor, " N"], Batch], Float[Tensor, " N"]]


@runtime_checkable
class Engine(Protocol):
    """What every engine offers."""

    @property
    def NAME(self) -> str:
        """How messages, run folders and the reference store call it."""
        ...

    def logps(self, model: nn.Module, batch: Batch, want: Sequence[str] = ()) -> Columns:
        """log p(target | everything before it) of every scored token, differentiable, and what `want` names."""
        ...

    def backward(self, model: nn.Module, batch: Batch, slope: Slope, want: Sequence[str] = ()) -> Columns:
        """Add d loss / d parameter to the gradients, where `slope(logp_N, part)` is d loss / d logp_N of a part of the batch:
        whole groups, each asked for once, in order. Columns are of the whole batch, detached.
        """
        ...
