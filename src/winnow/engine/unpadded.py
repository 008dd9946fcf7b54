"""Hidden states from each completion's own unpadded row: no token is shared, no model is asked for
more than it does by itself.
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
from winnow.engine.rows import sequences

NAME = "single"


@contextmanager
def inside(model: Any, batch: Batch) -> Iterator[None]:
    """Nothing to prepare."""
    yield


def hidden(model: Any, batch: Batch) -> Float[Tensor, "U H"]:
    """Hidden states that predict something, before the output layer. One that several completions
    share is taken from the first.
    """
    states = [
        head.body(model)(input_ids=ids_L[None], use_cache=False).last_hidden_state[0]
        for ids_L in sequences(batch)
    ]
    first_C = torch.tensor(
        [0, *(len(state) for state in states[:-1])], device=batch.token_T.device
    ).cumsum(0)
    at_N = first_C[batch.completion_N] + batch.position_T[batch.source_N]
    at_U = torch.empty_like(batch.state_U)
    at_U[batch.state_N.flip(0)] = at_N.flip(0)
    return torch.cat(states)[at_U]
