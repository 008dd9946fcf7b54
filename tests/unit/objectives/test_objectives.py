"""Objectives on batches: each against plain Python over the rows, every setting seen to have an
effect, what is refused, golden starts.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from test_losses import bent, naive_discopop, naive_exo, naive_robust, odds, ranking

from winnow.data.records import Comparison
from winnow.data.render import RenderedGroup, TokenSequence
from winnow.engine.batch import collate, joined
from winnow.errors import SettingsError
from winnow.objectives import divergences
from winnow.objectives.objective import DEMONSTRATION, objective
from winnow.objectives.parsing import MODIFIERS, SETTINGS, modifiers, settings_of
from winnow.objectives.table import TABLE

F64 = torch.float64


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def s(x):
    return math.exp(-softplus(-x))


# ---------------------------------------------------------------- made data


def group(number, *, certain=False, labels=None, demonstration=False):
    """Three answers of different lengths and one that belongs to another prompt; soft, weighted
    comparisons with margins.
    """
    rng = random.Random(number)
    lengths = [rng.randint(1, 6) for _ in range(4)]
    sequences = tuple(
        TokenSequence((0, 1 + number, *([2 + k] * n)), 2) for k, n in enumerate(lengths)
    )
    if labels or demonstration:
        return RenderedGroup(
            sequences, (), (*(labels or (None,) * 3), None), f"made:{number}", mismatched=1
        )
    odd = {} if certain else {"probability": 0.8, "weight": 2.0}
    comparisons = (
        Comparison(0, 1, margin=1.5),
        Comparison(2, 0, margin=0.25, **odd),
        Comparison(2, 1, margin=3.0),
    )
    return RenderedGroup(sequences, comparisons, (None,) * 4, f"made:{number}", mismatched=1)


def columns_of(batch, seed=0):
    """What an engine could say: log-probs, log sum p^2, KL; and the reference's log-probs."""
    random = torch.Generator().manual_seed(seed)
    value = {
        name: torch.rand(len(batch.target_N), generator=random, dtype=F64)
        for name in ("logp", "collision", "kl", "reference")
    }
    return {
        "logp": -2 * value["logp"],
        "collision": -value["collision"],
        "kl": value["kl"],
    }, -2 * value["reference"]


@dataclass
class Side:
    """One completion as the rows say it."""

    logp: list
    ratio: list
    n: int
    kl: float
    likely: float  # mean of log p - log sum p^2


def rows_of(groups, columns, reference_N):
    """group -> its completions."""
    at, found = 0, []
    for one in groups:
        mine = []
        for sequence in one.sequences:
            n = len(sequence.ids) - sequence.start
            part = slice(at, at + n)
            logp, ref = columns["logp"][part].tolist(), reference_N[part].tolist()
            likely = math.fsum((columns["logp"] - columns["collision"])[part].tolist()) / n
            mine.append(
                Side(
                    logp,
                    [a - b for a, b in zip(logp, ref)],
                    n,
                    math.fsum(columns["kl"][part].tolist()),
                    likely,
                )
            )
            at += n
        found.append(mine)
    return found


# name -> the loss of (winner, loser, margin of the data, settings, known of the batch), from sums
# unless it says means
D = {
    "dpo": lambda w, v, gap, o, k: softplus(-o["beta"] * (w - v)),
    "cdpo": lambda w, v, gap, o, k: softplus(-o["beta"] * (w - v)),
    "robust": lambda w, v, gap, o, k: float(
        naive_robust(w - v, o["beta"], o["label_smoothing"], o["bound"])
    ),
    "ipo": lambda w, v, gap, o, k: (w - v - 1 / (2 * o["beta"])) ** 2,
    "hinge": lambda w, v, gap, o, k: max(0.0, 1 - o["beta"] * (w - v)),
    "dpo_norm": lambda w, v, gap, o, k: softplus(-o["beta"] * (w - v)),
    "exo": lambda w, v, gap, o, k: float(naive_exo(w - v, o["beta"], o["label_smoothing"])),
    "discopop": lambda w, v, gap, o, k: float(naive_discopop(w - v, o["beta"], o["temperature"])),
    "odpo": lambda w, v, gap, o, k: softplus(-o["beta"] * (w - v) + o["alpha"] * math.log(gap)),
    "beta_dpo": lambda w, v, gap, o, k: softplus(-k["beta_dpo/beta"] * (w - v)),
    "nca": lambda w, v, gap, o, k: (
        softplus(-o["beta"] * w) + softplus(o["beta"] * w) / 2 + softplus(o["beta"] * v) / 2
    ),
    "bco": lambda w, v, gap, o, k: (
        softplus(-o["beta"] * w + k["bco/shift"]) + softplus(o["beta"] * v - k["bco/shift"])
    ),
    "sppo": lambda w, v, gap, o, k: (w - 1 / (2 * o["beta"])) ** 2 + (v + 1 / (2 * o["beta"])) ** 2,
    "apo_zero": lambda w, v, gap, o, k: 1 - s(o["beta"] * w) + s(o["beta"] * v),
    "apo_down": lambda w, v, gap, o, k: s(o["beta"] * w) + 1 - s(o["beta"] * (w - v)),
    "dpop": lambda w, v, gap, o, k: softplus(-o["beta"] * (w - v - o["penalty"] * max(0, -w))),
    "simpo": lambda w, v, gap, o, k: softplus(-o["beta"] * (w - v) + o["gamma"]),
    "alphapo": lambda w, v, gap, o, k: softplus(
        -o["beta"] * float(bent(w, o["alpha"]) - bent(v, o["alpha"])) + o["gamma"]
    ),
    "orpo": (
        lambda w, v, gap, o, k: -w + o["weight"] * softplus(-math.log(float(odds(w) / odds(v))))
    ),
    "unlikelihood": lambda w, v, gap, o, k: -w + o["alpha"] * v,
}
WHOLE_SIDES = {  # these look at the sides themselves
    "rdpo": lambda w, v, wn, vn, o: softplus(-o["beta"] * (wn - vn) - o["alpha"] * (w.n - v.n)),
    "tdpo": lambda w, v, wn, vn, o: softplus(
        -o["beta"] * (wn - vn) + o["alpha"] * o["beta"] * (v.kl - w.kl)
    ),
    "cpo": (
        lambda w, v, wn, vn, o: softplus(-o["beta"] * (wn - vn)) + o["alpha"] * -sum(w.logp) / w.n
    ),
}
MEANS = {"ipo", "dpo_norm", "simpo", "alphapo", "orpo"}
FREE = {"simpo", "alphapo", "orpo", "cpo", "unlikelihood"}
OWN_SMOOTHING = {"robust", "exo"}


def score(name, side, other, o):
    values = side.logp if name in FREE else side.ratio
    if name in MEANS and o.get("score") != "sum":
        return sum(values) / side.n
    shared = min(side.n, other.n)
    total = sum(values[:shared]) + o.get("tail_weight", 1.0) * sum(values[shared:])
    divergence = o.get("divergence", "reverse_kl")
    if divergence == "forward_kl":
        return -math.exp(-total)
    if divergence == "js":
        return math.log(2 * math.exp(total) / (1 + math.exp(total)))
    return total if divergence == "reverse_kl" else (1 - math.exp(-divergence * total)) / divergence


def pair_loss(name, w, v, gap, o, k):
    ws, vs = score(name, w, v, o), score(name, v, w, o)
    if o.get("offset"):
        ws -= o["offset"] / o["beta"] * gap
    return WHOLE_SIDES[name](w, v, ws, vs, o) if name in WHOLE_SIDES else D[name](ws, vs, gap, o, k)


def slow(name, o, groups, rows, k):
    """Sum and count of an objective over comparisons, one after the other."""
    e = 0.0 if name in OWN_SMOOTHING else o.get("label_smoothing", 0.0)
    total = count = 0.0
    for one, sides in zip(groups, rows):
        for c in one.comparisons:
            p = (
                float(torch.tensor(c.probability)) * (1 - e)
                + (1 - float(torch.tensor(c.probability))) * e
            )
            w, v = sides[c.winner], sides[c.loser]
            loss = p * pair_loss(name, w, v, c.margin, o, k) + (1 - p) * pair_loss(
                name, v, w, c.margin, o, k
            )
            weight = c.weight * (min(1.0, math.exp(w.likely + v.likely)) if o.get("wpo") else 1.0)
            total, count = total + weight * loss, count + c.weight
    return total, count


def asked(made, columns, batch, before=None):
    known_of_batch = made.known(columns, batch, before or {}, train=True)
    (total,), (count,) = made.totals(columns, batch, known_of_batch), made.counts([batch])
    return float(total), count, known_of_batch


VARIANTS = [
    {},
    {"label_smoothing": 0.2},
    {"offset": 0.4},
    {"tail_weight": 0.3},
    {"wpo": True},
    {"divergence": "forward_kl"},
    {"divergence": "js"},
]
VARIANTS += [
    {"divergence": 0.4},
    {"score": "sum"},
    {
        "score": "sum",
        "divergence": "js",
        "tail_weight": 0.5,
        "offset": 0.2,
        "wpo": True,
        "label_smoothing": 0.1,
    },
]
VARIANTS += [
    {"divergence": "js", "tail_weight": 0.5, "offset": 0.2, "wpo": True, "label_smoothing": 0.1}
]
FITTING = [
    (name, given)
    for name in (*D, *WHOLE_SIDES)
    for given in VARIANTS
    if given.keys() <= settings_of(TABLE[name]).keys()
    and not (
        name == "ipo" and "score" not in given and {"tail_weight", "divergence"} & given.keys()
    )
]


@pytest.mark.parametrize(("name", "given"), FITTING, ids=lambda value: str(value).replace(" ", ""))
def test_a_batch_is_its_comparisons_one_by_one(name, given):
    groups = [group(i) for i in range(5)]
    batch = collate(groups)
    columns, reference_N = columns_of(batch)
    made = objective(name, **given)
    found, count, k = asked(made, columns, replace(batch, reference_N=reference_N))
    expected, weight = slow(
        name, made.terms[0].settings, groups, rows_of(groups, columns, reference_N), k
    )
    assert count == pytest.approx(weight, rel=1e-7)
    assert found == pytest.approx(expected, rel=2e-7)  # labels are float32


@pytest.mark.parametrize(("name", "given"), FITTING, ids=lambda value: str(value).replace(" ", ""))
def test_the_slopes_of_a_batch(name, given):
    """Those of finite differences; tdpo's stop at the winner's KL is seen below."""
    batch = collate([group(i) for i in range(2)])
    columns, reference_N = columns_of(batch, seed=3)
    batch, made = replace(batch, reference_N=reference_N), objective(name, **given)
    if given.get("wpo"):  # its weights have no gradient, rightly
        columns["collision"] = columns["logp"] - 5
    k = made.known(columns, batch, {}, train=True)
    leaf = columns["logp"].clone().requires_grad_()

    def total(logp_N):
        return made.totals({**columns, "logp": logp_N}, batch, k)[0]

    assert torch.autograd.gradcheck(total, leaf, atol=1e-5)
    _, slopes = made.slopes(columns, batch, made.counts([batch]), k)
    torch.testing.assert_close(
        slopes["logp"],
        torch.autograd.grad(total(leaf), leaf)[0] / made.counts([batch])[0],
        rtol=1e-12,
        atol=1e-15,
    )


def test_tdpo_pulls_on_the_loser_alone():
    """d L / d KL_lose = alpha b s(-z) and nothing on the winner's tokens (the paper's second
    form).
    """
    one = RenderedGroup(
        (TokenSequence((0, 1, 2), 1), TokenSequence((0, 3), 1)),
        (Comparison(0, 1),),
        (None, None),
        "made",
    )
    batch = collate([one])
    columns = {
        "logp": torch.tensor([-1.0, -2.0, -0.5], dtype=F64),
        "kl": torch.tensor([0.3, 0.1, 0.7], dtype=F64),
    }
    batch = replace(batch, reference_N=torch.tensor([-1.5, -1.0, -1.0], dtype=F64))
    _, slopes = objective("tdpo", beta=0.4).slopes(columns, batch, (1.0,), {})
    z = 0.4 * ((0.5 - 1.0) - 0.5) - 0.5 * 0.4 * (0.7 - 0.4)
    assert slopes["kl"].tolist() == pytest.approx([0.0, 0.0, 0.5 * 0.4 * s(-z)], rel=1e-12)


def test_completions_are_judged_one_by_one():
    """kto and bco_unpaired: labels as they are, a comparison as one good and one bad answer, with
    probability, weight and sides' weights.
    """
    groups = [group(0), group(1, labels=(True, False, None)), group(2, labels=(False, False, True))]
    batch = collate(groups)
    columns, reference_N = columns_of(batch)
    batch, rows = replace(batch, reference_N=reference_N), rows_of(groups, columns, reference_N)
    judged = []  # (log-ratio, probability of being good, weight)
    for one, sides in zip(groups, rows):
        for c in one.comparisons:
            p = float(torch.tensor(c.probability))
            judged += [
                (sum(sides[c.winner].ratio), p, c.weight),
                (sum(sides[c.loser].ratio), 1 - p, c.weight),
            ]
        judged += [
            (sum(side.ratio), float(label), 1.0)
            for side, label in zip(sides, one.labels)
            if label is not None
        ]
    assert len(judged) == 11
    z = max(0.0, sum(sum(sides[3].ratio) for sides in rows) / 3)
    e = 0.1
    for name in ("kto", "bco_unpaired"):
        made = objective(
            name,
            beta=0.3,
            label_smoothing=e,
            **({"desirable": 2.0, "undesirable": 0.5} if name == "kto" else {}),
        )
        found, count, k = asked(made, columns, batch)
        if name == "kto":
            assert k == {"kto/baseline": pytest.approx(z)}
            expected = [
                w * (2.0 * g * s(-0.3 * (r - z)) + 0.5 * (1 - g) * s(0.3 * (r - z)))
                for r, p, w in judged
                for g in [p * (1 - e) + (1 - p) * e]
            ]
        else:
            means = [
                sum(0.3 * r * side * w for r, side, w in part)
                / sum(side * w for _, side, w in part)
                for part in (
                    [(r, p, w) for r, p, w in judged],
                    [(r, 1 - p, w) for r, p, w in judged],
                )
            ]
            d = sum(means) / 2
            assert k == {
                "bco_unpaired/shift": pytest.approx(d, rel=1e-6),
                "bco_unpaired/steps": 1.0,
            }
            expected = [
                w * (g * softplus(-0.3 * r + d) + (1 - g) * softplus(0.3 * r - d))
                for r, p, w in judged
                for g in [p * (1 - e) + (1 - p) * e]
            ]
        assert count == pytest.approx(sum(w for _, _, w in judged))
        assert found == pytest.approx(sum(expected), rel=1e-6)


def test_bco_on_pairs_is_both_sides_of_its_unpaired_form():
    batch = collate([group(i, certain=True) for i in range(3)])
    columns, reference_N = columns_of(batch)
    batch = replace(batch, reference_N=reference_N)
    pair, pair_count, one = asked(objective("bco"), columns, batch)
    single, single_count, other = asked(objective("bco_unpaired"), columns, batch)
    assert one["bco/shift"] == pytest.approx(other["bco_unpaired/shift"], rel=1e-9)
    assert (pair, 2 * pair_count) == (pytest.approx(single, rel=1e-9), single_count)


def test_the_running_shift_is_the_mean_over_steps():
    before, means = {}, []
    for step in range(4):
        batch = collate([group(i, certain=True) for i in range(2)])
        columns, reference_N = columns_of(batch, seed=step)
        batch = replace(batch, reference_N=reference_N)
        rows = rows_of([group(i, certain=True) for i in range(2)], columns, reference_N)
        # winners and losers of three comparisons
        rewards = [0.01 * sum(sides[k].ratio) for sides in rows for k in (0, 1, 2, 0, 2, 1)]
        means.append(sum(rewards) / len(rewards))
        before = objective("bco").known(columns, batch, before, train=True)
        assert before["bco/shift"] == pytest.approx(sum(means) / len(means), rel=1e-9)
    held = objective("bco").known(columns, batch, before, train=False)
    assert held == {"bco/shift": before["bco/shift"]}  # held-out data moves nothing
    assert objective("bco").known(columns, batch, {}, train=False) == {"bco/shift": 0.0}


def test_beta_dpos_beta():
    groups = [group(i, certain=True) for i in range(2)]
    batch = collate(groups)
    columns, reference_N = columns_of(batch)
    batch = replace(batch, reference_N=reference_N)
    rows = rows_of(groups, columns, reference_N)
    margins = [
        sum(sides[c.winner].ratio) - sum(sides[c.loser].ratio)
        for one, sides in zip(groups, rows)
        for c in one.comparisons
    ]
    mean, before = sum(margins) / len(margins), {"beta_dpo/mean": 0.7, "beta_dpo/beta": 9.0}
    found = objective("beta_dpo", beta=0.2).known(columns, batch, before, train=True)
    running = 0.9 * 0.7 + 0.1 * mean
    assert found == {
        "beta_dpo/mean": pytest.approx(running),
        "beta_dpo/beta": pytest.approx(max(1e-3, 0.2 * (1 + 0.6 * (mean - running)))),
    }
    far = objective("beta_dpo:alpha=1000").known(
        columns, batch, {"beta_dpo/mean": 100.0}, train=True
    )
    assert far["beta_dpo/beta"] == 1e-3


def test_aot_compares_sorted_values():
    groups = [group(i, certain=True) for i in range(3)]
    batch = collate(groups)
    columns, reference_N = columns_of(batch)
    batch, rows = replace(batch, reference_N=reference_N), rows_of(groups, columns, reference_N)
    pairs = [
        (sides[c.winner], sides[c.loser])
        for one, sides in zip(groups, rows)
        for c in one.comparisons
    ]
    u = sorted(sum(w.logp) - sum(v.logp) for w, v in pairs)
    v = sorted((sum(w.logp) - sum(w.ratio)) - (sum(x.logp) - sum(x.ratio)) for w, x in pairs)
    good, bad = (sorted(sum(pair[k].ratio) for pair in pairs) for k in (0, 1))
    for name, ones, others in (("aot", u, v), ("aot_unpaired", good, bad)):
        found, count, _ = asked(objective(name, beta=0.3, label_smoothing=0.1), columns, batch)
        expected = sum(
            0.9 * softplus(-0.3 * (a - b)) + 0.1 * softplus(0.3 * (a - b))
            for a, b in zip(ones, others)
        )
        assert (found, count) == (pytest.approx(expected, rel=1e-7), 9)
        k = objective(name, beta=0.3)
        assert torch.autograd.gradcheck(
            lambda logp_N, k=k: k.totals({**columns, "logp": logp_N}, batch, {})[0],
            columns["logp"].clone().requires_grad_(),
        )
    few = collate([group(1, labels=(True, False, False)), group(2, labels=(False, None, None))])
    columns, reference_N = columns_of(few)
    rows = rows_of([group(1), group(2)], columns, reference_N)
    one, others = (
        sum(rows[0][0].ratio),
        sorted(sum(side.ratio) for side in (rows[0][1], rows[0][2], rows[1][0])),
    )
    found, count, _ = asked(
        objective("aot_unpaired", beta=0.3), columns, replace(few, reference_N=reference_N)
    )
    assert (found, count) == (
        pytest.approx(sum(softplus(-0.3 * (one - b)) for b in others), rel=1e-9),
        3,
    )
    # one side alone compares with nothing: it counts nothing, and has no loss
    alone = collate([group(1, labels=(True, None, None))])
    columns, reference_N = columns_of(alone)
    made = objective("aot_unpaired")
    assert asked(made, columns, replace(alone, reference_N=reference_N))[:2] == (0.0, 0.0)
    assert made.losses([0.0], made.counts([alone])) == {}
    _, slopes = made.slopes(columns, replace(alone, reference_N=reference_N), (0.0,), {})
    assert not slopes["logp"].any()


def test_rankings_of_groups():
    """The mismatched answer has no rank; a group weighs what its comparisons weigh; groups without
    comparisons count nothing.
    """
    ranked = (
        Comparison(2, 0, weight=3.0),
        Comparison(0, 1, weight=3.0),
        Comparison(2, 1, weight=3.0),
    )
    groups = [
        replace(group(0), comparisons=ranked),
        group(1, demonstration=True),
        replace(group(2), comparisons=(Comparison(1, 0), Comparison(1, 2))),
    ]
    batch = collate(groups)
    assert batch.ranks == (1, 2, 0, -1, 0, 0, 0, -1, 1, 0, 1, -1)
    columns, reference_N = columns_of(batch)
    rows = rows_of(groups, columns, reference_N)
    found, count, _ = asked(
        objective("plackett_luce", beta=0.5), columns, replace(batch, reference_N=reference_N)
    )
    first, last = ([0.5 * sum(side.ratio) for side in rows[i]] for i in (0, 2))
    expected = (
        3 * ranking(first, (2, 0, 1)) + (ranking(last, (1, 0, 2)) + ranking(last, (1, 2, 0))) / 2
    )
    assert (found, count) == (pytest.approx(expected, rel=1e-9), 4)


def test_demonstrations_and_what_was_judged_good_are_imitated_token_by_token():
    groups = [group(0), group(1, labels=(True, False, None)), group(2, demonstration=True)]
    batch = collate(groups)
    columns, _ = columns_of(batch)
    rows = rows_of(groups, columns, columns["logp"])
    p = float(torch.tensor(0.8))
    shares = [
        (rows[0][0], 1.0 + 2.0 * (1 - p)),
        (rows[0][2], 2.0 * p + 1.0),
        (rows[1][0], 1.0),
        *((rows[2][k], 1.0) for k in range(3)),
    ]
    found, count, _ = asked(objective("sft"), columns, batch)
    assert found == pytest.approx(sum(-sum(side.logp) * share for side, share in shares), rel=1e-6)
    assert count == pytest.approx(sum(side.n * share for side, share in shares), rel=1e-6)
    alone = collate([RenderedGroup((TokenSequence((0, 5, 6, 7), 1),), (), (None,), "made")])
    logp_N = torch.tensor([-1.0, -2.0, -4.0], dtype=F64)
    assert asked(DEMONSTRATION, {"logp": logp_N}, alone)[:2] == (7.0, 3.0)


# ---------------------------------------------------------------- mixtures


def test_a_mixture_is_its_members_weighed():
    groups = [group(i) for i in range(3)]
    batch = collate(groups)
    columns, reference_N = columns_of(batch)
    batch = replace(batch, reference_N=reference_N)
    mixed = objective("dpo:0.8:beta=0.2,bco:0.2,sft:1.5")
    k = mixed.known(columns, batch, {}, train=True)
    totals, slopes = mixed.slopes(columns, batch, mixed.counts([batch]), k)
    row = mixed.losses(totals.tolist(), mixed.counts([batch]))
    expected, expected_slope = 0.0, torch.zeros_like(columns["logp"])
    for text, weight in (("dpo:beta=0.2", 0.8), ("bco", 0.2), ("sft", 1.5)):
        one = objective(text)
        own = one.known(columns, batch, {}, train=True)
        total, slope = one.slopes(columns, batch, one.counts([batch]), own)
        mean = one.losses(total.tolist(), one.counts([batch]))["loss"]
        assert row[f"loss/{text.partition(':')[0]}"] == pytest.approx(mean, rel=1e-12)
        expected, expected_slope = expected + weight * mean, expected_slope + weight * slope["logp"]
    assert row["loss"] == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(slopes["logp"], expected_slope, rtol=1e-12, atol=1e-15)
    assert mixed.beta == 0.2
    assert mixed.name == "dpo:0.8:beta=0.2,bco:0.2:beta=0.01,sft:1.5"
    assert objective(mixed.name).name == mixed.name


def test_micro_batches_laid_end_to_end_are_one_batch():
    groups = [group(i) for i in range(5)]
    whole = collate(groups, [4, 2, 7, 9, 1])
    parts = [collate(groups[a:b], [4, 2, 7, 9, 1][a:b]) for a, b in ((0, 2), (2, 3), (3, 5))]
    _, reference_N = columns_of(whole)
    sizes = [len(part.target_N) for part in parts]
    again = joined(
        [replace(part, reference_N=piece) for part, piece in zip(parts, reference_N.split(sizes))]
    )
    for name in (
        "target_N",
        "completion_N",
        "length_C",
        "label_C",
        "pair_M2",
        "probability_M",
        "weight_M",
        "margin_M",
    ):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert torch.equal(again.reference_N, reference_N)
    assert (again.items, again.wheres, again.ranks) == (whole.items, whole.wheres, whole.ranks)
    assert [(end.scored, end.completions, end.comparisons) for end in again.ends] == [
        (end.scored, end.completions, end.comparisons) for end in whole.ends
    ]
    assert torch.equal(again.token_T[again.source_N], whole.token_T[whole.source_N])


# ---------------------------------------------------------------- golden values at the start

STARTS = {  # at beta 0.1 where it has one; discopop at its own
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "robust": math.log(2),
    "ipo": 25.0,
    "hinge": 1.0,
    "dpo_norm": math.log(2),
    "exo": 2.761231,
    "nca": 1.386294,
    "bco": 1.386294,
    "bco_unpaired": math.log(2),
    "sppo": 50.0,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.846574,
    "kto": 0.5,
    "plackett_luce": math.log(6),
    "beta_dpo": math.log(2),
    "tdpo": math.log(2),
    "dpop": math.log(2),
}


@pytest.mark.parametrize("name", TABLE)
def test_golden_values_at_the_start(name):
    """Policy = reference: the field's values, those of every closed form; the others by hand."""
    batch = collate([group(i, certain=True) for i in range(3)])
    columns, _ = columns_of(batch)
    batch, columns = (
        replace(batch, reference_N=columns["logp"]),
        {
            **columns,
            "kl": torch.zeros_like(columns["kl"]),
        },
    )
    made = objective(
        name, **({"beta": 0.1} if "beta" in TABLE[name].settings and name != "discopop" else {})
    )
    total, count, _ = asked(made, columns, batch)
    if name in STARTS:
        assert total / count == pytest.approx(STARTS[name], rel=1e-6)
    elif name == "rdpo":
        longer = [(batch.length_C[w] - batch.length_C[v]).item() for w, v in batch.pair_M2.tolist()]
        assert total / count == pytest.approx(
            sum(softplus(-0.01 * n) for n in longer) / len(longer), rel=1e-9
        )
    elif name == "odpo":
        assert total / count == pytest.approx(
            sum(softplus(math.log(gap)) for gap in (1.5, 0.25, 3.0)) / 3, rel=1e-6
        )
    else:  # without a reference the start is the policy's own
        assert name in (*FREE, "sft")


def test_the_table_and_the_tests_name_the_same_objectives():
    assert set(TABLE) == set(D) | set(WHOLE_SIDES) | {
        "aot",
        "aot_unpaired",
        "kto",
        "bco_unpaired",
        "plackett_luce",
        "sft",
    }
    assert {name for name, entry in TABLE.items() if not entry.reference} == FREE | {"sft"}
    assert {name for name, entry in TABLE.items() if entry.scores[0] == "mean"} == MEANS
    assert TABLE["simpo"].settings["beta"] == 2.5
    assert TABLE["dpo_norm"].settings["beta"] == 5.0
    for name, entry in TABLE.items():
        assert entry.equation, name
        assert len(entry.when) > 40, name
        paper = entry.paper.split()[1] if entry.paper.startswith("arXiv") else "Mitchell"
        assert paper.rstrip(",") in f"{entry.loss.__doc__} {divergences.soft.__doc__}" or name in (
            "dpo_norm",
            "beta_dpo",
            "aot",
            "aot_unpaired",
        ), name


# ---------------------------------------------------------------- no setting without an effect

OTHER = {
    "beta": 0.37,
    "label_smoothing": 0.23,
    "score": "sum",
    "gamma": 0.61,
    "alpha": 0.77,
    "temperature": 0.5,
    "penalty": 3.0,
    "weight": 0.7,
    "bound": 0.05,
    "momentum": 0.3,
    "desirable": 1.9,
    "undesirable": 0.4,
    "offset": 0.9,
    "tail_weight": 0.2,
    "wpo": True,
    "divergence": "js",
}
EVERY_SETTING = [(name, key) for name, entry in TABLE.items() for key in settings_of(entry)]


@pytest.mark.parametrize(("name", "key"), EVERY_SETTING)
def test_every_setting_of_every_objective_changes_the_loss(name, key):
    """Or the choice is refused, with the reason."""
    batch = collate([group(i, certain=True) for i in range(4)])
    columns, reference_N = columns_of(batch)
    # a baseline above 0 and a margin beyond the bound
    columns["logp"] = columns["logp"] + 0.8 * (batch.label_C[batch.completion_N] == -2)
    batch = replace(batch, reference_N=reference_N)
    before = {"beta_dpo/mean": 0.4}
    usual = asked(objective(name), columns, batch, before)[0]
    if name == "ipo" and key in ("tail_weight", "divergence"):
        with pytest.raises(SettingsError, match=r"about sums .* and score is mean"):
            objective(name, **{key: OTHER[key]})
        usual = asked(objective(name, score="sum"), columns, batch, before)[0]
        assert (
            asked(objective(name, score="sum", **{key: OTHER[key]}), columns, batch, before)[0]
            != usual
        )
        return
    changed = asked(objective(name, **{key: OTHER[key]}), columns, batch, before)[0]
    assert abs(changed - usual) > 1e-9 * abs(usual)
    spelled = f"{name}:{key}={str(OTHER[key]).lower()}"
    assert asked(objective(spelled), columns, batch, before)[0] == changed


@pytest.mark.parametrize("name", TABLE)
def test_settings_an_objective_lacks_are_refused_with_the_reason(name):
    for key in SETTINGS.keys() - settings_of(TABLE[name]).keys():
        with pytest.raises(
            SettingsError, match=f"{key}: got .*{name} has no such setting"
        ) as caught:
            objective(name, **{key: OTHER[key]})
        assert "belongs to" in str(caught.value)
        with pytest.raises(SettingsError, match=f"{name} has no setting '{key}'"):
            objective(f"{name}:{key}={OTHER[key]}")


@pytest.mark.parametrize(
    ("text", "given", "told"),
    [
        ("ppo", {}, "got 'ppo'.*did you mean"),
        ("dpoo", {}, "did you mean dpo"),
        ("dpo:x", {}, "got 'x' in 'dpo:x', expected a weight above 0"),
        ("dpo:0", {}, "expected a weight above 0"),
        ("dpo:-1", {}, "expected a weight above 0"),
        ("dpo:inf", {}, "expected a weight above 0"),
        ("dpo,dpo", {}, "dpo stands twice"),
        ("", {}, "got ''"),
        ("dpo:beta=0", {}, "dpo: beta: got 0, expected above 0"),
        ("dpo:beta=high", {}, "dpo: beta: got high, expected above 0"),
        ("dpo:beta=nan", {}, "beta: got nan"),
        ("dpo:beta=0.2", {"beta": 0.3}, "beta is given twice: 0.2 behind its name, and 0.3"),
        ("dpo:1:2", {}, "gives a weight twice"),
        ("dpo:beta=1:beta=2", {}, "gives beta twice"),
        ("dpo:beta=true", {}, "beta: got true"),
        ("dpo:label_smoothing=0.5", {}, "label_smoothing: got 0.5, expected from 0, below 0.5"),
        ("robust:label_smoothing=0.5", {}, "below 0.5"),
        ("exo:label_smoothing=0", {}, "logarithm of 0"),
        ("discopop:temperature=1", {}, "temperature: got 1, expected above 0, below 1"),
        ("dpo:divergence=kl", {}, "divergence: got kl, expected reverse_kl, forward_kl, js"),
        ("dpo:divergence=2", {}, "an alpha between 0 and 1"),
        ("dpo:wpo=1", {}, "wpo: got 1, expected true or false"),
        ("nca:divergence=js", {}, "nca has no setting 'divergence'"),
        ("aot:wpo=true", {}, "aot has no setting 'wpo'"),
        ("kto:tail_weight=0.5", {}, "kto has no setting 'tail_weight'"),
        ("simpo:divergence=js", {}, "simpo has no setting 'divergence'"),
        ("dpo_norm", {"score": "sum"}, "score: got sum, dpo_norm has no such setting"),
        ("orpo,sft", {"beta": 0.1}, "beta: got 0.1, orpo and sft have no such setting"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, given, told):
    with pytest.raises(SettingsError, match=told):
        objective(text, **given)


def test_a_setting_goes_to_every_member_that_takes_it():
    made = objective("dpo:0.5,hinge:0.5:beta=0.2,sft:0.1", label_smoothing=0.1)
    assert [term.settings.get("label_smoothing") for term in made.terms] == [0.1, 0.1, None]
    assert [term.settings.get("beta") for term in made.terms] == [0.1, 0.2, None]
    assert made.reference
    assert not made.whole
    assert objective("sft,kto").whole
    assert objective("tdpo").want == ("entropy", "kl")
    assert objective("dpo", wpo=True).want == ("entropy", "collision")


def test_an_objective_says_all_that_it_is():
    """What is recorded reads back as the same: settings that differ from the name's own, weights to
    the last digit.
    """
    for text in (
        "cdpo:1:label_smoothing=0,sft:0.1",
        "dpo:0.333333333,sft:1",
        "dpo:wpo=true,hinge:0.5",
        "cdpo,dpo:0.5",
        "robust:bound=3,kto",
        "dpo:divergence=0.3,sft",
    ):
        made = objective(text)
        again = objective(made.name)
        assert [
            (one.choice.name, one.choice.weight, one.choice.settings) for one in again.terms
        ] == [(one.choice.name, one.choice.weight, one.choice.settings) for one in made.terms]


def test_modifiers_stand_where_they_have_a_meaning():
    takers = {
        modifier: {name for name, entry in TABLE.items() if modifier in modifiers(entry)}
        for modifier in MODIFIERS
    }
    margins = {"dpo", "cdpo", "robust", "ipo", "hinge", "exo", "discopop", "rdpo", "odpo"}
    assert takers["divergence"] == margins
    assert takers["offset"] == margins - {"odpo"} | {"dpo_norm", "tdpo", "simpo"}
    assert {"aot", "kto", "sft", "plackett_luce"}.isdisjoint(takers["wpo"])
    assert {"dpo_norm", "simpo", "orpo", "aot"}.isdisjoint(takers["tail_weight"])
    assert takers["label_smoothing"] == set(TABLE) - {"robust", "exo", "plackett_luce", "sft"}


def test_ties_pull_the_margin_to_zero():
    """Probability 1/2: for every loss of the margin its minimum, or its slope's zero, is at 0."""
    for name in ("dpo", "robust", "ipo", "hinge", "dpo_norm", "exo"):
        tie = RenderedGroup(
            (TokenSequence((0, 1, 1), 1), TokenSequence((0, 2, 2), 1)),
            (Comparison(0, 1, 0.5),),
            (None, None),
            "tie",
        )
        batch = replace(collate([tie]), reference_N=torch.zeros(4, dtype=F64))
        for lead in (0.0, 0.3, -0.3):
            columns = {"logp": torch.tensor([lead, 0.0, 0.0, 0.0], dtype=F64) - 1}
            columns["logp"] = columns["logp"] + 1
            _, slopes = objective(name).slopes(columns, batch, (1.0,), {})
            slope = float(slopes["logp"][0])
            assert (
                slope == pytest.approx(0.0, abs=1e-12)
                if lead == 0
                else slope * lead > 0 or name == "hinge"
            ), name


def test_far_out_batches_are_finite_in_float32():
    """|beta D| = 1e3 through scores, modifiers and counts: no member of the table gives a NaN."""
    n = 4
    one = RenderedGroup(
        (
            TokenSequence((0, *([1] * n)), 1),
            TokenSequence((0, *([2] * n)), 1),
            TokenSequence((0, 3), 1),
        ),
        (Comparison(0, 1, margin=2.0),),
        (None,) * 3,
        "far",
        mismatched=1,
    )
    for name, sign in itertools.product(TABLE, (-1, 1)):
        made = objective(name)
        mean = made.terms[0].mean
        far = min(1e3 / made.beta / (1 if mean else n) / 2, 1e6)
        if TABLE[name].reference:
            logp_N = torch.tensor([sign * far] * n + [-sign * far] * n + [-1.0])
        else:  # log-probs are never positive
            logp_N = torch.tensor(
                [-1e-3 if sign > 0 else -2 * far] * n
                + [-2 * far if sign > 0 else -1e-3] * n
                + [-1.0]
            )
        batch = replace(collate([one]), reference_N=torch.zeros(2 * n + 1))
        columns = {"logp": logp_N, "kl": torch.ones_like(logp_N)}
        known_of_batch = made.known(columns, batch, {}, train=True)
        totals, slopes = made.slopes(columns, batch, made.counts([batch]), known_of_batch)
        assert bool(torch.isfinite(totals).all()), name
        assert all(bool(torch.isfinite(slope).all()) for slope in slopes.values()), name
