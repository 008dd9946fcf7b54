"""The log-probs of a whole data set under one model, without gradients: one number per scored
token, in the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from winnow.data.packing import pack_all
from winnow.data.render import RenderedGroup
from winnow.data.tokens import tokens_of
from winnow.engine.base import Engine
from winnow.engine.batch import Batch, collate
from winnow.errors import TrainingError
from winnow.system import distributed
from winnow.system.launch import count, rank


def offsets(groups: Sequence[RenderedGroup]) -> NDArray[Any]:
    """Where each group's scored tokens begin in one long vector; one more entry for the end."""
    tokens = tokens_of(groups)
    ends = np.cumsum(tokens.columns["length"] - tokens.columns["start"], dtype=np.int64)
    return np.asarray(np.concatenate([np.zeros(1, np.int64), ends])[tokens.sequence_at])


def dataset_logps(
    engine: Engine,
    model: nn.Module,
    groups: Sequence[RenderedGroup],
    tokens: int,
    device: torch.device,
    tick: Callable[[int], None] = lambda number: None,
    *,
    whose: str,
    kind: str = "log-probs",
    share: bool = False,
) -> Float[Tensor, " all"]:
    """What the engine gives for every scored token of all groups. `tick(n)` receives how many
    groups each micro-batch finished.

    whose: the model's part in words, and kind: what its numbers are, for the error about numbers
    that are not finite. share: each process of the job computes its part, and all get all;
    otherwise each process that calls computes everything.
    """
    start = offsets(groups)
    value: Tensor | None = None
    ranks = count() if share else 1
    for number, part in enumerate(pack_all(groups, tokens, ranks=ranks)):
        if number % ranks != (rank() if share else 0):
            continue
        # a process without a part of its own computes with the others all the same
        items = part or [0]
        batch = collate([groups[i] for i in items], items)
        with torch.no_grad():
            logp_N = engine.logps(model, batch.to(device))["logp"].cpu()
        if not torch.isfinite(logp_N).all():
            rows = ", ".join(batch.wheres[:5])
            raise TrainingError(
                f"{whose} gives {kind} that are not finite for one of {rows}",
                remedy="check the model's weights and dtype",
            )
        if value is None:
            value = torch.zeros(start[-1], dtype=logp_N.dtype)
        for i, group_N in zip(part, logp_N.split([int(start[i + 1] - start[i]) for i in items])):
            value[start[i] : start[i + 1]] = group_N
        tick(len(part) * ranks)
    if value is None:
        return torch.empty(0)
    # the parts of the other processes are 0 here
    return distributed.summed(value) if share else value


@dataclass(frozen=True)
class PerToken:
    """A number per scored token of a data set: group i owns `value[start[i] : start[i + 1]]`,
    completion by completion.
    """

    value: Float[Tensor, " all"]
    start: NDArray[Any]

    def of(self, batch: Batch) -> Float[Tensor, " N"]:
        """The batch's N numbers, in its order, on its device."""
        parts = [self.value[self.start[i] : self.start[i + 1]] for i in batch.items]
        return torch.cat(parts).to(batch.target_N.device, non_blocking=True)


@dataclass(frozen=True)
class Reference:
    """Reference log-probs of a data set: group i owns `value[start[i] : start[i + 1]]`, completion
    by completion.
    """

    identity: str
    value: Float[Tensor, " all"]
    start: NDArray[Any]

    def of(self, batch: Batch) -> Float[Tensor, " N"]:
        """The batch's N reference log-probs, in its order, on its device."""
        return PerToken(self.value, self.start).of(batch)

    def into(self, batch: Batch) -> Batch:
        """The batch with them in it."""
        return replace(batch, reference_N=self.of(batch))
