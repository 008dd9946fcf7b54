"""How much of the machine's own speed a step uses: useful arithmetic, against a matrix product
measured on the spot.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from winnow.data.packing import Work
from winnow.engine.batch import Batch
from winnow.models import quantization
from winnow.models.loading import has_experts


@dataclass(frozen=True)
class Limit:
    """Arithmetic of one training step per token, scored token and attended position, and the
    machine's rate (FLOP/s).
    """

    per_token: float
    per_scored: float
    per_position: float
    rate: float

    @property
    def work(self) -> Work:
        """What a group costs, for packing."""
        return Work(self.per_token, self.per_scored, self.per_position)

    def share(self, batches: Sequence[Batch], seconds: float) -> float:
        """Useful FLOPs of these micro-batches over what the machine could have done in that time.

        Each distinct token counts once, whatever the engine does; recomputation and padding are no
        work, so they lower the share.
        """
        tokens = sum(len(batch.token_T) for batch in batches)
        scored = sum(len(batch.target_N) for batch in batches)
        positions = sum(int(batch.position_T.sum()) for batch in batches)
        return (
            (self.per_token * tokens + self.per_scored * scored + self.per_position * positions)
            / seconds
            / self.rate
        )


def limit_of(model: Any, device: torch.device) -> Limit | None:
    """The limit for this model on this device; None for a mixture of experts, whose arithmetic
    depends on the routing, and for a shape that does not say its heads, width and layers.

    Forward and backward pass cost 6 FLOPs per weight and token (4 where only an adapter trains,
    since frozen weights have no gradient of their own), attention 12 per position attended to,
    channel and layer.
    """
    text = model.config.get_text_config()
    shape: list[Any] = [
        getattr(text, name, None)
        for name in ("num_attention_heads", "hidden_size", "num_hidden_layers")
    ]
    if has_experts(model.config) or not all(shape) or model.get_output_embeddings() is None:
        return None
    heads, hidden, layers = shape
    counts = [(quantization.count(p), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
    entry, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    body = total - entry.numel() - (0 if head is entry else head.numel())
    per_weight = 6 if trained > total // 2 else 4
    width = heads * (getattr(text, "head_dim", None) or hidden // heads)
    dtype = next(model.parameters()).dtype
    return Limit(
        float(per_weight * body),
        float(per_weight * head.numel()),
        float(12 * width * layers),
        matrix_rate(device, dtype),
    )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product in `dtype`: the best of a few, a tenth of a second on a
    CPU.
    """
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best = 0.0
    for _ in range(6):
        began = _now(device)
        a @ a
        best = max(best, 2 * n**3 / (_now(device) - began))
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
