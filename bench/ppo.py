"""How close does PPO come to the best policy there is, and how quickly?

    python bench/ppo.py [SEEDS]

A world of 40 answers to each of four prompts, exact rewards, beta 0.5, rewards not whitened: there
pi* = pi_ref exp(r / beta) / Z is known, and KL(pi || pi*) by enumeration. Each seed is another
reference model and other samples. It leaves with 1 where a seed ends at 0.05 or more. Figures:
docs/ppo.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from winnow.config.model_spec import ModelSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from countable import LONGEST, distance, distribution, write_world
from winnow.commands import train
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import resolve
from winnow.models import loading
from winnow.training import checkpoint

EVERY, BETA = 10, 0.5
ALIKE = {
    "prompts": "prompts.txt",
    "reward": "judge_of_words:worth",
    "max_new_tokens": LONGEST,
    "batch_size": 4,
    "k": 64,
    "epochs": 2,
    "minibatches": 2,
}
ALIKE |= {"steps": 60, "beta": BETA, "lr": 3e-3, "save_every": EVERY, "keep": 1000}
WAYS: dict[str, dict[str, Any]] = {
    "gae": {"lam": 1.0, "critic_lr": 1e-2},
    "gae, lambda 0.95": {"critic_lr": 1e-2},
    "rloo": {"advantage": "rloo"},
}


def curve(seed: int, way: dict[str, Any]) -> list[float]:
    """KL(pi || pi*) at the start and after every EVERY iterations."""
    with TemporaryDirectory() as name:
        root = write_world(Path(name), seed)
        os.chdir(root)  # where the reward's module is looked for
        sys.modules.pop("judge_of_words", None)
        run = train.ppo(
            resolve(
                PPOSettings,
                {
                    "model": str(root / "model"),
                    "out": str(root / "run"),
                    "seed": seed,
                    **ALIKE,
                    **way,
                },
                origin="argument",
            )
        )
        model = loading.load(ModelSpec(str(root / "model"))).model
        start_XA = distribution(model)
        found = [distance(start_XA, start_XA, BETA)]
        for folder in checkpoint.saved(run.checkpoints):
            weights = {
                key.removeprefix("policy:"): t
                for key, t in checkpoint.load(folder).weights.items()
                if key.startswith("policy:")
            }
            model.load_state_dict(weights)
            found.append(distance(distribution(model), start_XA, BETA))
        os.chdir("/")
        return found


def main(seeds: int) -> bool:
    fine = True
    for name, way in WAYS.items():
        curves = [curve(seed, way) for seed in range(seeds)]
        for seed, values in enumerate(curves):
            print(
                f"{name}, seed {seed}: " + " ".join(f"{value:.4f}" for value in values), flush=True
            )
        fine &= all(values[-1] < 0.05 for values in curves)
    return fine


if __name__ == "__main__":
    sys.exit(0 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 5) else 1)
