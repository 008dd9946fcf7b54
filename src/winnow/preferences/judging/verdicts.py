"""What a judge said of an item's pairs: votes, the comparisons they make, and how steady the judge
was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

from winnow.data.records import Comparison, as_json
from winnow.preferences.items import Item
from winnow.preferences.votes import Vote, by_pair, pair_of, score
from winnow.system.format import wilson

Labels = Literal["hard", "soft", "drawn"]
STEADY = 0.6  # of pairs with the same verdict in both orders; below it verdicts are about the order
ALIKE = "identical answers"  # the reason of a vote on two answers that are the same


def chance(seed: int, *what: object) -> float:
    """A number in [0, 1) of its own for everything that is drawn: nothing that is drawn beside it,
    before or after, has a part in it.
    """
    return (
        int.from_bytes(hashlib.sha256(repr((seed, *what)).encode()).digest()[:8], "big") >> 11
    ) / 2**53


def pairs(item: Item, most: int | None, seed: int) -> list[tuple[int, int]]:
    """All pairs of an item's answers, or `most` of them at random, by the item and the seed; the
    lower index first.
    """
    every = list(combinations(range(len(item.answers)), 2))
    if most is None or most >= len(every):
        return every
    return sorted(sorted(every, key=lambda pair: chance(seed, "pair", item.id, *pair))[:most])


def same(item: Item, pair: tuple[int, int], by: str) -> Vote | None:
    """The vote on two answers that are the same to the letter: nobody need be asked."""
    first, second = pair
    return (
        Vote(item.id, first, second, "tie", by, reason=ALIKE, share=0.5)
        if item.answers[first] == item.answers[second]
        else None
    )


def by_scores(
    item: Item,
    asked: Sequence[tuple[int, int]],
    scores: Sequence[float],
    labels: Labels,
    scale: float,
    seed: int,
    by: str,
) -> tuple[list[Vote], dict[tuple[int, int], float]]:
    """A vote for each pair, and by how much its first answer is better: the margin of a judge that
    gives one.

    hard: the higher score wins, equal ones tie. soft: with the probability sigmoid(scale *
    difference) of R. A. Bradley and M. E. Terry (1952). drawn: one label drawn with it, as from
    somebody who errs; such a judge does not say by how much, so its margins are 0.
    """
    votes, margins = [], {}
    for i, j in asked:
        gap = scores[i] - scores[j]
        likely = _sigmoid(scale * gap)
        margins[i, j] = 0.0 if labels == "drawn" else gap
        if labels == "drawn":
            outcome = "first" if chance(seed, "label", item.id, i, j) < likely else "second"
        else:
            outcome = "first" if gap > 0 else "second" if gap < 0 else "tie"
        votes.append(
            same(item, (i, j), by)
            or Vote(item.id, i, j, outcome, by, share=likely if labels == "soft" else None)  # type: ignore[arg-type]
        )
    return votes, margins


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def comparisons(
    votes: Sequence[Vote], margins: Mapping[tuple[int, int], float], *, ties: bool
) -> list[Comparison]:
    """One for each pair whose votes all hold a verdict: the likelier answer won, with its share of
    the votes.

    margins: by how much the lower index is better; ties: whether a share of one half is a
    comparison too.
    """
    broken = {pair_of(vote) for vote in votes if score(vote) is None}
    found = []
    for pair, cast in by_pair(votes).items():
        share = math.fsum(score(vote) or 0.0 for vote in cast) / len(cast)
        if pair in broken or (share == 0.5 and not ties):
            continue
        (_, low, high), gap = pair, margins.get(pair[1:], 0.0)
        found.append(
            Comparison(low, high, share, margin=gap)
            if share >= 0.5
            else Comparison(high, low, 1 - share, margin=-gap)
        )
    return found


def row(
    item: Item, votes: Sequence[Vote], made: Sequence[Comparison], judged: Mapping[str, Any]
) -> dict[str, Any]:
    """A group as training reads it, with the votes it came from and, in `judged`, how it was
    made.
    """
    told = [
        {"winner": c.winner, "loser": c.loser, "probability": c.probability, "margin": c.margin}
        for c in made
    ]
    return {
        "id": item.id,
        "prompt": as_json(item.prompt),
        "completions": [as_json(answer) for answer in item.answers],
        "comparisons": told,
        **({"tools": [dict(tool) for tool in item.tools]} if item.tools else {}),
        "models": list(item.models),
        "votes": [_as_json(vote) for vote in votes],
        "judged": dict(judged),
        "from": item.where,
    }


_KEPT = ("first", "second", "outcome", "by", "share", "at", "reason")


def _as_json(vote: Vote) -> dict[str, Any]:
    said = asdict(vote)
    return {name: said[name] for name in _KEPT}


def votes_of(row: Mapping[str, Any]) -> list[Vote]:
    """The votes of a row that `row` made."""
    return [Vote(item=row["id"], **vote) for vote in row["votes"]]


def complete(row: Mapping[str, Any]) -> bool:
    """Whether every question about a row's item had a verdict."""
    return all(vote["outcome"] != "error" for vote in row["votes"])


# --- how steady a judge is


@dataclass(frozen=True, slots=True)
class Position:
    """What the order of two answers did to a judge.

    both: pairs judged in both orders, and in how many the verdict was the same; decided: verdicts
    that are no tie, and in how many what was read first won. chance: two-sided exact binomial p of
    that, had the order no part in it. Where both orders were asked, only pairs whose two verdicts
    took the same place count for it: the others hold one of each by construction. None where
    nothing can be counted.
    """

    both: int
    alike: int
    decided: int
    first: int
    chance: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the share that is alike (Wilson)."""
        return wilson(self.alike / self.both, self.both)


def position(votes: Sequence[Vote]) -> Position:
    """Of the votes of a judge that reads; what it was not asked about (identical answers), and
    pairs with an error, do not count.
    """
    broken = {pair_of(vote) for vote in votes if vote.outcome == "error"}
    cast = list(
        by_pair(
            vote for vote in votes if vote.share is None and pair_of(vote) not in broken
        ).values()
    )
    twice = [many for many in cast if len(many) == 2]
    alike = sum(score(one) == score(other) for one, other in twice)
    said = [{vote.outcome for vote in many} for many in cast]
    # judged once, or the same place won twice
    first, second = (
        said.count({"first"}),
        said.count({"second"}),
    )
    decided = [
        vote.outcome for many in cast for vote in many if vote.outcome in ("first", "second")
    ]
    likely = binomial(first, first + second) if first + second else None
    return Position(len(twice), alike, len(decided), decided.count("first"), likely)


def binomial(hits: int, trials: int) -> float:
    """Two-sided exact p of so many hits where each trial is a fair coin."""
    from scipy.stats import binomtest

    return float(binomtest(hits, trials, 0.5).pvalue)
