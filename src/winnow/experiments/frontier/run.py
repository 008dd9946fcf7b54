"""`winnow frontier`: reward against KL for every method, beside the most there can be: exact in a
world that is counted, and on the reviews of the demo.

Every point is a run of the product, in OUT/WORLD/runs; its figures are in OUT/WORLD/points. What is
there is not computed again, so the same command goes on where it stopped. `frontier.json` holds all
of it, and the report is made of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from winnow.config.evaluation import DemoSettings, FrontierSettings
from winnow.config.model_spec import ModelSpec
from winnow.config.resolve import Resolved
from winnow.errors import RunError
from winnow.experiments import demo
from winnow.experiments.frontier import claims as frontier_claims
from winnow.experiments.frontier import costs as frontier_costs
from winnow.experiments.frontier import report as frontier_page
from winnow.experiments.frontier import words
from winnow.experiments.frontier.methods import METHODS, Try
from winnow.experiments.frontier.plans import (
    FULL,
    QUICK_REVIEWS,
    QUICK_SMALL,
    FrontierPlan,
    shared_settings,
    tries,
)
from winnow.experiments.frontier.worlds import Figures, World, reviews, small
from winnow.models import loading, reward_models
from winnow.models.hashes import weights_hash
from winnow.system.console import ProgressBar, as_part, safe, say
from winnow.system.files import (
    read_json,
    sha256_file,
    sha256_json,
    versions,
    write_json,
)
from winnow.system.identity import RUN_FORMAT, differences, refuse_format, refuse_other
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint

LEDGER = frontier_page.LEDGER
SCHEMA = 1


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
    began = time.perf_counter()
    trainings = [shared_settings(plan.size) | {"rates": plan.rates} for _, plan, _ in plans]
    made = {
        "quick": quick,
        "seed": seed,
        "sft": weights_hash(loading.load(ModelSpec(str(trained), device="cpu")).model)
        if trained
        else None,
        "trainings": sha256_json(trainings)[:16],
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
        "fixed": {name: shared_settings(plan.size) for name, plan, _ in plans},
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
    verdict = "its points were made with other settings"
    refuse_other(root, verdict, differences(before["settings"], made))
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
    loaded = loading.load(ModelSpec(str(folder), device="cpu"))
    found = world.measure(loaded)
    found |= {"path": _path(world, loaded, folder) if found["answers"] is None else []}
    return {**found, **took, **cost, "run": str(folder.relative_to(world.root.parent))}


def _picked(world: World, one: Try, scorer: Path) -> Figures:
    """The SFT model's best answer of n, by a reward model: nothing more is trained."""
    assert one.value is not None
    found = world.picked(reward_models.load(ModelSpec(str(scorer), device="cpu")), round(one.value))
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
        "sft": weights_hash(loading.load(ModelSpec(str(world.sft), device="cpu")).model),
        **{path.name: sha256_file(path) for path in files},
    }


def methods_shown(root: Path, page: Path) -> None:
    for line in words.sentences(read_json(root / LEDGER)):
        say(safe(line))
    say(f"report: {safe(page)}")
