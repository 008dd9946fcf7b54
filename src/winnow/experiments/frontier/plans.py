"""What the frontier tries in each world, in full and in its quick form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from winnow.experiments import demo
from winnow.experiments.frontier.methods import CRITIC, Try
from winnow.experiments.frontier.worlds import Figures, Size, World, reviews, small


@dataclass(frozen=True)
class FrontierPlan:
    """What is tried in a world. values: of each method's knob; rates: the first is each method's
    own, the others show how much depends on it; seeds: of each setting, where the command does not
    say.
    """

    size: Size
    values: Mapping[str, tuple[float | None, ...]]
    rates: Mapping[str, tuple[float, ...]]
    seeds: int


PPO = {"batch_size": 64, "minibatches": 4, "max_tokens": 4096, "schedule": "linear", "warmup": 0.1}
BETAS, ALPHAS, TARGETS = (0.1, 0.35, 1.0, 3.0), (0.05, 0.1, 0.5), (0.5, 1.0, 2.0, 3.0)
SMALL = FrontierPlan(
    Size(
        sft={
            "steps": 400,
            "batch_size": 64,
            "lr": 5e-3,
            "schedule": "cosine",
            "warmup": 20,
            "max_tokens": 2048,
            "save_every": 400,
        },
        rows=960,
        held_out=0,
        drawn=0,
        training={
            "steps": 150,
            "batch_size": 64,
            "max_tokens": 4096,
            "schedule": "cosine",
            "warmup": 20,
            "save_every": 50,
            "keep": 9,
        },
        reward={"lr": 1e-3},
        ppo={**PPO, "steps": 30, "epochs": 2, "beta": 1.0, "horizon": 1000, "save_every": 30},
    ),
    values={"dpo": BETAS, "dpo+sft": BETAS, "ppo": TARGETS, "ppo_true": TARGETS}
    | {"best_of_learned": (4.0, 16.0, 64.0), "unlikelihood": ALPHAS, "preferred_ft": (None,)},
    rates={
        "dpo": (1e-3, 3e-4, 3e-3),
        "ppo": (6e-4, 2e-4, 2e-3),
        "ppo_true": (6e-4,),
        **dict.fromkeys(("dpo+sft", "unlikelihood", "preferred_ft"), (1e-3,)),
    },
    seeds=3,
)
REVIEWS = FrontierPlan(
    Size(
        sft=demo.SFT,
        rows=demo.PROMPTS,
        held_out=demo.HELD_OUT,
        drawn=64,
        training={
            "steps": 150,
            "batch_size": 64,
            "max_tokens": 4096,
            "schedule": "cosine",
            "warmup": 30,
            "save_every": 50,
        },
        reward={"lr": 2e-3, "warmup": 20},
        ppo={**PPO, "steps": 30, "epochs": 2, "beta": 1.0, "horizon": 1000, "save_every": 30},
    ),
    values={"dpo": BETAS, "ppo": (0.5, 1.0, 2.5, 4.0), "ppo_true": (1.0, 2.5)}
    | {"best_of_learned": (4.0, 16.0), "unlikelihood": (0.1,), "preferred_ft": (None,)},
    rates={
        **dict.fromkeys(("dpo", "unlikelihood", "preferred_ft"), (5e-4,)),
        **dict.fromkeys(("ppo", "ppo_true"), (4e-4,)),
    },
    seeds=1,
)
QUICK_SMALL = replace(
    SMALL,
    size=replace(
        SMALL.size,
        rows=480,
        training={**SMALL.size.training, "steps": 60, "save_every": 60},
    ),
    values={
        "dpo": (0.35, 1.0),
        "dpo+sft": (0.1, 0.35),
        "ppo": (0.5, 2.0),
        "ppo_true": (0.5, 2.0),
        "best_of_learned": (4.0, 16.0),
        "preferred_ft": (None,),
    },
    seeds=2,
    rates={name: rates[:1] for name, rates in SMALL.rates.items()},
)
QUICK_REVIEWS = replace(
    REVIEWS,
    size=replace(
        REVIEWS.size,
        sft={**demo.SFT, "steps": 240, "save_every": 240, "eval_every": 240},
        rows=400,
        held_out=64,
        drawn=32,
        training={**REVIEWS.size.training, "steps": 16, "warmup": 4},
    ),
    values={"dpo": (0.1, 1.0), "preferred_ft": (None,)},
    rates={"dpo": (1e-3,), "preferred_ft": (1e-3,)},
    seeds=1,
)
FULL: tuple[tuple[str, FrontierPlan, Callable[[Path, Size, int], World]], ...] = (
    ("small", SMALL, small),
    ("reviews", REVIEWS, reviews),
)


def tries(world: str, plan: FrontierPlan, seeds: int, seed: int) -> list[Try]:
    """Every value of every knob at the method's own rate, with all seeds; one in the middle at the
    other rates, with the first seed.
    """
    own, rates = (
        range(seed, seed + seeds),
        {name: plan.rates.get(name, (None,)) for name in plan.values},
    )
    found = [
        Try(world, name, value, rates[name][0], s, own=True)
        for s in own
        for name, values in plan.values.items()
        for value in values
    ]
    middle = {name: values[(len(values) - 1) // 2] for name, values in plan.values.items()}
    return found + [
        Try(world, name, middle[name], lr, seed, own=False)
        for name in plan.values
        for lr in rates[name][1:]
    ]


def shared_settings(size: Size) -> Figures:
    """The settings that all trainings of a kind share, for the page."""
    reward = {**size.training, **size.reward}
    return {
        "SFT": size.sft,
        "trainings on comparisons": size.training,
        "reward model": reward,
        "PPO": {**size.ppo, "critic_lr": f"{CRITIC} times lr"},
    }
