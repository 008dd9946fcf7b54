"""How far votes agree: every figure against arithmetic done here, and what is not defined said in
words.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from winnow.data.records import Comparison
from winnow.preferences.agreement import against, alpha, annotators, kappa, labels, observed, share
from winnow.preferences.items import Item
from winnow.preferences.votes import Vote

SAYS = {"A": "first", "B": "second", "T": "tie", "X": "bad", "S": "skip", "E": "error"}


def votes(**said):
    """Letters per annotator, one per item: A and B for the lower and the higher answer, T a tie, X
    both bad, S skipped, a dot for not asked.
    """
    return [
        Vote(f"i{n}", 0, 1, SAYS[letter], who)
        for who, letters in said.items()
        for n, letter in enumerate(letters)
        if letter != "."
    ]


def of(name, cast, items=None, seconds=None):
    return {who.name: who for who in annotators(cast, items or {}, seconds or {})}[name]


def test_agreement_of_two():
    said = labels(votes(ann="AAAABBBBTT", bob="AAABBBBATX"))
    # the same on 8 of 10; ann says A 4, B 4, T 2 times, bob A 4, B 4, T 2 times: by chance (16 + 16
    # + 4) / 100
    assert observed(said).value == pytest.approx(0.8)
    chance = (4 * 4 + 4 * 4 + 2 * 2) / 100
    assert kappa(said, "ann", "bob").value == pytest.approx((0.8 - chance) / (1 - chance))
    # alpha: of 20 votes 8 A, 8 B, 4 T; two pairs differ
    apart = Fraction(2 * 2, 20)
    expected = Fraction(20**2 - 8**2 - 8**2 - 4**2, 20 * 19)
    assert alpha(said).value == pytest.approx(float(1 - apart / expected))
    assert (observed(said).count, kappa(said, "ann", "bob").count, alpha(said).count) == (
        10,
        10,
        10,
    )


def test_agreement_of_three_with_missing_votes():
    said = labels(votes(ann="AABB.A", bob="AB.BAS", cat="ABBA.."))
    # units: i0 AAA, i1 ABB, i2 BB (bob was not asked), i3 BBA; i4 and i5 have one vote each and do
    # not count
    differ = Fraction(4, 2) + Fraction(4, 2)  # ordered pairs that differ, over m - 1
    n, a, b = 11, 5, 6
    expected = Fraction(n * n - a * a - b * b, n * (n - 1))
    assert alpha(said).value == pytest.approx(float(1 - differ / n / expected))
    assert alpha(said).count == 4
    # pairs of annotators: i0 3 of 3, i1 1 of 3, i2 1 of 1, i3 1 of 3
    assert (observed(said).value, observed(said).count) == (pytest.approx(6 / 10), 10)


def test_alpha_by_its_definition():
    """Over a coincidence matrix, built pair by pair, for votes drawn at random."""
    rng = np.random.default_rng(0)
    letters = {
        who: "".join(rng.choice(list("ABT."), 40, p=[0.4, 0.3, 0.1, 0.2]))
        for who in ("ann", "bob", "cat", "dan")
    }
    units = [[row[n] for row in letters.values() if row[n] != "."] for n in range(40)]
    table = {}
    for unit in units:
        for i, one in enumerate(unit):
            for j, other in enumerate(unit):
                if i != j:
                    table[one, other] = table.get((one, other), 0) + 1 / (len(unit) - 1)
    total = {c: sum(value for (one, _), value in table.items() if one == c) for c in "ABT"}
    n = sum(total.values())
    observed_apart = sum(value for (one, other), value in table.items() if one != other) / n
    expected_apart = sum(total[c] * total[d] for c in "ABT" for d in "ABT" if c != d) / (
        n * (n - 1)
    )
    assert alpha(labels(votes(**letters))).value == pytest.approx(
        1 - observed_apart / expected_apart
    )


def test_chance_is_zero_and_perfect_is_one():
    rng = np.random.default_rng(1)
    letters = {who: "".join(rng.choice(list("AB"), 4000)) for who in ("ann", "bob")}
    said = labels(votes(**letters))
    assert alpha(said).value == pytest.approx(0, abs=0.05)
    assert kappa(said, "ann", "bob").value == pytest.approx(0, abs=0.05)
    perfect = labels(votes(ann="ABTAB", bob="ABTAB"))
    assert (alpha(perfect).value, kappa(perfect, "ann", "bob").value) == (1, 1)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "no pair has votes of two"),
        ({"ann": "AB"}, "no pair has votes of two"),
        ({"ann": "AB..", "bob": "..AB"}, "no pair has votes of two"),
        ({"ann": "SS", "bob": "AE"}, "no pair has votes of two"),
        ({"ann": "AAA", "bob": "AAA"}, "all said the same"),
    ],
)
def test_what_is_not_defined_is_said(said, why):
    told = labels(votes(**said))
    assert alpha(told).value is None
    assert why in alpha(told).why
    assert kappa(told, "ann", "bob").value is None
    assert kappa(told, "ann", "bob").why


def test_sides_do_not_matter_for_what_is_said():
    turned = [
        Vote("i0", 0, 1, "first", "ann"),
        Vote("i0", 1, 0, "second", "bob"),
        Vote("i1", 1, 0, "first", "ann"),
        Vote("i1", 1, 0, "first", "bob"),
    ]
    assert labels(turned) == {
        ("i0", 0, 1): {"ann": "low", "bob": "low"},
        ("i1", 0, 1): {"ann": "high", "bob": "high"},
    }


def test_repeats_and_gold_say_how_well_somebody_votes_and_nothing_else():
    items = {
        "g": Item("g", "?", ("a", "b"), ("", ""), "f:1", (Comparison(1, 0),)),
        "h": Item("h", "?", ("a", "b"), ("", ""), "f:2", (Comparison(0, 1),)),
    }
    cast = [
        *votes(ann="ABA"),
        Vote("i0", 1, 0, "second", "ann", kind="repeat"),  # the same again
        Vote("i1", 1, 0, "second", "ann", kind="repeat"),  # not the same
        Vote("i2", 1, 0, "skip", "ann", kind="repeat"),  # no opinion
        Vote("g", 0, 1, "second", "ann", kind="gold"),  # right
        Vote("h", 0, 1, "tie", "ann", kind="gold"),  # wrong
    ]
    ann = of("ann", cast, items, {"ann": [3.0, 1.0, 2.0]})
    assert (ann.repeats.value, ann.repeats.count, ann.gold.value, ann.gold.count) == (
        0.5,
        2,
        0.5,
        2,
    )
    assert (ann.votes, ann.ties, ann.skips, ann.seconds) == (8, 1, 1, 2.0)
    assert set(labels(cast)) == {("i0", 0, 1), ("i1", 0, 1), ("i2", 0, 1)}


def test_counts_of_an_annotator():
    ann = of("ann", votes(ann="AAABTTXSSSE", bob="A"))
    assert (ann.votes, ann.ties, ann.bad, ann.skips, ann.errors, ann.seconds) == (
        11,
        2,
        1,
        3,
        1,
        None,
    )
    assert ann.repeats.value is ann.gold.value is ann.swapped.value is None
    assert ann.gold.why == "no gold item was asked"


def test_side_bias_is_the_exact_binomial_test():
    ann = of(
        "ann",
        [Vote(f"k{n}", n % 2, 1 - n % 2, "first" if n else "second", "ann") for n in range(10)]
        + votes(ann="TTSX"),
    )
    assert (ann.left.value, ann.left.count) == (0.9, 10)
    assert ann.p_left == pytest.approx(2 * (binom.pmf(9, 10, 0.5) + binom.pmf(10, 10, 0.5)))
    assert of("bob", votes(bob="TS")).p_left is None
    rule = of("rule", votes(rule="AAAAAB"))
    assert (rule.left.value, rule.p_left) == (None, None)
    assert "cannot be told apart" in rule.left.why


def test_a_judge_asked_in_both_orders_tells_of_sides_only_where_they_matter():
    steady = [
        Vote(f"s{n}", *order, said, "judge")
        for n in range(100)
        for order, said in (((0, 1), "first"), ((1, 0), "second"))
    ]
    leftish = [
        Vote(f"l{n}", *order, "first", "judge") for n in range(10) for order in ((0, 1), (1, 0))
    ]
    judge = of("judge", steady + leftish)
    assert (judge.left.value, judge.left.count) == (1.0, 10)
    assert judge.p_left == pytest.approx(2 / 2**10)
    assert (judge.swapped.value, judge.swapped.count) == (pytest.approx(100 / 110), 110)
    # both orders are one look
    assert {said["judge"] for pair, said in labels(leftish).items()} == {"tie"}
    assert of("judge", steady).p_left is None


def test_a_judge_against_people():
    people = votes(ann="AAAABBBBTT", bob="AAAABBBATT", cat="BAAABBB...")
    judge = votes(judge="AABSBBATTA")
    found = against(people, judge)
    # people: AAAABBB, a tie of B and A, T, T; the judge skips the fourth
    expected = {
        "low": {"low": 2, "high": 1, "tie": 0},
        "high": {"low": 1, "high": 2, "tie": 0},
        "tie": {"low": 1, "high": 0, "tie": 2},
    }
    assert found.table == expected
    assert (found.all_pairs.value, found.all_pairs.count) == (pytest.approx(6 / 9), 9)
    assert (found.decided.value, found.decided.count) == (pytest.approx(4 / 6), 6)
    apart = against(votes(ann="A"), [Vote("other", 0, 1, "first", "judge")])
    assert apart.all_pairs.value is None
    assert apart.all_pairs.why == "they share no pair"


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 10), (7, 7), (50, 100)])
def test_an_interval_of_separate_votes_is_wilsons(hits, count):
    found = share([(n, n < hits) for n in range(count)], "")
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    # the design effect's own n / (n - 1) makes it a trifle wider
    size = 1 if 0 < hits < count else 0
    assert (found.low, found.high) == pytest.approx(
        (expected.low, expected.high), abs=0.02 * size + 1e-9
    )
    assert found.low <= hits / count <= found.high


def test_votes_on_one_prompt_are_one_piece_of_evidence():
    """Forty prompts with five votes each that always go together, and the coverage of it."""
    rng, covered, width, wilson = np.random.default_rng(2), 0, 0.0, 0.0
    for _ in range(200):
        hits = [(n, bool(hit)) for n, hit in enumerate(rng.random(40) < 0.7) for _ in range(5)]
        found = share(hits, "")
        covered += found.low <= 0.7 <= found.high
        width += found.high - found.low
        plain = binomtest(sum(hit for _, hit in hits), 200).proportion_ci(0.95, "wilson")
        wilson += plain.high - plain.low
    assert 0.9 < covered / 200 < 0.99
    assert width / wilson == pytest.approx(math.sqrt(5), rel=0.05)


def test_a_pair_asked_in_both_orders_tells_of_sides_only_where_both_took_the_same():
    """A judge that reads each pair both ways: the left one twice, twice the same answer, a tie in
    one order, no verdict in one order.
    """
    cast = [
        ("a", "first", "first"),
        ("b", "first", "second"),
        ("c", "first", "tie"),
        ("d", "second", "second"),
        ("e", "first", "error"),
    ]
    judge = of(
        "j",
        [
            Vote(item, *order, said, "j")
            for item, *both in cast
            for order, said in zip(((0, 1), (1, 0)), both)
        ],
    )
    assert (judge.left.value, judge.left.count) == (0.5, 2)  # a took the left one, d the right one
