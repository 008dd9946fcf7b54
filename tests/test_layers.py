"""Imports point down. The table is docs/architecture.md's, as data; every source file stands in it."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "winnow"

# Floors from the ground up. A file may import from floors below, and from files before it on its own floor.
FLOORS = [
    ["errors", "trl", "figures", "config", "files", "console"],
    [
        "data.records",
        "data.jsonl",
        "data.tables",
        "data.cells",
        "data.layouts",
        "data.sources",
        "data.split",
        "data.render",
        "data.doctor",
        "data.tree",
        "data.pack",
        "data.stream",
        "data.dataset",
    ],
    ["batch", "models", "engine.api", "engine.rows"],
    ["objectives.losses", "objectives.scores", "objectives.table"],
    ["train.metrics", "train.optim", "train.checkpoint", "train.reference", "train.memory", "train.start", "train.step", "train.loop"],
    ["sample", "score", "measures.heldout", "measures.winrate"],
    ["plots", "symptoms", "headline", "report"],
    [
        "recipes.world",
        "recipes.record",
        "recipes.training",
        "recipes.sft",
        "recipes.dpo",
        "recipes.check",
        "recipes.evaluation",
        "recipes.generation",
        "recipes.export",
        "recipes.demo",
    ],
    ["api", "cli", "", "__main__"],
]
ORDER = {name: i for i, name in enumerate(name for floor in FLOORS for name in floor)}
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}

# Third parties that may stand only in some files.
FENCES = {
    "torch": lambda name: 2 <= FLOOR[name] <= 5 or name.startswith("recipes."),
    "transformers": lambda name: name in ("models", "sample") or name.startswith("engine."),
    "peft": lambda name: name == "models",
    "datasets": lambda name: name == "data.sources",
    "huggingface_hub": lambda name: name == "data.sources",
    "tensorboard": lambda name: name == "train.metrics",
    "wandb": lambda name: name == "train.metrics",
    "trackio": lambda name: name == "train.metrics",
}
TORCH_FREE_REPORT = list(FLOORS[6])


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


def imports(path: Path, names: dict[str, Path]) -> list[str]:
    """Everything a file imports, wherever in it: winnow's modules by their names here, others by their first part."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name.removeprefix("winnow.") in names else node.module for name in inner]
    return [name.removeprefix("winnow.") if name.startswith("winnow.") else name.split(".")[0] for name in found]


def violations(source: Path) -> list[str]:
    names = modules(source)
    wrong = [f"{name} has no floor" for name in names if name not in ORDER]
    for name, path in names.items():
        for other in imports(path, names):
            if other in FENCES and not FENCES[other](name):
                wrong.append(f"{name} imports {other}")
            if other in ORDER and name in ORDER and other != name and ORDER[other] > ORDER[name]:
                wrong.append(f"{name} imports {other}, which stands above it")
    return wrong


def test_imports_point_down():
    assert violations(SOURCE) == []
    assert set(ORDER) == set(modules(SOURCE)), "the table names a file that is gone"


def test_the_table_can_fail(tmp_path):
    import shutil

    copy = tmp_path / "winnow"
    shutil.copytree(SOURCE, copy)
    with (copy / "data" / "records.py").open("a") as file:
        file.write("\nimport torch\nfrom winnow.objectives import losses\n")
    (copy / "stray.py").write_text("")
    assert violations(copy) == ["stray has no floor", "data.records imports torch", "data.records imports objectives.losses, which stands above it"]
