"""Name -> objective: which loss, of which score, with which defaults, and what it needs. One readable dict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.batch import Batch
from winnow.errors import SettingsError
from winnow.objectives import losses, scores
from winnow.objectives.scores import Sums


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table: the loss, its default beta, its score, and the scores that may be asked for instead."""

    loss: losses.Loss
    beta: float
    score: Literal["sum", "mean"]
    choices: tuple[str, ...] = ()


TABLE: dict[str, Entry] = {
    "dpo": Entry(losses.logistic, beta=0.1, score="sum"),
    "ipo": Entry(losses.square, beta=0.1, score="mean", choices=("sum", "mean")),
    "hinge": Entry(losses.hinge, beta=0.1, score="sum"),
    "dpo_norm": Entry(losses.logistic, beta=5.0, score="mean"),
}


@dataclass(frozen=True)
class Preference:
    """An objective over comparisons, ready to be summed. Its unit is the comparison's weight."""

    name: str
    loss: losses.Loss
    beta: float
    mean: bool
    smoothing: float
    reference: bool = True

    def weight(self, batch: Batch) -> float:
        """Summed weight of the batch's comparisons: what the global sum is divided by."""
        return float(batch.weight_M.double().sum())

    def total(self, logp_N: Float[Tensor, " N"], reference_N: Float[Tensor, " N"], batch: Batch) -> Float[Tensor, ""]:
        """Weighted sum of the loss over the batch's comparisons."""
        margin_M = scores.margins(scores.log_ratio(logp_N, reference_N, batch, mean=self.mean), batch)
        probability_M = losses.smoothed(batch.probability_M, self.smoothing).to(margin_M.dtype)
        return (batch.weight_M * losses.soft(self.loss, margin_M, self.beta, probability_M)).sum()

    def sums(self, logp_N: Float[Tensor, " N"], reference_N: Float[Tensor, " N"], batch: Batch) -> Sums:
        """What dashboards show beside the loss."""
        return scores.preference_sums(logp_N, reference_N, batch, self.beta)

    def undecided(self, batches: Sequence[Batch]) -> bool:
        """Whether all comparisons are ties: where policy = reference such a batch has no gradient."""
        return all(bool((batch.probability_M == 0.5).all()) for batch in batches)

    def at_start(self) -> float:
        """The loss where policy = reference, for every label probability: all margins are 0."""
        return float(self.loss(torch.zeros(1, dtype=torch.float64), self.beta))


@dataclass(frozen=True)
class Demonstration:
    """Negative log-likelihood of the completions; its unit is the scored token, so long answers weigh what they are."""

    name: str = "sft"
    reference: bool = False

    def weight(self, batch: Batch) -> float:
        """Number of scored tokens."""
        return float(len(batch.target_N))

    def total(self, logp_N: Float[Tensor, " N"], reference_N: Float[Tensor, " N"] | None, batch: Batch) -> Float[Tensor, ""]:
        """Sum of -log p over the scored tokens (nats)."""
        return -logp_N.sum()

    def undecided(self, batches: Sequence[Batch]) -> bool:
        """Never: each token has a gradient."""
        return False

    def sums(self, logp_N: Float[Tensor, " N"], reference_N: Float[Tensor, " N"] | None, batch: Batch) -> Sums:
        """Nothing beside the loss."""
        return {}


Objective = Preference | Demonstration


def preference(name: str, *, beta: float | None = None, label_smoothing: float = 0.0, score: str | None = None) -> Preference:
    """The preference objective `name` with its own defaults where nothing is asked for. Raises SettingsError."""
    entry = TABLE[name]
    if score is not None and score not in entry.choices:
        takes = " or ".join(entry.choices) or f"always {entry.score}"
        raise SettingsError(f"score: got {score!r}, {name} takes {takes}", remedy="leave score away")
    return Preference(name, entry.loss, entry.beta if beta is None else beta, (score or entry.score) == "mean", label_smoothing)
