"""One optimizer step, and its twin without an update for held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.batch import Batch, joined
from winnow.engine.api import Columns, Engine, Said, Slope
from winnow.errors import TrainingError
from winnow.objectives.scores import with_margin
from winnow.objectives.terms import Known, Objective
from winnow.train.live import Live
from winnow.train.metrics import Row, Sums, add, divide
from winnow.train.optim import Optimizer

CPU = torch.device("cpu")
Kept = tuple[dict[str, Tensor], Batch]  # columns of a batch, kept until all are there
Part = tuple[Tensor, Tensor, Batch]  # each term's sum over a part of a batch, whether all of it is finite, the part


def take_step(
    model: nn.Module, batches: Sequence[Batch], *, objective: Objective, engine: Engine, optimizer: Optimizer, lr: float, before: Known, live: Live | None
) -> tuple[Row, Known]:
    """Sum the loss over all micro-batches, divided by the weight of the whole batch; clip; update. Also what is now known of the batch.

    The batches wait on the CPU and nothing is read back before the last of them, so a GPU is never waited for in between (but for what
    must be known of a whole batch, and for rankings).
    before: what was known at the step before. live: the reference, where it is asked now and not in advance.
    Raises TrainingError before any weight is touched when a loss or gradient is not finite; the message names the rows.
    """
    counts = objective.counts([joined(batches)] if objective.whole else batches)
    parts: list[Part] = []
    known, whole = _whole(model, batches, objective, counts, engine, before, live) if objective.whole else ({}, None)
    seen: list[Kept] = []
    for i, batch in enumerate(batches):
        ready, other = _asked(model, batch, live)
        slope = _given(*whole[i], parts) if whole else _taken(objective, counts, parts)
        seen.append((engine.backward(model, ready, slope, objective.want, other), batch if live is None else ready))
    totals, fine = (torch.stack(values).cpu() for values in list(zip(*parts))[:2])
    if not fine.all():
        optimizer.forget()
        bad = parts[int(fine.int().argmin())][2]
        raise TrainingError(f"the loss is not finite in a batch with {_rows(bad)}", remedy="a lower --lr or --clip; the last checkpoint is intact")
    norm = optimizer.clip_gradients()
    if not norm < float("inf"):
        optimizer.forget()
        raise TrainingError(f"the gradient is not finite after a batch with {_rows(*batches)}", remedy="a lower --lr; the last checkpoint is intact")
    optimizer.step(lr)
    sums: Sums = {}
    for columns, batch in seen:
        _measure(sums, columns, batch, objective)
    row = objective.losses(totals.double().sum(0).tolist(), counts) | with_margin(divide(sums))
    logged = {name: value for name, value in known.items() if not name.endswith("/steps")}
    return {**row, **logged, "grad_norm": norm, "learning_rate": lr}, known


def held_out(model: nn.Module, batches: Iterable[Batch], *, objective: Objective, engine: Engine, before: Known, live: Live | None) -> Row:
    """The same measures over a data set, without an update. What must be known of a whole batch is told of the whole set."""
    sums: Sums = {}
    kept: list[Kept] = []
    totals, counts = ([0.0] * len(objective.terms) for _ in range(2))

    def count(columns: Columns, batch: Batch, known: Known) -> None:
        for i, (total, units) in enumerate(zip(objective.totals(columns, batch, known), objective.counts([batch]))):
            totals[i] += float(total)
            counts[i] += units
        _measure(sums, columns, batch, objective)

    for batch in batches:
        ready, other = _asked(model, batch, live)
        with torch.no_grad():
            columns = {name: value_N.cpu() for name, value_N in engine.logps(model, ready, objective.want, other).items()}
        kept.append((columns, ready.to(CPU)))
        if not objective.whole:
            count(*kept.pop(), {})
    if objective.whole:
        columns, batch = _together(kept)
        count(columns, batch, objective.known(columns, batch, before, train=False))
    return objective.losses(totals, counts) | with_margin(divide(sums))


def _asked(model: nn.Module, batch: Batch, live: Live | None) -> tuple[Batch, Said | None]:
    """The batch on the model's device, and what a live reference says of it."""
    ready = batch.to(next(model.parameters()).device)
    return live.ask(model, ready) if live else (ready, None)


def _taken(objective: Objective, counts: Sequence[float], parts: list[Part]) -> Slope:
    """The slopes of each part of a batch, found as they are asked for."""

    def slope(columns: Columns, part: Batch) -> Columns:
        totals, slopes = objective.slopes(columns, part, counts, {})
        parts.append((totals, torch.isfinite(totals).all() & _finite(slopes), part))
        return slopes

    return slope


def _given(totals: Float[Tensor, " terms"], slopes: Columns, parts: list[Part]) -> Slope:
    """Slopes that are known already, handed out part by part; the first part answers for the totals."""
    at = 0

    def slope(columns: Columns, part: Batch) -> Columns:
        nonlocal at
        mine = {name: value_N[at : at + len(part.target_N)] for name, value_N in slopes.items()}
        parts.append((totals if at == 0 else torch.zeros_like(totals), torch.isfinite(totals).all() & _finite(mine), part))
        at += len(part.target_N)
        return mine

    return slope


def _whole(
    model: nn.Module, batches: Sequence[Batch], objective: Objective, counts: Sequence[float], engine: Engine, before: Known, live: Live | None
) -> tuple[Known, list[tuple[Tensor, dict[str, Tensor]]]]:
    """What is known of the optimizer batch as a whole; for each micro-batch its share of the totals, all with the first, and its slopes."""
    kept: list[Kept] = []
    for batch in batches:
        ready, other = _asked(model, batch, live)
        with torch.no_grad():
            kept.append((engine.logps(model, ready, objective.want[1:], other), ready))
    columns, batch = _together(kept)
    known = objective.known(columns, batch, before, train=True)
    totals, slopes = objective.slopes(columns, batch, counts, known)
    pieces = {name: value_N.split([len(part.target_N) for part in batches]) for name, value_N in slopes.items()}
    return known, [(totals if i == 0 else torch.zeros_like(totals), {name: piece[i] for name, piece in pieces.items()}) for i in range(len(batches))]


def _together(kept: Sequence[Kept]) -> Kept:
    return {name: torch.cat([columns[name] for columns, _ in kept]) for name in kept[0][0]}, joined([batch for _, batch in kept])


def _measure(sums: Sums, columns: Columns, batch: Batch, objective: Objective) -> None:
    """What dashboards show of a batch, added up on the CPU."""
    entropy_N = columns["entropy"].cpu()
    add(sums, {"entropy": (float(entropy_N.double().sum()), float(len(entropy_N)))})
    add(sums, objective.sums(columns["logp"].cpu(), batch.to(CPU)))


def _finite(columns: Columns) -> Tensor:
    return torch.stack([torch.isfinite(value_N).all() for value_N in columns.values()]).all()


def _rows(*batches: Batch) -> str:
    wheres = [where for batch in batches for where in batch.wheres]
    return ", ".join(wheres[:8]) + (f" and {len(wheres) - 8} more" if len(wheres) > 8 else "")
