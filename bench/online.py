"""Three rounds of `winnow online` on the demo's world, beside one offline round with the same
number of labels.

    winnow demo --out runs/demo && python bench/online.py runs/demo [SEEDS]     # without SEEDS: two
    of the ways, once, and half of it

It leaves with 1 where a round of `online` does not raise the true reward, or where one offline
round is as good (95 % intervals over prompts).

The judge is a rule that knows the true reward and hides it: each comparison is one draw from
Bradley-Terry (`--labels drawn`), so about one label in six contradicts the true order, and training
sees nothing but labels. The true reward is then measured on held-out prompts nobody trained on, the
same for all. Figures: docs/online.md.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

from winnow.commands import online
from winnow.config.collection import OnlineSettings
from winnow.config.resolve import resolve
from winnow.evaluation.statistics.winrate import over_prompts
from winnow.experiments import reviews_world
from winnow.system.figure import Figure
from winnow.system.files import read_json, read_jsonl, write_json, write_jsonl

ROUNDS, PROMPTS, HELD_OUT = 3, 800, 512  # prompts of a round
STEPS = 36  # of a round: the offline one has all of them at once
JUDGE = {"judge": "winnow.recipes.world:rewarded", "labels": "drawn"}
TRAINING = {
    "batch_size": 64,
    "max_tokens": 4096,
    "lr": 5e-4,
    "schedule": "cosine",
    "warmup": 0.3,
    "beta": 0.35,
    "kl_samples": 0,
    "eval_every": 36,
}
WAYS: dict[str, dict[str, Any]] = {
    "online": {"rounds": ROUNDS, "per_round": PROMPTS, "steps": STEPS},
    "online, reference previous": {
        "rounds": ROUNDS,
        "per_round": PROMPTS,
        "steps": STEPS,
        "reference": "previous",
    },
    "offline": {"rounds": 1, "per_round": ROUNDS * PROMPTS, "steps": ROUNDS * STEPS},
    # as far from the start as online
    "offline, lower beta": {
        "rounds": 1,
        "per_round": ROUNDS * PROMPTS,
        "steps": ROUNDS * STEPS,
        "beta": 0.2,
    },
}

QUICK = {
    name: {**way, "per_round": way["per_round"] // 2, "steps": way["steps"] // 2}
    for name, way in WAYS.items()
    if name in ("online", "offline")
}


def main(demo: Path, seeds: int) -> bool:
    """All ways with all seeds, or the quick form (0); figures are printed and left in
    DEMO/online/figures.json. Whether the claims hold.
    """
    root = demo / ("online" if seeds else "online-quick")
    root.mkdir(exist_ok=True)
    write_jsonl(
        root / "prompts.jsonl",
        [{"prompt": prompt} for prompt in reviews_world.openings(ROUNDS * PROMPTS + HELD_OUT, 77)],
    )
    found: dict[str, Any] = {}
    for seed in range(seeds or 1):
        for way, settings in WAYS.items() if seeds else QUICK.items():
            out = root / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
            own = {
                "model": str(demo / "sft"),
                "prompts": str(root / "prompts.jsonl"),
                "held_out": HELD_OUT,
                "max_new_tokens": 40,
                "seed": seed,
                "out": out,
            }
            online.run(
                resolve(OnlineSettings, {**JUDGE, **TRAINING, **settings, **own}, origin="argument")
            )
            found.setdefault(way, []).append(_figures(out))
        _print(found)
        write_json(root / "figures.json", found)
    raised = all(gain["low"] > 0 for run in found["online"] for gain in run["gain"])
    return raised and all(_gap(*pair).low > 0 for pair in zip(found["online"], found["offline"]))


def _figures(out: Path) -> dict[str, Any]:
    """Of each round: the true reward of its held-out answers (mean, interval), its gain on the
    round before, KL, share of grammatical texts; labels in all.
    """
    rounds = read_json(out / "online.json")["rounds"]
    said = [read_jsonl(out / f"round-{row['round']}.held-out.jsonl") for row in rounds]
    rewards = [
        [reviews_world.rewarded(row["prompt"], row["completion"]) for row in rows] for rows in said
    ]
    gains = [[now - before for now, before in zip(*pair)] for pair in zip(rewards[1:], rewards)]
    fluent = [
        sum(
            reviews_world.grammatical(row["prompt"] + " " + row["completion"].strip())
            for row in rows
        )
        / len(rows)
        for rows in said
    ]
    return {
        "reward": [over_prompts(values).as_mean() for values in rewards],
        "gain": [over_prompts(values).as_mean() for values in gains],
        "kl": [row["kl"] for row in rounds],
        "grammatical": fluent,
        "labels": sum(row.get("comparisons", 0) for row in rounds),
        "last": rewards[-1],
    }


def _gap(ours: dict[str, Any], theirs: dict[str, Any]) -> Figure:
    """By how much the last round's true reward is higher, prompt by prompt."""
    return over_prompts([a - b for a, b in zip(ours["last"], theirs["last"])])


def _print(found: dict[str, Any]) -> None:
    for way, runs in found.items():
        for seed, run in enumerate(runs):
            steps = "  ".join(
                f"{m['mean']:.2f} [{m['low']:.2f}, {m['high']:.2f}]" for m in run["reward"]
            )
            gains = "  ".join(
                f"{m['mean']:+.2f} [{m['low']:+.2f}, {m['high']:+.2f}]" for m in run["gain"]
            )
            print(
                f"{way:24} seed {seed}: labels {run['labels']:,}; true reward {steps}; gains"
                f" {gains}"
            )
            print(
                f"{'':24} KL {', '.join(f'{kl:.2f}' for kl in run['kl'])}; grammatical"
                f" {', '.join(f'{share:.1%}' for share in run['grammatical'])}"
            )
    for way, other in product(found, found):
        if way.startswith("online") and other.startswith("offline"):
            for seed, (ours, theirs) in enumerate(zip(found[way], found[other])):
                gap = _gap(ours, theirs)
                print(
                    f"{way} over {other}, seed {seed}: {gap.value:+.3f} [{gap.low:+.3f},"
                    f" {gap.high:+.3f}]"
                )


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
