"""One member of an objective: its scores, its sum over a batch by unit, and what it must know of
the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.engine.base import Columns
from winnow.engine.batch import MISMATCHED, Batch
from winnow.objectives import batchwise, divergences, scores
from winnow.objectives.parsing import Choice
from winnow.objectives.table import ENTRIES, ObjectiveEntry

# what a step knows of its whole batch, and what the step before it knew
Known = Mapping[str, float]


@dataclass(frozen=True)
class Term:
    """One member of an objective."""

    choice: Choice

    @property
    def entry(self) -> ObjectiveEntry:
        """Its row of the table."""
        return ENTRIES[self.choice.name]

    @property
    def settings(self) -> Mapping[str, Any]:
        """All its settings."""
        return self.choice.settings

    @property
    def mean(self) -> bool:
        """Whether a score is the mean over tokens, not the sum."""
        return bool(self.settings.get("score", self.entry.scores[0]) == "mean")

    def count(self, batch: Batch) -> float:
        """What its sum over the batch is divided by."""
        return _COUNTS[self.entry.unit](self, batch)

    def total(self, columns: Columns, batch: Batch, known: Known) -> Float[Tensor, ""]:
        """Weighted sum of the loss over its units."""
        return _TOTALS[self.entry.unit](self, columns, batch, known)

    def known(
        self, columns: Columns, batch: Batch, before: Known, *, train: bool
    ) -> dict[str, float]:
        """What the loss must know of a whole optimizer batch; `before`: the same at the step
        before.
        """
        with torch.no_grad():
            return (
                _KNOWN[self.entry.batch](self, columns, batch, before, train)
                if self.entry.batch in _KNOWN
                else {}
            )

    def value(self, found: Mapping[str, Tensor], known: Known, **more: Any) -> Tensor:
        """The loss of each unit, from the columns it takes."""
        given = {name: value for name, value in known.items() if name in PASSED}
        own = {name: self.settings[name] for name in self.entry.settings}
        return torch.as_tensor(
            self.entry.loss(*(found[name] for name in self.entry.takes), **more, **{**own, **given})
        )


PASSED = ("shift", "baseline", "beta")  # of what is known of a batch, what the loss is given


def pair_columns(term: Term, columns: Columns, batch: Batch, *, turned: bool) -> dict[str, Tensor]:
    """What a loss may ask of each comparison. turned: as if the label were the other way round;
    what the data says of it stays.
    """
    winner_M, loser_M = (batch.pair_M2.flip(1) if turned else batch.pair_M2).unbind(1)
    win_M, lose_M = pair_scores(term, columns, batch)[:: -1 if turned else 1]
    margin_M = win_M - lose_M
    if term.settings.get("offset"):
        margin_M = margin_M - term.settings["offset"] / term.settings["beta"] * batch.margin_M
    found = {"win": win_M, "lose": lose_M, "margin": margin_M, "gap": batch.margin_M}
    if "longer" in term.entry.takes:
        found["longer"] = (batch.length_C[winner_M] - batch.length_C[loser_M]).to(margin_M.dtype)
    if "nll" in term.entry.takes:
        found["nll"] = -scores.score(columns["logp"], batch, mean=True)[winner_M]
    if "kl_win" in term.entry.takes:
        kl_C = scores.per_completion(columns["kl"], batch)
        found |= {"kl_win": kl_C[winner_M], "kl_lose": kl_C[loser_M]}
    return found


def pair_scores(
    term: Term, columns: Columns, batch: Batch
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Winner's and loser's score of each comparison."""
    value_N = scores.log_ratio_N(columns["logp"], batch, reference=term.entry.reference)
    if term.settings.get("tail_weight", 1.0) != 1:
        sides = scores.with_light_tail(value_N, batch, term.settings["tail_weight"])
    else:
        score_C = scores.score(value_N, batch, mean=term.mean)
        sides = score_C[batch.pair_M2[:, 0]], score_C[batch.pair_M2[:, 1]]
    divergence = term.settings.get("divergence", "reverse_kl")
    bend = (
        _DIVERGENCES[divergence]
        if isinstance(divergence, str)
        else lambda score: divergences.alpha_divergence(score, divergence)
    )
    return bend(sides[0]), bend(sides[1])


_DIVERGENCES = {
    "reverse_kl": divergences.reverse_kl,
    "forward_kl": divergences.forward_kl,
    "js": divergences.jensen_shannon,
}


def _comparisons(term: Term, columns: Columns, batch: Batch, known: Known) -> Tensor:
    if term.entry.batch == "quantile_margins":
        return _quantiles(term, *_policy_and_reference(columns, batch))
    said, turned = (pair_columns(term, columns, batch, turned=way) for way in (False, True))
    probability_M = divergences.smoothed(
        batch.probability_M,
        (
            term.settings.get("label_smoothing", 0.0)
            if "label_smoothing" not in term.entry.settings
            else 0.0
        ),
    )
    loss_M = divergences.soft(
        probability_M.to(said["win"].dtype), term.value(said, known), term.value(turned, known)
    )
    weight_M = (
        batch.weight_M * likelihood_weights(columns, batch)
        if term.settings.get("wpo")
        else batch.weight_M
    )
    return (weight_M * loss_M).sum()


def likelihood_weights(columns: Columns, batch: Batch) -> Float[Tensor, " M"]:
    """WPO's weights, arXiv 2406.11827 eq. 2 (cited): exp of both sides' mean over tokens of log
    p(token) - log sum_v p(v)^2, without a gradient.

    1 where the policy would write both as its own samples. No more than 1, as in the authors' code.
    """
    with torch.no_grad():
        own_C = scores.score(columns["logp"] - columns["collision"], batch, mean=True)
        return own_C[batch.pair_M2].sum(1).clamp(max=0).exp()


def _completions(term: Term, columns: Columns, batch: Batch, known: Known) -> Tensor:
    score_C = scores.score(
        scores.log_ratio_N(columns["logp"], batch, reference=True), batch, mean=False
    )
    index_J, good_J, weight_J = scores.judged(batch)
    if term.entry.batch == "quantile_sides":
        return _quantiles(term, *_good_and_bad(score_C, index_J, good_J))
    good_J = divergences.smoothed(good_J, term.settings["label_smoothing"]).to(score_C.dtype)
    as_good, as_bad = (
        term.value({"score": score_C[index_J]}, known, good=good) for good in (True, False)
    )
    pull, push = term.settings.get("desirable", 1.0), term.settings.get("undesirable", 1.0)
    return (weight_J * divergences.soft(good_J, pull * as_good, push * as_bad)).sum()


def _quantiles(term: Term, one: Tensor, other: Tensor) -> Tensor:
    """AOT, arXiv 2406.05882: the loss of the differences of sorted values."""
    if not len(one) or not len(other):  # a batch of one side has no order to compare with
        return one.sum() * 0 + other.sum() * 0
    margin_M = batchwise.quantile_differences(one, other)
    probability_M = torch.full_like(margin_M, 1 - term.settings["label_smoothing"])
    return divergences.soft(
        probability_M, term.value({"margin": margin_M}, {}), term.value({"margin": -margin_M}, {})
    ).sum()


def _policy_and_reference(columns: Columns, batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.reference_N is not None
    ours_C, theirs_C = (
        scores.per_completion(value_N, batch) for value_N in (columns["logp"], batch.reference_N)
    )
    winner_M, loser_M = batch.pair_M2.unbind(1)
    return ours_C[winner_M] - ours_C[loser_M], theirs_C[winner_M] - theirs_C[loser_M]


def _good_and_bad(score_C: Tensor, index_J: Tensor, good_J: Tensor) -> tuple[Tensor, Tensor]:
    return score_C[index_J[good_J == 1]], score_C[index_J[good_J == 0]]


def _groups(term: Term, columns: Columns, batch: Batch, known: Known) -> Tensor:
    score_C = scores.score(
        scores.log_ratio_N(columns["logp"], batch, reference=True), batch, mean=False
    )
    parts = [
        weight * term.value({"score": score_C[own]}, known, rank_K=[batch.ranks[k] for k in own])
        for own, weight in _ranked(batch)
    ]
    return torch.stack(parts).sum() if parts else score_C.sum() * 0


def _ranked(batch: Batch) -> list[tuple[list[int], float]]:
    """The ranked completions of each group that was compared, and what the group weighs: as its
    comparisons do in the mean.
    """
    weights = batch.weight_M.tolist()
    found, completion, comparison = [], 0, 0
    for end in batch.ends:
        if end.comparisons > comparison:
            own = [k for k in range(completion, end.completions) if batch.ranks[k] >= 0]
            found.append(
                (
                    own,
                    math.fsum(weights[comparison : end.comparisons])
                    / (end.comparisons - comparison),
                )
            )
        completion, comparison = end.completions, end.comparisons
    return found


def _tokens(term: Term, columns: Columns, batch: Batch, known: Known) -> Tensor:
    index_J, weight_J = scores.demonstrated(batch)
    return (
        weight_J
        * term.value({"logp": scores.per_completion(columns["logp"], batch)[index_J]}, known)
    ).sum()


def _count_completions(term: Term, batch: Batch) -> float:
    _, good_J, weight_J = scores.judged(batch)
    if term.entry.batch == "quantile_sides":
        good, bad = int((good_J == 1).sum()), int((good_J == 0).sum())
        return float(max(good, bad)) if good and bad else 0.0
    return float(weight_J.double().sum())


def _count_tokens(term: Term, batch: Batch) -> float:
    index_J, weight_J = scores.demonstrated(batch)
    return float((weight_J.double() * batch.length_C[index_J]).sum())


_TOTALS: dict[str, Callable[[Term, Columns, Batch, Known], Tensor]] = {
    "comparison": _comparisons,
    "completion": _completions,
    "group": _groups,
    "token": _tokens,
}


_COUNTS: dict[str, Callable[[Term, Batch], float]] = {
    "comparison": lambda term, batch: float(batch.weight_M.double().sum()),
    "completion": _count_completions,
    "group": lambda term, batch: math.fsum(weight for _, weight in _ranked(batch)),
    "token": _count_tokens,
}


def _shift(
    term: Term, columns: Columns, batch: Batch, before: Known, train: bool
) -> dict[str, float]:
    if not train:  # held-out data is measured with the shift training has come to
        return {"shift": before.get("shift", 0.0)}
    score_C = scores.score(
        scores.log_ratio_N(columns["logp"], batch, reference=True), batch, mean=False
    )
    index_J, good_J, weight_J = scores.judged(batch)
    return batchwise.running_shift(
        term.settings["beta"] * score_C[index_J], good_J, weight_J, before
    )


def _baseline(
    term: Term, columns: Columns, batch: Batch, before: Known, train: bool
) -> dict[str, float]:
    score_C = scores.score(
        scores.log_ratio_N(columns["logp"], batch, reference=True), batch, mean=False
    )
    return batchwise.mismatched_baseline(score_C[batch.label_C == MISMATCHED])


def _beta(
    term: Term, columns: Columns, batch: Batch, before: Known, train: bool
) -> dict[str, float]:
    win_M, lose_M = pair_scores(term, columns, batch)
    return batchwise.scaled_beta(
        win_M - lose_M,
        term.settings["beta"],
        term.settings["alpha"],
        term.settings["momentum"],
        before,
    )


_KNOWN: dict[str, Callable[[Term, Columns, Batch, Known, bool], dict[str, float]]] = {
    "running_shift": _shift,
    "mismatched_baseline": _baseline,
    "scaled_beta": _beta,
}
