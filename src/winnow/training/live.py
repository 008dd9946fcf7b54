"""A reference that is asked at every step: for whole distributions, which nobody stores, and for
one that follows the policy.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from winnow.config.options import Follow
from winnow.engine.base import Engine, NextTokenDistribution
from winnow.engine.batch import Batch
from winnow.models.fsdp import local
from winnow.training.reference import Frozen


class Live:
    """The policy's weights as they were at the start, on its own device; with `follow` they move
    after it (TR-DPO, arXiv 2404.09656).

    distributions: whether `ask` tells what the reference says of the whole vocabulary.
    """

    def __init__(
        self, model: nn.Module, engine: Engine, *, follow: Follow | None, distributions: bool
    ) -> None:
        self.frozen = Frozen(model, next(model.parameters()).device)
        self.engine, self.follow, self.distributions = engine, follow, distributions
        # what moves is kept in float32 or better: a small step is lost in the rounding of half
        # precision
        self.moving = (
            {name: value.to(_wide(value.dtype)) for name, value in self.frozen.weights.items()}
            if follow
            else {}
        )

    def ask(self, model: nn.Module, batch: Batch) -> tuple[Batch, NextTokenDistribution | None]:
        """The batch with the reference's log-probs of its scored tokens, and its distributions
        where they are wanted.
        """
        with self.frozen.inside(model), torch.no_grad():
            said = self.engine.said(model, batch) if self.distributions else None
            return (
                replace(
                    batch,
                    reference_N=(
                        said.targets(batch) if said else self.engine.logps(model, batch)["logp"]
                    ),
                ),
                said,
            )

    def after(self, model: nn.Module, step: int) -> None:
        """What becomes of the reference when optimizer step number `step` (from 1) is done: ref =
        mix policy + (1 - mix) ref.
        """
        if self.follow is None or step % self.follow.every:
            return
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in self.moving:
                    self.moving[name].lerp_(local(p).to(self.moving[name].dtype), self.follow.mix)
                    self.frozen.weights[name] = self.moving[name].to(p.dtype, copy=True)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of it: the moved weights."""
        return self.moving

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, value in weights.items():
            self.frozen.weights[name].copy_(value)
            if name in self.moving:
                self.moving[name].copy_(value)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
