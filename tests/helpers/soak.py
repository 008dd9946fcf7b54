"""`make soak`: runs that are killed at random moments, again and again, and must end as if nobody
had touched them.

    python tests/helpers/soak.py --kills 200 --seed 0 --out runs/soak

Each run is begun, killed by SIGKILL after a random time (one of its processes, where it has two),
begun again by the same command, killed again, ten times; then it is left alone. Weights, moments,
progress, metrics, model and samples must be those of the run that nobody killed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import runs
import test_kill
from farm import Farm
from winnow.system.files import read_jsonl
from winnow.system.run_folder import RunFolder

EACH = 10  # kills of one run
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dpo": (1, {}),
    "saving aside": (1, {"async_save": True}),
    "adapter": (1, {"lora": "r=4,alpha=8", "save_best": True, "eval_every": 4}),
    "mixture": (1, {"objective": "dpo:0.8,bco:0.2:beta=0.1,kto:0.5,sft:1"}),
    "moving reference": (1, {"moving_reference": "mix=0.3,every=3"}),
    "stream": (1, {"stream": 10}),
    "two processes": (2, {}),
    "two, saving aside": (2, {"async_save": True, "optimizer": "rmsprop"}),
}


def words(world: Path, out: Path, changes: dict[str, Any]) -> list[str]:
    held = [str(world / "held.jsonl")]
    return test_kill.line(
        world,
        out,
        **{
            "steps": 40,
            "save_every": 3,
            "eval_every": 15,
            "eval_data": held,
            "kl_samples": 2,
            **changes,
        },
    )


def main() -> int:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--kills", type=int, default=200)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--out", type=Path, default=Path("runs/soak"))
    told = asked.parse_args()
    shutil.rmtree(told.out, ignore_errors=True)
    told.out.mkdir(parents=True)
    world = runs.world(told.out / "world")
    chance, began = random.Random(told.seed), time.monotonic()
    farm = Farm(told.out / "cache", *words(world, told.out / "warm", {"steps": 2}))
    whole: dict[str, tuple[Any, float]] = {}
    kills, differ, number = 0, 0, 0
    found: Counter[str] = Counter()
    while kills < told.kills:
        name = list(VARIANTS)[number % len(VARIANTS)]
        ranks, changes = VARIANTS[name]
        if name not in whole:
            out = told.out / f"whole {name}"
            answer = farm(*words(world, out, changes), ranks=ranks, out=told.out / "said")
            assert answer["codes"] == [0] * ranks, answer["said"]
            whole[name] = test_kill.digest(RunFolder(out)), answer["seconds"]
        run, hit = RunFolder(told.out / f"{number} {name}"), 0
        while hit < min(EACH, told.kills - kills):
            moment = {
                "after": chance.uniform(0.02, 1.1) * whole[name][1],
                "rank": chance.randrange(ranks),
            }
            answer = farm(
                *words(world, run.root, changes), ranks=ranks, out=told.out / "said", moment=moment
            )
            if (
                answer["codes"][moment["rank"]] != -signal.SIGKILL
            ):  # too late for this one: it counts as no kill
                assert answer["codes"] == [0] * ranks, answer["said"]
                break
            hit += 1
            found[phase(run)] += 1
        answer = farm(*words(world, run.root, changes), ranks=ranks, out=told.out / "said")
        same = answer["codes"] == [0] * ranks and test_kill.digest(run) == whole[name][0]
        kills, differ, number = kills + hit, differ + (not same), number + 1
        print(
            f"{name:>18}: {hit:2} kills,"
            f" {'the same' if same else 'DIFFERENT: ' + answer['said'][0]}; {kills} of"
            f" {told.kills}, {differ} differ",
            flush=True,
        )
        if same:
            shutil.rmtree(run.root)
    farm.close()
    print(
        f"{kills} kills of {number} runs in {time.monotonic() - began:.0f} s: {differ} differ;"
        " killed " + ", ".join(f"{n} {what}" for what, n in found.items())
    )
    return int(differ > 0)


def phase(run: RunFolder) -> str:
    """What a killed run was at, from what it left."""
    if list(run.root.rglob("*.tmp-*")):
        return "while writing"
    if not run.metrics.exists():
        return "before training"
    return "after the last step" if len(read_jsonl(run.metrics)) > 42 else "in training"


if __name__ == "__main__":
    sys.exit(main())
