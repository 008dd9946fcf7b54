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
    ids_CL, mask_CL = padded_rows(batch)
    logits_CLV = model(input_ids=ids_CL, attention_mask=mask_CL, use_cache=False).logits
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
    logp_N.backward(slope(logp_N.detach()))
    return {name: value.detach() for name, value in columns.items()}


def padded_rows(batch: Batch) -> tuple[Int[Tensor, "C L"], Int[Tensor, "C L"]]:
    """Each completion's whole sequence as a row, padded right with token 0 under a zero mask: no padding token is needed."""
    segments = batch.segment_S3.tolist()
    rows: list[Tensor] = []
    for leaf in batch.leaf_C.tolist():
        parts: list[Tensor] = []
        at = leaf
        while at >= 0:
            start, length, at = segments[at]
            parts.append(batch.token_T[start : start + length])
        rows.append(torch.cat(parts[::-1]))
    ids_CL = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    length_C1 = torch.tensor([len(row) for row in rows], device=ids_CL.device)[:, None]
    mask_CL = (torch.arange(ids_CL.shape[1], device=ids_CL.device)[None] < length_C1).long()
    return ids_CL, mask_CL
