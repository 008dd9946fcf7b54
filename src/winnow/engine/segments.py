"""Hidden states of a packed forest, each token computed once: attention segment by segment, on any
device.

transformers hands its queries, keys and values to `attend`, and builds no mask for an attention
function without a registered one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface

from winnow.engine import head
from winnow.engine.batch import Batch
from winnow.engine.tree_layout import AttentionPlan, arrange, items_of
from winnow.errors import ModelError

NAME = "segments"
_ATTENTION = "winnow_segments"

_layout: ContextVar[AttentionPlan | None] = ContextVar("winnow_layout", default=None)


@contextmanager
def inside(model: Any, batch: Batch) -> Iterator[None]:
    """The model attends along the batch's segments; afterwards as before. A backward pass that
    recomputes belongs inside too.
    """
    with attention(model, _ATTENTION):
        token = _layout.set(arrange(batch.runs, items_of(batch.runs), batch.token_T.device))
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
    found = head.body(model)(
        input_ids=batch.token_T[None], position_ids=batch.position_T[None], use_cache=False
    )
    state_UH: Tensor = found.last_hidden_state[0][batch.state_U]
    return state_UH


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
        raise ModelError(
            "the model asks for attention that a packed forest cannot give: a mask of its own,"
            " dropout, or no causal order"
        )
    one = _Kind(scaling, sliding_window, softcap, s_aux)
    found = [*_alone(places, one, query, key, value), *_shared(places, one, query, key, value)]
    result = found[0] if len(found) == 1 else torch.cat(found)
    return (result if places.place_T is None else result.index_select(0, places.place_T)).unflatten(
        1, (query.shape[1], -1)
    )[None], None


@dataclass(frozen=True)
class _Kind:
    """What a layer asks of its attention."""

    scale: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, Q, D) of queries, (B, kv heads, K, D) of keys -> (B Q, heads D); no mask:
        causal.
        """
        if self.softcap is None and self.sinks is None:
            found = F.scaled_dot_product_attention(
                q,
                k,
                v,
                mask,
                is_causal=mask is None,
                scale=self.scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        else:
            assert mask is not None
            found = _written_out(q, k, v, mask, self.scale, self.softcap, self.sinks)
        return found.transpose(1, 2).flatten(2).flatten(0, 1)


def _alone(
    places: AttentionPlan, kind: _Kind, query: Tensor, key: Tensor, value: Tensor
) -> Iterator[Tensor]:
    """Results of the items that have a call of their own."""
    if not places.alone:
        return
    queries, keys, values = (
        query.split(places.spans, 2),
        key.split(places.lengths, 2),
        value.split(places.lengths, 2),
    )
    for number in places.alone:
        item, q = places.items[number], queries[number]
        seen = item.before + item.own
        k, v = (
            x[seen[0]] if len(seen) == 1 else torch.cat([x[s] for s in seen], 2)
            for x in (keys, values)
        )
        window = kind.window if kind.window is not None and kind.window < k.shape[2] else None
        plain = not item.before and window is None and kind.softcap is None and kind.sinks is None
        yield kind(q, k, v, None if plain else places.mask(q.shape[2], k.shape[2], window, q))


def _shared(
    places: AttentionPlan, kind: _Kind, query: Tensor, key: Tensor, value: Tensor
) -> Iterator[Tensor]:
    """Results of the calls that small items share."""
    flat = [x[0].transpose(0, 1).flatten(1) for x in (query, key, value)] if places.shared else []
    for number, one in enumerate(places.shared):
        q, k, v = (
            x.index_select(0, index.flatten()).view(*index.shape, heads, -1).transpose(1, 2)
            for x, index, heads in zip(
                flat,
                (one.query_BQ, one.key_BK, one.key_BK),
                (query.shape[1], key.shape[1], value.shape[1]),
            )
        )
        yield kind(q, k, v, places.shared_mask(number, kind.window, q))


def _written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """Attention with what SDPA lacks: soft-capped scores (Gemma 2), a sink per head that takes its
    share and gives nothing (gpt-oss).
    """
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


# a compiled layer calls it as it is
AttentionInterface.register(_ATTENTION, torch.compiler.disable(attend))
