"""Token log-probs -> scores of completions and of a comparison's two sides, and what dashboards
show of them.

Axes: N scored tokens, C completions, M comparisons, J judged completions. All log-probs in nats.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.engine.batch import BAD, GOOD, SHOWN, Batch

# name -> (sum, count): divided once, after everything was added up
Sums = dict[str, tuple[float, float]]


def per_completion(value_N: Float[Tensor, " N"], batch: Batch) -> Float[Tensor, " C"]:
    """Sum of a per-token value over each completion."""
    zero_C = torch.zeros(len(batch.length_C), dtype=value_N.dtype, device=value_N.device)
    return zero_C.index_add(0, batch.completion_N, value_N)


def log_ratio_N(
    logp_N: Float[Tensor, " N"], batch: Batch, *, reference: bool
) -> Float[Tensor, " N"]:
    """log pi - log pi_ref of each token, or log pi alone: the difference is taken per token, before
    anything is summed, where it is exact.
    """
    return logp_N - batch.reference_N if reference and batch.reference_N is not None else logp_N


def score(value_N: Float[Tensor, " N"], batch: Batch, *, mean: bool) -> Float[Tensor, " C"]:
    """Sum or per-token mean of each completion."""
    score_C = per_completion(value_N, batch)
    return score_C / batch.length_C if mean else score_C


def with_light_tail(
    value_N: Float[Tensor, " N"], batch: Batch, weight: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Sums of each comparison's sides in which the tokens beyond the shorter side's length weigh
    `weight` (LD-DPO, arXiv 2409.06411).
    """
    shared_M = batch.length_C[batch.pair_M2].amin(1)
    begin_C = batch.length_C.cumsum(0) - batch.length_C
    sides = []
    for side_M in batch.pair_M2.unbind(1):
        length_M = batch.length_C[side_M]
        comparison_J = torch.repeat_interleave(
            torch.arange(len(side_M), device=side_M.device), length_M
        )
        within_J = (
            torch.arange(len(comparison_J), device=side_M.device)
            - (length_M.cumsum(0) - length_M)[comparison_J]
        )
        weight_J = torch.where(
            within_J < shared_M[comparison_J], value_N.new_tensor(1.0), value_N.new_tensor(weight)
        )
        value_J = value_N[begin_C[side_M][comparison_J] + within_J] * weight_J
        sides.append(
            torch.zeros(len(side_M), dtype=value_N.dtype, device=value_N.device).index_add(
                0, comparison_J, value_J
            )
        )
    return sides[0], sides[1]


def judged(batch: Batch) -> tuple[Int[Tensor, " J"], Float[Tensor, " J"], Float[Tensor, " J"]]:
    """Completions somebody judged, one by one: which, the probability that it is a good one, the
    weight of that judgement.

    A comparison judges its winner good and its loser bad; a label judges its own completion.
    """
    winner_M, loser_M = batch.pair_M2.unbind(1)
    labelled = torch.nonzero((batch.label_C == GOOD) | (batch.label_C == BAD))[:, 0]
    label = batch.label_C[labelled].to(batch.probability_M.dtype)
    index_J = torch.cat([winner_M, loser_M, labelled])
    good_J = torch.cat([batch.probability_M, 1 - batch.probability_M, label])
    return index_J, good_J, torch.cat([batch.weight_M, batch.weight_M, torch.ones_like(label)])


def demonstrated(batch: Batch) -> tuple[Int[Tensor, " J"], Float[Tensor, " J"]]:
    """Completions to be imitated, and how much each counts: demonstrations, and what was judged
    good, as far as it was.
    """
    index_J, good_J, weight_J = judged(batch)
    shown = torch.nonzero(batch.label_C == SHOWN)[:, 0]
    return torch.cat([index_J, shown]), torch.cat(
        [good_J * weight_J, torch.ones_like(shown, dtype=good_J.dtype)]
    )


def undecided(batch: Batch) -> bool:
    """Whether there is nothing in it but ties: where policy = reference such a batch has no
    gradient.
    """
    return (
        len(batch.probability_M) > 0
        and bool((batch.probability_M == 0.5).all())
        and not bool((batch.label_C >= BAD).any())
    )


def sums(
    logp_N: Float[Tensor, " N"], batch: Batch, *, beta: float, reference: bool, mean: bool
) -> Sums:
    """What dashboards show of a preference batch, whatever its loss. "Chosen" is the side with
    label probability > 0.5, or a good label.

    Rewards are beta times the summed log-ratio, or of an objective without a reference beta times
    its own score; accuracy counts strict wins; ties (probability 0.5) count nowhere. logratio/*:
    nats per token against the reference. length/*: scored tokens.
    """
    with torch.no_grad():
        ratio_C = per_completion(log_ratio_N(logp_N, batch, reference=reference), batch)
        reward_C = beta * (ratio_C / batch.length_C if mean and not reference else ratio_C)
        logp_C = per_completion(logp_N, batch)
        decided_M = batch.probability_M != 0.5
        pair_M2 = torch.where(
            (batch.probability_M > 0.5)[:, None], batch.pair_M2, batch.pair_M2.flip(1)
        )[decided_M]
        found: Sums = {}
        for side, (name, label) in enumerate((("chosen", GOOD), ("rejected", BAD))):
            index_J = torch.cat([pair_M2[:, side], torch.nonzero(batch.label_C == label)[:, 0]])
            count, tokens = float(len(index_J)), float(batch.length_C[index_J].sum())
            found[f"logps/{name}"] = (float(logp_C[index_J].sum()), count)
            found[f"rewards/{name}"] = (float(reward_C[index_J].sum()), count)
            if reference:
                found[f"logratio/{name}"] = (float(ratio_C[index_J].sum()), tokens)
            found[f"length/{name}"] = (tokens, count)
        margin_M = reward_C[pair_M2[:, 0]] - reward_C[pair_M2[:, 1]]
        found["rewards/margins"] = (float(margin_M.sum()), float(len(margin_M)))
        found["rewards/accuracies"] = (float((margin_M > 0).sum()), float(len(margin_M)))
    return found


def with_margin(row: dict[str, float]) -> dict[str, float]:
    """A row of means; where good and bad answers stand alone and nobody compared them, the margin
    is that of the means.
    """
    if "rewards/margins" in row or not {"rewards/chosen", "rewards/rejected"} <= row.keys():
        return row
    return {**row, "rewards/margins": row["rewards/chosen"] - row["rewards/rejected"]}
