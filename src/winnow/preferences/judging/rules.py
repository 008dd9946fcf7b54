"""Rules that score an answer: a few by name, and any Python function by its path."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from winnow.data.jsonl import Row
from winnow.data.records import plain
from winnow.data.sources import open_rows
from winnow.errors import DataError, JudgeError, Problem, SettingsError
from winnow.preferences.items import Item
from winnow.system.files import sha256_file

Score = Callable[[Item, str], float]  # of an answer's words; higher is better
KNOWN = (
    "length, shorter, regex:PATTERN, exact:TEXT, column:NAME, or a Python function as"
    " module:function or FILE.py:function"
)
SIGNATURE = "score(prompt: str, completion: str) -> number"
# Rules of the package by the name that people type: where the function is, and its version, which
# files of judged rows record. A change of a rule's scores gives it another version. (The first
# versions are hashes of files, as functions of other people have them.)
BUILT_IN = {
    "winnow.recipes.world": (
        "winnow.experiments.reviews_world",
        "8da44a938b62cea3b9b385ca0a77919bc96f71f494255a8eac97af7f8e6bfad6",
    ),
    "winnow.recipes.small_world": (
        "winnow.experiments.counted_world",
        "c493ca04c939d8969c0130a866486f77d656156dcfbdd4bd7761907272edfb9d",
    ),
}
COLUMNS = (
    "further parameters are given the row's columns of their names, those with a default where"
    " there is such a column"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """How answers are scored. `code`: SHA-256 of the file a function comes from; None for the rules
    that stand here. `cells`: the columns a function is given, by the row's place.
    """

    name: str
    score: Score
    code: str | None = None
    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def rule(name: str, answers: str, setting: str = "judge") -> Rule:
    """A rule by its name; `answers` is where the items come from, for rules that look at columns
    ("": there are none); `setting` is whose value the name is.

    Raises SettingsError, DataError, JudgeError.
    """
    kind, colon, given = name.partition(":")
    if given and kind.endswith(".py"):
        return _function(name, kind, given, answers, setting)
    if kind not in GIVEN and ("/" in name or given.isdecimal()):
        raise SettingsError(
            f"{setting}: {name!r} is no rule, and an address begins with http:// or https://",
            remedy=f"--judge http://{name}, if that is meant",
        )
    if not colon and kind in PLAIN:
        return Rule(name, PLAIN[kind])
    if given and kind in GIVEN:
        return Rule(name, GIVEN[kind](given, answers))
    if given and kind not in PLAIN:
        return _function(name, kind, given, answers, setting)
    raise SettingsError(
        f"{setting}: {name!r} is no rule",
        remedy=f"known: {KNOWN}; http(s)://... is an endpoint, reward:MODEL a reward model",
    )


def scores(rule: Rule, item: Item) -> list[float]:
    """A score for each answer; of answers that are the same words, one. Raises JudgeError with the
    row where the rule fails.
    """
    known: dict[str, float] = {}
    words = [plain(answer) for answer in item.answers]
    for k, answer in enumerate(words):
        if answer not in known:
            known[answer] = _finite(rule, item, answer, f"{item.where}: answer {k}")
    return [known[answer] for answer in words]


def _finite(rule: Rule, item: Item, answer: str, where: str) -> float:
    try:
        said: Any = rule.score(item, answer)
    except Exception as error:  # whatever somebody's function raises
        raise JudgeError(
            f"{where}: {rule.name} raised {type(error).__name__}: {error}",
            remedy="mend it, and judge into another --out where it judged rows before",
        ) from error
    try:
        if isinstance(said, str | bytes):  # of which float would make a number
            raise TypeError
        value = float(said)
    except (TypeError, ValueError, OverflowError):
        raise JudgeError(
            f"{where}: {rule.name} gave {said!r}, expected a number",
            remedy="a score for every answer, higher for the better one",
        ) from None
    if not math.isfinite(value):
        raise JudgeError(
            f"{where}: {rule.name} gave {value}, expected a finite number",
            remedy="a score for every answer, higher for the better one",
        )
    return value


# --- the rules by name


def _length(item: Item, answer: str) -> float:
    return float(len(answer))


def _shorter(item: Item, answer: str) -> float:
    return -float(len(answer))


def _regex(pattern: str, answers: str) -> Score:
    """1 where the pattern is found anywhere in the answer, else 0."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"judge: regex {pattern!r}: {error}") from None
    return lambda item, answer: float(found.search(answer) is not None)


def _exact(text: str, answers: str) -> Score:
    """1 where the answer is this text, blanks around it aside, else 0."""
    return lambda item, answer: float(answer.strip() == text.strip())


def _column(name: str, answers: str) -> Score:
    """1 where the answer is what the row's column says, blanks around both aside, else 0."""
    right = {where: row[name] for where, row in _cells(answers, (name,)).items()}
    odd = [
        (where, value) for where, value in right.items() if not isinstance(value, (str, int, float))
    ]
    if odd:
        told = [
            Problem(where, name, f"is {type(value).__name__}, expected text or a number")
            for where, value in odd
        ]
        raise DataError(f"{answers}: rows without a column to compare with: {len(odd):,}", told)
    return lambda item, answer: float(answer.strip() == str(right[item.where]).strip())


def _cells(
    answers: str, names: Sequence[str], others: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """These columns of all rows, and others of the rows that have them, by the row's place. Raises
    DataError with every row that lacks one of the first.
    """
    found = {
        row.where: {name: row.values[name] for name in (*names, *others) if name in row.values}
        for row in open_rows(answers)[1]
        if isinstance(row, Row)
    }
    problems = [
        Problem(where, name, "is missing")
        for where, row in found.items()
        for name in names
        if name not in row
    ]
    if problems:
        raise DataError(
            f"{answers}: rows without a column that is looked at: {len(problems):,}", problems
        )
    return found


PLAIN: Mapping[str, Score] = {"length": _length, "shorter": _shorter}
GIVEN: Mapping[str, Callable[[str, str], Score]] = {
    "regex": _regex,
    "exact": _exact,
    "column": _column,
}


# --- functions by path


def _function(name: str, module: str, attribute: str, answers: str, setting: str) -> Rule:
    """`module:function`, imported from the current folder too, or `FILE.py:function`. It is called
    with two texts, the prompt and the answer, and with the row's columns that it names besides.
    """
    home_name, version = BUILT_IN.get(module, (module, None))
    path = list(sys.path)
    sys.path.insert(
        0, str(Path(module).absolute().parent if module.endswith(".py") else Path.cwd())
    )
    try:
        home = _file(Path(module)) if module.endswith(".py") else importlib.import_module(home_name)
        found: Any = home
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever an import raises
        raise JudgeError(
            f"{setting}: {name}: {type(error).__name__}: {error}",
            remedy=(
                "module:function, in this folder or installed, or FILE.py:function, with"
                f" {SIGNATURE}"
            ),
        ) from error
    finally:
        sys.path[:] = path
    if not callable(found):
        raise JudgeError(
            f"{setting}: {name} is {type(found).__name__}, expected a function", remedy=SIGNATURE
        )
    needed, others = _columns(found, name, answers, setting)
    cells = _cells(answers, needed, others) if needed or others else {}
    file = getattr(home, "__file__", None)  # what is built into Python has none
    code = version or (None if file is None else sha256_file(Path(file)))
    return Rule(name, partial(_called, found, cells), code, cells)


def _file(path: Path) -> ModuleType:
    """A Python file as a module, whatever other modules are called as it is. Raises what it raises,
    and OSError where it is not there.
    """
    name = f"winnow_rule_{sha256_file(path)[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # of a file that ends with .py there is one
    assert spec.loader is not None
    home = importlib.util.module_from_spec(spec)
    sys.modules[name] = home  # where dataclasses look for their module
    spec.loader.exec_module(home)
    return home


def _columns(
    found: Callable[..., Any], name: str, answers: str, setting: str
) -> tuple[list[str], list[str]]:
    """What a function must be given besides a prompt and a completion, and what it may be given.
    Raises JudgeError for one that cannot be called so, or wants columns where there are none.
    """
    try:
        signature = inspect.signature(found)
    except ValueError:  # some of what is built into Python tells none
        return [], []
    parameters = signature.parameters.values()
    try:
        known = signature.bind_partial("", "").arguments
        named = [
            one
            for one in parameters
            if one.name not in known and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        ]
        needed = [one.name for one in named if one.default is one.empty]
        signature.bind("", "", **dict.fromkeys(needed, ""))
    except TypeError as error:
        remedy = f"write {SIGNATURE}; {COLUMNS}"
        raise JudgeError(
            f"{setting}: {name}{signature} cannot be called with a prompt and a completion:"
            f" {error}",
            remedy=remedy,
        ) from error
    if not answers and needed:
        why = "a text file of prompts and answers that are sampled have none"
        raise JudgeError(
            f"{setting}: {name}{signature} wants the column {', '.join(needed)}, and there are no"
            f" columns: {why}",
            remedy=f"write {SIGNATURE}",
        )
    if answers and any(one.kind == one.VAR_KEYWORD for one in parameters):
        raise JudgeError(
            f"{setting}: {name}{signature} does not say which columns it wants",
            remedy=f"name them: {COLUMNS}",
        )
    return (needed, [one.name for one in named if one.name not in needed]) if answers else ([], [])


def _called(
    function: Callable[..., float], cells: Mapping[str, Mapping[str, Any]], item: Item, answer: str
) -> float:
    return function(plain(item.prompt), answer, **cells.get(item.where, {}))
