"""What a model says of fixed token sequences, however its weights are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.base import Engine
from winnow.engine.batch import collate

# Largest difference of a token's log-prob between two fingerprints of one model: saved, merged
# (which adds in another order), on another device.
SAME = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.25}


def fingerprint(engine: Engine, model: Any, vocabulary: int) -> Float[Tensor, " N"]:
    """Log-probs (nats), or numbers of a scalar head, of fixed token sequences, spread over the
    vocabulary and long enough that every layer matters: what a model says, however its weights are
    stored.
    """
    ids = [tuple((7919 * (i + 1) * (k + 1)) % vocabulary for i in range(32)) for k in range(4)]
    group = RenderedGroup(
        tuple(TokenSequence(row, 1) for row in ids), (), (None,) * 4, "fingerprint"
    )
    with torch.no_grad():
        return engine.logps(model, collate([group]).to(next(model.parameters()).device))[
            "logp"
        ].cpu()


def same_model(
    one: Float[Tensor, " N"], other: Float[Tensor, " N"], dtypes: Sequence[torch.dtype]
) -> bool:
    """Whether two fingerprints are those of one model, up to the rounding of the coarser dtype."""
    return bool((one.double() - other.double()).abs().max() <= max(SAME[dtype] for dtype in dtypes))
