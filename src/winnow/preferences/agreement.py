"""How far votes can be trusted: do annotators agree with each other, with themselves, with known
answers, and do they mind the side?

Figures that are not defined (nobody shares a pair, all said the same) are None, with the reason.
Intervals are 95 % and take votes on one prompt as one piece of evidence where they go together.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median
from typing import Any, Literal

from scipy.stats import binomtest

from winnow.preferences.items import Item
from winnow.preferences.votes import Pair, Vote, by_pair, pair_of, score, whole
from winnow.system.figure import Figure
from winnow.system.format import wilson

# which answer of a pair is better, by index; "both bad" is a tie
Label = Literal["low", "high", "tie"]
LABELS: tuple[Label, ...] = ("low", "high", "tie")
Labels = Mapping[Pair, Mapping[str, Label]]  # of each pair, what each annotator said


@dataclass(frozen=True, slots=True)
class Annotator:
    """One annotator. left: share of votes for one answer that are for the left one, p_left the
    probability of a share as uneven if sides do not matter (exact binomial test). A pair that was
    asked both ways round tells of sides only where both votes took the same one, and counts once;
    where nothing was ever turned round (a rule that does not read) nothing tells of sides.

    repeats, gold: share in which they said the same again, and the known answer. swapped: share of
    pairs asked in both orders with one verdict.
    """

    name: str
    votes: int
    ties: int
    bad: int
    skips: int
    errors: int
    seconds: float | None
    left: Figure
    p_left: float | None
    repeats: Figure
    gold: Figure
    swapped: Figure


@dataclass(frozen=True, slots=True)
class Against:
    """A judge against people, on the pairs that both have an opinion on: how often they say the
    same, over all pairs and over those both decided.

    table[people][judge]: pairs by what people say (most of them, half a vote for a tie) and what
    the judge says.
    """

    table: Mapping[Label, Mapping[Label, int]]
    all_pairs: Figure
    decided: Figure


def labels(votes: Iterable[Vote]) -> dict[Pair, dict[str, Label]]:
    """What each annotator says of each pair; both orders of a judge count as one look, and as a tie
    where they differ.
    """
    return {
        pair: {
            name: label
            for name in dict.fromkeys(v.by for v in mine)
            if (label := _label(v for v in mine if v.by == name))
        }
        for pair, mine in _asked(votes)
    }


def observed(said: Labels) -> Figure:
    """Share of all pairs of annotators on one pair of answers that say the same."""
    hits = [
        (pair[0], one == other)
        for pair, of in said.items()
        for one, other in combinations(of.values(), 2)
    ]
    return share(hits, "no pair has votes of two annotators")


def kappa(said: Labels, one: str, other: str) -> Figure:
    """Cohen's kappa of two annotators: (p_o - p_e) / (1 - p_e), p_e what two with their shares of
    low, high and tie would agree on by chance.
    """
    both = [(pair[0], of[one], of[other]) for pair, of in said.items() if one in of and other in of]
    if not both:
        return undefined("they share no pair")
    first, second = Counter(a for _, a, _ in both), Counter(b for *_, b in both)
    chance = sum(first[label] * second[label] for label in LABELS) / len(both) ** 2
    if chance == 1:
        return undefined(
            "both said the same of every pair, so agreement by chance is certain", len(both)
        )
    value = (fmean(a == b for _, a, b in both) - chance) / (1 - chance)
    return Figure(value, None, None, len(both), len({item for item, *_ in both}))


def alpha(said: Labels) -> Figure:
    """Krippendorff's alpha, nominal: 1 - D_o / D_e over pairs with two votes or more, whoever's
    they are; missing votes are no matter.

    With n votes in all, n_c of label c, and m_u votes on pair u: D_o = sum_u (votes that differ, in
    ordered pairs) / (m_u - 1) / n, and D_e = (n^2 - sum_c n_c^2) / (n (n - 1)).
    """
    shared = {pair: Counter(of.values()) for pair, of in said.items() if len(of) > 1}
    units = list(shared.values())
    if not units:
        return undefined("no pair has votes of two annotators")
    totals = sum(units, Counter())
    count = totals.total()
    expected = (count**2 - sum(n**2 for n in totals.values())) / (count * (count - 1))
    if not expected:
        return undefined(
            "all said the same of every pair, so there is nothing to disagree about", len(units)
        )
    apart = (
        sum(
            (unit.total() ** 2 - sum(n**2 for n in unit.values())) / (unit.total() - 1)
            for unit in units
        )
        / count
    )
    return Figure(1 - apart / expected, None, None, len(units), len({pair[0] for pair in shared}))


def annotators(
    votes: Sequence[Vote], items: Mapping[str, Item], seconds: Mapping[str, Sequence[float]]
) -> list[Annotator]:
    """Everyone who voted, by name. items: with known comparisons, for gold votes."""
    return [
        _annotator(name, [vote for vote in votes if vote.by == name], items, seconds.get(name, ()))
        for name in sorted({vote.by for vote in votes})
    ]


def against(people: Iterable[Vote], judge: Iterable[Vote]) -> Against:
    """What a judge says beside what people say. Pairs that one of them has no opinion on do not
    count.
    """
    theirs = {pair: label for pair, mine in _asked(people) if (label := _label(mine))}
    its = {pair: label for pair, mine in _asked(judge) if (label := _label(mine))}
    both = [(pair[0], theirs[pair], its[pair]) for pair in theirs if pair in its]
    table = {
        label: {other: sum((a, b) == (label, other) for _, a, b in both) for other in LABELS}
        for label in LABELS
    }
    decided = [(item, a == b) for item, a, b in both if "tie" not in (a, b)]
    none = "they share no pair"
    return Against(
        table,
        share([(item, a == b) for item, a, b in both], none),
        share(decided, "there is no pair that both decided" if both else none),
    )


def share(hits: Sequence[tuple[Hashable, bool]], why: str) -> Figure:
    """Share of hits with its Wilson interval; hits of one cluster (the first of each) may go
    together, and then count for fewer.

    The effective count is n / max(1, D), D = the variance by clusters over the binomial one (Kish's
    design effect).
    """
    if not hits:
        return undefined(why)
    n, p = len(hits), fmean(hit for _, hit in hits)
    rest: dict[Hashable, float] = defaultdict(float)
    for cluster, hit in hits:
        rest[cluster] += hit - p
    spread = sum(one**2 for one in rest.values()) * len(rest) / max(1, len(rest) - 1)
    size = n / max(1.0, spread / (n * p * (1 - p))) if 0 < p < 1 else float(len(rest))
    return Figure(p, *wilson(p, size), n, len(rest))


def undefined(why: str, count: int = 0) -> Figure:
    """A figure that these votes do not define; count: the pairs looked at."""
    return Figure(None, None, None, count, 0, why)


def to_json(figure: Figure) -> dict[str, Any]:
    """A figure as reports on votes hold it."""
    return {name: getattr(figure, name) for name in ("value", "count", "low", "high", "why")}


def _annotator(
    name: str, votes: Sequence[Vote], items: Mapping[str, Item], seconds: Sequence[float]
) -> Annotator:
    said = Counter(vote.outcome for vote in votes)
    sides, why = _sides(whole(votes))
    left = share(sides, why)
    p_left = float(binomtest(sum(hit for _, hit in sides), len(sides)).pvalue) if sides else None
    first = {pair_of(vote): vote for vote in votes if vote.kind == "once"}
    again = [
        (vote.item, _label([vote]) == _label([first[pair_of(vote)]]))
        for vote in votes
        if vote.kind == "repeat" and _both(vote, first)
    ]
    known = [
        (vote.item, _label([vote]) == right)
        for vote in votes
        if vote.kind == "gold" and score(vote) is not None and (right := _known(vote, items))
    ]
    return Annotator(
        name,
        len(votes),
        said["tie"],
        said["bad"],
        said["skip"],
        said["error"],
        median(seconds) if seconds else None,
        left,
        p_left,
        share(again, "no pair was asked again"),
        share(known, "no gold item was asked"),
        _swapped(votes),
    )


def _sides(votes: Sequence[Vote]) -> tuple[list[tuple[str, bool]], str]:
    """Of each pair that tells of sides: its item, and whether the left one was taken; and why,
    where there is none.
    """
    orders: dict[Pair, dict[bool, bool | None]] = defaultdict(dict)  # None: no side was taken
    for vote in votes:
        if vote.outcome != "skip":
            orders[pair_of(vote)][vote.first < vote.second] = {"first": True, "second": False}.get(
                vote.outcome
            )
    decided = [way for of in orders.values() for way, left in of.items() if left is not None]
    if not decided:
        return [], "no vote is for one answer"
    if len(set(decided)) == 1:
        return (
            [],
            (
                "the lower answer stood on the same side in every pair, so sides and answers cannot"
                " be told apart"
            ),
        )
    found = [
        (pair[0], left)
        for pair, (left, *other) in ((pair, of.values()) for pair, of in orders.items())
        if left is not None and other in ([], [left])
    ]
    return found, "every pair was asked in both orders, with one verdict"


def _both(vote: Vote, first: Mapping[Pair, Vote]) -> bool:
    """Whether a vote and the one it repeats have opinions."""
    return (
        score(vote) is not None
        and pair_of(vote) in first
        and score(first[pair_of(vote)]) is not None
    )


def _known(vote: Vote, items: Mapping[str, Item]) -> Label | None:
    """What is known of a gold item's pair."""
    if vote.item not in items:
        return None
    shares = [
        c.probability if c.winner < c.loser else 1 - c.probability
        for c in items[vote.item].known
        if {c.winner, c.loser} == {vote.first, vote.second}
    ]
    return _of_share(fmean(shares)) if shares else None


def _swapped(votes: Sequence[Vote]) -> Figure:
    """Pairs one annotator was asked about in both orders (judges are): was it one verdict?"""
    orders: dict[Pair, dict[bool, Label]] = defaultdict(dict)
    for vote in votes:
        label = _label([vote])
        if vote.kind == "once" and label:
            orders[pair_of(vote)][vote.first < vote.second] = label
    return share(
        [(pair[0], of[True] == of[False]) for pair, of in orders.items() if len(of) == 2],
        "no pair was asked in both orders",
    )


def _asked(votes: Iterable[Vote]) -> list[tuple[Pair, list[Vote]]]:
    """First looks with an opinion: no repeats, no gold."""
    return list(by_pair(vote for vote in votes if vote.kind == "once").items())


def _label(votes: Iterable[Vote]) -> Label | None:
    """What votes on one pair say together; None without an opinion."""
    scores = [one for vote in votes if (one := score(vote)) is not None]
    return _of_share(fmean(scores)) if scores else None


def _of_share(low: float) -> Label:
    return "tie" if math.isclose(low, 0.5) else "low" if low > 0.5 else "high"
