"""Votes: who preferred which of two answers, whoever it was: a person, a language model, a rule.
All figures are made of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["first", "second", "tie", "bad", "skip", "error"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
Pair = tuple[str, int, int]  # an item, and two of its answers by index, the lower one first


@dataclass(frozen=True, slots=True)
class Vote:
    """One look at two answers of an item: `first` stood on the left, or was read first; both are
    indices into the item's answers.

    outcome: first or second is better, tie, bad (both are), skip (no opinion), error (a judge that
    gave no verdict). strength: 0 not said, 1 slightly, 2 clearly, 3 much better. at: seconds since
    1970. kind: asked once, again (a repeat), or gold (its answer is known). share: a judge's own
    probability that `first` is better, where it gives one; else None.
    """

    item: str
    first: int
    second: int
    outcome: Outcome
    by: str
    strength: int = 0
    reason: str = ""
    at: float = 0.0
    kind: Literal["once", "repeat", "gold"] = "once"
    share: float | None = None


def pair_of(vote: Vote) -> Pair:
    """Which two answers it is about, whatever side they stood on."""
    return vote.item, min(vote.first, vote.second), max(vote.first, vote.second)


def score(vote: Vote) -> float | None:
    """How much of the vote goes to the answer with the *lower* index: 1, 0, or 0.5 (tie, both bad);
    None for no opinion and no verdict.
    """
    if vote.outcome in ("skip", "error"):
        return None
    first = (
        vote.share
        if vote.share is not None
        else {"first": 1.0, "second": 0.0}.get(vote.outcome, 0.5)
    )
    return first if vote.first < vote.second else 1.0 - first


def whole(votes: Iterable[Vote]) -> list[Vote]:
    """Votes without those of a judge on a pair for which one of its questions had no verdict: half
    of two orders holds the order's effect.
    """
    votes = list(votes)
    broken = {(vote.by, pair_of(vote)) for vote in votes if vote.outcome == "error"}
    return [
        vote for vote in votes if vote.outcome == "error" or (vote.by, pair_of(vote)) not in broken
    ]


def by_pair(votes: Iterable[Vote]) -> dict[Pair, list[Vote]]:
    """Votes with an opinion, by what they are about, in the order in which pairs first came up."""
    found: dict[Pair, list[Vote]] = defaultdict(list)
    for vote in whole(votes):
        if score(vote) is not None:
            found[pair_of(vote)].append(vote)
    return dict(found)


def counts(votes: Iterable[Vote]) -> dict[str, int]:
    """How many of each outcome, all outcomes named."""
    seen = Counter(vote.outcome for vote in votes)
    return {outcome: seen[outcome] for outcome in OUTCOMES}
