"""Token log-probs -> completion scores, margins, implicit rewards, and what dashboards show of them.

Axes: N scored tokens, C completions, M comparisons. All log-probs in nats.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.batch import Batch

Sums = dict[str, tuple[float, float]]  # name -> (sum, count): divided once, after everything was added up


def per_completion(value_N: Float[Tensor, " N"], batch: Batch) -> Float[Tensor, " C"]:
    """Sum of a per-token value over each completion."""
    zero_C = torch.zeros(len(batch.length_C), dtype=value_N.dtype, device=value_N.device)
    return zero_C.index_add(0, batch.completion_N, value_N)


def log_ratio(logp_N: Float[Tensor, " N"], reference_N: Float[Tensor, " N"], batch: Batch, *, mean: bool) -> Float[Tensor, " C"]:
    """log pi - log pi_ref of each completion: the difference is taken per token, before summing, where it is exact."""
    ratio_C = per_completion(logp_N - reference_N, batch)
    return ratio_C / batch.length_C if mean else ratio_C


def margins(score_C: Float[Tensor, " C"], batch: Batch) -> Float[Tensor, " M"]:
    """score(winner) - score(loser) of every comparison."""
    winner_M, loser_M = batch.pair_M2.unbind(1)
    return score_C[winner_M] - score_C[loser_M]


def preference_sums(logp_N: Float[Tensor, " N"], reference_N: Float[Tensor, " N"], batch: Batch, beta: float) -> Sums:
    """What dashboards show of a preference batch, whatever its loss. "Chosen" is the side with label probability > 0.5.

    Rewards are beta times the summed log-ratio; accuracy counts strict wins; ties (probability 0.5) count nowhere.
    logratio/*: nats per token against the reference. length/*: scored tokens.
    """
    decided_M = batch.probability_M != 0.5
    pair_M2 = torch.where((batch.probability_M > 0.5)[:, None], batch.pair_M2, batch.pair_M2.flip(1))[decided_M]
    count = float(len(pair_M2))
    logp_C = per_completion(logp_N.detach(), batch)
    ratio_C = per_completion((logp_N - reference_N).detach(), batch)
    sums: Sums = {}
    for side, name in enumerate(("chosen", "rejected")):
        index_M = pair_M2[:, side]
        tokens = float(batch.length_C[index_M].sum())
        sums[f"logps/{name}"] = (float(logp_C[index_M].sum()), count)
        sums[f"rewards/{name}"] = (float(beta * ratio_C[index_M].sum()), count)
        sums[f"logratio/{name}"] = (float(ratio_C[index_M].sum()), tokens)
        sums[f"length/{name}"] = (tokens, count)
    margin_M = ratio_C[pair_M2[:, 0]] - ratio_C[pair_M2[:, 1]]
    sums["rewards/margins"] = (float(beta * margin_M.sum()), count)
    sums["rewards/accuracies"] = (float((margin_M > 0).sum()), count)
    return sums
