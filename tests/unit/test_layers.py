"""Imports point down from folder to folder, and no files of one folder import each other in a
circle.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = next(up for up in Path(__file__).parents if (up / "src").is_dir()) / "src" / "winnow"

# Rows from the ground up; docs/architecture.md says what each is for. A file imports from its own
# row and from rows below.
ROWS = (
    "errors",
    "system",
    "config",
    "data",
    "models",
    "engine",
    "objectives",
    "generation",
    "evaluation.statistics",
    "evaluation",
    "preferences",
    "training",
    "reports",
    "commands",
    "experiments",
    "options",
    "cli",
    "api",
    "",
    "__main__",
)
WITHOUT_TORCH = (
    "errors",
    "config",
    "data",
    "evaluation.statistics",
    "reports",
    "options",
    "cli",
    "",
    "__main__",
)
TENSORS = (
    "models",
    "engine",
    "objectives",
    "generation",
    "evaluation",
    "training",
    "commands",
    "experiments",
)

# Third parties that stand in few files only: in these, or in those of these folders.
FENCES = {
    "torch": (*TENSORS, "system.distributed", "preferences.judging"),
    "jaxtyping": TENSORS,
    "transformers": ("models", "engine", "generation.sampler"),
    "peft": ("models.adapters", "models.meta", "engine.head"),
    "datasets": ("data.hub",),
    "huggingface_hub": ("system.hub",),
    "httpx2": ("preferences.judging.endpoint",),
    "tenacity": ("preferences.judging.endpoint",),
    "tensorboard": ("training.metrics",),
    "wandb": ("training.metrics",),
    "trackio": ("training.metrics",),
}


def row_of(name: str) -> str:
    """The longest row that the module belongs to; the module's own first part where there is
    none.
    """
    return max((row for row in ROWS if belongs(name, row)), key=len, default=name.split(".")[0])


def belongs(name: str, folder: str) -> bool:
    return name == folder or (bool(folder) and name.startswith(f"{folder}."))


@functools.cache
def sources() -> dict[str, str]:
    """The text of every module, by its name without `winnow.`; the package itself is ""."""
    texts = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
            if parts:
                assert not path.read_text().strip(), f"{path}: an inner __init__ is empty"
                continue
        texts[".".join(parts)] = path.read_text()
    return texts


@functools.cache
def imports(text: str, names: frozenset[str], *, when_loaded: bool) -> tuple[str, ...]:
    """Modules that a text imports, anywhere or when it is loaded: winnow's by their names here,
    others by their first part.
    """
    tree = ast.parse(text)
    modules: list[str] = []
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            inner = [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if not alias.name.startswith("__")
            ]
            modules += [
                name if name.removeprefix("winnow.") in names else str(node.module)
                for name in inner
            ]
    modules = ["winnow." if name == "winnow" else name for name in modules]
    return tuple(
        name.removeprefix("winnow.") if name.startswith("winnow.") else name.split(".")[0]
        for name in modules
    )


def reachable(name: str, direct: dict[str, tuple[str, ...]]) -> set[str]:
    """Everything that is loaded with a module."""
    seen, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += direct.get(name, ())
    return seen


def circles(direct: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Modules of one folder that reach themselves through imports within it."""
    for name, others in direct.items():
        folder = name.split(".")[0]
        inside = {
            module: tuple(o for o in to if belongs(o, folder))
            for module, to in direct.items()
            if belongs(module, folder)
        }
        if any(name in reachable(other, inside) for other in others if belongs(other, folder)):
            yield f"{name} imports itself, through others of its folder"


def violations(texts: dict[str, str]) -> list[str]:
    names = frozenset(texts)
    loaded = {name: imports(text, names, when_loaded=True) for name, text in texts.items()}
    anywhere = {name: imports(text, names, when_loaded=False) for name, text in texts.items()}
    wrong = [f"{name} lies in no folder" for name in names if row_of(name) not in ROWS]
    for name, others in anywhere.items():
        for other in dict.fromkeys(others):
            if other in FENCES and not any(belongs(name, place) for place in FENCES[other]):
                wrong.append(f"{name} imports {other}")
            if other == "torch" and row_of(name) == "evaluation.statistics":
                wrong.append(f"{name} imports torch")
            if (
                other in names
                and row_of(name) in ROWS
                and row_of(other) in ROWS
                and ROWS.index(row_of(other)) > ROWS.index(row_of(name))
            ):
                wrong.append(f"{name} imports {other or 'winnow'}, which lies above it")
        if row_of(name) in WITHOUT_TORCH or name == "commands.table":
            wrong += [
                f"{name} waits for {heavy}"
                for heavy in ("torch", "transformers", "datasets")
                if heavy in reachable(name, loaded)
            ]
    return wrong + list(circles(loaded))


def test_imports_point_down():
    assert violations(sources()) == []


def test_the_rows_are_those_of_the_docs():
    text = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    rooms = text.split("## The rooms")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([\w/]+)/` \|", rooms, re.MULTILINE) == [
        row.replace(".", "/") for row in ROWS[1:15]
    ]


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("data.packing", "def f():\n    import torch.nn", {"data.packing imports torch"}),
        ("data.packing", "from jaxtyping import Float", {"data.packing imports jaxtyping"}),
        (
            "objectives.scores",
            "from winnow.training import loop",
            {"objectives.scores imports training.loop, which lies above it"},
        ),
        (
            "objectives.completion_logps",
            "import winnow",
            {"objectives.completion_logps imports winnow, which lies above it"},
        ),
        (
            "objectives.completion_logps",
            "from winnow import dpo_loss",
            {"objectives.completion_logps imports winnow, which lies above it"},
        ),
        ("training.step", "import peft", {"training.step imports peft"}),
        (
            "evaluation.statistics.intervals",
            "def f():\n    import torch",
            {"evaluation.statistics.intervals imports torch"},
        ),
        ("stray", "", {"stray lies in no folder"}),
        ("heap.stray", "", {"heap.stray lies in no folder"}),
        (
            "objectives.losses",
            "from winnow.objectives.table import TABLE",
            {"objectives.losses imports itself, through others of its folder"},
        ),
    ],
)
def test_the_layer_test_can_fail(name, line, expected):
    texts = sources()
    assert expected <= set(violations({**texts, name: f"{texts.get(name, '')}\n{line}\n"}))


def test_a_page_that_loads_torch_by_way_of_another_module_is_seen():
    texts = sources()
    wrong = violations(
        {
            **texts,
            "reports.plots": (
                texts["reports.plots"] + "\nfrom winnow.training.step import training_step\n"
            ),
        }
    )
    assert "reports.plots waits for torch" in wrong
    assert "reports.run_report waits for torch" in wrong
