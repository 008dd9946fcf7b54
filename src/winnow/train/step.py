"""One optimizer step, and its twin without an update for held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.batch import Batch
from winnow.engine.api import Columns, Engine
from winnow.errors import TrainingError
from winnow.objectives.table import Objective
from winnow.train.metrics import Row, Sums, add, divide
from winnow.train.optim import Optimizer
from winnow.train.reference import Reference


def take_step(
    model: nn.Module, batches: Sequence[Batch], *, objective: Objective, reference: Reference | None, engine: Engine, optimizer: Optimizer, lr: float
) -> Row:
    """Sum the loss over all micro-batches, divide once by the weight of the whole batch, clip, update.

    The batches wait on the CPU and nothing is read back before the last of them, so a GPU is never waited for in between.
    Raises TrainingError before any weight is touched when a loss or gradient is not finite; the message names the rows.
    """
    weight = sum(objective.weight(batch) for batch in batches)
    device = next(model.parameters()).device
    asked: list[tuple[Tensor, Tensor, Batch]] = []  # loss, whether all is finite, of which part

    def slope(logp_N: Float[Tensor, " N"], part: Batch) -> Float[Tensor, " N"]:
        logp_N.requires_grad_()
        with torch.enable_grad():
            total = objective.total(logp_N, reference.of(part) if reference else None, part)  # type: ignore[arg-type]
        (slope_N,) = torch.autograd.grad(total, logp_N)
        asked.append((total.detach(), torch.isfinite(total) & torch.isfinite(slope_N).all(), part))
        return slope_N / weight

    found = [engine.backward(model, batch.to(device), slope, want=("entropy",)) for batch in batches]
    losses, fine = (torch.stack(values).cpu() for values in list(zip(*asked))[:2])
    if not fine.all():
        optimizer.forget()
        bad = asked[int(fine.int().argmin())][2]
        raise TrainingError(f"the loss is not finite in a batch with {_rows(bad)}", remedy="a lower --lr or --clip; the last checkpoint is intact")
    norm = optimizer.clip_gradients()
    if not norm < float("inf"):
        optimizer.forget()
        raise TrainingError(f"the gradient is not finite after a batch with {_rows(*batches)}", remedy="a lower --lr; the last checkpoint is intact")
    optimizer.step(lr)
    sums: Sums = {"loss": (float(losses.double().sum()), weight)}
    for batch, columns in zip(batches, found):
        _measure(sums, columns, batch, objective, reference)
    return {**divide(sums), "grad_norm": norm, "learning_rate": lr}


def held_out(model: nn.Module, batches: Iterable[Batch], *, objective: Objective, reference: Reference | None, engine: Engine) -> Row:
    """The same measures over a data set, without an update."""
    sums: Sums = {}
    device = next(model.parameters()).device
    for batch in batches:
        with torch.no_grad():
            columns = engine.logps(model, batch.to(device), want=("entropy",))
        logp_N = _measure(sums, columns, batch, objective, reference)
        total = objective.total(logp_N, reference.of(batch) if reference else None, batch)  # type: ignore[arg-type]
        add(sums, {"loss": (float(total), objective.weight(batch))})
    return divide(sums)


def _measure(sums: Sums, columns: Columns, batch: Batch, objective: Objective, reference: Reference | None) -> Float[Tensor, " N"]:
    """What dashboards show of a batch, added up on the CPU; its log-probs there."""
    logp_N = columns["logp"].cpu()
    add(sums, {"entropy": (float(columns["entropy"].double().sum()), float(len(batch.target_N)))})
    add(sums, objective.sums(logp_N, reference.of(batch) if reference else None, batch))  # type: ignore[arg-type]
    return logp_N


def _rows(*batches: Batch) -> str:
    wheres = [where for batch in batches for where in batch.wheres]
    return ", ".join(wheres[:8]) + (f" and {len(wheres) - 8} more" if len(wheres) > 8 else "")
