"""The oracle: every completion its own padded row, the model's own attention and head, full logits.
Slow, obviously right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.engine.base import Columns, NextTokenDistribution, Slope
from winnow.engine.batch import Batch
from winnow.models.fsdp import bare, released, through

NAME = "rows"


@dataclass(frozen=True)
class DistributionTable:
    """All log-probs of a model, a row for each hidden state that predicts something."""

    logp_UV: Float[Tensor, "U V"]

    def logp(self, first: int, last: int) -> Float[Tensor, "U V"]:
        """Of the states from `first` to `last`."""
        return self.logp_UV[first:last]

    def targets(self, batch: Batch) -> Float[Tensor, " N"]:
        """Of the batch's scored tokens alone."""
        return self.logp_UV[batch.state_N, batch.target_N]


def logps(
    model: nn.Module,
    batch: Batch,
    want: Sequence[str] = (),
    other: NextTokenDistribution | None = None,
) -> Columns:
    """log p of every scored token (nats, float32 or better), differentiable, and what `want` names
    (of which "kl" is, here).
    """
    logp_NV = _log_softmax(model, batch)
    columns = {"logp": logp_NV.gather(1, batch.target_N[:, None])[:, 0]}
    with torch.no_grad():
        if "entropy" in want:
            columns["entropy"] = -(logp_NV.exp() * logp_NV).sum(-1)
        if "collision" in want:
            columns["collision"] = (2 * logp_NV).logsumexp(-1)
    if "kl" in want and other is not None:
        said_NV = other.logp(0, len(batch.state_U))[batch.state_N]
        columns["kl"] = (said_NV.exp() * (said_NV - logp_NV)).sum(-1)
    return columns


def backward(
    model: nn.Module,
    batch: Batch,
    slope: Slope,
    want: Sequence[str] = (),
    other: NextTokenDistribution | None = None,
) -> Columns:
    """One forward pass, the slopes of the loss at its columns, one backward pass."""
    columns = logps(model, batch, want, other)
    found = {name: value.detach() for name, value in columns.items()}
    slopes = slope(found, batch)
    torch.autograd.backward([columns[name] for name in slopes], list(slopes.values()))
    return found


def said(model: nn.Module, batch: Batch) -> DistributionTable:
    """What the model says of the batch."""
    with torch.no_grad():
        logp_NV = _log_softmax(model, batch)
        logp_UV = logp_NV.new_empty(len(batch.state_U), logp_NV.shape[1])
        logp_UV[batch.state_N] = logp_NV  # tokens that share a state have the same row
        return DistributionTable(logp_UV)


def _log_softmax(model: nn.Module, batch: Batch) -> Float[Tensor, "N V"]:
    logits_CLV = through(
        model, lambda: bare(model)(input_ids=padded_rows(batch), use_cache=False).logits
    )
    released(model)
    # a token's position in its sequence is its column in the row
    column_N = batch.position_T[batch.source_N]
    logits_NV = logits_CLV[batch.completion_N, column_N]
    wide_NV: Tensor = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return wide_NV.log_softmax(-1)


def padded_rows(batch: Batch) -> Int[Tensor, "C L"]:
    """Each completion's whole sequence as a row, padded right with token 0. No mask: attention
    looks back only, so nothing that is scored sees padding, and padding that could see nothing
    (behind a window) would spread NaN.
    """
    return nn.utils.rnn.pad_sequence(sequences(batch), batch_first=True, padding_value=0)


def sequences(batch: Batch) -> list[Int[Tensor, " L"]]:
    """Each completion's whole sequence, put together from its segments."""
    rows: list[Tensor] = []
    for leaf in batch.leaves:
        parts: list[Tensor] = []
        at = leaf
        while at >= 0:
            run = batch.runs[at]
            parts.append(batch.token_T[run.start : run.start + run.length])
            at = run.parent
        rows.append(torch.cat(parts[::-1]))
    return rows
