"""Hidden states of a packed forest through the model's own attention, told by a mask who sees whom:
O(T^2) memory, few assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.engine import head
from winnow.engine.batch import Batch

NAME = "masks"


@contextmanager
def inside(model: Any, batch: Batch) -> Iterator[None]:
    """Nothing to prepare."""
    yield


def hidden(model: Any, batch: Batch) -> Float[Tensor, "U H"]:
    """Hidden states that predict something, before the output layer."""
    found = head.body(model)(
        input_ids=batch.token_T[None],
        position_ids=batch.position_T[None],
        attention_mask=_masks(model, batch),
        use_cache=False,
    )
    state_UH: Tensor = found.last_hidden_state[0][batch.state_U]
    return state_UH


def _masks(model: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
    """One mask, or one by kind of layer where the model has several."""
    config = model.config.get_text_config()
    dtype = next(model.parameters()).dtype
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    seen_TT = _seen(batch)
    near_TT = (
        seen_TT
        if window is None
        else seen_TT & (batch.position_T[:, None] - batch.position_T < window)
    )
    if len(kinds) > 1 or kinds == {"sliding_attention"}:
        return {
            kind: _additive(near_TT if kind == "sliding_attention" else seen_TT, dtype)
            for kind in kinds
        }
    return _additive(
        near_TT if getattr(config, "use_sliding_window", True) and not kinds else seen_TT, dtype
    )


def _seen(batch: Batch) -> Tensor:
    """Whether packed token i sees packed token j: j in i's own segment and not after it, or in an
    ancestor.
    """
    count = len(batch.token_T)
    seen_TT = torch.zeros(count, count, dtype=torch.bool, device=batch.token_T.device)
    for run in batch.runs:
        end = run.start + run.length
        seen_TT[run.start : end, run.start : end] = torch.ones(
            run.length, run.length, dtype=torch.bool, device=seen_TT.device
        ).tril()
        if run.parent >= 0:
            above = batch.runs[run.parent]
            last = above.start + above.length
            seen_TT[run.start : end, : run.start] = seen_TT[last - 1, : run.start]
    return seen_TT


def _additive(seen_TT: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen_TT.shape, dtype=dtype, device=seen_TT.device).masked_fill_(
        ~seen_TT, torch.finfo(dtype).min
    )[None, None]
