"""Hidden states of a packed forest on flash kernels for sequences of many lengths (GPU): all items
of a batch in one call per layer.

The items are those of `engine.layout`: each gathers its ancestors' keys and values, and the
kernels' causal order counts from the end of both, as it must. torch's own kernel, or flash-attn's
where that is installed, which knows soft-caps as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AttentionInterface

from winnow.engine import segments, tree_layout
from winnow.engine.batch import Batch
from winnow.errors import ModelError

NAME = "varlen"
_ATTENTION = "winnow_varlen"

# (q (T, heads, D), k and v (K, heads, D), the items, scale, (positions to the left or -1, 0),
# soft-cap or None) -> (T, heads, D)
Kernel = Callable[
    [Tensor, Tensor, Tensor, "Items", "float | None", "tuple[int, int]", "float | None"], Tensor
]


@dataclass(frozen=True)
class Items:
    """A batch's items as a kernel takes them: which packed tokens are keys, item after item, and
    where items begin.
    """

    key_K: Int[Tensor, " K"]
    query_begin: Int[Tensor, " I1"]
    key_begin: Int[Tensor, " I1"]
    most_queries: int
    most_keys: int


_items: ContextVar[tuple[Items, Kernel] | None] = ContextVar("winnow_items", default=None)


def items_of(batch: Batch) -> Items:
    """The kernel's numbers, made on the CPU and sent once."""
    device = batch.token_T.device
    queries, keys, seen = [0], [0], []
    for item in tree_layout.items_of(batch.runs):
        runs = [batch.runs[s] for s in (*item.before, *item.own)]
        seen += [torch.arange(run.start, run.start + run.length) for run in runs]
        queries.append(queries[-1] + sum(batch.runs[s].length for s in item.own))
        keys.append(keys[-1] + sum(run.length for run in runs))
    most = [max(b - a for a, b in pairwise(ends)) for ends in (queries, keys)]
    begins = [
        torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)
        for ends in (queries, keys)
    ]
    return Items(
        torch.cat(seen).to(device, non_blocking=True), begins[0], begins[1], most[0], most[1]
    )


@contextmanager
def inside(model: Any, batch: Batch, kernel: Kernel | None = None) -> Iterator[None]:
    """The model attends along the batch's segments; afterwards as before. A backward pass that
    recomputes belongs inside too.
    """
    with segments.attention(model, _ATTENTION):
        token = _items.set((items_of(batch), kernel or _best_kernel()))
        try:
            yield
        finally:
            _items.reset(token)


hidden = segments.hidden


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
    current = _items.get()
    if (
        current is None
        or attention_mask is not None
        or dropout
        or is_causal is False
        or s_aux is not None
    ):
        raise ModelError(
            "the model asks for attention that these kernels lack: a mask of its own, dropout,"
            " sinks, or no causal order"
        )
    items, kernel = current
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    return kernel(q, k[items.key_K], v[items.key_K], items, scaling, window, softcap)[None], None


def torch_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    items: Items,
    scale: float | None,
    window: tuple[int, int],
    softcap: float | None,
) -> Tensor:
    """torch.nn.attention.varlen: no soft-cap."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        raise ModelError("torch's kernel has no soft-cap", remedy="install flash-attn")
    places = (items.query_begin, items.key_begin, items.most_queries, items.most_keys)
    found = varlen_attn(
        q, k, v, *places, scale=scale, window_size=window, enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(found, Tensor)
    return found


def flash_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    items: Items,
    scale: float | None,
    window: tuple[int, int],
    softcap: float | None,
) -> Tensor:
    """flash-attn's own."""
    from flash_attn import flash_attn_varlen_func

    places = (items.query_begin, items.key_begin, items.most_queries, items.most_keys)
    found: Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        *places,
        softmax_scale=scale,
        causal=True,
        window_size=window,
        softcap=softcap or 0.0,
    )
    return found


def _best_kernel() -> Kernel:
    return flash_kernel if find_spec("flash_attn") else torch_kernel


# a compiled layer calls it as it is
AttentionInterface.register(_ATTENTION, torch.compiler.disable(attend))
