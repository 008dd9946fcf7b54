"""Every preference loss: elementwise, pure, one equation and one paper each. Nothing here is ever reduced but by name.

Axes: M comparisons, C completions. A margin is score(winner) - score(loser) in nats, where the score of a completion is
the sum (or the per-token mean) of its log-ratios log pi(t) - log pi_ref(t). All losses fall as the margin grows towards
what they want; `beta` is in 1/nats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Loss = Callable[[Float[Tensor, " M"], float], Float[Tensor, " M"]]


def logistic(margin_M: Float[Tensor, " M"], beta: float) -> Float[Tensor, " M"]:
    """DPO, arXiv 2305.18290 eq. 7:  L = -log s(beta m).

    Start (m = 0): ln 2. m -> +inf: 0; m -> -inf: beta |m|. Slope: -beta s(-beta m), so comparisons already won weigh less.
    Noise: with label probability p the minimiser is beta m = logit p; hard labels push m to infinity.
    On per-token means of log-ratios it is the length-normalised DPO of Tulu 3 (arXiv 2411.15124), with a beta of its own.
    """
    return -F.logsigmoid(beta * margin_M)


def square(margin_M: Float[Tensor, " M"], beta: float) -> Float[Tensor, " M"]:
    """IPO, arXiv 2310.12036 eq. 17:  L = (m - 1 / (2 beta))^2.

    Start: 1 / (4 beta^2). Wants a margin of exactly 1 / (2 beta) and pulls back beyond it, so it does not run away on
    hard labels. With label probability p the minimiser is m = (2 p - 1) / (2 beta).
    """
    return (margin_M - 1 / (2 * beta)) ** 2


def hinge(margin_M: Float[Tensor, " M"], beta: float) -> Float[Tensor, " M"]:
    """SLiC's hinge on DPO's margin (arXiv 2305.10425; in this form arXiv 2309.06657):  L = max(0, 1 - beta m).

    Start: 1. Exactly 0, with no gradient, from m = 1 / beta on. Under label noise it answers with the majority label.
    """
    return F.relu(1 - beta * margin_M)


def soft(loss: Loss, margin_M: Float[Tensor, " M"], beta: float, probability_M: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Any of the above under soft labels:  p L(m) + (1 - p) L(-m).

    With L = logistic and p = 1 - e for all this is cDPO (E. Mitchell, "A note on DPO with noisy preferences", 2023).
    """
    return probability_M * loss(margin_M, beta) + (1 - probability_M) * loss(-margin_M, beta)


def smoothed(probability_M: Float[Tensor, " M"], smoothing: float) -> Float[Tensor, " M"]:
    """Label probabilities when a share `smoothing` of the labels is believed flipped:  p (1 - e) + (1 - p) e."""
    return probability_M * (1 - smoothing) + (1 - probability_M) * smoothing


def dpo_loss(
    policy_chosen_logps: Float[Tensor, " M"],
    policy_rejected_logps: Float[Tensor, " M"],
    ref_chosen_logps: Float[Tensor, " M"],
    ref_rejected_logps: Float[Tensor, " M"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """The DPO loss of a batch of pairs, its mean (arXiv 2305.18290 eq. 7), from summed log-probs in nats."""
    return logistic((policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps), beta).mean()


def preference_loss(
    policy_logps: Float[Tensor, " C"],
    ref_logps: Float[Tensor, " C"],
    winners: Int[Tensor, " M"],
    losers: Int[Tensor, " M"],
    beta: float = 0.1,
    *,
    loss: Loss = logistic,
) -> tuple[Float[Tensor, " M"], Float[Tensor, " C"]]:
    """The paper's own form (arXiv 2305.18290, appendix B): comparisons name completions by index.

    Returns the loss of each comparison (not reduced) and the implicit reward beta (log pi - log pi_ref) of each completion.
    """
    ratio_C = policy_logps - ref_logps
    return loss(ratio_C[winners] - ratio_C[losers], beta), beta * ratio_C.detach()
