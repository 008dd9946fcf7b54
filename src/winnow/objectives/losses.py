"""Every preference loss: elementwise, pure, one equation and one paper each. Nothing here is ever
reduced but by name.

Axes: M comparisons, C completions, K completions of one group. `win` and `lose` are scores of a
comparison's two sides, a margin is their difference, `score` one completion's: the sum (or the
per-token mean) over its tokens of log pi - log pi_ref, or of log pi alone, as `objectives.table`
says; all in nats. `b` is beta, in 1/nats, `s` the logistic function, `n` the number of tokens.
Labels that are not certain are mixed by `soft`, so no formula below knows them; what they do to its
minimiser is said under "Noise", p being the probability that the winner is really better.

Start: the value where policy = reference. An equation's number was read in a copy of the paper's
text or in code that cites it; "cited" where only TRL's source cites it; "unchecked" where nothing
could be read, and the formula alone was compared with the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from winnow.objectives.divergences import Margin, Score, bent
from winnow.objectives.divergences import alpha_divergence as alpha_divergence
from winnow.objectives.divergences import forward_kl as forward_kl
from winnow.objectives.divergences import jensen_shannon as jensen_shannon
from winnow.objectives.divergences import reverse_kl as reverse_kl
from winnow.objectives.divergences import smoothed as smoothed
from winnow.objectives.divergences import soft as soft

# ---------------------------------------------------------------- of the margin alone


def logistic(margin_M: Margin, beta: float | Tensor) -> Margin:
    """DPO, arXiv 2305.18290 eq. 7:  L = -log s(b m).

    Start: ln 2. m -> +inf: 0; m -> -inf: b |m|. Slope -b s(-b m): comparisons already won weigh
    less. Noise: the minimiser is b m = logit p; hard labels push m to infinity, and a flipped label
    is pushed hardest.
    """
    return -F.logsigmoid(beta * margin_M)


def robust(margin_M: Margin, beta: float, label_smoothing: float, bound: float) -> Margin:
    """Robust DPO, arXiv 2403.00409 sec. 3.1 (eq. 12 unchecked), e the share of flipped labels:
    L = [-(1-e) log s(b m) + e log s(-b m)] / (1-2e).

    Start: ln 2. Over labels flipped with probability e its mean is DPO's loss on the clean label,
    so it *undoes* the noise. For a single label it has no lower bound: its slope tends to -b e /
    (1-2e), for ever, and on finite data the margin runs away. The guard: beyond b m = bound (nats)
    it stays as it is there, without a slope. Noise: the minimiser is b m = logit of the clean p, as
    long as that lies within the bound.
    """
    z_M = (beta * margin_M).clamp(max=bound)
    e = label_smoothing
    return ((1 - e) * F.softplus(-z_M) - e * F.softplus(z_M)) / (1 - 2 * e)


def square(margin_M: Margin, beta: float) -> Margin:
    """IPO, arXiv 2310.12036 eq. 17, where beta is called tau:  L = (m - 1 / (2 b))^2.

    Start: 1 / (4 b^2). Wants a margin of exactly 1 / (2 b) and pulls back beyond it, so it does not
    run away on hard labels. Noise: the minimiser is m = (2 p - 1) / (2 b).
    """
    return (margin_M - 1 / (2 * beta)) ** 2


def hinge(margin_M: Margin, beta: float) -> Margin:
    """SLiC's hinge (arXiv 2305.10425) on DPO's margin, arXiv 2309.06657 ("hinge-norm", equation
    number unchecked):  L = max(0, 1 - b m).

    Start: 1. Exactly 0, with no gradient, from m = 1 / b on. Noise: it answers with the majority
    label, at m = 1 / b.
    """
    return F.relu(1 - beta * margin_M)


def exo(margin_M: Margin, beta: float, label_smoothing: float) -> Margin:
    """EXO for pairs, arXiv 2402.00856 eq. 16 (cited), the reverse KL from (s(b m), s(-b m)) to
    (1-e, e): L = s(b m) [log s(b m) - log(1-e)] + s(-b m) [log s(-b m) - log e].

    Start: ln 1/2 - (log(1-e) + log e) / 2, which is 2.761231 for e = 1e-3. m -> +inf: -log(1-e); m
    -> -inf: -log e, with no slope left: what is hopelessly lost is given up. Minimum 0 at b m =
    logit(1-e). Noise: mode-seeking; the minimiser is b m = (2 p - 1) logit(1-e).
    """
    z_M, e = beta * margin_M, label_smoothing
    return z_M.sigmoid() * (F.logsigmoid(z_M) - math.log(1 - e)) + (-z_M).sigmoid() * (
        F.logsigmoid(-z_M) - math.log(e)
    )


def discopop(margin_M: Margin, beta: float, temperature: float) -> Margin:
    """DiscoPOP, the log-ratio modulated loss, arXiv 2406.08414 eq. 5 (cited), t the temperature, z
    = b m: L = (1 - s(z/t)) (-log s(z)) + s(z/t) e^-z.

    Start: (ln 2 + 1) / 2. m -> +inf: 0; m -> -inf: b |m|. Found by a search over programs, and not
    convex: for t = 0.05 it rises from a local minimum at z = -0.119 to a local maximum at 0.072, so
    from the start it first pushes margins a little below 0. The exponentials are taken together, so
    that nothing overflows for t < 1. Noise: no closed form.
    """
    z_M = beta * margin_M
    return (-z_M / temperature).sigmoid() * F.softplus(-z_M) + (
        F.logsigmoid(z_M / temperature) - z_M
    ).exp()


def simpo(margin_M: Margin, beta: float, gamma: float) -> Margin:
    """SimPO, arXiv 2405.14734 eq. 6, m of the sides' mean log-probs, without a reference:  L = -log
    s(b m - gamma).

    At m = 0: log(1 + e^gamma). gamma is the margin a winner must have, in units of b m, whoever the
    label calls the winner. Noise: the minimiser is b m = log( (g d + sqrt(g^2 d^2 + 4 p (1-p))) /
    (2 (1-p)) ), d = 2 p - 1, g = e^gamma; for gamma = 0 that is logit p.
    """
    return F.softplus(gamma - beta * margin_M)


def rdpo(margin_M: Margin, longer_M: Margin, beta: float, alpha: float) -> Margin:
    """R-DPO, arXiv 2403.19159 eq. 9, longer = n_w - n_l:  L = -log s(b m + alpha longer).

    Start: -log s(alpha longer). The labels are explained by b r(y) + alpha n(y), so each extra
    token costs alpha of implicit reward. Noise: the minimiser is b m = logit p - alpha longer.
    """
    return -F.logsigmoid(beta * margin_M + alpha * longer_M)


def odpo(margin_M: Margin, gap_M: Margin, beta: float, alpha: float) -> Margin:
    """ODPO, arXiv 2402.10571 (equation number unchecked; the authors' code read), gap > 0 the
    winner's lead in the scores of the data: L = -log s(b m - alpha log gap).

    Start: -log s(-alpha log gap). A winner far ahead must win by more; below a gap of 1 the offset
    is negative. Noise: the minimiser is SimPO's, with g = gap^alpha: the lead is asked of whoever
    the label calls the winner.
    """
    return -F.logsigmoid(beta * margin_M - alpha * gap_M.log())


def tdpo(
    margin_M: Margin, kl_win_M: Margin, kl_lose_M: Margin, beta: float, alpha: float
) -> Margin:
    """TDPO2, arXiv 2404.11999 (equation number unchecked), kl_win and kl_lose the sums over a
    side's tokens of KL(pi_ref || pi) of the whole next-token distribution, sg a stopped gradient:
    L = -log s(b m - alpha b (kl_lose - sg(kl_win))).

    Start: ln 2. The policy is held near the reference on the losers' tokens at each position.
    Noise: as DPO, around a shifted margin.
    """
    return -F.logsigmoid(beta * (margin_M - alpha * (kl_lose_M - kl_win_M.detach())))


# ---------------------------------------------------------------- of both sides


def nca(win_M: Margin, lose_M: Margin, beta: float) -> Margin:
    """NCA for pairs, arXiv 2402.05369 (equation number unchecked; the authors' code read):
    L = -log s(b w) - 1/2 log s(-b w) - 1/2 log s(-b l).

    Start: 2 ln 2. It fixes each side's own reward, not their difference alone, so the winner's does
    not fall with the loser's. Noise: the sides' minimisers are b w = log 2 p and b l = log 2 (1 -
    p); with a certain label the winner stops at ln 2.
    """
    return (
        F.softplus(-beta * win_M) + 0.5 * F.softplus(beta * win_M) + 0.5 * F.softplus(beta * lose_M)
    )


def bco(win_M: Margin, lose_M: Margin, beta: float, shift: float | Tensor) -> Margin:
    """BCO on pairs, arXiv 2404.04656 (equation number unchecked), shift = the mean over all steps
    so far of their mean rewards: L = -log s(b w - shift) - log s(-(b l - shift)).

    Start: 2 ln 2. A classifier of good and bad, each side by itself. Noise: the minimisers are
    shift + logit p and shift - logit p.
    """
    return bco_unpaired(win_M, True, beta, shift) + bco_unpaired(lose_M, False, beta, shift)


def sppo(win_M: Margin, lose_M: Margin, beta: float) -> Margin:
    """SPPO with hard wins, arXiv 2405.00675 eq. 4.7 (cited) with eta = 1 / beta:  L = (w - 1 / (2
    b))^2 + (l + 1 / (2 b))^2.

    Start: 1 / (2 b^2). Each side is driven to its own target, half a win's worth; the authors' code
    halves the sum. Noise: w = -l = (2 p - 1) / (2 b).
    """
    return (win_M - 1 / (2 * beta)) ** 2 + (lose_M + 1 / (2 * beta)) ** 2


def apo_zero(win_M: Margin, lose_M: Margin, beta: float) -> Margin:
    """APO-zero, arXiv 2408.06266 eq. 7 (cited), there without the 1:  L = 1 - s(b w) + s(b l).

    Start: 1. Raises winners and lowers losers, both with vanishing force far from 0. Noise:
    bounded, so it answers with the majority.
    """
    return (-beta * win_M).sigmoid() + (beta * lose_M).sigmoid()


def apo_down(win_M: Margin, lose_M: Margin, beta: float) -> Margin:
    """APO-down, arXiv 2408.06266 eq. 8 (cited), there without the 1:  L = s(b w) + 1 - s(b (w -
    l)).

    Start: 1. Lowers both sides, the loser more: for winners that are worse than the policy's own
    answers. Noise: bounded.
    """
    return (beta * win_M).sigmoid() + (-beta * (win_M - lose_M)).sigmoid()


def dpop(win_M: Margin, lose_M: Margin, beta: float, penalty: float) -> Margin:
    """DPO-Positive, arXiv 2402.13228 eq. 3:  L = -log s(b (w - l - penalty max(0, -w))).

    Start: ln 2, where the penalty has no slope yet. What the winner loses against the reference
    counts penalty + 1 times. Noise: the minimisers have w >= 0 and b m = logit p.
    """
    return -F.logsigmoid(beta * (win_M - lose_M - penalty * F.relu(-win_M)))


def alphapo(win_M: Margin, lose_M: Margin, beta: float, gamma: float, alpha: float) -> Margin:
    """AlphaPO, arXiv 2501.03884 (equation number unchecked), sides in mean log-probs, r(x) = (1 -
    e^(-alpha x)) / alpha, r(x) = x for 0: L = -log s(b (r(w) - r(l)) - gamma).

    SimPO with a bent reward: alpha > 0 makes less likely answers count more. Beyond 80 nats the
    exponential goes on as its tangent. Noise: SimPO's minimiser, of b (r(w) - r(l)).
    """
    return F.softplus(gamma - beta * (bent(win_M, alpha) - bent(lose_M, alpha)))


def orpo(win_M: Margin, lose_M: Margin, weight: float) -> Margin:
    """ORPO, arXiv 2403.07691 eq. 6 and 7, sides in mean log-probs, odds(x) = e^x / (1 - e^x),
    lambda = weight: L = -w - lambda log s(log odds(w) - log odds(l)).

    No reference: the first term is the winner's negative log-likelihood per token. Noise: it then
    imitates the loser with weight 1 - p.
    """
    return -win_M - weight * F.logsigmoid(_log_odds(win_M) - _log_odds(lose_M))


def cpo(win_M: Margin, lose_M: Margin, nll_M: Margin, beta: float, alpha: float) -> Margin:
    """CPO, arXiv 2401.08417 eq. 3 (cited), sides in summed log-probs, nll = the winner's per token:
    L = -log s(b (w - l)) + alpha nll.

    No reference: DPO against a uniform one. The paper writes the second term as a sum over tokens;
    its authors' code takes the mean, as here. Noise: the first term as DPO; the second imitates the
    loser with weight 1 - p.
    """
    return -F.logsigmoid(beta * (win_M - lose_M)) + alpha * nll_M


def unlikelihood(win_M: Margin, lose_M: Margin, alpha: float) -> Margin:
    """The unlikelihood baseline of arXiv 2305.18290 (sec. 6; no equation there), sides in summed
    log-probs:  L = -w + alpha l.

    It has no lower bound: the loser's log-prob may fall for ever, which alpha < 1 slows down and
    does not stop. Noise: linear, so the label of the majority decides.
    """
    return -win_M + alpha * lose_M


# ---------------------------------------------------------------- of one completion, good or bad


def nll(logp_C: Score) -> Score:
    """Maximum likelihood, the Preferred-FT baseline of arXiv 2305.18290 (sec. 6), of an answer's
    summed log-prob:  L = -log pi(y).

    It is divided by the number of tokens, so that long answers weigh what they are. Noise: it
    imitates whatever is called good.
    """
    return -logp_C


def bco_unpaired(score_C: Score, good: bool, beta: float, shift: float | Tensor) -> Score:
    """BCO, arXiv 2404.04656 (equation number unchecked):  L = -log s(b r - shift) if good, else
    -log s(-(b r - shift)).

    Start: ln 2. Noise: with probability p of being good the minimiser is b r = shift + logit p.
    """
    z_C = beta * score_C - shift
    return F.softplus(-z_C if good else z_C)


def kto(score_C: Score, good: bool, beta: float, baseline: float | Tensor) -> Score:
    """KTO, arXiv 2402.01306 eq. 8, z = the baseline, the policy's KL to the reference on mismatched
    answers: L = 1 - s(b (r - z)) if good, else 1 - s(b (z - r)).

    Start: 1/2. Bounded: it gives up on what is far from z, on either side. Noise: it answers with
    the majority.
    """
    z_C = beta * (score_C - baseline)
    return (-z_C if good else z_C).sigmoid()


# ---------------------------------------------------------------- of a group's ranking


def plackett_luce(
    score_K: Float[Tensor, " K"], rank_K: Sequence[int], beta: float
) -> Float[Tensor, ""]:
    """DPO over a ranking, arXiv 2305.18290 appendix A.3 (the model is eq. 18, the loss by count eq.
    20), r in the order of the ranks, the best first: L = -sum_k log( e^(b r_k) / sum_{j >= k} e^(b
    r_j) ).

    Start: log K! without ties; for K = 2 it is DPO. Completions of equal rank: the mean over all
    orders they could stand in, which for a tied pair is the tie of `soft`. Noise: a maximum
    likelihood under the Plackett-Luce model of rankings.
    """
    z_K = beta * score_K
    total = -z_K.sum()
    behind = z_K[:0]
    for rank in sorted(set(rank_K), reverse=True):
        tied = z_K[[k for k, own in enumerate(rank_K) if own == rank]]
        for left in range(1, len(tied) + 1):  # so many of them are still to come
            stages = [
                torch.cat([tied[list(some)], behind]).logsumexp(0)
                for some in combinations(range(len(tied)), left)
            ]
            total = total + torch.stack(stages).mean()
        behind = torch.cat([tied, behind])
    return total


# ---------------------------------------------------------------- what composes with them


# ---------------------------------------------------------------- from plain log-probs


def dpo_loss(
    policy_chosen_logps: Float[Tensor, " M"],
    policy_rejected_logps: Float[Tensor, " M"],
    ref_chosen_logps: Float[Tensor, " M"],
    ref_rejected_logps: Float[Tensor, " M"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """The DPO loss of a batch of pairs, its mean (arXiv 2305.18290 eq. 7), from summed log-probs in
    nats.
    """
    return logistic(
        (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps),
        beta,
    ).mean()


def preference_loss(
    policy_logps: Float[Tensor, " C"],
    ref_logps: Float[Tensor, " C"],
    winners: Int[Tensor, " M"],
    losers: Int[Tensor, " M"],
    beta: float = 0.1,
    *,
    loss: Callable[[Margin, float], Margin] = logistic,
) -> tuple[Float[Tensor, " M"], Float[Tensor, " C"]]:
    """The paper's own form (arXiv 2305.18290, appendix B): comparisons name completions by index.

    Returns the loss of each comparison (not reduced) and the implicit reward beta (log pi - log
    pi_ref) of each completion.
    """
    ratio_C = policy_logps - ref_logps
    return loss(ratio_C[winners] - ratio_C[losers], beta), beta * ratio_C.detach()


def _log_odds(x: Tensor) -> Tensor:
    """log(e^x / (1 - e^x)) of a log-prob x < 0; a probability that rounds to 1 is taken as the next
    one below.
    """
    x, half = x.clamp(max=-torch.finfo(x.dtype).eps), -math.log(2)
    return x - torch.where(
        x > half, torch.log(-torch.expm1(x.clamp(min=half))), torch.log1p(-x.clamp(max=half).exp())
    )
