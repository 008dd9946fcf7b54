"""`fit`: step, log, evaluate, save, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from winnow.data.order import Cursor, batches, epoch_size
from winnow.data.packing import Work
from winnow.engine.base import Engine
from winnow.engine.batch import Batch
from winnow.engine.micro_batches import Data, Micro
from winnow.errors import DataError, JudgeError, Stopped, TrainingError
from winnow.objectives.objective import Objective
from winnow.objectives.scores import undecided
from winnow.system import distributed, files, launch
from winnow.training.checkpoint import Progress, Saver
from winnow.training.live import Live
from winnow.training.metrics import MetricsFile, Row
from winnow.training.optimizer import Optimizer, rate
from winnow.training.step import held_out, take_step
from winnow.training.utilization import Limit

# weights, moments, a moving reference's weights
State = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


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
class Training:
    """What is trained, by what, and how. limit: what the machine could do, None where that is not
    known; live: the reference, where it is asked at every step.
    """

    model: Any
    optimizer: Optimizer
    plan: Plan
    objective: Objective
    engine: Engine
    limit: Limit | None
    live: Live | None

    @property
    def work(self) -> Work | None:
        """What packing goes by: FLOPs where several processes are to have equally much, else
        tokens.
        """
        return self.limit.work if self.limit and launch.count() > 1 else None

    def state(self) -> State:
        """Weights, moments, and the reference's weights where they move: all tensors a checkpoint
        holds.
        """
        return (
            self.optimizer.weights(),
            self.optimizer.state(),
            self.live.state() if self.live else {},
        )


def fit(
    training: Training,
    progress: Progress,
    epochs: Callable[[int], Data],
    evaluations: Mapping[str, Data],
    *,
    saver: Saver,
    metrics: MetricsFile,
    show: Callable[[Row], None],
    besides: Callable[[int], Row] | None,
) -> Progress:
    """Train from `progress` to the plan's last step; every number goes to `metrics`, every save to
    the run folder.

    epochs: the training data by number of the epoch; asked anew when one begins. evaluations:
    metric prefix ("eval_" or "eval_NAME_") -> held-out data; the first one's loss picks the best
    checkpoint. besides: what else an evaluation measures, by step (it runs only where there are
    evaluations). Raises Stopped, with the state saved, when a signal asks to stop: after the step
    it came in, or in the midst of an evaluation, which is then made again.
    """
    steps = draws(epochs, training.plan, progress.cursor)

    def look(at: Progress) -> tuple[Row, Progress]:
        row, after = evaluate(training, at, evaluations)
        return row | (besides(at.step) if besides else {}), after

    return to_the_end(
        progress,
        training.plan,
        lambda at: one_step(training, at, *next(steps)),
        look if evaluations else None,
        training.state,
        saver=saver,
        metrics=metrics,
        show=show,
    )


def to_the_end(
    progress: Progress,
    plan: Plan,
    advance: Callable[[Progress], tuple[Row, Progress]],
    look: Callable[[Progress], tuple[Row, Progress]] | None,
    state: Callable[[], State],
    *,
    saver: Saver,
    metrics: MetricsFile,
    show: Callable[[Row], None],
) -> Progress:
    """`advance` step by step, `look` where an evaluation is due, save: what any training does.
    state: all tensors a checkpoint holds.

    Raises Stopped as `fit` does; what the data, or whoever judges answers, cannot be used for is
    raised when the state is saved.
    """
    saved, best = progress.step, False

    def save() -> None:
        nonlocal saved
        if progress.step > saved:
            metrics.sync()
            saver.save(progress, *state())
            saved = progress.step

    def tell(row: Row) -> None:
        metrics.write(row)
        show(row)

    try:
        while True:
            late = progress.evaluated < progress.step
            if look and late and due(progress.step, plan.eval_every, plan.steps):
                row, after = look(progress)
                best, progress = plan.save_best and after.best_step != progress.best_step, after
                tell(row)
            if best or due(progress.step, plan.save_every, plan.steps):
                save()
            distributed.obey()
            if progress.step >= plan.steps:
                saver.finish(progress)
                return progress
            row, progress = advance(progress)
            best = False
            tell(row)
            distributed.alive(progress.step)
            files.reached(f"step {progress.step}")
    except (DataError, JudgeError, distributed.Halt) as error:  # nothing before it is lost
        saver.wait()  # what went wrong with it is raised, and not that all is well
        save()
        saver.wait()
        if not isinstance(error, distributed.Halt):
            raise
        place = (
            f"at step {progress.step}, which is saved" if progress.step else "before the first step"
        )
        raise Stopped(error.number, place) from None
    finally:
        saver.close()


def one_step(
    training: Training, progress: Progress, data: Data, items: Sequence[int], cursor: Cursor
) -> tuple[Row, Progress]:
    """The groups numbered `items` trained on; the cursor stands behind them."""
    plan, objective, began = training.plan, training.objective, time.perf_counter()
    micro = data.micro_batches(items, plan.tokens, training.work, whole=objective.whole)
    lr = rate(
        progress.step, lr=plan.lr, schedule=plan.schedule, warmup=plan.warmup, steps=plan.steps
    )
    before = samples(training.optimizer) if not progress.moved else []
    row, known = take_step(
        training.model,
        micro,
        objective=objective,
        engine=training.engine,
        optimizer=training.optimizer,
        lr=lr,
        before=progress.known,
        live=training.live,
    )
    proved = progress.moved or moved(before, training.optimizer, micro, "loss" in row)
    tokens, figures = speed(micro, began, training.limit)
    progress = replace(
        progress,
        step=progress.step + 1,
        cursor=cursor,
        tokens=progress.tokens + tokens,
        known=dict(known),
        moved=proved,
    )
    if training.live:
        training.live.after(training.model, progress.step)
    return row | position(progress, data, plan.passes) | figures, progress


def draws(
    epochs: Callable[[int], Data], plan: Plan, cursor: Cursor
) -> Iterator[tuple[Data, list[int], Cursor]]:
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
    training: Training, progress: Progress, evaluations: Mapping[str, Data]
) -> tuple[Row, Progress]:
    """Held-out measures of every set, prefixed; the progress notes the lowest loss of the first
    set.
    """
    row: Row = {"step": progress.step}
    progress = replace(progress, evaluated=progress.step)
    tokens, work = training.plan.tokens, training.work
    for i, (prefix, data) in enumerate(evaluations.items()):
        measured = held_out(
            training.model,
            data.everything(tokens, work),
            objective=training.objective,
            engine=training.engine,
            before=progress.known,
            live=training.live,
            everyones=data.everyones(tokens, work),
        )
        row |= {prefix + name: value for name, value in measured.items()}
        loss = measured.get("loss", math.nan) if i == 0 and progress.step else math.nan
        if loss < (math.inf if progress.best_loss is None else progress.best_loss):
            progress = replace(progress, best_step=progress.step, best_loss=loss)
    return row, progress


def due(step: int, every: int, last: int) -> bool:
    """Every so many steps, and at the last one."""
    return step % every == 0 or step == last


def position(progress: Progress, data: Data, name: str) -> Row:
    """Where the run stands, as metrics; name: of what the data has passed so often, "epoch", or
    "window" of a stream.
    """
    passed = progress.cursor.epoch + progress.cursor.position / epoch_size(data.shares)
    return {"step": progress.step, name: round(passed, 4), "num_tokens": progress.tokens}


def count(micro: Sequence[Batch]) -> int:
    """Distinct tokens of the groups: each shared prompt once."""
    return sum(len(batch.token_T) for batch in micro)


def speed(micro: Micro, began: float, limit: Limit | None) -> tuple[int, Row]:
    """Distinct tokens of the step; comparisons and tokens per second, and its share of the
    hardware's limit, over all processes.
    """
    seconds = time.perf_counter() - began
    batches = [batch for batch in micro.own if not batch.idle]
    own = [
        count(batches),
        sum(len(batch.pair_M2) for batch in batches),
        limit.share(batches, seconds) if limit else 0.0,
    ]
    tokens, pairs, share = (sum(values) for values in zip(*distributed.gather(own)))
    shared = {"hardware_share": share / launch.count()} if limit else {}
    return tokens, {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        **shared,
    }


def samples(optimizer: Optimizer) -> list[Tensor]:
    """A few thousand numbers of each trainable tensor: enough to see that a step moved
    something.
    """
    return [weight.flatten()[:4096].clone() for weight in optimizer.weights().values()]


def moved(before: Sequence[Tensor], optimizer: Optimizer, micro: Micro, counted: bool) -> bool:
    """Whether the first step changed a weight anywhere; also False where it had nothing to learn
    from: ties alone, or nothing that counts, have no gradient, rightly. Raises TrainingError where
    it had.
    """
    idle = not counted or all(undecided(batch) for batch in micro.own if not batch.idle)
    changed = any(not torch.equal(a, b) for a, b in zip(before, samples(optimizer)))
    seen = distributed.gather([idle, changed])
    if all(idle for idle, _ in seen):
        return False
    if not any(changed for _, changed in seen):
        raise TrainingError(
            "the first step changed no weight",
            remedy="a higher --lr: this one is lost in rounding, or the loss has no gradient",
        )
    return True
