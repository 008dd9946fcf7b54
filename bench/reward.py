"""Does `winnow reward` recover the true order on the demo's world? Bradley-Terry labels in,
held-out pairs in their true order to be told.

    winnow demo --out runs/demo && python bench/reward.py runs/demo runs/reward [SEEDS]

Reviews are the grammar's own, four to a prompt, each pair labelled once by the true reward's
Bradley-Terry (a seventh of the labels contradict the true order); the held-out pairs are the
demo's: answers of its SFT model to other prompts, without noise. True ties are no pairs; their
share is printed. It leaves with 1 where a seed's model has fewer than 90 % of them in the true
order.
"""

from __future__ import annotations

import random
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from winnow import api
from winnow.experiments import reviews_world
from winnow.system.files import read_json, read_jsonl, write_jsonl
from winnow.system.format import percent

PROMPTS, ANSWERS, SEED = 24_000, 4, 777
NEEDED = 0.9
SETTINGS: dict[str, Any] = {
    "lr": 1e-3,
    "steps": 1600,
    "batch_size": 32,
    "schedule": "cosine",
    "max_tokens": 4096,
    "eval_every": 50,
}


def labelled(count: int, seed: int) -> tuple[list[dict[str, Any]], float]:
    """Prompts with four reviews each and every pair's label; the share of the labels that
    contradict the true order.
    """
    rng = random.Random(f"labels {seed}")
    prompts, bodies = (
        reviews_world.openings(count, seed),
        reviews_world.reviews(ANSWERS * count, seed + 1),
    )
    rows, labels, flips = [], 0, 0
    for i, prompt in enumerate(prompts):
        texts = list(
            dict.fromkeys(review.completion for review in bodies[ANSWERS * i : ANSWERS * (i + 1)])
        )
        rewards = [reviews_world.rewarded(prompt, text) for text in texts]
        pairs = [
            (a, b) if reviews_world.prefers_first(rewards[a], rewards[b], rng) else (b, a)
            for a, b in combinations(range(len(texts)), 2)
        ]
        rows.append(
            {
                "prompt": prompt,
                "completions": texts,
                "comparisons": [{"winner": a, "loser": b} for a, b in pairs],
            }
        )
        labels += sum(rewards[a] != rewards[b] for a, b in pairs)
        flips += sum(rewards[a] < rewards[b] for a, b in pairs)
    return rows, flips / labels


def ties(path: Path) -> tuple[int, int]:
    """Of the held-out pairs how many are true ties, and all of them."""
    pairs = [(a, b) for row in read_jsonl(path) for a, b in combinations(row["scores"], 2)]
    return sum(a == b for a, b in pairs), len(pairs)


def main(demo: Path, out: Path, seed: int, **changes: Any) -> dict[str, Any]:
    """Train, print and return the held-out figures. seed: of the reviews, their labels, and the
    order of the data.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, flipped = labelled(PROMPTS, SEED + seed)
    write_jsonl(out / "labels.jsonl", rows)
    began = time.perf_counter()
    held = demo / "held_out.jsonl"
    given = {
        "model": str(demo / "sft"),
        "data": [str(out / "labels.jsonl")],
        "eval_data": [str(held)],
        "out": str(out / "run"),
        "on_bad_row": "skip",
    }
    run = api.reward(**{**given, "seed": seed, **SETTINGS, **changes})
    told = read_json(run.environment)["held_out"]["eval_"]
    found: dict[str, Any] = told["figures"]["rewards/accuracies"]
    claims = told["calibration"]
    tied, pairs = ties(held)
    print(
        f"seed {seed}: true order of {found['count']:,} held-out pairs of {found['prompts']}"
        f" prompts: {percent(found['value'], 1)} (95 % interval {percent(found['low'], 1)} to"
        f" {percent(found['high'], 1)}); true ties, left out: {tied:,} of {pairs:,}"
        f" ({percent(tied / pairs, 1)}); labels against the true order: {percent(flipped, 1)};"
        f" claims off by {percent(claims['error'], 1)} (chance alone:"
        f" {percent(claims['chance'], 1)}); {time.perf_counter() - began:.0f} s"
    )
    return found


if __name__ == "__main__":
    seeds = range(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    found = [
        main(Path(sys.argv[1]), Path(sys.argv[2]) / f"seed{seed}", seed)["value"] for seed in seeds
    ]
    sys.exit(min(found) < NEEDED)
