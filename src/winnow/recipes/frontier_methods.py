"""The methods of `winnow frontier`, each as a run of the product: the settings it is tuned over, and how one of them is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.config import DPOSettings, SFTSettings
from winnow.recipes import dpo, sft
from winnow.recipes.frontier_worlds import World
from winnow.resolved import resolve


@dataclass(frozen=True)
class Try:
    """One training: a method with one value of its knob (None: it has none), a rate, and a seed, which draws labels and the order of the data.
    own: the rate is the one the method is judged by.
    """

    world: str
    method: str
    value: float | None
    lr: float
    seed: int
    own: bool

    @property
    def name(self) -> str:
        """Of its folder and file."""
        knob = METHODS[self.method].knob
        return "-".join([self.method, *([f"{knob}={self.value:g}"] if knob else []), f"lr={self.lr:g}", f"seed={self.seed}"])


@dataclass(frozen=True)
class Method:
    """knob: the setting that makes a frontier of it; train: how it is done, and what is to be said of its cost."""

    knob: str | None
    train: Callable[[World, Try, Path], Mapping[str, Any]]


def _dpo(world: World, one: Try, out: Path, **own: Any) -> Mapping[str, Any]:
    given = {"model": str(world.sft), "data": [str(world.labels(one.seed))], "out": out, "lr": one.lr, "seed": one.seed, "device": "cpu", "kl_samples": 0}
    dpo.run(resolve(DPOSettings, {**world.size.training, **given, **own}, origin="frontier"))
    return {}


def _pure(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    return _dpo(world, one, out, beta=one.value)


def _mixed(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    return _dpo(world, one, out, objective="dpo:1,sft:1", beta=one.value)


def _unlikelihood(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    return _dpo(world, one, out, objective=f"unlikelihood:alpha={one.value:g}")


def _preferred(world: World, one: Try, out: Path) -> Mapping[str, Any]:
    given = {"model": str(world.sft), "data": [str(world.labels(one.seed))], "out": out, "lr": one.lr, "seed": one.seed, "device": "cpu"}
    sft.run(resolve(SFTSettings, {**world.size.training, **given}, origin="frontier"))
    return {}


METHODS: dict[str, Method] = {
    "dpo": Method("beta", _pure),
    "dpo+sft": Method("beta", _mixed),
    "unlikelihood": Method("alpha", _unlikelihood),
    "preferred_ft": Method(None, _preferred),
}
