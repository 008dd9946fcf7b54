"""One optimizer step, and its twin without an update for held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.engine.base import Columns, Engine, NextTokenDistribution, Slope, no_slope
from winnow.engine.batch import Batch, joined
from winnow.engine.micro_batches import Micro
from winnow.errors import TrainingError
from winnow.objectives.objective import Objective
from winnow.objectives.scores import with_margin
from winnow.objectives.terms import Known
from winnow.system import distributed
from winnow.system.launch import count
from winnow.training.live import Live
from winnow.training.metrics import Row, Sums, add, divide
from winnow.training.optimizer import Optimizer

CPU = torch.device("cpu")
Kept = tuple[dict[str, Tensor], Batch]  # columns of a batch, kept until all are there
# each term's sum over a part of a batch, whether all of it is finite, the part
Part = tuple[Tensor, Tensor, Batch]


@runtime_checkable
class StepObjective(Protocol):
    """What a step asks of an objective. Of preferences it is `objectives.terms.Objective`, of
    sampled answers `objectives.rollout.TokenLoss`.
    """

    @property
    def want(self) -> tuple[str, ...]:
        """The columns it asks an engine for beside log-probs."""
        ...

    @property
    def whole(self) -> bool:
        """Whether it must see the whole optimizer batch before a gradient."""
        ...

    def counts(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        """What each of its sums over these batches is divided by."""
        ...

    def slopes(
        self, columns: Columns, batch: Batch, counts: Sequence[float], known: Known
    ) -> tuple[Float[Tensor, " terms"], Columns]:
        """Its sums over the batch, and d loss / d column, where the optimizer batch has
        `counts`.
        """
        ...

    def losses(self, totals: Sequence[float], counts: Sequence[float]) -> Row:
        """What is logged of sums and counts of a whole batch."""
        ...

    def known(
        self, columns: Columns, batch: Batch, before: Known, *, train: bool
    ) -> dict[str, float]:
        """What it must know of the optimizer batch, where it must see all of it."""
        ...

    def sums(self, logp_N: Float[Tensor, " N"], batch: Batch) -> Sums:
        """What dashboards show beside the loss."""
        ...


def take_step(
    model: nn.Module,
    micro: Micro,
    *,
    objective: StepObjective,
    engine: Engine,
    optimizer: Optimizer,
    lr: float,
    before: Known,
    live: Live | None,
) -> tuple[Row, Known]:
    """Sum the loss over all micro-batches, of all processes, divided by the weight of the whole
    batch; clip; update. Also what is now known of the batch.

    The batches wait on the CPU and nothing is read back before the last of them, so a GPU is never
    waited for in between (but for what must be known of a whole batch, and for rankings). before:
    what was known at the step before. live: the reference, where it is asked now and not in
    advance. Raises TrainingError before any weight is touched when a loss or gradient is not
    finite; the message names the rows.
    """
    batches = [batch for batch in micro.own if not batch.idle]
    counts = (
        objective.counts([joined(micro.all)])
        if objective.whole
        else added(objective.counts(batches))
    )
    parts: list[Part] = []
    known, whole = (
        _whole(model, micro, objective, counts, engine, before, live)
        if objective.whole
        else ({}, None)
    )
    seen: list[Kept] = []
    for i, batch in enumerate(micro.own):
        ready, other = _asked(model, batch, live)
        if batch.idle:
            engine.backward(model, ready, no_slope, objective.want, other)
            continue
        slope = _given(*whole[i], parts) if whole else _taken(objective, counts, parts)
        seen.append(
            (
                engine.backward(model, ready, slope, objective.want, other),
                batch if live is None else ready,
            )
        )
    totals = _finite_totals(parts, len(counts), optimizer)
    norm = optimizer.clip_gradients()
    if not norm < float("inf"):
        optimizer.forget()
        raise TrainingError(
            f"the gradient is not finite after a batch with {_rows(*batches)}",
            remedy="a lower --lr; the last checkpoint is intact",
        )
    optimizer.step(lr)
    sums: Sums = {}
    for columns, batch in seen:
        _measure(sums, columns, batch, objective)
    row = objective.losses(totals, counts) | with_margin(divide(_added_sums(sums)))
    logged = {name: value for name, value in known.items() if not name.endswith("/steps")}
    return {**row, **logged, "grad_norm": norm, "learning_rate": lr}, known


def held_out(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective,
    engine: Engine,
    before: Known,
    live: Live | None,
    everyones: Iterable[Batch] = (),
) -> Row:
    """The same measures over a data set, without an update. What must be known of a whole batch is
    told of the whole set.

    everyones: the batches of all processes, by rank, where there are others. Raises Halt where a
    signal asks to stop.
    """
    sums: Sums = {}
    kept: list[Kept] = []
    totals, counts = ([0.0] * len(objective.terms) for _ in range(2))

    def take(columns: Columns, batch: Batch, known: Known) -> None:
        for i, (total, units) in enumerate(
            zip(objective.totals(columns, batch, known), objective.counts([batch]))
        ):
            totals[i] += float(total)
            counts[i] += units

    for batch in batches:
        distributed.obey()
        ready, other = _asked(model, batch, live)
        with torch.no_grad():
            columns = {
                name: value_N.cpu()
                for name, value_N in engine.logps(model, ready, objective.want, other).items()
            }
        kept.append(_emptied(columns, ready.to(CPU)))
        if not batch.idle:
            _measure(sums, *kept[-1], objective)
        if not objective.whole:
            columns, batch = kept.pop()
            if not batch.idle:
                take(columns, batch, {})
    if objective.whole:
        columns, batch = _together(kept, everyones)
        take(columns, batch, objective.known(columns, batch, before, train=False))
        return objective.losses(totals, counts) | with_margin(divide(_added_sums(sums)))
    return objective.losses(added(totals), added(counts)) | with_margin(divide(_added_sums(sums)))


def added(numbers: Sequence[float]) -> tuple[float, ...]:
    """Each number's sum over all processes."""
    return tuple(math.fsum(values) for values in zip(*distributed.gather(list(numbers))))


def _added_sums(sums: Sums) -> Sums:
    """Sums and counts over all processes."""
    found: Sums = {}
    for one in distributed.gather(sums):
        add(found, {name: (total, count) for name, (total, count) in one.items()})
    return found


def _finite_totals(parts: Sequence[Part], terms: int, optimizer: Optimizer) -> tuple[float, ...]:
    """Each term's sum over the whole step. Raises TrainingError, in all processes, where a part's
    is not finite in one of them.
    """
    totals, bad = [0.0] * terms, ""
    if parts:
        total, fine = (torch.stack(values).cpu() for values in list(zip(*parts))[:2])
        totals = total.double().sum(0).tolist()
        bad = "" if fine.all() else _rows(parts[int(fine.int().argmin())][2])
    wrong = next((rows for rows in distributed.gather(bad) if rows), "")
    if wrong:
        optimizer.forget()
        raise TrainingError(
            f"the loss is not finite in a batch with {wrong}",
            remedy="a lower --lr or --clip; the last checkpoint is intact",
        )
    return added(totals)


def _asked(
    model: nn.Module, batch: Batch, live: Live | None
) -> tuple[Batch, NextTokenDistribution | None]:
    """The batch on the model's device, and what a live reference says of it."""
    ready = batch.to(next(model.parameters()).device)
    return live.ask(model, ready) if live else (ready, None)


def _taken(objective: StepObjective, counts: Sequence[float], parts: list[Part]) -> Slope:
    """The slopes of each part of a batch, found as they are asked for."""

    def slope(columns: Columns, part: Batch) -> Columns:
        totals, slopes = objective.slopes(columns, part, counts, {})
        parts.append((totals, torch.isfinite(totals).all() & _finite(slopes), part))
        return slopes

    return slope


def _given(totals: Float[Tensor, " terms"], slopes: Columns, parts: list[Part]) -> Slope:
    """Slopes that are known already, handed out part by part; the first part answers for the
    totals.
    """
    at = 0

    def slope(columns: Columns, part: Batch) -> Columns:
        nonlocal at
        mine = {name: value_N[at : at + len(part.target_N)] for name, value_N in slopes.items()}
        parts.append(
            (
                totals if at == 0 else torch.zeros_like(totals),
                torch.isfinite(totals).all() & _finite(mine),
                part,
            )
        )
        at += len(part.target_N)
        return mine

    return slope


def _whole(
    model: nn.Module,
    micro: Micro,
    objective: StepObjective,
    counts: Sequence[float],
    engine: Engine,
    before: Known,
    live: Live | None,
) -> tuple[Known, list[tuple[Tensor, dict[str, Tensor]]]]:
    """What is known of the optimizer batch as a whole; for each of this process's micro-batches its
    share of the totals, which are all with the first one of all, and its slopes.
    """
    kept: list[Kept] = []
    for batch in micro.own:
        ready, other = _asked(model, batch, live)
        with torch.no_grad():
            kept.append(_emptied(engine.logps(model, ready, objective.want[1:], other), ready))
    columns, batch = _together(kept, micro.all)
    known = objective.known(columns, batch, before, train=True)
    totals, slopes = objective.slopes(columns, batch, counts, known)
    pieces = {
        name: value_N.split([len(part.target_N) for part in micro.all])
        for name, value_N in slopes.items()
    }
    mine = range(micro.first, micro.first + sum(not batch.idle for batch in micro.own))
    return known, [
        (
            totals if i == 0 else torch.zeros_like(totals),
            {name: piece[i] for name, piece in pieces.items()},
        )
        for i in mine
    ]


def _emptied(columns: Columns, batch: Batch) -> Kept:
    """What a batch has to say: nothing where it is idle."""
    if not batch.idle:
        return columns, batch
    return {name: value_N[:0] for name, value_N in columns.items()}, replace(
        batch, reference_N=None if batch.reference_N is None else batch.reference_N[:0]
    )


def _together(kept: Sequence[Kept], everyones: Iterable[Batch]) -> Kept:
    """Columns and batches of the whole job, laid end to end. everyones: the batches by rank, asked
    for where there are others.
    """
    columns = {name: torch.cat([columns[name] for columns, _ in kept]) for name in kept[0][0]}
    if count() == 1:
        return columns, joined([batch for _, batch in kept])
    device = kept[0][1].target_N.device
    given = [batch.reference_N for _, batch in kept if batch.reference_N is not None]
    found = distributed.gather_columns(columns | ({"reference": torch.cat(given)} if given else {}))
    reference_N = found.pop("reference", None)
    batch = replace(joined(list(everyones)), reference_N=reference_N).to(device)
    return {name: value_N.to(device) for name, value_N in found.items()}, batch


def _measure(sums: Sums, columns: Columns, batch: Batch, objective: StepObjective) -> None:
    """What dashboards show of a batch, added up on the CPU."""
    if "entropy" in columns:  # a scalar head has none
        entropy_N = columns["entropy"].cpu()
        add(sums, {"entropy": (float(entropy_N.double().sum()), float(len(entropy_N)))})
    add(sums, objective.sums(columns["logp"].cpu(), batch.to(CPU)))


def _finite(columns: Columns) -> Tensor:
    return torch.stack([torch.isfinite(value_N).all() for value_N in columns.values()]).all()


def _rows(*batches: Batch) -> str:
    wheres = [where for batch in batches for where in batch.wheres]
    return ", ".join(wheres[:8]) + (f" and {len(wheres) - 8} more" if len(wheres) > 8 else "")
