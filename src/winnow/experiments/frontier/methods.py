"""The methods of `winnow frontier`, each as a run of the product: the settings it is tuned over,
and how one of them is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.commands import train
from winnow.config.ppo import PPOSettings
from winnow.config.resolve import resolve
from winnow.config.training import DPOSettings, RewardSettings, SFTSettings
from winnow.experiments.frontier.worlds import World
from winnow.system.files import read_jsonl, write_json

CRITIC = 8  # times the policy's rate: a critic that lags behind teaches nothing (docs/ppo.md)


@dataclass(frozen=True)
class Try:
    """A method with one value of its knob (None: it has none), a rate (None: nothing is trained),
    and a seed, which draws labels and the order of the data. own: the rate is the one the method is
    judged by.
    """

    world: str
    method: str
    value: float | None
    lr: float | None
    seed: int
    own: bool

    @property
    def name(self) -> str:
        """Of its folder and file."""
        knob = METHODS[self.method].knob
        settings = [
            f"{name}={value:g}"
            for name, value in ((knob, self.value), ("lr", self.lr))
            if value is not None
        ]
        return "-".join([self.method, *settings, f"seed={self.seed}"])


@dataclass(frozen=True)
class Method:
    """knob: the setting that makes a frontier of it; train: how it is done, and what is to be said
    of its cost, None where the SFT model's best answer by what `prepare` made is taken; prepare:
    what all runs of a seed share.
    """

    knob: str | None
    train: Callable[[World, Try, Path], Mapping[str, Any]] | None
    prepare: Callable[[World, int], Path] = World.labels


def _dpo(world: World, one: Try, out: Path, **own: Any) -> Mapping[str, Any]:
    given = {
        "model": str(world.sft),
        "data": [str(world.labels(one.seed))],
        "out": out,
        "lr": one.lr,
        "seed": one.seed,
        "device": "cpu",
        "kl_samples": 0,
    }
    train.dpo(resolve(DPOSettings, {**world.size.training, **given, **own}, origin="frontier"))
    return {}


def _pure(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    return _dpo(world, one, out, beta=one.value)


def _mixed(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    return _dpo(world, one, out, objective="dpo:1,sft:1", beta=one.value)


def _unlikelihood(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    return _dpo(world, one, out, objective=f"unlikelihood:alpha={one.value:g}")


def _preferred(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    given = {
        "model": str(world.sft),
        "data": [str(world.labels(one.seed))],
        "out": out,
        "lr": one.lr,
        "seed": one.seed,
        "device": "cpu",
    }
    train.sft(resolve(SFTSettings, {**world.size.training, **given}, origin="frontier"))
    return {}


def _reward_model(world: World, seed: int) -> Path:
    """A reward model of the same comparisons, begun from the SFT model. What it took stands beside
    it, once.
    """
    out = world.root / "runs" / f"reward-seed={seed}"
    fresh, began, busy = not out.exists(), time.perf_counter(), time.process_time()
    given = {
        "model": str(world.sft),
        "data": [str(world.labels(seed))],
        "out": out,
        "seed": seed,
        "device": "cpu",
    }
    train.reward(
        resolve(
            RewardSettings, {**world.size.training, **given, **world.size.reward}, origin="frontier"
        )
    )
    if fresh:
        write_json(
            world.root / f"reward-seed={seed}.json",
            {"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy},
        )
    return out


def _ppo(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    """On the learned reward."""
    return _on(world, one, out, str(_reward_model(world, one.seed)))


def _ppo_true(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    return _on(world, one, out, world.judge)


def _on(world: World, one: Try, out: Path, judge: str) -> Mapping[str, Any]:
    given = {
        "model": str(world.sft),
        "prompts": str(world.prompts),
        "reward": judge,
        "max_new_tokens": world.room,
        "out": out,
        "device": "cpu",
    }
    assert one.lr is not None
    given |= {"target_kl": one.value, "lr": one.lr, "critic_lr": CRITIC * one.lr, "seed": one.seed}
    train.ppo(resolve(PPOSettings, {**world.size.ppo, **given}, origin="argument"))
    rows = read_jsonl(out / "metrics.jsonl")
    return {
        "generated": round(
            sum(row["answers"] * row["length/sampled"] for row in rows if "answers" in row)
        )
    }


METHODS: dict[str, Method] = {
    "dpo": Method("beta", _pure),
    "dpo+sft": Method("beta", _mixed),
    "ppo": Method("target_kl", _ppo, _reward_model),
    "ppo_true": Method("target_kl", _ppo_true),
    "best_of_learned": Method("n", None, _reward_model),
    "unlikelihood": Method("alpha", _unlikelihood),
    "preferred_ft": Method(None, _preferred),
}
