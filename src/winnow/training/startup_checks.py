"""Start-up checks that end the "loss stuck at 0.6931" threads: is the reference the policy at step
0?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from winnow.engine.base import Columns, Engine, NextTokenDistribution, no_slope
from winnow.engine.batch import Batch
from winnow.errors import TrainingError
from winnow.models.fsdp import dtype_of
from winnow.objectives.objective import Objective
from winnow.training.live import Live
from winnow.training.optimizer import Optimizer
from winnow.training.reference import NOISE, only_noise


def rehearse(
    model: Any,
    batch: Batch,
    engine: Engine,
    optimizer: Optimizer,
    want: Sequence[str] = ("entropy",),
    live: Live | None = None,
) -> None:
    """Forward and backward pass of the most expensive micro-batch beside gradients and moments, for
    nothing: where memory runs out, it runs out now. Raises TrainingError naming the batch's rows.
    """
    try:
        optimizer.allocate()
        other = live.ask(model, batch)[1] if live else None
        engine.backward(model, batch, no_slope, want, other)
        optimizer.forget()
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # torch has no error of its own for a CPU without memory
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "alloc" not in str(
            error
        ):
            raise
        rows = ", ".join(batch.wheres[:8]) + (
            f" and {len(batch.wheres) - 8} more" if len(batch.wheres) > 8 else ""
        )
        raise TrainingError(
            f"memory runs out in the most expensive micro-batch: {len(batch.token_T):,} distinct"
            f" tokens of {rows}",
            remedy=(
                "a smaller --max-tokens, --checkpointing, --lora auto, or a smaller --max-length;"
                " `winnow check` tells what each needs"
            ),
        ) from error


def check_identity(
    model: Any,
    batch: Batch,
    *,
    objective: Objective,
    engine: Engine,
    other: NextTokenDistribution | None = None,
) -> dict[str, float]:
    """Policy = reference at step 0: every log-ratio is 0 and the loss is what the objective gives
    for such log-probs.

    other: what the reference says, where the objective asks for it. Returns the largest per-token
    difference (the reference noise, nats), the loss and its expected value. Raises TrainingError
    with the causes, most likely first.
    """
    assert batch.reference_N is not None
    reference_N = batch.reference_N
    with torch.no_grad():
        columns = engine.logps(model, batch, objective.want, other)
        logp_N = columns["logp"]
        there = {
            name: torch.zeros_like(value_N) if name == "kl" else value_N
            for name, value_N in columns.items()
        } | {"logp": reference_N}
        loss, expected = (_loss(objective, one, batch) for one in (columns, there))
    if bool((logp_N > 1e-4).any()):
        raise TrainingError(
            "a log-prob is positive: the model's logits are not normalised",
            remedy="report this model: the engine does not fit it",
        )
    noise = float((logp_N - reference_N).abs().max())
    dtype = dtype_of(model)
    if not only_noise(logp_N, reference_N, dtype) or not math.isclose(
        loss, expected, rel_tol=max(1e-3, NOISE[dtype] / 10)
    ):
        raise TrainingError(
            "policy and reference differ before the first step: largest log-prob difference"
            f" {noise:.3g} nats (allowed {NOISE[dtype]:g}, in the mean a tenth), loss {loss:.6f}"
            f" (expected {expected:.6f} for {objective.name})\n  likely causes, first the"
            " likeliest:\n  1. the model is random in its forward pass (a dropout or noise layer"
            " that ignores eval mode)\n  2. the numbers depend on the batch (low precision, a"
            " kernel that mixes rows, a mixture of experts with capacity limits)\n  3. the"
            " reference store was copied from another machine or library version",
            remedy=(
                "try --dtype float32; delete the reference folder of the cache,"
                " $WINNOW_CACHE/reference or ~/.cache/winnow/reference"
            ),
        )
    return {"noise": noise, "loss": loss, "expected": expected}


def _loss(objective: Objective, columns: Columns, batch: Batch) -> float:
    """0 where nothing counts in these few rows."""
    known = objective.known(columns, batch, {}, train=False)
    return objective.losses(
        [float(total) for total in objective.totals(columns, batch, known)],
        objective.counts([batch]),
    ).get("loss", 0.0)
