"""The oracle: every completion its own padded row, the model's own attention and head, full logits. Slow, obviously right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from winnow.batch import Batch
from winnow.engine.api import Columns, Slope

NAME = "rows"


def logps(model: nn.Module, batch: Batch, want: Sequence[str] = ()) -> Columns:
    """log p of every scored token (nats, float32 or better), differentiable; `want` may name "entropy"."""
    logits_CLV = model(input_ids=padded_rows(batch), use_cache=False).logits
    column_N = batch.position_T[batch.source_N]  # a token's position in its sequence is its column in the row
    logits_NV = logits_CLV[batch.completion_N, column_N]
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    logp_NV = logits_NV.log_softmax(-1)
    columns = {"logp": logp_NV.gather(1, batch.target_N[:, None])[:, 0]}
    if "entropy" in want:
        with torch.no_grad():
            columns["entropy"] = -(logp_NV.exp() * logp_NV).sum(-1)
    return columns


def backward(model: nn.Module, batch: Batch, slope: Slope, want: Sequence[str] = ()) -> Columns:
    """One forward pass, the slopes of the loss at its log-probs, one backward pass."""
    columns = logps(model, batch, want)
    logp_N = columns["logp"]
    logp_N.backward(slope(logp_N.detach(), batch))
    return {name: value.detach() for name, value in columns.items()}


def padded_rows(batch: Batch) -> Int[Tensor, "C L"]:
    """Each completion's whole sequence as a row, padded right with token 0. No mask: attention looks back only, so nothing that
    is scored sees padding, and padding that could see nothing (behind a window) would spread NaN.
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
