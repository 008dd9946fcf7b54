"""Votes -> rows that training reads: a comparison per pair, its probability the share of votes. And
back: items and votes of any file that holds them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from winnow.data.fields import shown
from winnow.data.jsonl import read_rows
from winnow.data.records import as_json
from winnow.errors import DataError, Problem, RunError
from winnow.preferences.items import Item, items
from winnow.preferences.votes import OUTCOMES, Vote, by_pair, score, whole
from winnow.preferences.votes_db import Store

KINDS = ("once", "repeat", "gold")


@dataclass(frozen=True, slots=True)
class Sheet:
    """Items by id, every vote on them, and how many seconds each annotator's votes took (nothing
    where it is not known).
    """

    items: Mapping[str, Item]
    votes: tuple[Vote, ...]
    seconds: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Rules:
    """Which votes make a comparison, and what it weighs: 1 per pair, or 1 per vote. annotators:
    these alone (empty: all); exclude: all but these.
    """

    min_votes: int = 1
    ties: Literal["keep", "drop"] = "keep"
    weight: Literal["pair", "votes"] = "pair"
    annotators: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def votes_of(path: Path) -> Sheet:
    """What a file holds: one that `winnow label` made, or rows with a column `votes` (of `winnow
    judge`, or exported).

    Raises RunError for a file that is not there or damaged, DataError for rows that cannot be read
    or when nobody voted.
    """
    if not path.is_file():
        raise RunError(
            f"{path}: there is no such file", remedy="give a file of winnow label or winnow judge"
        )
    with path.open("rb") as file:
        stored = file.read(16) == b"SQLite format 3\0"
    sheet = _of_store(path) if stored else _of_rows(path)
    if not sheet.votes:
        raise DataError(
            f"{path}: holds no votes",
            remedy="give a file of winnow label or winnow judge, with votes in it",
        )
    return sheet


def rows(sheet: Sheet, rules: Rules) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Groups with comparisons, in the items' order, and what became of every vote and pair,
    counted.

    probability: the winner's share of votes, a tie (and both bad) half a vote for either; margin:
    mean strength for the winner of the votes that told one, ties 0, and 0 where none did. Repeats
    and gold items say how well people vote, and are left out.
    """
    counted: dict[str, int] = defaultdict(int, votes=len(sheet.votes))
    sound = whole(sheet.votes)
    if len(sound) < len(sheet.votes):
        counted["beside a question without a verdict"] = len(sheet.votes) - len(sound)
    used = [vote for vote in sound if not _left_out(vote, rules, counted)]
    counted["votes used"], counted["of them both bad, counted as ties"] = (
        len(used),
        sum(vote.outcome == "bad" for vote in used),
    )
    comparisons: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (item, low, high), votes in by_pair(used).items():
        made = _comparison(low, high, votes, rules, counted)
        if made is not None:
            comparisons[item].append(made)
    said: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for vote in sheet.votes:
        said[vote.item].append(
            {name: value for name, value in asdict(vote).items() if name != "item"}
        )
    found = [
        {**item_row(item), "comparisons": comparisons[name], "votes": said[name]}
        for name, item in sheet.items.items()
        if comparisons.get(name)
    ]
    counted["comparisons"], counted["groups"] = sum(map(len, comparisons.values())), len(found)
    counted["items without a comparison"] = len(sheet.items) - len(found)
    return found, dict(counted)


def item_row(item: Item) -> dict[str, Any]:
    """An item as a row that is read again as it: everything but comparisons and votes."""
    row = {
        "id": item.id,
        "prompt": as_json(item.prompt),
        "completions": [as_json(answer) for answer in item.answers],
        "models": list(item.models),
    }
    return row | ({"tools": [dict(tool) for tool in item.tools]} if item.tools else {})


def _left_out(vote: Vote, rules: Rules, counted: dict[str, int]) -> bool:
    """Whether a vote makes no comparison, counted by its reason."""
    reasons = {
        "of annotators left out": (
            vote.by in rules.exclude or bool(rules.annotators and vote.by not in rules.annotators)
        ),
        "repeats": vote.kind == "repeat",
        "gold": vote.kind == "gold",
        "skipped": vote.outcome == "skip",
        "without a verdict": vote.outcome == "error",
    }
    first = next((reason for reason, holds in reasons.items() if holds), None)
    if first is not None:
        counted[first] += 1
    return first is not None


def _comparison(
    low: int, high: int, votes: Sequence[Vote], rules: Rules, counted: dict[str, int]
) -> dict[str, Any] | None:
    """What the votes on one pair say together."""
    share = fmean(one for vote in votes if (one := score(vote)) is not None)
    if len(votes) < rules.min_votes:
        counted["pairs with too few votes"] += 1
        return None
    if math.isclose(share, 0.5):
        counted["pairs that are ties"] += 1
        if rules.ties == "drop":
            return None
    winner, loser = (low, high) if share >= 0.5 else (high, low)
    strengths = [
        _toward(vote, winner) for vote in votes if vote.strength or vote.outcome in ("tie", "bad")
    ]
    margin = fmean(strengths) if any(vote.strength for vote in votes) else 0.0
    return {
        "winner": winner,
        "loser": loser,
        "probability": max(share, 1 - share),
        "weight": float(len(votes)) if rules.weight == "votes" else 1.0,
        "margin": margin,
    }


def _toward(vote: Vote, winner: int) -> float:
    """How strongly a vote is for `winner`: 1 to 3, below 0 against it, 0 for a tie."""
    if vote.outcome not in ("first", "second"):
        return 0.0
    return float(
        vote.strength
        if (vote.first if vote.outcome == "first" else vote.second) == winner
        else -vote.strength
    )


def _of_store(path: Path) -> Sheet:
    store = Store.existing(path)
    try:
        took: dict[str, list[float]] = defaultdict(list)
        for name in dict.fromkeys(vote.by for vote in store.votes()):
            took[name] = [entry.seconds for _, entry in store.history(name)]
        return Sheet(
            store.items, tuple(store.votes()), {name: tuple(all_) for name, all_ in took.items()}
        )
    finally:
        store.close()


def _of_rows(path: Path) -> Sheet:
    found = {item.id: item for item in items(str(path))}
    cast: dict[str, list[Vote]] = {}  # of an item that stands there twice the later row counts
    problems: list[Problem] = []
    for row in read_rows(path):
        assert not isinstance(row, Problem), "items() has read the same rows"
        told = row.values.get("votes", [])
        item = found.get(str(row.values.get("id")))
        if not isinstance(told, list) or (told and item is None):
            problems.append(
                Problem(
                    row.where,
                    "votes" if item else "id",
                    (
                        "is not a list"
                        if item
                        else "is not the id of the row's prompt and completions"
                    ),
                )
            )
            continue
        if item is not None:
            cast[item.id] = []
        for i, one in enumerate(told):
            assert item is not None
            wrong = _wrong(one, len(item.answers))
            if wrong:
                problems.append(Problem(row.where, f"votes[{i}]", wrong))
            else:
                cast[item.id].append(Vote(item.id, **one))
    if problems:
        raise DataError(f"{path}: votes that cannot be read: {len(problems):,}", problems)
    return Sheet(found, tuple(vote for votes in cast.values() for vote in votes), {})


def _wrong(one: Any, count: int) -> str:
    """What is wrong with a vote as a row holds it; empty if nothing is."""
    if not isinstance(one, dict) or not {"first", "second", "outcome", "by"} <= set(one) <= set(
        Vote.__slots__
    ) - {"item"}:
        return (
            f"is {shown(one)}, expected first, second, outcome, by, and if wanted strength, reason,"
            " at, kind, share"
        )
    number = (int, float)
    tests = {
        "first": type(one["first"]) is int and 0 <= one["first"] < count,
        "second": (
            type(one["second"]) is int
            and 0 <= one["second"] < count
            and one["second"] != one["first"]
        ),
        "outcome": one["outcome"] in OUTCOMES,
        "by": isinstance(one["by"], str),
        "strength": type(one.get("strength", 0)) is int and 0 <= one.get("strength", 0) <= 3,
        "reason": isinstance(one.get("reason", ""), str),
        "at": type(one.get("at", 0.0)) in number,
        "kind": one.get("kind", "once") in KINDS,
        "share": (
            one.get("share") is None or (type(one["share"]) in number and 0 <= one["share"] <= 1)
        ),
    }
    return next(
        (f"has {name} {shown(one[name])}" for name, holds in tests.items() if not holds), ""
    )
