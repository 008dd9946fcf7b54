"""Name -> objective: which loss, of which scores, with which defaults, what it needs, and when to take it. One readable dict.

`equation` is per comparison (or what `unit` says), in the notation of docs/objectives.md: w, l sums of log pi - log pi_ref of winner and loser, or
of log pi where there is no reference; D = w - l; w/n and l/n means per token; b = beta; s = the logistic function.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from winnow.errors import SettingsError
from winnow.objectives import losses

Value = float | bool | str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table.

    takes: the columns `loss` is given first (`terms.columns`); settings: what it is given by name, with defaults; tuning: settings that
    are read around the loss; defaults: of what any objective of its kind may be given (`MODIFIERS`).
    scores: what its sides are, sum or mean; the first is the default, a second one is a choice.
    batch: a function of `objectives.batchwise` that must see the whole optimizer batch before any gradient; "" where none does.
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

    @property
    def certain_labels(self) -> bool:
        """Whether probabilities and weights of single comparisons mean nothing to it: their order is not kept."""
        return self.batch in ("quantile_margins", "quantile_sides")


TABLE: dict[str, Entry] = {
    "dpo": Entry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b D)",
        "arXiv 2305.18290 eq. 7",
        "The default, and the baseline to beat. Higher beta keeps the policy closer to the reference; 0.1 is usual, 0.01 bold, 0.5 the paper's for summaries.",
    ),
    "cdpo": Entry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-(1-e) log s(b D) - e log s(-b D)",
        "Mitchell 2023, A note on DPO with noisy preferences, eq. 3",
        "Labels of which a share e is wrong: margins stop at logit(1-e) instead of running away. It shrinks further than the noise alone would.",
        defaults={"label_smoothing": 0.1},
    ),
    "robust": Entry(
        losses.robust,
        ("margin",),
        {"beta": 0.1, "label_smoothing": 0.1, "bound": 10.0},
        "[-(1-e) log s(b D) + e log s(-b D)] / (1-2e)",
        "arXiv 2403.00409 sec. 3.1",
        "Flips at a known rate e, and the wish to undo them instead of shrinking. With few data its variance is larger, and only the bound stops a margin.",
    ),
    "ipo": Entry(
        losses.square,
        ("margin",),
        {"beta": 0.1},
        "(D - 1/(2b))^2, of means or sums",
        "arXiv 2310.12036 eq. 17",
        "Small data sets and many epochs, where dpo overfits: it aims at a margin instead of the largest one. The paper prints sums; its authors ran per-token "
        "means, the default here. Tune beta anew: with means it has other units.",
        scores=("mean", "sum"),
    ),
    "hinge": Entry(
        losses.hinge,
        ("margin",),
        {"beta": 0.1},
        "max(0, 1 - b D)",
        "arXiv 2309.06657, 2305.10425",
        "Clean labels, and a wish to stop exactly at a margin of 1/beta: comparisons beyond it have no gradient at all.",
    ),
    "dpo_norm": Entry(
        losses.logistic,
        ("margin",),
        {"beta": 5.0},
        "-log s(b (w/n - l/n))",
        "arXiv 2411.15124 sec. 5",
        "One side of the data is systematically longer (`winnow check` says how often the longer answer wins) and answers grow. "
        "Beta multiplies a mean, so it is larger.",
        scores=("mean",),
    ),
    "exo": Entry(
        losses.exo,
        ("margin",),
        {"beta": 0.1, "label_smoothing": 1e-3},
        "s(b D) [log s(b D) - log(1-e)] + s(-b D) [log s(-b D) - log e]",
        "arXiv 2402.00856 eq. 16",
        "Reverse instead of forward KL to the labels: decided early, and hopeless comparisons are given up. Labels must be reliable.",
    ),
    "discopop": Entry(
        losses.discopop,
        ("margin",),
        {"beta": 0.05, "temperature": 0.05},
        "(1-m) (-log s(b D)) + m e^(-b D), m = s(b D/t)",
        "arXiv 2406.08414 eq. 5",
        "For comparison with the loss a search over programs found. It is not convex; watch that margins leave its local minimum just below 0.",
    ),
    "rdpo": Entry(
        losses.rdpo,
        ("margin", "longer"),
        {"beta": 0.1, "alpha": 0.01},
        "-log s(b D + alpha (n_w - n_l))",
        "arXiv 2403.19159 eq. 9",
        "Answers grow while training, and an explicit price per token is wanted: each costs alpha of implicit reward.",
    ),
    "odpo": Entry(
        losses.odpo,
        ("margin", "gap"),
        {"beta": 0.5, "alpha": 1.0},
        "-log s(b D - alpha log gap)",
        "arXiv 2402.10571",
        "Data with scores, where a narrow win should not be pushed as far as a clear one. Every winner's margin must be above 0.",
        positive_margins=True,
    ),
    "beta_dpo": Entry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b' D), b' = max(0.001, b (1 + alpha (mean D - M0)))",
        "arXiv 2407.08639",
        "Batches of very different difficulty: beta grows where the batch's margins are above their running mean M0. "
        "The paper's random filtering of pairs is not part of it.",
        batch="scaled_beta",
        tuning={"alpha": 0.6, "momentum": 0.9},
    ),
    "tdpo": Entry(
        losses.tdpo,
        ("margin", "kl_win", "kl_lose"),
        {"beta": 0.1, "alpha": 0.5},
        "-log s(b D - alpha b (KL_l - sg KL_w))",
        "arXiv 2404.11999",
        "Control of the KL at each token, and not only of the answers' log-ratios. "
        "The reference is asked at every step: a third more work, and its trainable weights beside the policy's.",
    ),
    "aot": Entry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b (u_(i) - v_(i))), u, v the sorted margins of policy and reference",
        "arXiv 2406.05882",
        "The policy's margins as a distribution should dominate the reference's; large batches. Single comparisons have no probability or weight.",
        batch="quantile_margins",
    ),
    "nca": Entry(
        losses.nca,
        ("win", "lose"),
        {"beta": 0.01},
        "-log s(b w) - 1/2 log s(-b w) - 1/2 log s(-b l)",
        "arXiv 2402.05369",
        "The winners' likelihood falls under dpo and must not: each side has a target of its own.",
    ),
    "bco": Entry(
        losses.bco,
        ("win", "lose"),
        {"beta": 0.01},
        "-log s(b w - d) - log s(-(b l - d)), d the running mean reward",
        "arXiv 2404.04656",
        "A classifier of good and bad answers, on pairs; part of the mpo preset.",
        batch="running_shift",
    ),
    "sppo": Entry(
        losses.sppo,
        ("win", "lose"),
        {"beta": 1e-3},
        "(w - 1/(2b))^2 + (l + 1/(2b))^2",
        "arXiv 2405.00675 eq. 4.7",
        "Self-play in rounds, each from its own samples: the reference is the round before. Its beta is the paper's 1/eta.",
    ),
    "apo_zero": Entry(
        losses.apo_zero,
        ("win", "lose"),
        {"beta": 0.1},
        "1 - s(b w) + s(b l)",
        "arXiv 2408.06266 eq. 7",
        "Winners that are better than what the policy writes: they rise, losers fall, each by itself.",
    ),
    "apo_down": Entry(
        losses.apo_down,
        ("win", "lose"),
        {"beta": 0.1},
        "s(b w) + 1 - s(b D)",
        "arXiv 2408.06266 eq. 8",
        "Winners that are worse than what the policy writes: both sides fall, losers more.",
    ),
    "dpop": Entry(
        losses.dpop,
        ("win", "lose"),
        {"beta": 0.3, "penalty": 50.0},
        "-log s(b (D - penalty max(0, -w)))",
        "arXiv 2402.13228 eq. 3",
        "Pairs that differ in a few tokens only, where dpo lowers both sides: a winner below its reference costs penalty times as much.",
    ),
    "kto": Entry(
        losses.kto,
        ("score",),
        {"beta": 0.1},
        "good: 1 - s(b (r - z)); bad: 1 - s(b (z - r)); z = max(0, mean r of mismatched answers)",
        "arXiv 2402.01306 eq. 8",
        "Thumbs up and down instead of pairs, in any proportion: set `desirable` or `undesirable` so that both sides weigh alike in sum. "
        "Pairs are taken as one of each.",
        unit="completion",
        batch="mismatched_baseline",
        tuning={"desirable": 1.0, "undesirable": 1.0},
    ),
    "bco_unpaired": Entry(
        losses.bco_unpaired,
        ("score",),
        {"beta": 0.01},
        "good: -log s(b r - d); bad: -log s(-(b r - d)); d the running mean reward",
        "arXiv 2404.04656",
        "Thumbs up and down, as kto, with a loss that does not give up on answers that are far off.",
        unit="completion",
        batch="running_shift",
    ),
    "aot_unpaired": Entry(
        losses.logistic,
        ("margin",),
        {"beta": 0.1},
        "-log s(b (w_(i) - l_(i))), w, l the sorted log-ratios of good and bad answers",
        "arXiv 2406.05882",
        "Thumbs up and down: the good answers' log-ratios as a distribution should dominate those of the bad; large batches.",
        unit="completion",
        batch="quantile_sides",
    ),
    "plackett_luce": Entry(
        losses.plackett_luce,
        ("score",),
        {"beta": 0.1},
        "-sum_k log( e^(b r_k) / sum_{j>=k} e^(b r_j) ), best first",
        "arXiv 2305.18290 app. A.3",
        "Several ranked answers to a prompt: the ranking as one observation instead of all its pairs, which count a ranking several times.",
        unit="group",
    ),
    "simpo": Entry(
        losses.simpo,
        ("margin",),
        {"beta": 2.5, "gamma": 1.4},
        "-log s(b (w/n - l/n) - gamma)",
        "arXiv 2405.14734 eq. 6",
        "No reference is wanted, and likelihood per token is what sampling sees. Nothing holds the policy but the rate and the steps: watch kl.",
        reference=False,
        scores=("mean",),
    ),
    "alphapo": Entry(
        losses.alphapo,
        ("win", "lose"),
        {"beta": 2.5, "gamma": 0.25, "alpha": 0.25},
        "-log s(b (r(w/n) - r(l/n)) - gamma), r(x) = (1 - e^(-alpha x))/alpha",
        "arXiv 2501.03884",
        "As simpo, with a reward that is steeper for unlikely answers: alpha decides how far both sides' likelihoods fall together.",
        reference=False,
        scores=("mean",),
    ),
    "cpo": Entry(
        losses.cpo,
        ("win", "lose", "nll"),
        {"beta": 0.1, "alpha": 1.0},
        "-log s(b D) + alpha nll(w)/n",
        "arXiv 2401.08417 eq. 3",
        "Translation and other tasks with near-perfect winners: contrast and imitation without a reference.",
        reference=False,
    ),
    "orpo": Entry(
        losses.orpo,
        ("win", "lose"),
        {"weight": 0.1},
        "-w/n - lambda log s(log odds(w/n) - log odds(l/n))",
        "arXiv 2403.07691 eq. 6, 7",
        "From a base model in one stage: imitation of the winners, with a light push off the losers. Its rate is that of SFT, not of dpo.",
        reference=False,
        scores=("mean",),
    ),
    "unlikelihood": Entry(
        losses.unlikelihood,
        ("win", "lose"),
        {"alpha": 0.1},
        "-w + alpha l",
        "arXiv 2305.18290 sec. 6",
        "A baseline of the DPO paper, which found that it degenerates: to compare with, not to use.",
        reference=False,
    ),
    "sft": Entry(
        losses.nll,
        ("logp",),
        {},
        "-log pi(token), over the winners' tokens",
        "arXiv 2305.18290 sec. 6 (Preferred-FT)",
        "The baseline every preference method must beat, and in a mixture (dpo:1,sft:0.1) what keeps the winners' likelihood from falling.",
        unit="token",
        reference=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting does, and which values it may have."""

    help: str
    fits: Callable[[Any], bool]
    allowed: str


ABOVE = Setting("", lambda x: 0 < x <= 1e6, "above 0, at most 1e6")
DIVERGENCES = ("reverse_kl", "forward_kl", "js")
SETTINGS: dict[str, Setting] = {
    "beta": Setting("higher keeps the policy closer to the reference (1/nats)", ABOVE.fits, ABOVE.allowed),
    "label_smoothing": Setting("the share of labels believed to be flipped", lambda x: 0 <= x < 0.5, "from 0, below 0.5"),
    "score": Setting("margins of summed or of per-token mean scores", lambda x: x in ("sum", "mean"), "sum or mean"),
    "gamma": Setting("the margin a winner must have, in units of beta times it", lambda x: 0 <= x <= 1e6, "from 0 on"),
    "alpha": Setting("the objective's own coefficient, in its equation", lambda x: -1e6 <= x <= 1e6, "a number"),
    "temperature": Setting("of the switch between its two losses", lambda x: 0 < x < 1, "above 0, below 1"),
    "penalty": Setting("of a winner below its reference", lambda x: 0 <= x <= 1e6, "from 0 on"),
    "weight": Setting("of the odds ratio's term, the paper's lambda", ABOVE.fits, ABOVE.allowed),
    "bound": Setting("beta times the margin from which a comparison has no gradient", ABOVE.fits, ABOVE.allowed),
    "momentum": Setting("of the running mean margin", lambda x: 0 <= x < 1, "from 0, below 1"),
    "desirable": Setting("weight of good answers", ABOVE.fits, ABOVE.allowed),
    "undesirable": Setting("weight of bad answers", ABOVE.fits, ABOVE.allowed),
    "offset": Setting("beta times the margin a winner must have, per unit of the data's margin column", lambda x: 0 <= x <= 1e6, "from 0 on"),
    "tail_weight": Setting("LD-DPO: weight of the tokens beyond the shorter side's length", lambda x: 0 <= x <= 1, "from 0 to 1"),
    "wpo": Setting("weigh comparisons by how likely the policy itself would write them", lambda x: isinstance(x, bool), "true or false"),
    "divergence": Setting(
        "f-DPO: of the policy from the reference; a number is the alpha-divergence",
        lambda x: 0 < x < 1 if isinstance(x, float) else x in DIVERGENCES,
        f"{', '.join(DIVERGENCES)}, or an alpha between 0 and 1",
    ),
}
# What composes with the objectives that can take it, and the value that changes nothing.
MODIFIERS: dict[str, Value] = {"label_smoothing": 0.0, "offset": 0.0, "tail_weight": 1.0, "wpo": False, "divergence": "reverse_kl"}


def modifiers(entry: Entry) -> dict[str, Value]:
    """The modifiers an objective can take, with its defaults, and `score` where it has a choice."""
    on_margin = entry.unit == "comparison" and entry.takes[0] == "margin" and not entry.batch
    pairs = entry.unit == "comparison" and not entry.certain_labels
    plain_sums = entry.scores[0] == "sum" or len(entry.scores) > 1
    fits = {
        "label_smoothing": entry.unit != "group" and entry.unit != "token" and "label_smoothing" not in entry.settings,
        "offset": on_margin and "gap" not in entry.takes,
        "tail_weight": pairs and plain_sums,
        "wpo": pairs,
        "divergence": on_margin and entry.reference and plain_sums and "kl_win" not in entry.takes,
    }
    found = {name: entry.defaults.get(name, neutral) for name, neutral in MODIFIERS.items() if fits[name]}
    return found | ({"score": entry.scores[0]} if len(entry.scores) > 1 else {})


def known(entry: Entry) -> dict[str, Value]:
    """Every setting of an objective with its default."""
    return {**entry.settings, **entry.tuning, **modifiers(entry)}


@dataclass(frozen=True, slots=True)
class Choice:
    """A member of an objective: its name, its weight in the mixture, and all its settings."""

    name: str
    weight: float
    settings: Mapping[str, Value]

    def spelled(self, *, without: Collection[str]) -> str:
        """As it could be given again: the name, and its settings but for those in `without` and the neutral modifiers."""
        usual = modifiers(TABLE[self.name])  # what composes and does nothing need not be said
        kept = {key: value for key, value in self.settings.items() if key not in without and (key not in MODIFIERS or usual.get(key) != value)}
        kept |= {key: value for key, value in self.settings.items() if key in TABLE[self.name].defaults and key not in without}
        return ":".join([self.name, *([shown(self.weight)] if self.weight != 1 else []), *(f"{key}={shown(value)}" for key, value in kept.items())])


def choices(text: str, given: Mapping[str, Value]) -> list[Choice]:
    """`dpo`, `simpo:gamma=1.4`, or a mixture with weights: `dpo:0.8,bco:0.2:beta=0.1,sft:1`. Raises SettingsError.

    given: settings for every member that takes them, but for those that name their own.
    """
    found = [_choice(part.strip(), given) for part in text.split(",")]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"objective: {name} stands twice in {text!r}", remedy="add their weights")
    for key, value in given.items():
        if not any(key in one.settings for one in found):
            takers = [name for name, entry in TABLE.items() if key in known(entry)]
            raise SettingsError(
                f"{key}: got {shown(value)}, {' and '.join(names)} {'has' if len(names) == 1 else 'have'} no such setting",
                remedy=f"leave {key} away; {key} belongs to {', '.join(takers)}",
            )
    return found


def _choice(part: str, given: Mapping[str, Value]) -> Choice:
    name, *rest = part.split(":")
    if name not in TABLE:
        near = difflib.get_close_matches(name, TABLE, n=1, cutoff=0.5)
        raise SettingsError(f"objective: got {name!r}" + (f": did you mean {near[0]}?" if near else ""), remedy=f"one of {', '.join(TABLE)}")
    entry, weight = TABLE[name], 1.0
    own: dict[str, Value] = {}
    keys = [item.partition("=")[0] if "=" in item else "a weight" for item in rest]
    for twice in {key for key in keys if keys.count(key) > 1}:
        raise SettingsError(f"objective: {part!r} gives {twice} twice", remedy="give it once")
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals:
            weight = _weight(item, part)
        elif key not in known(entry):
            raise SettingsError(f"objective: {name} has no setting {key!r}", remedy=f"it has {', '.join(known(entry)) or 'none'}")
        else:
            own[key] = _value(value)
    settings: dict[str, Value] = {**known(entry), **{key: value for key, value in given.items() if key in known(entry)}, **own}
    for key, chosen in settings.items():
        try:
            fits = SETTINGS[key].fits(chosen)
        except TypeError:  # text where a number belongs
            fits = False
        if not fits or isinstance(chosen, bool) != (key == "wpo"):
            raise SettingsError(f"{name}: {key}: got {shown(chosen)}, expected {SETTINGS[key].allowed}")
        if name == "exo" and key == "label_smoothing" and chosen == 0:
            raise SettingsError("exo: label_smoothing: got 0, and the logarithm of 0 is in its equation", remedy="label_smoothing=0.001")
        if key in own and key in given and own[key] != given[key]:
            raise SettingsError(f"{name}: {key} is given twice: {shown(own[key])} behind its name, and {shown(given[key])}", remedy="give it once")
    changed = [key for key in ("tail_weight", "divergence") if settings.get(key, MODIFIERS[key]) != MODIFIERS[key]]
    if settings.get("score") == "mean" and changed:
        raise SettingsError(f"{name}: {changed[0]} is about sums over an answer's tokens, and score is mean", remedy="--score sum")
    return Choice(name, weight, settings)


def _weight(text: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise SettingsError(f"objective: got {text!r} in {part!r}, expected a weight above 0, or setting=value")
    return weight


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def shown(value: Value) -> str:
    """A setting's value as it is given."""
    return str(value).lower() if isinstance(value, bool) else repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
