"""Files of votes -> the figures of the collection page: who voted how and how alike, a judge beside
people, models against each other.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from winnow.data.jsonl import Row, read_rows
from winnow.data.records import plain
from winnow.evaluation.statistics.bradley_terry import Fit, Game, fit, points
from winnow.preferences.agreement import (
    against,
    alpha,
    annotators,
    kappa,
    labels,
    observed,
    to_json,
    undefined,
)
from winnow.preferences.export import Sheet, votes_of
from winnow.preferences.items import Item
from winnow.preferences.pairing import different, draw
from winnow.preferences.votes import Vote, by_pair, counts, pair_of, score, whole
from winnow.system.figure import Figure
from winnow.system.format import median, wilson

LATEST = 4_102_444_800.0  # 2100: what is later is no time
HANDFUL = 6  # votes shown with their texts: drawn, not picked
SEED = 0
# name, seconds, the longest collection it is taken for
UNITS = (
    ("minute", 60.0, 3 * 3600.0),
    ("hour", 3600.0, 5 * 86400.0),
    ("day", 86400.0, math.inf),
)


def build(files: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    """The figures of all files, and of every judge among them beside the people: {collections,
    judges}.
    """
    sheets = {name: votes_of(path) for name, path in zip(names, files, strict=True)}
    judges = {name: _judges(path, sheets[name]) for name, path in zip(names, files, strict=True)}
    # their votes may stand in an exported file too, which does not say what they are
    robots = set().union(*judges.values())
    people = [vote for sheet in sheets.values() for vote in sheet.votes if vote.by not in robots]
    beside = [
        _beside(by, name, people, [vote for vote in sheets[name].votes if vote.by == by])
        for name in sheets
        for by in sorted(judges[name])
    ]
    return {
        "collections": [figures(name, sheet) for name, sheet in sheets.items()],
        "judges": beside if people else [],
    }


def figures(name: str, sheet: Sheet) -> dict[str, Any]:
    """Every number of one collection, as plain values."""
    possible = sum(math.comb(len(different(item)), 2) for item in sheet.items.values())
    found = {
        "name": name,
        "items": len(sheet.items),
        "votes": len(sheet.votes),
        "outcomes": counts(sheet.votes),
    }
    found |= {"pairs": {"asked": len({pair_of(vote) for vote in sheet.votes}), "of": possible}}
    took = [seconds for several in sheet.seconds.values() for seconds in several]
    found |= {
        "over_time": over_time(sheet.votes),
        "voters": (who := voters(sheet)),
        "left": left(who),
        "seconds": median(took) if took else None,
    }
    found |= {"agreement": agreement(sheet)}
    return found | {"models": models(sheet), "shown": handful(sheet)}


def _judges(path: Path, sheet: Sheet) -> set[str]:
    """Who of a file's voters is no person: those named by what `winnow judge` writes into `judged`.
    A file with seconds is of people.
    """
    told = (
        []
        if sheet.seconds
        else [row.values.get("judged") for row in read_rows(path) if isinstance(row, Row)]
    )
    return {str(one.get("model") or one.get("judge")) for one in told if isinstance(one, dict)} & {
        vote.by for vote in sheet.votes
    }


def _beside(judge: str, name: str, people: Sequence[Vote], its: Sequence[Vote]) -> dict[str, Any]:
    """A judge beside everybody who is none: table[what people say][what it says], how often that is
    the same, and how steady it is.
    """
    (itself,) = annotators(its, {}, {})
    its_pairs = by_pair(its)
    shared = {
        vote.by for pair, votes in by_pair(people).items() if pair in its_pairs for vote in votes
    }
    return {
        "judge": judge,
        "file": name,
        "people": len(shared),
        **against_people(people, its),
        "swapped": to_json(itself.swapped),
    }


def against_people(people: Sequence[Vote], its: Sequence[Vote]) -> dict[str, Any]:
    """Pairs by what people say of them and what others do, and how often that is the same."""
    both = against(people, its)
    return {
        "table": {label: dict(row) for label, row in both.table.items()},
        "all_pairs": to_json(both.all_pairs),
        "decided": to_json(both.decided),
    }


def over_time(votes: Sequence[Vote]) -> dict[str, Any]:
    """Votes so far of each voter at the end of each minute, hour or day since the first;
    `undefined` says why there is nothing to draw.
    """
    times = [vote.at for vote in votes]
    if not all(0 < at < LATEST for at in times):
        return {"undefined": "the file does not say of every vote when it was cast"}
    began, ended = min(times), max(times)
    unit, size = next((name, size) for name, size, longest in UNITS if ended - began <= longest)
    places, last = (
        Counter((vote.by, int((vote.at - began) // size) + 1) for vote in votes),
        int((ended - began) // size) + 1,
    )
    series: dict[str, list[int]] = {}
    for name in sorted({vote.by for vote in votes}):
        series[name] = [0]
        for place in range(1, last + 1):
            series[name].append(series[name][-1] + places[name, place])
    return {"unit": unit, "began": _moment(began), "ended": _moment(ended), "so_far": series}


def _moment(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def voters(sheet: Sheet) -> list[dict[str, Any]]:
    """A row for each voter, the one with the most votes first: outcomes, pairs looked at, median
    seconds of a vote (None where unknown), and how far to trust them: sides, repeats, gold items,
    both orders.
    """
    cast: dict[str, list[Vote]] = defaultdict(list)
    for vote in sheet.votes:
        cast[vote.by].append(vote)
    rows = []
    for one in annotators(sheet.votes, sheet.items, sheet.seconds):
        mine = cast[one.name]
        row = {
            "name": one.name,
            "votes": len(mine),
            "pairs": len({pair_of(vote) for vote in mine}),
            "outcomes": counts(mine),
            "seconds": one.seconds,
        }
        trust = {"left": one.left, "repeats": one.repeats, "gold": one.gold, "swapped": one.swapped}
        rows.append(
            row | {name: to_json(figure) for name, figure in trust.items()} | {"p_left": one.p_left}
        )
    return sorted(rows, key=lambda row: (-row["votes"], row["name"]))


def left(voters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often all voters together prefer the left answer (a share with its Wilson interval), and
    `p`: the exact binomial one, if sides are no matter.
    """
    sides = [row["left"] for row in voters if row["left"]["count"]]
    count, hits = (
        sum(side["count"] for side in sides),
        sum(round(side["value"] * side["count"]) for side in sides),
    )
    if not count:
        return to_json(undefined(voters[0]["left"]["why"])) | {"p": None}
    figure = Figure(hits / count, *wilson(hits / count, count), count, count)
    return to_json(figure) | {"p": float(binomtest(hits, count).pvalue)}


def agreement(sheet: Sheet) -> dict[str, Any]:
    """How alike voters are: all of them together, and each two who share a pair; those who share
    the most first.
    """
    said = labels(sheet.votes)
    names = sorted({name for of in said.values() for name in of})
    twos = [
        {"one": one, "other": other, **to_json(kappa(said, one, other))}
        for one, other in combinations(names, 2)
    ]
    shared = sorted((two for two in twos if two["count"]), key=lambda two: -two["count"])
    return {"raw": to_json(observed(said)), "alpha": to_json(alpha(said)), "kappa": shared}


def models(sheet: Sheet) -> dict[str, Any]:
    """Models against each other by Bradley-Terry, a vote a game, prompts the clusters. Repeats and
    gold items are left aside: they look at voters.

    `groups`: models that a chain of votes joins; one, unless some cannot be compared with others.
    `unseen`: models on which nobody voted beside another. `undefined` says why there are no groups.
    """
    seen = played(sheet)
    met = sorted({name for game in seen for name in game[:2]})
    unseen = sorted(
        {name for item in sheet.items.values() for name in item.models if name} - set(met)
    )
    if not met:
        return {
            "undefined": "no vote is about answers of two models that have names",
            "unseen": unseen,
        }
    groups = [
        _ranked([met[i] for i in part], seen) for part in fit(len(met), games(met, seen)).components
    ]
    groups.sort(key=lambda group: -group["votes"])
    return {
        "votes": len(seen),
        "prompts": len({game[3] for game in seen}),
        "unseen": unseen,
        "groups": groups,
        "best": _best(groups[0]),
    }


def played(sheet: Sheet) -> list[tuple[str, str, float, str]]:
    """Votes on two models: their names, how much the first one got, and the prompt. Repeats, gold
    items and a model against itself are none.
    """
    found = []
    for vote in whole(sheet.votes):
        given, names = score(vote), sheet.items[vote.item].models
        low, high = (names[i] for i in pair_of(vote)[1:])
        if vote.kind == "once" and given is not None and low and high and low != high:
            found.append((low, high, given, vote.item))
    return found


def games(names: Sequence[str], seen: Sequence[tuple[str, str, float, str]]) -> list[Game]:
    """The same as games between models by their place in `names`; who is not in it has none."""
    place = {name: i for i, name in enumerate(names)}
    return [
        Game(place[low], place[high], given, item)
        for low, high, given, item in seen
        if low in place
    ]


def _ranked(names: Sequence[str], seen: Sequence[tuple[str, str, float, str]]) -> dict[str, Any]:
    """A group of models, the strongest first: strengths (their mean 0), and how likely each row is
    to beat each column (None: itself).
    """
    all_of = games(names, seen)
    fitted, table = fit(len(names), all_of), points(len(names), all_of)
    order = sorted(range(len(names)), key=lambda i: (-fitted.strengths[i], names[i]))
    rows = []
    for i in order:
        low, high = fitted.interval(i)
        rows.append(
            {
                "model": names[i],
                "votes": _whole(table[i] + table[:, i]),
                "strength": float(fitted.strengths[i]),
                "low": low,
                "high": high,
            }
        )
    wins = [[_wins(fitted, table, i, j) if i != j else None for j in order] for i in order]
    return {"votes": len(all_of), "strengths": rows, "wins": wins}


def _wins(fitted: Fit, table: np.ndarray, i: int, j: int) -> dict[str, Any]:
    """The chance that one model beats the other, its interval, and the points and votes seen on
    just the two.
    """
    chance = fitted.beats(i, j)
    assert chance is not None, "models of one group"
    return {
        "share": chance[0],
        "low": chance[1],
        "high": chance[2],
        "points": float(table[i, j]),
        "count": _whole(table[i, j] + table[j, i]),
    }


def _best(group: Mapping[str, Any]) -> dict[str, Any]:
    """The strongest model of a group beside the next one."""
    first, second = (row["model"] for row in group["strengths"][:2])
    return {"model": first, "against": second, **group["wins"][0][1]}


def _whole(count: Any) -> int:
    return round(float(np.sum(count)))


def handful(sheet: Sheet) -> list[dict[str, Any]]:
    """A few votes with their texts, drawn by their content: the same ones whatever their order, and
    nobody's choice.
    """
    drawn = sorted(
        sheet.votes,
        key=lambda vote: draw(SEED, vote.item, vote.first, vote.second, vote.by, vote.kind),
    )[:HANDFUL]
    return [_shown(sheet.items[vote.item], vote) for vote in drawn]


def _shown(item: Item, vote: Vote) -> dict[str, Any]:
    sides = [
        {"model": item.models[i], "text": plain(item.answers[i])} for i in (vote.first, vote.second)
    ]
    return {
        "prompt": plain(item.prompt),
        "sides": sides,
        "outcome": vote.outcome,
        "by": vote.by,
        "kind": vote.kind,
        "share": vote.share,
        "reason": vote.reason,
    }
