"""Planted flips on the demo's world: how many does `winnow eval --label-noise` find, beside an
oracle that knows the true rewards?

    winnow demo --out runs/demo && python bench/noise.py runs/demo

A tenth of the demo's preference labels is turned round, a policy is trained on them (the demo's
settings, more steps, a lower rate), and two sets are audited with it: answers to prompts it has not
seen, labelled the same noisy way, and the rows it was trained on. Both are Bradley-Terry labels, so
the oracle that ranks rows by their true margin cannot tell a planted flip from a choice that was
unlikely by itself: it has a recall below 1 too.
"""

from __future__ import annotations

import random
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow import api
from winnow.config.model_spec import ModelSpec
from winnow.experiments import demo, reviews_world
from winnow.models import loading
from winnow.system.files import read_json, read_jsonl, write_jsonl

RATE = 0.1
FRESH = 1024  # prompts of the audit
STEPS, LR = 400, 3e-4  # the best of those tried: docs/label-noise.md
Row = dict[str, Any]


def recall(suspicion_M: NDArray[np.float64], is_flipped_M: NDArray[np.bool_]) -> float:
    """Of n flipped labels, the share among the n most suspicious ones."""
    count = int(is_flipped_M.sum())
    return float(is_flipped_M[np.argsort(-suspicion_M, kind="stable")[:count]].mean())


def labelled(rows: list[Row], seed: int) -> tuple[list[Row], list[tuple[float, bool]]]:
    """Rows with every pair labelled once by Bradley-Terry, a tenth of the labels turned round; each
    label's true margin, and whether it was turned.
    """
    rng, made, truth = random.Random(f"flips {seed}"), [], []
    for row in rows:
        rewards = [
            reviews_world.true_reward(f"{row['prompt']} {text.strip()}")
            for text in row["completions"]
        ]
        comparisons = []
        for i, j in combinations(range(len(rewards)), 2):
            winner, loser = (
                (i, j) if reviews_world.prefers_first(rewards[i], rewards[j], rng) else (j, i)
            )
            turned = rng.random() < RATE
            winner, loser = (loser, winner) if turned else (winner, loser)
            comparisons.append({"winner": winner, "loser": loser})
            truth.append((rewards[winner] - rewards[loser], turned))
        made.append(
            {"prompt": row["prompt"], "completions": row["completions"], "comparisons": comparisons}
        )
    return made, truth


def answered(folder: Path, seed: int) -> list[Row]:
    """Four answers of the demo's SFT model to prompts of their own."""
    prompts = reviews_world.openings(FRESH, 1000 + seed)
    sampled = demo.sampled(
        loading.load(ModelSpec(str(folder / "sft"), device="cpu")), prompts, 1000 + seed
    )
    return [
        {"prompt": prompt, "completions": texts}
        for prompt, texts, _ in demo._said(prompts, sampled)
    ]


def audited(
    run: Path, rows: list[Row], truth: list[tuple[float, bool]], out: Path
) -> dict[str, float]:
    """Recall of the policy and of the oracle, and the estimated flip rate."""
    write_jsonl(out.with_suffix(".jsonl"), rows)
    found = api.evaluate(
        model=str(run), data=[str(out.with_suffix(".jsonl"))], label_noise=True, out=str(out)
    ).rows
    place = {(row["where"], row["chosen"], row["rejected"]): row["p_flipped"] for row in found}
    names = [
        (f"{out.with_suffix('.jsonl').name}:{i + 1}", c["winner"], c["loser"])
        for i, row in enumerate(rows)
        for c in row["comparisons"]
    ]
    known = {(where.rpartition("/")[2], *sides): p for (where, *sides), p in place.items()}
    # identical answers are no comparison
    kept = [(known[name], *told) for name, told in zip(names, truth) if name in known]
    suspicion, margin, turned = (np.array(column) for column in zip(*kept))
    estimate = read_json(out / "report.json")["label_noise"]
    return {
        "labels": len(kept),
        "flips": int(turned.sum()),
        "recall": recall(suspicion, turned.astype(bool)),
        "oracle": recall(-margin, turned.astype(bool)),
        "rate": estimate["rate"],
        "low": estimate["low"],
        "high": estimate["high"],
    }


def main(folder: Path, seed: int = 0, **changes: Any) -> dict[str, dict[str, float]]:
    """Train on flipped labels, audit both sets, print and return the figures."""
    train, train_truth = labelled(read_jsonl(folder / "preferences.jsonl"), seed)
    fresh, fresh_truth = labelled(answered(folder, seed + 1), seed + 1)
    root = folder / "noise"
    root.mkdir(exist_ok=True)
    write_jsonl(root / "train.jsonl", train)
    settings = {
        **demo.DPO,
        "model": str(folder / "sft"),
        "data": [str(root / "train.jsonl")],
        "out": str(root / "dpo"),
        "kl_samples": 0,
        "steps": STEPS,
        **changes,
    }
    api.dpo(**settings)
    result = {
        name: audited(root / "dpo", rows, truth, root / name)
        for name, rows, truth in (("fresh", fresh, fresh_truth), ("trained_on", train, train_truth))
    }
    for name, figures in result.items():
        share = figures["recall"] / figures["oracle"]
        print(
            f"{name}: {figures['flips']} planted flips among {figures['labels']:,} labels; recall"
            f" {figures['recall']:.1%}, oracle {figures['oracle']:.1%} ({share:.0%} of it);"
            f" estimated flip rate {figures['rate']:.1%} ({figures['low']:.1%} to"
            f" {figures['high']:.1%})"
        )
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]), **({"seed": int(sys.argv[2])} if len(sys.argv) > 2 else {}))
