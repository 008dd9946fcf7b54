"""Sizes and names that make the house one to live in: docs/architecture.md, CONTRIBUTING.md."""

from __future__ import annotations

import ast
from collections import Counter

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
