"""What composes with a loss: soft labels, and divergences of the policy from the reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Margin = Float[Tensor, " M"]
Score = Float[Tensor, " C"]
FAR = 80.0  # nats: beyond it e^x is continued by its tangent, which float32 can hold


def soft(probability_M: Margin, won_M: Margin, lost_M: Margin) -> Margin:
    """Any loss under soft labels:  p L(w, l) + (1 - p) L(l, w), from its values on the label and on
    the label turned round.

    With DPO's and p = 1 - e for all this is cDPO (E. Mitchell, "A note on DPO with noisy
    preferences", 2023, eq. 3): the minimiser is b m = logit(1 - e), where DPO's is infinite. p =
    1/2 is a tie.
    """
    return probability_M * won_M + (1 - probability_M) * lost_M


def smoothed(probability_M: Margin, smoothing: float) -> Margin:
    """Label probabilities when a share `smoothing` of the labels is believed flipped:  p (1 - e) +
    (1 - p) e.
    """
    return probability_M * (1 - smoothing) + (1 - probability_M) * smoothing


def reverse_kl(score_C: Score) -> Score:
    """f-DPO with the reverse KL, arXiv 2309.16240, u = pi / pi_ref:  f'(u) = log u (+ 1, which
    cancels in a margin). It is DPO.
    """
    return score_C


def forward_kl(score_C: Score) -> Score:
    """f-DPO with the forward KL, arXiv 2309.16240:  f'(u) = -1 / u. Mass-covering; beyond 80 nats
    below the reference as its tangent.
    """
    return -bounded_exp(-score_C)


def jensen_shannon(score_C: Score) -> Score:
    """f-DPO with the Jensen-Shannon divergence, arXiv 2309.16240:  f'(u) = log(2 u / (1 + u)).
    Rewards above ln 2 do not exist.
    """
    return math.log(2) + F.logsigmoid(score_C)


def alpha_divergence(score_C: Score, alpha: float) -> Score:
    """f-DPO with the alpha-divergence, arXiv 2309.16240:  f'(u) = (1 - u^-alpha) / alpha. alpha ->
    0: reverse KL; alpha = 1: forward KL.
    """
    return bent(score_C, alpha)


def bounded_exp(x: Tensor) -> Tensor:
    """e^x up to FAR, its tangent beyond."""
    return x.clamp(max=FAR).exp() * (1 + F.relu(x - FAR))


def bent(x: Tensor, alpha: float) -> Tensor:
    """(1 - e^(-alpha x)) / alpha, exact near 0; x itself for alpha = 0."""
    if alpha == 0:
        return x
    y = -alpha * x
    return torch.where(y > 1, 1 - bounded_exp(y), -torch.expm1(y.clamp(max=1))) / alpha
