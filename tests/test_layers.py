"""Imports point down. The table is docs/architecture.md's, as data; every source file stands in it."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "winnow"

# Floors from the ground up. A file may import from floors below, and from files before it on its own floor.
FLOORS = [
    ["ranks", "errors", "signals", "secrets", "trl", "figures", "config", "config_collect", "config_rl", "resolved", "files", "console", "hub"],
    [
        "data.records",
        "data.ranking",
        "data.jsonl",
        "data.tables",
        "data.cells",
        "data.layouts",
        "data.sources",
        "data.prompts",
        "data.split",
        "data.render",
        "data.tokens",
        "data.mismatch",
        "data.parallel",
        "data.store",
        "data.doctor",
        "data.tree",
        "data.pack",
        "data.stream",
        "data.windows",
        "data.dataset",
    ],
    [
        "batch",
        "device",
        "dist",
        "layers",
        "shards",
        "quantized",
        "hashes",
        "models",
        "scorers",
        "outlines",
        "engine.api",
        "engine.head",
        "engine.rows",
        "engine.layout",
        "engine.segments",
        "engine.varlen",
        "engine.masks",
        "engine.single",
        "engine.tiled",
        "engine.scalar",
        "engine.probe",
    ],
    [
        "objectives.losses",
        "objectives.batchwise",
        "objectives.policy_gradient",
        "objectives.scores",
        "objectives.table",
        "objectives.choices",
        "objectives.terms",
        "objectives.rollout",
    ],
    [
        "train.metrics",
        "train.optim",
        "train.checkpoint",
        "train.saver",
        "train.reference",
        "train.live",
        "train.memory",
        "train.limit",
        "train.start",
        "train.feed",
        "train.step",
        "train.loop",
    ],
    [
        "sample",
        "vllm",
        "score",
        "rewards",
        "measures.clustered",
        "measures.heldout",
        "measures.slices",
        "measures.displacement",
        "measures.rewardbench",
        "measures.noise",
        "measures.calibration",
        "measures.winrate",
        "measures.lengths",
        "measures.drift",
        "measures.frontier",
    ],
    [
        "collect.items",
        "collect.votes",
        "collect.bradley_terry",
        "collect.pairing",
        "collect.tasks",
        "collect.database",
        "collect.queue",
        "collect.store",
        "collect.agreement",
        "collect.export",
        "collect.text",
        "collect.guard",
        "collect.views",
        "collect.page",
        "collect.serve",
        "collect.questions",
        "collect.endpoint",
        "collect.rules",
        "collect.rulings",
        "plots",
        "rounds",
        "symptoms",
        "matches",
        "doubts",
        "evaluation_signs",
        "run_figures",
        "headline",
        "frontier_words",
        "frontier_page",
        "collection",
        "collection_page",
        "report",
        "winrate_page",
        "evaluation_page",
    ],
    [
        "recipes.world",
        "recipes.small_world",
        "recipes.record",
        "recipes.engines",
        "recipes.references",
        "recipes.samples",
        "recipes.rendering",
        "recipes.heldloss",
        "recipes.setfigures",
        "recipes.finals",
        "recipes.planning",
        "recipes.training",
        "recipes.sft",
        "recipes.dpo",
        "recipes.reward",
        "recipes.catalogue",
        "recipes.check",
        "recipes.flips",
        "recipes.heldsets",
        "recipes.distance",
        "recipes.saying",
        "recipes.evaluation_tables",
        "recipes.evaluation",
        "recipes.asking",
        "recipes.growing",
        "recipes.generation",
        "recipes.sampling",
        "recipes.judging",
        "recipes.referee",
        "recipes.against",
        "recipes.online",
        "recipes.players",
        "recipes.winrate",
        "recipes.label",
        "recipes.rewarding",
        "recipes.rollouts",
        "recipes.reviewing",
        "recipes.ppo_job",
        "recipes.ppo",
        "recipes.export",
        "recipes.verify",
        "recipes.votes",
        "recipes.demo_figures",
        "recipes.demo",
        "recipes.frontier_worlds",
        "recipes.frontier_methods",
        "recipes.frontier_claims",
        "recipes.frontier_costs",
        "recipes.frontier",
    ],
    ["api", "options", "cli", "", "__main__"],
]
ORDER = {name: i for i, name in enumerate(name for floor in FLOORS for name in floor)}
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}

WAITING = ("collection_page", "evaluation_page", "frontier_page", "headline", "plots", "report", "rounds", "winrate_page")  # for plots

# Third parties that may stand only in some files.
FENCES = {
    "torch": lambda name: 2 <= FLOOR[name] <= 5 or name.startswith("recipes."),
    "jaxtyping": lambda name: 2 <= FLOOR[name] <= 5 or name.startswith("recipes."),  # its types are torch's
    "transformers": lambda name: name in ("models", "scorers", "outlines", "layers", "quantized", "sample") or name.startswith("engine."),
    "peft": lambda name: name in ("models", "outlines", "engine.head"),
    "datasets": lambda name: name == "data.sources",
    "huggingface_hub": lambda name: name == "hub",
    "httpx2": lambda name: name == "collect.endpoint",
    "tenacity": lambda name: name == "collect.endpoint",
    "tensorboard": lambda name: name == "train.metrics",
    "wandb": lambda name: name == "train.metrics",
    "trackio": lambda name: name == "train.metrics",
}
# Files that are loaded without torch, by whatever way. What a function imports inside is its own business.
LIGHT = [name for floor in (FLOORS[0], FLOORS[1], FLOORS[6], ["cli", "", "__main__"]) for name in floor]


def modules(source: Path) -> dict[str, Path]:
    found = {}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        if parts[-1] == "__init__":
            if len(parts) > 1:
                assert not path.read_text().strip(), f"{path}: an inner __init__ stays empty"
                continue
            parts = ()
        found[".".join(parts)] = path
    return found


def imports(path: Path, names: dict[str, Path], *, when_loaded: bool = False) -> list[str]:
    """What a file imports, anywhere or when it is loaded: winnow's modules by their names here, others by their first part."""
    found = []
    tree = ast.parse(path.read_text())
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
            found += [name if name.removeprefix("winnow.") in names else str(node.module) for name in inner]
    found = ["winnow." if name == "winnow" else name for name in found]  # the package itself is the module ""
    return [name.removeprefix("winnow.") if name.startswith("winnow.") else name.split(".")[0] for name in found]


def loads(name: str, direct: dict[str, list[str]]) -> set[str]:
    """Everything that is loaded with a file; `direct` is what each file asks for itself."""
    seen, todo = set(), [name]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += direct.get(name, [])
    return seen


def violations(source: Path) -> list[str]:
    names = modules(source)
    direct = {name: imports(path, names, when_loaded=True) for name, path in names.items()}
    wrong = [f"{name} has no floor" for name in names if name not in ORDER]
    for name, path in names.items():
        if name not in ORDER:
            continue
        for other in imports(path, names):
            if other in FENCES and not FENCES[other](name):
                wrong.append(f"{name} imports {other}")
            if other in ORDER and ORDER[other] > ORDER[name]:
                wrong.append(f"{name} imports {other}, which stands above it")
        if name in LIGHT:
            wrong += [f"{name} waits for {heavy}" for heavy in ("torch", "transformers", "datasets") if heavy in loads(name, direct)]
    return wrong


def test_imports_point_down():
    assert violations(SOURCE) == []
    assert set(ORDER) == set(modules(SOURCE)), "the table names a file that is gone"


def test_the_table_is_the_one_in_the_docs():
    text = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    listed = {path.removesuffix(".py").replace("/", ".") for path in re.findall(r"^\|[^|]*\| `([\w/]+\.py)` \|", text, re.MULTILINE)}
    assert listed == set(ORDER) - {""}


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("data/pack.py", "def f():\n    import torch.nn", ["data.pack imports torch"]),
        ("data/pack.py", "from jaxtyping import Float", ["data.pack imports jaxtyping"]),
        ("objectives/scores.py", "from winnow.train import loop", ["objectives.scores imports train.loop, which stands above it"]),
        ("objectives/losses.py", "from winnow.objectives.table import TABLE", ["objectives.losses imports objectives.table, which stands above it"]),
        ("score.py", "import winnow", ["score imports , which stands above it"]),
        ("score.py", "from winnow import dpo_loss", ["score imports , which stands above it"]),
        ("train/step.py", "import peft", ["train.step imports peft"]),
        ("plots.py", "from winnow.train.metrics import Metrics", []),
        ("plots.py", "from winnow.train.step import step", [f"{name} waits for torch" for name in WAITING]),
        ("stray.py", "", ["stray has no floor"]),
    ],
)
def test_the_table_can_fail(tmp_path, file, line, expected):
    copy = tmp_path / "winnow"
    shutil.copytree(SOURCE, copy)
    with (copy / file).open("a") as opened:
        opened.write(f"\n{line}\n")
    assert sorted(violations(copy)) == sorted(expected)
