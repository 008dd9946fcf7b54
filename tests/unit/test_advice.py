"""Advice names what exists: every `--option` in a sentence of the source, every `name=value` in a
remedy, warning or help.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from paths import ROOT
from winnow.cli import cli
from winnow.config import collection, ppo
from winnow.config import options as config
from winnow.config.options import Follow, Lora
from winnow.objectives.table import TABLE

SOURCE = ROOT / "src" / "winnow"
# Files whose every sentence is read by users: settings, their names elsewhere, and warnings with
# advice.
SENTENCES = {
    *(path.name for path in (SOURCE / "config").glob("*.py")),
    "training_warnings.py",
    "winrate_warnings.py",
    "eval_warnings.py",
    "checks.py",
}
PLACEHOLDER = "\0"  # what an f-string fills in
OPTION = re.compile(rf"(?<![\w-])(?<!var\()--[a-z][\w-]*(?![\w{PLACEHOLDER}-])")
ASSIGNMENT = re.compile(rf"(?<![\w.{PLACEHOLDER}])([a-z]\w*) ?= ?(?=[\w.\[])")


def options() -> set[str]:
    """What every command takes, `--help` among it."""
    commands = [*cli.commands.values()]
    commands += [
        inner
        for command in commands
        if isinstance(command, click.Group)
        for inner in command.commands.values()
    ]
    parameters = [parameter for command in commands for parameter in command.params]
    return {"--help"} | {
        name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)
    }


def names() -> set[str]:
    """Fields of the settings, settings of the objectives, and the parts of `lora` and
    `moving_reference`.
    """
    classes = [
        kind
        for module in (config, collection, ppo)
        for kind in vars(module).values()
        if isinstance(kind, type)
    ]
    fields = {
        field.alias or name
        for kind in classes
        if issubclass(kind, config.Settings)
        for name, field in kind.model_fields.items()
    }
    parts = {field.name for kind in (Lora, Follow) for field in dataclasses.fields(kind)}
    return (
        fields
        | parts
        | {name for entry in TABLE.values() for name in (*entry.settings, *entry.tuning)}
    )


def text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values
        )
    return None


def strings(root: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string below `root` that is no docstring; an f-string counts once."""
    inside = {
        id(part)
        for node in ast.walk(root)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    inside |= {id(node.value) for node in ast.walk(root) if isinstance(node, ast.Expr)}
    for node in ast.walk(root):
        if id(node) not in inside and (text := text_of(node)) is not None:
            yield node.lineno, text


def advice(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Sentences that tell a user what to set: all of some files, of the others the remedies of
    errors and findings.
    """
    if path.name in SENTENCES:
        yield from strings(tree)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "remedy":
            yield from strings(node.value)


def unknown(path: Path) -> list[str]:
    """Options and settings that a file's sentences name and no command has."""
    tree = ast.parse(path.read_text())
    known_options, known_names = options(), names()
    missing = [
        f"{path.name}:{line}: {name}"
        for line, text in strings(tree)
        for name in OPTION.findall(text)
        if name not in known_options
    ]
    return missing + [
        f"{path.name}:{line}: {name}="
        for line, text in advice(path, tree)
        for name in ASSIGNMENT.findall(text)
        if name not in known_names
    ]


def test_the_files_of_sentences_are_there():
    assert SENTENCES - {path.name for path in SOURCE.rglob("*.py")} == set()


def test_advice_names_options_and_settings_that_exist():
    assert [wrong for path in sorted(SOURCE.rglob("*.py")) for wrong in unknown(path)] == []


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("other.py", 'say("Raise --bata, or --beta.")', ["other.py:1: --bata"]),
        ("other.py", 'say(f"--objectiv {name}, --no-{name}")', ["other.py:1: --objectiv"]),
        (
            "other.py",
            'raise RunError("beta2 = 1 is wrong", remedy=f"give beta2 = 0.999 to {name}")',
            ["other.py:1: beta2="],
        ),
        (
            "training_warnings.py",
            'Finding("warning", "unsound", text, (), "a slower second moment (beta2 = 0.999).")',
            ["training_warnings.py:1: beta2="],
        ),
        (
            "training_warnings.py",
            (
                'Finding("warning", "far", f"{name}, n = {count}", (), "Take advantage=rloo,'
                ' beta = 0.5, simpo:gamma=1.4, lora r=8 or --beta.")'
            ),
            [],
        ),
        ("other.py", "draw(\"<path stroke='var(--muted)'>\")", []),
    ],
)
def test_the_check_can_fail(tmp_path, name, line, expected):
    (tmp_path / name).write_text(line)
    assert unknown(tmp_path / name) == expected


def test_every_kind_of_name_is_known():
    assert {"--beta", "--help", "--no-save-best", "--frontier"} <= options()
    assert {"beta", "as", "lam", "gamma", "targets", "every", "advantage"} <= names()
    assert "beta2" not in names()
