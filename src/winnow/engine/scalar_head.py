"""One number per scored token from a scalar head on the same hidden states: rewards of answers, a
critic's values

The model is a sequence classifier with one label. Its numbers stand in the column "logp", where a
language model's log-probs stand: so whatever trains log-probs (objectives, steps, checkpoints)
trains these. Which token has one is the batch's business (`collate`): every scored one, or each
answer's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from winnow.engine import head, unpadded
from winnow.engine.base import Columns, NextTokenDistribution, Slope
from winnow.engine.batch import Batch
from winnow.engine.fast import Tiled, bare
from winnow.engine.rows import padded_rows
from winnow.errors import ModelError
from winnow.models.fsdp import released, through


@dataclass(frozen=True)
class Scalar:
    """An engine whose hidden states are those of `way`; it has nothing to say of a vocabulary."""

    way: Tiled

    @property
    def NAME(self) -> str:
        """As the way to the hidden states is called."""
        return self.way.NAME

    def logps(
        self,
        model: Any,
        batch: Batch,
        want: Sequence[str] = (),
        other: NextTokenDistribution | None = None,
    ) -> Columns:
        """The head's number at the state of every scored token (float32 or better),
        differentiable.
        """
        inner = bare(model)
        with self.way.inside(inner, batch):
            value_U = through(model, lambda: _values(inner, self.way.hidden(inner, batch)))
        released(model)
        return {"logp": value_U[batch.state_N]}

    def backward(
        self,
        model: Any,
        batch: Batch,
        slope: Slope,
        want: Sequence[str] = (),
        other: NextTokenDistribution | None = None,
    ) -> Columns:
        """One forward pass, the slopes of the loss, one backward pass."""
        inner = bare(model)
        with self.way.inside(inner, batch):  # a backward pass that recomputes belongs inside
            value_N = through(model, lambda: _values(inner, self.way.hidden(inner, batch)))[
                batch.state_N
            ]
            found = {"logp": value_N.detach()}
            value_N.backward(slope(dict(found), batch)["logp"])
        return found

    def said(self, model: Any, batch: Batch) -> NextTokenDistribution:
        """Nothing: there is no vocabulary. Raises ModelError."""
        raise ModelError("a model with a scalar head says nothing of a vocabulary")


def is_scalar(model: Any) -> bool:
    """Whether the model gives one number, and not log-probs of a vocabulary."""
    inner = bare(model)
    return inner.get_output_embeddings() is None and inner.config.num_labels == 1


def scalar_head(model: Any) -> nn.Module:
    """The head that turns a hidden state into a number. Raises ModelError for a model without
    one.
    """
    found = getattr(model, "score", None)
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no head called score that turns a hidden state into a"
            " number",
            remedy="a decoder with a `score` layer",
        )
    return found


def _values(model: Any, state_UH: Tensor) -> Tensor:
    value_U: Tensor = scalar_head(model)(state_UH)[:, 0]
    return value_U if value_U.dtype == torch.float64 else value_U.float()


def _padded(model: Any, batch: Batch) -> Tensor:
    """Hidden states of every completion as a padded row, the model's own attention: the oracle."""
    state_CLH = head.body(model)(input_ids=padded_rows(batch), use_cache=False).last_hidden_state
    # a token's position in its sequence is its column in the row
    at_N = batch.position_T[batch.source_N]
    first_U = torch.empty_like(batch.state_U)
    first_U[batch.state_N.flip(0)] = torch.arange(len(at_N), device=at_N.device).flip(0)
    state_UH: Tensor = state_CLH[batch.completion_N[first_U], at_N[first_U]]
    return state_UH


ORACLE = Scalar(Tiled("rows", _padded, unpadded.inside))
