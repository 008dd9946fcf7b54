"""Sizes and names that make the house one to live in: docs/architecture.md, CONTRIBUTING.md."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from paths import ROOT

SOURCE = ROOT / "src" / "winnow"
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines
IN_THE_HALL = {"__init__", "__main__", "api", "cli", "errors", "options"}


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}


def test_no_file_and_no_function_is_longer_than_one_reads(trees):
    files = [path for path in trees if len(path.read_text().splitlines()) > LONGEST_FILE]
    functions = [
        f"{path.name}: {node.name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert (files, functions) == ([], [])


def test_no_two_classes_have_one_name(trees):
    names = Counter(
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_the_hall_holds_what_belongs_to_no_room():
    assert {path.stem for path in SOURCE.glob("*.py")} == IN_THE_HALL


def module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def missing(path: Path) -> list[str]:
    """Names of winnow's that a script imports, or takes from a module, and that are not there."""
    tree, modules, lost = ast.parse(path.read_text()), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("winnow"):
            for alias in node.names:
                inner = module(f"{node.module}.{alias.name}")
                if inner is not None:
                    modules[alias.asname or alias.name] = inner
                elif not hasattr(module(node.module) or object(), alias.name):
                    lost.append(f"{path.name}:{node.lineno}: {alias.name}")
    return lost + [
        f"{path.name}:{node.lineno}: {node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
        and not hasattr(modules[node.value.id], node.attr)
    ]


def test_what_benchmarks_and_the_docs_scripts_import_is_there():
    """They run seldom, and mypy reads src alone."""
    scripts = [path for area in ("bench", "docs", ".ci") for path in (ROOT / area).glob("*.py")]
    assert len(scripts) > 10
    assert [name for path in sorted(scripts) for name in missing(path)] == []


def test_a_name_that_is_not_there_is_found(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from winnow.system import files\nfrom winnow.system.files import nothing\nfiles.none()\n"
    )
    assert missing(script) == ["script.py:2: nothing", "script.py:3: files.none"]
