"""What the paper says of its frontier, as measured statements: each a difference with an interval
over seeds, and yes, no or undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from winnow.evaluation.statistics.winrate import over_prompts

Figures = Mapping[str, Any]
Place = tuple[float, float]  # KL, reward

# share of the exact limit that PPO on exact rewards must reach before it may stand beside DPO
NEEDED = 0.95
GRID = 20  # steps of KL in which two frontiers are compared
FAR = 0.1  # nats: a share of the limit nearer to the reference says nothing


def claims(worlds: Mapping[str, Figures], points: Sequence[Figures]) -> dict[str, Any]:
    """`rows`: points by setting, over seeds, the best of n among them; `closest`: of each method
    the row nearest to the limit; `claims`; and `ppo`: how near to the exact limit PPO on exact
    rewards came, and whether it may be shown.
    """
    rows = settings(points) + [
        best_row(world, one, facts) for world, facts in worlds.items() for one in facts["best_of"]
    ]
    tries = [
        p
        for p in of(points, "ppo_true")
        if p["world"] == "small" and p["share"] is not None and p["kl"]["mean"] >= FAR
    ]
    nearest = [
        closest(rows, world, method)
        for world in worlds
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    share = proof(tries) if tries else None
    ppo = {
        "tried": bool(tries),
        "share": share,
        "needed": NEEDED,
        "targets": len({p["value"] for p in tries}),
    }
    ppo["shown"] = share is not None and share["mean"] >= NEEDED
    found = []
    for world, facts in worlds.items():
        own = [p for p in points if p["world"] == world]
        if ppo["shown"]:
            found += [
                {"name": "above", "world": world, "against": name, **above(own, "dpo", name, facts)}
                for name in ("ppo", "ppo_true")
                if of(own, name)
            ]
        found += [
            {"name": "order", "world": world, "method": name, **order(of(own, name))}
            for name in ("dpo", "dpo+sft")
            if _several(of(own, name))
        ]
    return {"claims": found, "ppo": ppo, "rows": rows, "closest": [row for row in nearest if row]}


def proof(tries: Sequence[Figures]) -> dict[str, Any]:
    """The mean share of the limit over all targets and seeds, none picked; the interval is over
    seeds, each the mean of its targets.
    """
    by = {
        seed: [p["share"] for p in tries if p["seed"] == seed]
        for seed in sorted({p["seed"] for p in tries})
    }
    return {
        **over_seeds([fmean(same) for same in by.values()]),
        "mean": fmean(p["share"] for p in tries),
    }


def _several(points: Sequence[Figures]) -> bool:
    """Whether there is an order to speak of."""
    return len({p["value"] for p in points}) > 1


def of(points: Sequence[Figures], method: str) -> list[Figures]:
    """A method's points at its own rate."""
    return [p for p in points if p["method"] == method and p["own_rate"]]


def over_seeds(values: Sequence[float], least: float = -math.inf) -> dict[str, Any]:
    """Mean, and Student's t interval over seeds, cut off at `least`; one seed has none."""
    if len(values) < 2:
        return {"mean": values[0], "low": None, "high": None, "seeds": 1}
    return {**over_prompts(values, least).as_mean(), "seeds": len(values)}


def settings(points: Sequence[Figures]) -> list[dict[str, Any]]:
    """Points of one setting (knob and rate) together: means over seeds, in ascending order of the
    knob. A single seed keeps its intervals over prompts.
    """
    together: dict[tuple[Any, ...], list[Figures]] = {}
    for point in points:
        together.setdefault(
            (point["world"], point["method"], point["value"], point["lr"]), []
        ).append(point)
    found = []
    for (world, method, value, lr), same in together.items():
        row: dict[str, Any] = {
            "world": world,
            "method": method,
            "knob": same[0]["knob"],
            "value": value,
            "lr": lr,
        }
        row |= {
            "own_rate": same[0]["own_rate"],
            "seeds": len(same),
            "files": [p["file"] for p in same],
        }
        row |= {name: _together([p[name] for p in same]) for name in ("reward", "fluency", "win")}
        # Student's t over two seeds does not know that no KL is below 0
        row["kl"] = _together([p["kl"] for p in same], least=0.0)
        shares = [p["share"] for p in same if p["share"] is not None]
        row["share"] = over_seeds(shares) if len(shares) == len(same) else None
        found.append(row)
    return sorted(found, key=lambda row: (row["world"], row["method"], row["value"] or 0.0))


def _together(same: Sequence[Figures], least: float = -math.inf) -> dict[str, Any]:
    return (
        over_seeds([one["mean"] for one in same], least)
        if len(same) > 1
        else {**{key: same[0][key] for key in ("mean", "low", "high")}, "seeds": 1}
    )


def best_row(world: str, one: Figures, facts: Figures) -> dict[str, Any]:
    """The best of n as a row: no training, so no seeds; its intervals are over prompts."""
    row = {
        "world": world,
        "method": "best_of",
        "knob": "n",
        "value": one["n"],
        "lr": None,
        "own_rate": True,
        "seeds": 0,
    }
    return (
        row
        | {name: one[name] for name in ("kl", "reward", "fluency", "win")}
        | {"share": {"mean": one["share"], "low": None, "high": None}}
    )


def closest(rows: Sequence[Figures], world: str, method: str) -> Figures | None:
    """Of a method's settings at its own rate the one with the largest share of the limit; None
    where none has gone FAR enough to have one.
    """
    mine = [
        row for row in rows if row["world"] == world and row["method"] == method and row["own_rate"]
    ]
    known = [
        row
        for row in mine
        if row["share"] is not None
        and row["share"]["mean"] is not None
        and row["kl"]["mean"] >= FAR
    ]
    return max(known, key=lambda row: row["share"]["mean"], default=None)


def order(points: Sequence[Figures]) -> dict[str, Any]:
    """Does KL fall as beta rises? From each beta to the next the change of KL, over seeds. yes:
    each is below 0 beyond its interval; no: one is above.
    """
    values = sorted({p["value"] for p in points})
    at = {(p["value"], p["seed"]): p["kl"]["mean"] for p in points}
    seeds = sorted({p["seed"] for p in points if all((value, p["seed"]) in at for value in values)})
    changes = [
        {"low": low, "high": high, "change": over_seeds([at[high, s] - at[low, s] for s in seeds])}
        for low, high in pairwise(values)
    ]
    ends = [(c["change"]["low"], c["change"]["high"]) for c in changes]
    known = [end for end in ends if end[0] is not None]
    verdict = "undecided"
    if len(known) == len(ends):
        verdict = (
            "no"
            if any(low > 0 for low, _ in known)
            else "yes"
            if all(high < 0 for _, high in known)
            else "undecided"
        )
    return {"verdict": verdict, "seeds": len(seeds), "changes": changes}


def above(points: Sequence[Figures], ours: str, theirs: str, facts: Figures) -> dict[str, Any]:
    """Reward of our frontier less theirs at equal KL, and the share of the limit of each, means
    over the KLs that both reached with every seed, ends included: from the larger of the two
    smallest to the smaller of the two largest. Nothing is said of a side with one setting: it has
    no frontier.

    yes: the interval is not below 0; no: it is. shares: None where the limit is not known so far.
    """
    seeds = sorted({p["seed"] for p in of(points, ours)} & {p["seed"] for p in of(points, theirs)})
    sides = {
        (name, s): [
            (p["kl"]["mean"], p["reward"]["mean"]) for p in of(points, name) if p["seed"] == s
        ]
        for name in (ours, theirs)
        for s in seeds
    }
    none = {
        "verdict": "undecided",
        "difference": None,
        "shares": None,
        "seeds": len(seeds),
        "reach": None,
    }
    if not seeds:
        return {**none, "why": "they have no seed in common"}
    single = [name for name in (ours, theirs) if min(len(sides[name, s]) for s in seeds) < 2]
    if single:
        return {**none, "why": "one setting is no frontier"}
    low, high = (
        max(min(kl for kl, _ in side) for side in sides.values()),
        min(max(kl for kl, _ in side) for side in sides.values()),
    )
    if low > high:
        return {**none, "why": "they have no KL in common"}
    grid = [low + (high - low) * i / GRID for i in range(GRID + 1)]
    mean = {key: fmean(height(side, kl) for kl in grid) for key, side in sides.items()}
    difference = over_seeds([mean[ours, s] - mean[theirs, s] for s in seeds])
    shares = (
        {
            name: over_seeds([_shared(sides[name, s], grid, facts) for s in seeds])
            for name in (ours, theirs)
        }
        if high <= facts["limit"][-1]["kl"]
        else None
    )
    least, most = difference["low"], difference["high"]
    verdict = (
        "undecided" if least is None else "yes" if least >= 0 else "no" if most < 0 else "undecided"
    )
    return {
        "verdict": verdict,
        "difference": difference,
        "shares": shares,
        "seeds": len(seeds),
        "reach": [low, high],
        "why": None,
    }


def _shared(side: Sequence[Place], grid: Sequence[float], facts: Figures) -> float:
    """Mean over the grid of the reward gained, as a share of the most that can be gained at this
    KL.
    """
    start, limit = (
        facts["start"]["reward"]["mean"],
        [(p["kl"], p["reward"]) for p in facts["limit"]],
    )
    return fmean((height(side, kl) - start) / (height(limit, kl) - start) for kl in grid)


def height(places: Sequence[Place], kl: float) -> float:
    """Reward at this KL, not below the smallest reached, on the upper hull: between two policies
    lies whoever tosses a coin, and takes one of them.
    """
    hull = upper(places)
    if kl >= hull[-1][0]:
        return hull[-1][1]
    if kl < hull[0][0]:
        raise ValueError(f"KL {kl:g}: nothing below {hull[0][0]:g} was reached")
    for (a, r), (b, s) in pairwise(hull):
        if kl <= b:
            return r + (s - r) * (kl - a) / (b - a)
    raise AssertionError("unreachable: it is below the last")


def upper(places: Sequence[Place]) -> list[Place]:
    """The points that no chord of two others lies above, as KL rises, up to the highest reward."""
    hull: list[Place] = []
    for kl, reward in sorted(places, key=lambda place: (place[0], -place[1])):
        if hull and reward <= hull[-1][1]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (kl - hull[-2][0]) <= (
            reward - hull[-2][1]
        ) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        if hull and kl == hull[-1][0]:
            hull.pop()
        hull.append((kl, reward))
    return hull
