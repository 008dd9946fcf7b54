"""One optimizer step, and its twin without an update for held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.batch import Batch
from winnow.engine.api import Engine
from winnow.errors import TrainingError
from winnow.objectives.table import Objective
from winnow.train.metrics import Row, Sums, add, divide
from winnow.train.optim import Optimizer
from winnow.train.reference import Reference


def take_step(
    model: nn.Module, batches: Sequence[Batch], *, objective: Objective, reference: Reference | None, engine: Engine, optimizer: Optimizer, lr: float
) -> Row:
    """Sum the loss over all micro-batches, divide once by the weight of the whole batch, clip, update.

    Raises TrainingError before any weight is touched when a loss or gradient is not finite; the message names the rows.
    """
    weight = sum(objective.weight(batch) for batch in batches)
    sums: Sums = {}

    def slope(logp_N: Float[Tensor, " N"], part: Batch) -> Float[Tensor, " N"]:
        logp_N.requires_grad_()
        with torch.enable_grad():
            total = objective.total(logp_N, reference.of(part) if reference else None, part)  # type: ignore[arg-type]
        (slope_N,) = torch.autograd.grad(total, logp_N)
        if not torch.isfinite(total) or not torch.isfinite(slope_N).all():
            optimizer.forget()
            raise TrainingError(f"the loss is not finite in a batch with {_rows(part)}", remedy="a lower --lr or --clip; the last checkpoint is intact")
        add(sums, {"loss": (float(total.detach()), objective.weight(part))})
        return slope_N / weight

    for batch in batches:
        columns = engine.backward(model, batch, slope, want=("entropy",))
        add(sums, {"entropy": (float(columns["entropy"].sum()), float(len(batch.target_N)))})
        add(sums, objective.sums(columns["logp"], reference.of(batch) if reference else None, batch))  # type: ignore[arg-type]
    norm = optimizer.clip_gradients()
    if not norm < float("inf"):
        optimizer.forget()
        raise TrainingError(f"the gradient is not finite after a batch with {_rows(*batches)}", remedy="a lower --lr; the last checkpoint is intact")
    optimizer.step(lr)
    return {**divide(sums), "grad_norm": norm, "learning_rate": lr}


def held_out(model: nn.Module, batches: Iterable[Batch], *, objective: Objective, reference: Reference | None, engine: Engine) -> Row:
    """The same measures over a data set, without an update."""
    sums: Sums = {}
    for batch in batches:
        reference_N = reference.of(batch) if reference else None
        with torch.no_grad():
            columns = engine.logps(model, batch, want=("entropy",))
            total = float(objective.total(columns["logp"], reference_N, batch))  # type: ignore[arg-type]
        add(sums, {"loss": (total, objective.weight(batch)), "entropy": (float(columns["entropy"].sum()), float(len(batch.target_N)))})
        add(sums, objective.sums(columns["logp"], reference_N, batch))  # type: ignore[arg-type]
    return divide(sums)


def _rows(*batches: Batch) -> str:
    wheres = [where for batch in batches for where in batch.wheres]
    return ", ".join(wheres[:8]) + (f" and {len(wheres) - 8} more" if len(wheres) > 8 else "")
