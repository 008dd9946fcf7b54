"""RLHF beside DPO: what each took and what came of it, on the same comparisons, from the runs of
`winnow frontier`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from winnow.experiments.frontier.claims import closest, of
from winnow.system.files import read_json, read_jsonl
from winnow.system.run_folder import RunFolder

Figures = Mapping[str, Any]
COPIES = 4  # of what is trained: weights, gradients, and AdamW's two moments


def costs(
    root: Path, worlds: Sequence[str], points: Sequence[Figures], rows: Sequence[Figures]
) -> list[dict[str, Any]]:
    """For each world in which both were trained: a column for each, and how much each minds its
    rate.
    """
    found = []
    for world in worlds:
        mine = {
            name: [p for p in points if (p["world"], p["method"]) == (world, name)]
            for name in ("dpo", "ppo")
        }
        if all(mine.values()):
            columns = {
                name: _column(root / world, root, of(own, name), closest(rows, world, name))
                for name, own in mine.items()
            }
            found.append(
                {
                    "world": world,
                    **columns,
                    "rates": {name: _rates(own) for name, own in mine.items()},
                }
            )
    return found


def _column(
    world: Path, root: Path, points: Sequence[Figures], best: Figures | None
) -> dict[str, Any]:
    """Medians over runs. models: bytes of weights in memory while it trains; trained: bytes with
    gradients and moments; labels, sampled: comparisons and tokens of answers that were collected
    before, and are the same for both; generated, scored: tokens and answers sampled while it
    trains.
    """
    run = read_json(RunFolder(root / points[0]["run"]).environment, "parameters")
    ppo = points[0]["method"] == "ppo"
    models = run["models"] if ppo else {"policy": 4 * run["parameters"]["total"]}
    answers, labels = (
        read_jsonl(world / "answers.jsonl", "tokens"),
        read_jsonl(world / f"labels-{points[0]['seed']}.jsonl", "comparisons"),
    )
    before = [read_json(path) for path in sorted(world.glob("reward-seed=*.json"))] if ppo else []
    return {
        "trainings": ["SFT", "reward model", "PPO"] if ppo else ["SFT", "DPO"],
        "models": models,
        "trained": COPIES * sum(models[name] for name in ("policy", "critic") if name in models),
        **{name: _median([p[name] for p in points]) for name in ("seconds", "cpu")},
        **{f"{name}_before": _median([one[name] for one in before]) for name in ("seconds", "cpu")},
        "labels": sum(len(row["comparisons"]) for row in labels),
        "sampled": sum(sum(row["tokens"]) for row in answers),
        "generated": _median([p.get("generated", 0) for p in points]),
        "runs": len(points),
        "seeds": len({p["seed"] for p in points}),
        "best": best,
        **{f"spread_{name}": _spread(points, name) for name in ("reward", "kl")},
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _spread(points: Sequence[Figures], name: str) -> float | None:
    """Standard deviation over seeds, the mean over settings; None where there is one seed."""
    by: dict[float, list[float]] = {}
    for point in points:
        by.setdefault(point["value"], []).append(point[name]["mean"])
    several = [stdev(same) for same in by.values() if len(same) > 1]
    return fmean(several) if several else None


def _rates(points: Sequence[Figures]) -> list[dict[str, Any]]:
    """The same setting and seed at each rate that was tried, the lowest first."""
    other = [p for p in points if not p["own_rate"]]
    if not other:
        return []
    same = [p for p in points if (p["value"], p["seed"]) == (other[0]["value"], other[0]["seed"])]
    names = ("lr", "value", "knob", "kl", "reward", "fluency", "share", "own_rate")
    return [{name: p[name] for name in names} for p in sorted(same, key=lambda p: p["lr"])]
