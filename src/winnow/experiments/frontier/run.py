"""`winnow frontier`: reward against KL for every method, beside the most there can be: exact in a
world that is counted, and on the reviews of the demo.

Every point is a run of the product, in OUT/WORLD/runs; its figures are in OUT/WORLD/points. What is
there is not computed again, so the same command goes on where it stopped. `frontier.json` holds all
of it, and the report is made of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from winnow.config.evaluation import DemoSettings, FrontierSettings
from winnow.config.resolve import Resolved
from winnow.errors import RunError
from winnow.experiments import demo
from winnow.experiments.frontier import claims as frontier_claims
from winnow.experiments.frontier import costs as frontier_costs
from winnow.experiments.frontier import report as frontier_page
from winnow.experiments.frontier import words
from winnow.experiments.frontier.methods import CRITIC, METHODS, Try
from winnow.experiments.frontier.worlds import Figures, Size, World, reviews, small
from winnow.models import loading, reward_models
from winnow.models.hashes import weights_hash
from winnow.system.console import ProgressBar, as_part, safe, say
from winnow.system.files import (
    RUN_FORMAT,
    read_json,
    refuse_format,
    sha256_file,
    sha256_json,
    versions,
    write_json,
)
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint

LEDGER = frontier_page.LEDGER
SCHEMA = 1


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


def run(resolved: Resolved[FrontierSettings], command: str = "") -> Path:
    """Both worlds, or what is missing of them, and the report. Raises RunError where the folder's
    points were made with other settings.
    """
    settings = resolved.settings
    out = RunFolder(settings.out)
    if not (settings.out / LEDGER).exists():
        out.create(ours=("small", "reviews"))
    with out.lock():
        compute(
            settings.out, command, quick=settings.quick, seeds=settings.seeds, seed=settings.seed
        )
        frontier_page.write(settings.out)
    methods_shown(settings.out, out.report_html)
    return settings.out


def demo_with_frontier(resolved: Resolved[DemoSettings], command: str = "") -> dict[str, Any]:
    """The demo, and where it is asked for, the frontier behind it."""
    summary = demo.run(resolved, command)
    if resolved.settings.frontier:
        behind_demo(resolved.settings, command)
    return summary


def behind_demo(settings: DemoSettings, command: str = "") -> None:
    """The quick form on the demo's own SFT model, and the demo's report once more, with the
    frontier in it.
    """
    out = RunFolder(settings.out)
    with out.lock():
        compute(
            out.root / "frontier",
            command,
            quick=True,
            seeds=None,
            seed=settings.seed,
            trained=out.root / "sft",
        )
        frontier_page.write(out.root)
    methods_shown(out.root / "frontier", out.report_html)


def compute(
    root: Path,
    command: str,
    *,
    quick: bool,
    seeds: int | None,
    seed: int,
    trained: Path | None = None,
) -> None:
    """Every point, and `frontier.json`. seeds: None for as many as are there, or the usual number;
    trained: an SFT model of the reviews that is there already, known by its weights, since a path
    may hold another model later. One thread: these models are so small that threads wait for each
    other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _compute(root, command, quick, seeds, seed, trained)
    finally:
        torch.set_num_threads(threads)


def _compute(
    root: Path, command: str, quick: bool, seeds: int | None, seed: int, trained: Path | None
) -> None:
    plans = (
        (
            ("small", QUICK_SMALL, small),
            ("reviews", QUICK_REVIEWS, partial(reviews, trained=trained)),
        )
        if quick
        else FULL
    )
    began, same = (
        time.perf_counter(),
        sha256_json([_fixed(plan.size) | {"rates": plan.rates} for _, plan, _ in plans])[:16],
    )
    made = {
        "quick": quick,
        "seed": seed,
        "sft": weights_hash(loading.load(str(trained), device="cpu").model) if trained else None,
        "trainings": same,
    }
    ledger = _begun(root, made)
    many = {
        name: _enough(f"{root}: {name}", seeds, ledger.get("seeds", {}).get(name, 0), plan.seeds)
        for name, plan, _ in plans
    }
    work = [(name, plan, make, tries(name, plan, many[name], seed)) for name, plan, make in plans]
    worlds, inputs, points = _measured(root, work, seed)
    found: Figures = {
        "schema": SCHEMA,
        "format": RUN_FORMAT,
        "command": command,
        "settings": made,
        "seeds": many,
        "worlds": worlds,
        "points": points,
    }
    found |= {
        "versions": versions("torch", "transformers"),
        "inputs": inputs,
        "sources": SOURCES,
        "fixed": {name: _fixed(plan.size) for name, plan, _ in plans},
    }
    found |= frontier_claims.claims(worlds, points)
    found |= {
        "costs": (
            frontier_costs.costs(root, list(worlds), points, found["rows"])
            if found["ppo"]["shown"]
            else []
        )
    }
    write_json(
        root / LEDGER,
        {**found, "seconds": ledger.get("seconds", 0.0) + time.perf_counter() - began},
    )


def _measured(
    root: Path, work: list[tuple[str, FrontierPlan, Callable[..., World], list[Try]]], seed: int
) -> tuple[dict[str, Figures], dict[str, Figures], list[Figures]]:
    """The facts of each world, what it was made of, and all points."""
    with ProgressBar("frontier", sum(1 + len(todo) for *_, todo in work)) as steps:
        worlds: dict[str, Figures] = {}
        inputs: dict[str, Figures] = {}
        points: list[Figures] = []
        for name, plan, make, todo in work:
            steps.name(f"{name}: a model that speaks its language")
            with as_part(steps):
                world = make(root / name, plan.size, seed)
                worlds[name] = _facts(world)
            steps.advance(1)
            for one in todo:
                steps.name(f"{name}: {one.name}")
                with as_part(steps):
                    points.append(
                        {
                            **_point(world, one, worlds[name]["start"]["reward"]["mean"]),
                            "own_rate": one.own,
                        }
                    )
                steps.advance(1)
            inputs[name] = _inputs(world)
    return worlds, inputs, points


FULL: tuple[tuple[str, FrontierPlan, Callable[[Path, Size, int], World]], ...] = (
    ("small", SMALL, small),
    ("reviews", REVIEWS, reviews),
)


def _begun(root: Path, made: Mapping[str, Any]) -> Figures:
    """What was done here before. Raises RunError where that was done otherwise."""
    path = root / LEDGER
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        head = {"schema": SCHEMA, "format": RUN_FORMAT, "versions": versions()}
        write_json(path, {**head, "settings": made, "worlds": {}, "points": []})
    before: Figures = read_json(path, "settings")
    if not before.get("points"):
        refuse_format(root, before)
    other = [
        f"{name}: {before['settings'].get(name)} -> {value}"
        for name, value in made.items()
        if before["settings"].get(name) != value
    ]
    if other:
        raise RunError(
            f"{root}: its points were made with other settings: {', '.join(other)}",
            remedy="choose another --out, or give the same again",
        )
    return before


def _enough(where: str, asked: int | None, there: int, usual: int) -> int:
    """How many seeds a world will have. Raises RunError for fewer than there are: what was found
    with more would be lost from the page.
    """
    if asked is not None and asked < there:
        raise RunError(
            f"{where}: it has {there} seeds of each setting, got --seeds {asked}",
            remedy=f"give --seeds {there} or more, or choose another --out",
        )
    return asked or max(there, usual)


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


def _facts(world: World) -> Figures:
    """What is known of a world before any training; computed once."""
    path = world.root / "facts.json"
    if not path.exists():
        write_json(path, world.facts())
    found: Figures = read_json(path, "start", "limit", "best_of")
    start = found["start"]["reward"]["mean"]
    best = [
        {**one, "share": world.share(one["kl"]["mean"], one["reward"]["mean"] - start)}
        for one in found["best_of"]
    ]
    return {**found, "best_of": best}


def _point(world: World, one: Try, start: float) -> Figures:
    """A run and its figures, once."""
    path, folder = world.root / "points" / f"{one.name}.json", world.root / "runs" / one.name
    if path.exists():
        known: Figures = read_json(path, "kl", "reward")
        return known
    method = METHODS[one.method]
    shared = method.prepare(world, one.seed)
    found = (
        _trained(world, one, folder, method.train) if method.train else _picked(world, one, shared)
    )
    head = {
        "world": one.world,
        "method": one.method,
        "knob": method.knob,
        "value": one.value,
        "lr": one.lr,
        "seed": one.seed,
    }
    point = {
        **head,
        **found,
        "share": world.share(found["kl"]["mean"], found["reward"]["mean"] - start),
        "file": str(path.relative_to(world.root.parent)),
    }
    path.parent.mkdir(exist_ok=True)
    write_json(path, point)
    return point


def _trained(
    world: World, one: Try, folder: Path, train: Callable[[World, Try, Path], Mapping[str, Any]]
) -> Figures:
    """A training, and what came of it."""
    fresh, began, busy = not folder.exists(), time.perf_counter(), time.process_time()
    cost = train(world, one, folder)
    took = (
        {"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy}
        if fresh
        else {"seconds": None, "cpu": None}
    )
    loaded = loading.load(str(folder), device="cpu")
    found = world.measure(loaded)
    found |= {"path": _path(world, loaded, folder) if found["answers"] is None else []}
    return {**found, **took, **cost, "run": str(folder.relative_to(world.root.parent))}


def _picked(world: World, one: Try, scorer: Path) -> Figures:
    """The SFT model's best answer of n, by a reward model: nothing more is trained."""
    assert one.value is not None
    found = world.picked(reward_models.load(str(scorer), device="cpu"), round(one.value))
    return {
        **found,
        "path": [],
        "seconds": None,
        "cpu": None,
        "run": str(scorer.relative_to(world.root.parent)),
    }


def _path(world: World, loaded: loading.LoadedModel, folder: Path) -> list[Figures]:
    """Where the policy was at each checkpoint. The model's weights are exchanged: it is of no use
    afterwards.
    """
    found = []
    for saved in checkpoint.saved(RunFolder(folder).checkpoints):
        # ppo saves its critic beside it
        weights = {
            name.removeprefix("policy:"): tensor
            for name, tensor in checkpoint.load(saved).weights.items()
        }
        with torch.no_grad():
            for name, parameter in loaded.model.named_parameters():
                parameter.copy_(weights[name])
        here = world.measure(loaded)
        found.append(
            {
                "step": int(saved.name.removeprefix("step_")),
                "kl": here["kl"]["mean"],
                "reward": here["reward"]["mean"],
            }
        )
    return found


SOURCES = {
    "points": "each from its file, of its run",
    "rows": "means of the points of one setting; of best_of, WORLD/facts.json",
    "claims": (
        "the points of the methods they name, at their own rate; the limit of WORLD/facts.json"
    ),
    "closest": "rows",
    "worlds": "WORLD/facts.json",
    "costs": (
        "environment.json and metrics.jsonl of the runs, WORLD/answers.jsonl, labels-*.jsonl,"
        " reward-*.json"
    ),
}


def _inputs(world: World) -> Figures:
    """What all points of a world were made of: SHA-256 of the SFT model's weights and of the
    files.
    """
    files = [
        world.prompts,
        *sorted(world.root.glob("answers.jsonl")),
        *sorted(world.root.glob("labels-*.jsonl")),
        *sorted(world.root.glob("drawn.json")),
    ]
    return {
        "sft": weights_hash(loading.load(str(world.sft), device="cpu").model),
        **{path.name: sha256_file(path) for path in files},
    }


def _fixed(size: Size) -> Figures:
    """The settings that all trainings of a kind share, for the page."""
    reward = {**size.training, **size.reward}
    return {
        "SFT": size.sft,
        "trainings on comparisons": size.training,
        "reward model": reward,
        "PPO": {**size.ppo, "critic_lr": f"{CRITIC} times lr"},
    }


def methods_shown(root: Path, page: Path) -> None:
    for line in words.sentences(read_json(root / LEDGER)):
        say(safe(line))
    say(f"report: {safe(page)}")
