"""`fit`: step, log, evaluate, save, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from winnow.batch import Batch, collate
from winnow.data.pack import pack, pack_all
from winnow.data.render import RenderedGroup
from winnow.data.stream import Cursor, Share, batches, epoch_size
from winnow.engine.api import Engine
from winnow.errors import DataError, TrainingError
from winnow.files import RunFolder
from winnow.objectives.scores import undecided
from winnow.objectives.terms import Objective
from winnow.train import checkpoint
from winnow.train.checkpoint import Progress
from winnow.train.limit import Limit
from winnow.train.live import Live
from winnow.train.metrics import MetricsFile, Row
from winnow.train.optim import Optimizer, rate
from winnow.train.reference import Reference
from winnow.train.step import held_out, take_step


@dataclass(frozen=True)
class Plan:
    """How a run goes, in steps."""

    steps: int
    warmup: int
    lr: float
    schedule: str
    batch_size: int
    tokens: int  # per micro-batch
    seed: int
    eval_every: int
    save_every: int
    keep: int
    save_best: bool
    passes: str  # "epoch", or "window" where the data is a stream


@dataclass(frozen=True)
class Data:
    """A rendered data set, how epochs mix its parts, and its reference log-probs where the objective wants some."""

    groups: Sequence[RenderedGroup]
    shares: Sequence[Share]
    reference: Reference | None

    def micro_batches(self, items: Sequence[int], tokens: int) -> list[Batch]:
        """The groups numbered `items`, packed under the token budget, on the CPU."""
        groups = [self.groups[i] for i in items]
        return [self._known(collate([groups[i] for i in part], [items[i] for i in part])) for part in pack(groups, tokens)]

    def everything(self, tokens: int) -> Iterator[Batch]:
        """All groups, a micro-batch at a time."""
        for part in pack_all(self.groups, tokens):
            yield self._known(collate([self.groups[i] for i in part], part))

    def _known(self, batch: Batch) -> Batch:
        return batch if self.reference is None else self.reference.into(batch)


def fit(
    model: Any,
    optimizer: Optimizer,
    progress: Progress,
    plan: Plan,
    epochs: Callable[[int], Data],
    evaluations: Mapping[str, Data],
    *,
    objective: Objective,
    engine: Engine,
    run: RunFolder,
    metrics: MetricsFile,
    identity: Mapping[str, Any],
    show: Callable[[Row], None],
    besides: Callable[[int], Row] | None,
    limit: Limit | None,
    live: Live | None,
) -> Progress:
    """Train from `progress` to the plan's last step; every number goes to `metrics`, every save to the run folder.

    epochs: the training data by number of the epoch; asked anew when one begins.
    evaluations: metric prefix ("eval_" or "eval_NAME_") -> held-out data; the first one's loss picks the best checkpoint.
    limit: what the machine could do; None where that is not known.
    besides: what else an evaluation measures, by step (it runs only where there are evaluations).
    live: the reference, where it is asked at every step.
    """
    steps = draws(epochs, plan, progress.cursor)
    if progress.step == 0 and evaluations:
        row, progress = evaluate(model, progress, plan, evaluations, objective=objective, engine=engine, live=live)
        metrics.write(row | (besides(0) if besides else {}))
    proved = progress.step > 0

    def save() -> None:
        checkpoint.save(run.checkpoints, progress, optimizer.weights(), optimizer.state(), dict(identity), live.state() if live else {})

    while progress.step < plan.steps:
        try:
            data, items, cursor = next(steps)
        except DataError:  # of a stream's next window: nothing before it is lost
            save()
            raise
        began = time.perf_counter()
        micro = data.micro_batches(items, plan.tokens)
        lr = rate(progress.step, lr=plan.lr, schedule=plan.schedule, warmup=plan.warmup, steps=plan.steps)
        before = None if proved else samples(optimizer)
        row, known = take_step(model, micro, objective=objective, engine=engine, optimizer=optimizer, lr=lr, before=progress.known, live=live)
        if before is not None and "loss" in row and not all(map(undecided, micro)):  # ties alone, or nothing that counts, have no gradient, rightly
            proved = moved(before, samples(optimizer))
            if not proved:
                raise TrainingError("the first step changed no weight", remedy="a higher --lr: this one is lost in rounding, or the loss has no gradient")
        progress = replace(progress, step=progress.step + 1, cursor=cursor, tokens=progress.tokens + count(micro), known=dict(known))
        if live:
            live.after(model, progress.step)
        row |= position(progress, data, plan.passes) | speed(micro, time.perf_counter() - began, limit)
        metrics.write(row)
        show(row)
        best = False
        if evaluations and due(progress.step, plan.eval_every, plan.steps):
            row, after = evaluate(model, progress, plan, evaluations, objective=objective, engine=engine, live=live)
            best, progress = plan.save_best and after.best_step != progress.best_step, after
            row |= besides(progress.step) if besides else {}
            metrics.write(row)
            show(row)
        if best or due(progress.step, plan.save_every, plan.steps):
            save()
            checkpoint.prune(run.checkpoints, keep=plan.keep, best=progress.best_step if plan.save_best else None)
    return progress


def draws(epochs: Callable[[int], Data], plan: Plan, cursor: Cursor) -> Iterator[tuple[Data, list[int], Cursor]]:
    """For each step the data, the numbers of its groups there, and the cursor after it."""
    while True:
        data = epochs(cursor.epoch)
        if not data.groups:  # a window of a stream without a usable row
            cursor = Cursor(cursor.epoch + 1)
            continue
        for items, after in batches(data.shares, plan.batch_size, plan.seed, cursor):
            yield data, items, after
            if after.epoch != cursor.epoch:
                break
        cursor = after


def evaluate(
    model: Any, progress: Progress, plan: Plan, evaluations: Mapping[str, Data], *, objective: Objective, engine: Engine, live: Live | None
) -> tuple[Row, Progress]:
    """Held-out measures of every set, prefixed; the progress notes the lowest loss of the first set."""
    row: Row = {"step": progress.step}
    for i, (prefix, data) in enumerate(evaluations.items()):
        measured = held_out(model, data.everything(plan.tokens), objective=objective, engine=engine, before=progress.known, live=live)
        row |= {prefix + name: value for name, value in measured.items()}
        if i == 0 and progress.step and "loss" in measured and (progress.best_loss is None or measured["loss"] < progress.best_loss):
            progress = replace(progress, best_step=progress.step, best_loss=measured["loss"])
    return row, progress


def due(step: int, every: int, last: int) -> bool:
    """Every so many steps, and at the last one."""
    return step % every == 0 or step == last


def position(progress: Progress, data: Data, name: str) -> Row:
    """Where the run stands, as metrics; name: of what the data has passed so often, "epoch", or "window" of a stream."""
    passed = progress.cursor.epoch + progress.cursor.position / epoch_size(data.shares)
    return {"step": progress.step, name: round(passed, 4), "num_tokens": progress.tokens}


def count(micro: Sequence[Batch]) -> int:
    """Distinct tokens of the groups: each shared prompt once."""
    return sum(len(batch.token_T) for batch in micro)


def speed(micro: Sequence[Batch], seconds: float, limit: Limit | None) -> Row:
    """Comparisons and distinct tokens per second of this step, and its share of the hardware's limit."""
    pairs = sum(len(batch.pair_M2) for batch in micro)
    share = {"hardware_share": limit.share(micro, seconds)} if limit else {}
    return {"pairs_per_second": pairs / seconds, "tokens_per_second": count(micro) / seconds, **share}


def samples(optimizer: Optimizer) -> list[Tensor]:
    """A few thousand numbers of each trainable tensor: enough to see that a step moved something."""
    return [weight.flatten()[:4096].clone() for weight in optimizer.weights().values()]


def moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether any of them changed."""
    return any(not torch.equal(a, b) for a, b in zip(before, after))
