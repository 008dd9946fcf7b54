"""Hidden states of a packed forest, each token computed once: attention segment by segment, on any device.

Queries of a segment see their own segment and its ancestors, causally. A segment and its first child, that one's first
child and so on lie side by side, so they are one item; every other child begins an item of its own, which gathers its
ancestors' keys and values. transformers builds no mask for an attention function without a registered mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface

from winnow.batch import Batch, Run
from winnow.engine import head
from winnow.errors import ModelError

NAME = "segments"
_ATTENTION = "winnow_segments"


@dataclass(frozen=True)
class Item:
    """Queries that lie side by side: `own` are their segments, `before` the ancestors' segments, first the root's."""

    own: tuple[int, ...]
    before: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a batch's packed tokens attend to each other; its masks are made once and used by every layer."""

    lengths: tuple[int, ...]  # of the segments
    items: tuple[Item, ...]
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """0 where the last `queries` of `keys` positions may look, -inf elsewhere: causal, and within the window."""
        key = (queries, keys, window, like.dtype)
        if key not in self.masks:
            distance = torch.arange(keys - queries, keys, device=like.device)[:, None] - torch.arange(keys, device=like.device)
            blind = distance < 0 if window is None else (distance < 0) | (distance >= window)
            self.masks[key] = torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill_(blind, float("-inf"))
        return self.masks[key]


_layout: ContextVar[Layout | None] = ContextVar("winnow_layout", default=None)


def layout(runs: Sequence[Run]) -> Layout:
    """The items of a batch's segments."""
    items: list[list[int]] = []
    for s, run in enumerate(runs):
        if s and run.parent == s - 1:
            items[-1].append(s)
        else:
            items.append([s])
    return Layout(tuple(run.length for run in runs), tuple(Item(tuple(own), _ancestors(runs, own[0])) for own in items))


def _ancestors(runs: Sequence[Run], s: int) -> tuple[int, ...]:
    found: list[int] = []
    while (s := runs[s].parent) >= 0:
        found.append(s)
    return tuple(found[::-1])


@contextmanager
def inside(model: Any, batch: Batch) -> Iterator[None]:
    """The model attends along the batch's segments; afterwards as before. A backward pass that recomputes belongs inside too."""
    with attention(model, _ATTENTION):
        token = _layout.set(layout(batch.runs))
        try:
            yield
        finally:
            _layout.reset(token)


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """The model's attention function exchanged for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def hidden(model: Any, batch: Batch) -> Float[Tensor, "U H"]:
    """Hidden states that predict something, before the output layer."""
    found = head.body(model)(input_ids=batch.token_T[None], position_ids=batch.position_T[None], use_cache=False)
    return found.last_hidden_state[0][batch.state_U]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: (1, heads, T, D) in, (1, T, heads, D) out."""
    places = _layout.get()
    if places is None or attention_mask is not None or dropout or is_causal is False:
        raise ModelError("the model asks for attention that a packed forest cannot give: a mask of its own, dropout, or no causal order")
    keys, values = key.split(places.lengths, 2), value.split(places.lengths, 2)
    queries = query.split([sum(places.lengths[s] for s in item.own) for item in places.items], 2)
    found: list[Tensor] = []
    for item, q in zip(places.items, queries):
        seen = item.before + item.own
        k = keys[seen[0]] if len(seen) == 1 else torch.cat([keys[s] for s in seen], 2)
        v = values[seen[0]] if len(seen) == 1 else torch.cat([values[s] for s in seen], 2)
        window = sliding_window if sliding_window is not None and sliding_window < k.shape[2] else None
        if softcap is None and s_aux is None:
            causal = not item.before and window is None
            mask = None if causal else places.mask(q.shape[2], k.shape[2], window, q)
            found.append(F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]))
        else:
            found.append(_written_out(q, k, v, places.mask(q.shape[2], k.shape[2], window, q), scaling, softcap, s_aux))
    return torch.cat(found, 2).transpose(1, 2), None


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, softcap: float | None, s_aux: Tensor | None) -> Tensor:
    """Attention with what SDPA lacks: soft-capped scores (Gemma 2), a sink per head that takes its share and gives nothing (gpt-oss)."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    score = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    score = score + mask
    if s_aux is not None:
        sink = s_aux.to(score.dtype).reshape(1, -1, 1, 1).expand(*score.shape[:3], 1)
        score = torch.cat([score, sink], 3)
    wide = score.dtype if score.dtype == torch.float64 else torch.float32
    share = score.softmax(-1, dtype=wide).to(v.dtype)
    return share[..., : k.shape[2]] @ v


AttentionInterface.register(_ATTENTION, attend)
