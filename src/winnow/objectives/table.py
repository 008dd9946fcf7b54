"""Name -> objective: which loss, of which scores, with which defaults, what it needs, and when to
take it. One readable dict.

`equation` is per comparison (or what `unit` says), in the notation of docs/objectives.md: w, l sums
of log pi - log pi_ref of winner and loser, or of log pi where there is no reference; D = w - l; w/n
and l/n means per token; b = beta; s = the logistic function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from winnow.objectives import losses

Value = float | bool | str


@dataclass(frozen=True, slots=True)
class ObjectiveEntry:
    """One row of the table.

    takes: the columns `loss` is given first (`terms.columns`); settings: what it is given by name,
    with defaults; tuning: settings that are read around the loss; defaults: of what any objective
    of its kind may be given (`choices.MODIFIERS`). scores: what its sides are, sum or mean; the
    first is the default, a second one is a choice. batch: a function of `objectives.batchwise` that
    must see the whole optimizer batch before any gradient; "" where none does.
    """

    loss: Callable[..., Any]
    takes: tuple[str, ...]
    settings: Mapping[str, float]
    equation: str
    paper: str
    when: str
    unit: Literal["comparison", "completion", "group", "token"] = "comparison"
    reference: bool = True
    scores: tuple[Literal["sum", "mean"], ...] = ("sum",)
    batch: str = ""
    tuning: Mapping[str, float] = field(default_factory=dict)
    defaults: Mapping[str, Value] = field(default_factory=dict)
    positive_margins: bool = False  # each comparison must say by how much the winner is better
    rewards: bool = False  # of a scalar head's numbers, one per answer, and not of log-probs

    @property
    def certain_labels(self) -> bool:
        """Whether probabilities and weights of single comparisons mean nothing to it: their order
        is not kept.
        """
        return self.batch in ("quantile_margins", "quantile_sides")


TABLE: dict[str, ObjectiveEntry] = {
    "dpo": ObjectiveEntry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b D)",
        "arXiv 2305.18290 eq. 7",
        "The default, and the baseline to beat. Higher beta keeps the policy closer to the"
        " reference; 0.1 is usual, 0.01 bold, 0.5 the paper's for summaries.",
    ),
    "cdpo": ObjectiveEntry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-(1-e) log s(b D) - e log s(-b D)",
        "Mitchell 2023, A note on DPO with noisy preferences, eq. 3",
        "Labels of which a share e is wrong: margins stop at logit(1-e) instead of running away. It"
        " shrinks further than the noise alone would.",
        defaults={"label_smoothing": 0.1},
    ),
    "robust": ObjectiveEntry(
        losses.robust,
        ("margin",),
        {"beta": 0.1, "label_smoothing": 0.1, "bound": 10.0},
        "[-(1-e) log s(b D) + e log s(-b D)] / (1-2e)",
        "arXiv 2403.00409 sec. 3.1",
        "Flips at a known rate e, and the wish to undo them instead of shrinking. With few data its"
        " variance is larger, and only the bound stops a margin.",
    ),
    "ipo": ObjectiveEntry(
        losses.square,
        ("margin",),
        {"beta": 0.1},
        "(D - 1/(2b))^2, of means or sums",
        "arXiv 2310.12036 eq. 17",
        "Small data sets and many epochs, where dpo overfits: it aims at a margin instead of the"
        " largest one. The paper prints sums; its authors ran per-token means, the default here."
        " Tune beta anew: with means it has other units.",
        scores=("mean", "sum"),
    ),
    "hinge": ObjectiveEntry(
        losses.hinge,
        ("margin",),
        {"beta": 0.1},
        "max(0, 1 - b D)",
        "arXiv 2309.06657, 2305.10425",
        "Clean labels, and a wish to stop exactly at a margin of 1/beta: comparisons beyond it have"
        " no gradient at all.",
    ),
    "dpo_norm": ObjectiveEntry(
        losses.logistic,
        ("margin",),
        {"beta": 5.0},
        "-log s(b (w/n - l/n))",
        "arXiv 2411.15124 sec. 5",
        "One side of the data is systematically longer (`winnow check` says how often the longer"
        " answer wins) and answers grow. Beta multiplies a mean, so it is larger.",
        scores=("mean",),
    ),
    "exo": ObjectiveEntry(
        losses.exo,
        ("margin",),
        {"beta": 0.1, "label_smoothing": 1e-3},
        "s(b D) [log s(b D) - log(1-e)] + s(-b D) [log s(-b D) - log e]",
        "arXiv 2402.00856 eq. 16",
        "Reverse instead of forward KL to the labels: decided early, and hopeless comparisons are"
        " given up. Labels must be reliable.",
    ),
    "discopop": ObjectiveEntry(
        losses.discopop,
        ("margin",),
        {"beta": 0.05, "temperature": 0.05},
        "(1-m) (-log s(b D)) + m e^(-b D), m = s(b D/t)",
        "arXiv 2406.08414 eq. 5",
        "For comparison with the loss a search over programs found. It is not convex; watch that"
        " margins leave its local minimum just below 0.",
    ),
    "rdpo": ObjectiveEntry(
        losses.rdpo,
        ("margin", "longer"),
        {"beta": 0.1, "alpha": 0.01},
        "-log s(b D + alpha (n_w - n_l))",
        "arXiv 2403.19159 eq. 9",
        "Answers grow while training, and an explicit price per token is wanted: each costs alpha"
        " of implicit reward.",
    ),
    "odpo": ObjectiveEntry(
        losses.odpo,
        ("margin", "gap"),
        {"beta": 0.5, "alpha": 1.0},
        "-log s(b D - alpha log gap)",
        "arXiv 2402.10571",
        "Data with scores, where a narrow win should not be pushed as far as a clear one. Every"
        " winner's margin must be above 0.",
        positive_margins=True,
    ),
    "beta_dpo": ObjectiveEntry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b' D), b' = max(0.001, b (1 + alpha (mean D - M0)))",
        "arXiv 2407.08639",
        "Batches of very different difficulty: beta grows where the batch's margins are above their"
        " running mean M0. The paper's random filtering of pairs is not part of it.",
        batch="scaled_beta",
        tuning={"alpha": 0.6, "momentum": 0.9},
    ),
    "tdpo": ObjectiveEntry(
        losses.tdpo,
        ("margin", "kl_win", "kl_lose"),
        {"beta": 0.1, "alpha": 0.5},
        "-log s(b D - alpha b (KL_l - sg KL_w))",
        "arXiv 2404.11999",
        "Control of the KL at each token, and not only of the answers' log-ratios. The reference is"
        " asked at every step: a third more work, and its trainable weights beside the policy's.",
    ),
    "aot": ObjectiveEntry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b (u_(i) - v_(i))), u, v the sorted margins of policy and reference",
        "arXiv 2406.05882",
        "The policy's margins as a distribution should dominate the reference's; large batches."
        " Single comparisons have no probability or weight.",
        batch="quantile_margins",
    ),
    "nca": ObjectiveEntry(
        losses.nca,
        ("win", "lose"),
        {"beta": 0.01},
        "-log s(b w) - 1/2 log s(-b w) - 1/2 log s(-b l)",
        "arXiv 2402.05369",
        "The winners' likelihood falls under dpo and must not: each side has a target of its own.",
    ),
    "bco": ObjectiveEntry(
        losses.bco,
        ("win", "lose"),
        {"beta": 0.01},
        "-log s(b w - d) - log s(-(b l - d)), d the running mean reward",
        "arXiv 2404.04656",
        "A classifier of good and bad answers, on pairs; part of the mpo preset.",
        batch="running_shift",
    ),
    "sppo": ObjectiveEntry(
        losses.sppo,
        ("win", "lose"),
        {"beta": 1e-3},
        "(w - 1/(2b))^2 + (l + 1/(2b))^2",
        "arXiv 2405.00675 eq. 4.7",
        "Self-play in rounds, each from its own samples: the reference is the round before. Its"
        " beta is the paper's 1/eta.",
    ),
    "apo_zero": ObjectiveEntry(
        losses.apo_zero,
        ("win", "lose"),
        {"beta": 0.1},
        "1 - s(b w) + s(b l)",
        "arXiv 2408.06266 eq. 7",
        "Winners that are better than what the policy writes: they rise, losers fall, each by"
        " itself.",
    ),
    "apo_down": ObjectiveEntry(
        losses.apo_down,
        ("win", "lose"),
        {"beta": 0.1},
        "s(b w) + 1 - s(b D)",
        "arXiv 2408.06266 eq. 8",
        "Winners that are worse than what the policy writes: both sides fall, losers more.",
    ),
    "dpop": ObjectiveEntry(
        losses.dpop,
        ("win", "lose"),
        {"beta": 0.3, "penalty": 50.0},
        "-log s(b (D - penalty max(0, -w)))",
        "arXiv 2402.13228 eq. 3",
        "Pairs that differ in a few tokens only, where dpo lowers both sides: a winner below its"
        " reference costs penalty times as much.",
    ),
    "kto": ObjectiveEntry(
        losses.kto,
        ("score",),
        {"beta": 0.1},
        "good: 1 - s(b (r - z)); bad: 1 - s(b (z - r)); z = max(0, mean r of mismatched answers)",
        "arXiv 2402.01306 eq. 8",
        "Thumbs up and down instead of pairs, in any proportion: set `desirable` or `undesirable`"
        " so that both sides weigh alike in sum. Pairs are taken as one of each.",
        unit="completion",
        batch="mismatched_baseline",
        tuning={"desirable": 1.0, "undesirable": 1.0},
    ),
    "bco_unpaired": ObjectiveEntry(
        losses.bco_unpaired,
        ("score",),
        {"beta": 0.01},
        "good: -log s(b r - d); bad: -log s(-(b r - d)); d the running mean reward",
        "arXiv 2404.04656",
        "Thumbs up and down, as kto, with a loss that does not give up on answers that are far"
        " off.",
        unit="completion",
        batch="running_shift",
    ),
    "aot_unpaired": ObjectiveEntry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b (w_(i) - l_(i))), w, l the sorted log-ratios of good and bad answers",
        "arXiv 2406.05882",
        "Thumbs up and down: the good answers' log-ratios as a distribution should dominate those"
        " of the bad; large batches.",
        unit="completion",
        batch="quantile_sides",
    ),
    "plackett_luce": ObjectiveEntry(
        losses.plackett_luce,
        ("score",),
        {"beta": 0.1},
        "-sum_k log( e^(b r_k) / sum_{j>=k} e^(b r_j) ), best first",
        "arXiv 2305.18290 app. A.3",
        "Several ranked answers to a prompt: the ranking as one observation instead of all its"
        " pairs, which count a ranking several times.",
        unit="group",
    ),
    "simpo": ObjectiveEntry(
        losses.simpo,
        ("margin",),
        {"beta": 2.5, "gamma": 1.4},
        "-log s(b (w/n - l/n) - gamma)",
        "arXiv 2405.14734 eq. 6",
        "No reference is wanted, and likelihood per token is what sampling sees. Nothing holds the"
        " policy but the rate and the steps: watch kl.",
        reference=False,
        scores=("mean",),
    ),
    "alphapo": ObjectiveEntry(
        losses.alphapo,
        ("win", "lose"),
        {"beta": 2.5, "gamma": 0.25, "alpha": 0.25},
        "-log s(b (r(w/n) - r(l/n)) - gamma), r(x) = (1 - e^(-alpha x))/alpha",
        "arXiv 2501.03884",
        "As simpo, with a reward that is steeper for unlikely answers: alpha decides how far both"
        " sides' likelihoods fall together.",
        reference=False,
        scores=("mean",),
    ),
    "cpo": ObjectiveEntry(
        losses.cpo,
        ("win", "lose", "nll"),
        {"beta": 0.1, "alpha": 1.0},
        "-log s(b D) + alpha nll(w)/n",
        "arXiv 2401.08417 eq. 3",
        "Translation and other tasks with near-perfect winners: contrast and imitation without a"
        " reference.",
        reference=False,
    ),
    "orpo": ObjectiveEntry(
        losses.orpo,
        ("win", "lose"),
        {"weight": 0.1},
        "-w/n - lambda log s(log odds(w/n) - log odds(l/n))",
        "arXiv 2403.07691 eq. 6, 7",
        "From a base model in one stage: imitation of the winners, with a light push off the"
        " losers. Its rate is that of SFT, not of dpo.",
        reference=False,
        scores=("mean",),
    ),
    "unlikelihood": ObjectiveEntry(
        losses.unlikelihood,
        ("win", "lose"),
        {"alpha": 0.1},
        "-w + alpha l",
        "arXiv 2305.18290 sec. 6",
        "A baseline of the DPO paper, which found that it degenerates: to compare with, not to"
        " use.",
        reference=False,
    ),
    "sft": ObjectiveEntry(
        losses.nll,
        ("logp",),
        {},
        "-log pi(token), over the winners' tokens",
        "arXiv 2305.18290 sec. 6 (Preferred-FT)",
        "The baseline every preference method must beat, and in a mixture (dpo:1,sft:0.1) what"
        " keeps the winners' likelihood from falling.",
        unit="token",
        reference=False,
    ),
}

# What `winnow reward` trains. r_w, r_l: the head's numbers for winner and loser. Policies cannot be
# trained with these, so `objective` knows no such names.
REWARDS: dict[str, ObjectiveEntry] = {
    "bradley_terry": ObjectiveEntry(
        losses.logistic,
        ("margin",),
        {"beta": 1.0},
        "-log s(r_w - r_l)",
        "arXiv 2305.18290 eq. 2; with an offset arXiv 2307.09288 eq. 2",
        "A reward model: comparisons are won with probability s(r_w - r_l).",
        reference=False,
        rewards=True,
    ),
    "bradley_terry_listwise": ObjectiveEntry(
        losses.plackett_luce,
        ("score",),
        {"beta": 1.0},
        "-sum_k log( e^(r_k) / sum_{j>=k} e^(r_j) ), best first",
        "arXiv 2305.18290 app. A.3",
        "A reward model from rankings, each as one observation.",
        unit="group",
        reference=False,
        rewards=True,
    ),
}
ENTRIES: dict[str, ObjectiveEntry] = {**TABLE, **REWARDS}
