"""The files of a run folder as reports read them: what is damaged is refused, with the place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from winnow.errors import RunError
from winnow.reports.page import Card
from winnow.reports.training_warnings import OF_SUMMARY
from winnow.system.files import read_json
from winnow.system.run_folder import RunFolder

SCHEMA = 1
TEXTS = {
    "titled": ("title", "n", "why", "source"),
    "cards": ("label", "value", "detail"),
    "warnings": ("code", "message", "advice", "level"),
}
CARD = {field.name for field in fields(Card)}
DAMAGED = "restore the file from a copy, or run the same command into another --out"


def environment(root: Path) -> dict[str, Any]:
    path = RunFolder(root).environment
    environment = _object(
        path,
        {"settings": dict, "recipe": str},
        {"origins": dict, "versions": dict, "plan": dict, "held_out": dict},
    )
    if environment.get("schema") != SCHEMA:
        raise RunError(
            f"{path}: schema: got {environment.get('schema')!r}, expected {SCHEMA}",
            remedy="use the Winnow that made this run",
        )
    return environment


def data(root: Path, *, needed: bool) -> dict[str, Any] | None:
    path = root / "data.json"
    if not path.exists() and not needed:
        return None
    if not path.exists():
        raise RunError(f"{path}: missing, though the run has metrics", remedy=DAMAGED)
    data = {"eval": {}} | _object(path, {"train": dict}, {"eval": dict, "windows": list})
    for row in data.get("windows", []):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(name), int) for name in ("read", "used")
        ):
            raise RunError(
                f"{path}: windows: got {row!r}, expected what became of a window's rows",
                remedy=DAMAGED,
            )
    for side in (data["train"], *data["eval"].values()):
        if not isinstance(side, dict):
            raise RunError(
                f"{path}: eval: got {type(side).__name__}, expected an account of each set",
                remedy=DAMAGED,
            )
        _shape(path, side, {}, {"dropped": dict, "sources": list, "tokens": dict, "findings": list})
    return data


def summary(root: Path) -> dict[str, Any]:
    """What is known of several runs together. Its maker may hand over titled figures, cards, a
    verdict and warnings beside its numbers.
    """
    path = root / "summary.json"
    parts: dict[str, type] = {
        "figures": dict,
        "verdict": str,
        "looked_for": list,
        **dict.fromkeys(TEXTS, list),
    }
    summary = _object(path, {}, parts) if path.exists() else {}
    summary = {name: value for name, value in summary.items() if value is not None}
    for name in OF_SUMMARY:
        if not isinstance(summary.get(name, 0), int | float):
            raise RunError(
                f"{path}: {name}: got {type(summary[name]).__name__}, expected a number",
                remedy=DAMAGED,
            )
    for name, texts in TEXTS.items():
        for row in summary.get(name, []):
            if not (
                isinstance(row, dict)
                and all(isinstance(row.get(text), str) for text in texts)
                and _has_numbers(name, row)
            ):
                raise RunError(
                    f"{path}: {name}: got {row!r}, expected {', '.join(texts)} and its numbers",
                    remedy=DAMAGED,
                )
    for name, one in summary.get("figures", {}).items():
        if not (isinstance(one, dict) and _is_figure(one)):
            raise RunError(
                f"{path}: figures, {name}: got {one!r}, expected a figure with its interval",
                remedy=DAMAGED,
            )
    return summary


def _has_numbers(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a row that was handed over has the numbers of its kind: a titled figure a value, and
    it and a card an interval or none.
    """
    if name == "titled":
        return isinstance(row.get("value"), int | float) and _is_interval(
            [row.get("low"), row.get("high")]
        )
    if name == "cards":
        return (
            isinstance(row.get("at"), int | float | None)
            and _is_interval(row.get("interval") or [None, None])
            and row.keys() == CARD
        )
    return row.keys() == set(TEXTS["warnings"])


def _is_interval(ends: Any) -> bool:
    """Whether both ends are there, or none."""
    return (
        isinstance(ends, list)
        and len(ends) == 2
        and (ends == [None, None] or all(isinstance(end, int | float) for end in ends))
    )


def _is_figure(one: Mapping[str, Any]) -> bool:
    """Whether it has a value, both ends of an interval or none, and what it was taken over."""
    ends = [one.get("low"), one.get("high")]
    told = isinstance(one.get("value"), int | float) and isinstance(one.get("why"), str)
    counted = all(isinstance(one.get(name), int) for name in ("count", "prompts"))
    return told and counted and _is_interval(ends)


def _object(path: Path, needed: Mapping[str, type], optional: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object whose parts are of the kinds the page relies on; optional parts that are null
    are left out.
    """
    try:
        value = _clean(read_json(path))
    except RunError as error:
        raise RunError(error.what, remedy=DAMAGED) from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: got {type(value).__name__}, expected an object", remedy=DAMAGED)
    _shape(path, value, needed, optional)
    return {name: part for name, part in value.items() if part is not None or name not in optional}


def _shape(
    path: Path, value: Mapping[str, Any], needed: Mapping[str, type], optional: Mapping[str, type]
) -> None:
    for name, kind in {**needed, **optional}.items():
        if not isinstance(value.get(name), kind) and (
            name in needed or value.get(name) is not None
        ):
            raise RunError(
                f"{path}: {name}: got {type(value.get(name)).__name__}, expected {kind.__name__}",
                remedy=DAMAGED,
            )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, row) of a JSON-lines file; a torn last line, left by a killed writer, is passed
    over.
    """
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}", remedy=DAMAGED) from error
    for at, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise RunError(
                f"{path}:{at}: cannot be read as JSON: {error}", remedy=DAMAGED
            ) from error
        if row is not None and not isinstance(row, dict):
            raise RunError(
                f"{path}:{at}: got {type(row).__name__}, expected an object", remedy=DAMAGED
            )
        if row is not None:
            yield f"{path}:{at}", _clean(row)


def metrics(path: Path) -> Iterator[dict[str, Any]]:
    for where, row in _rows(path):
        if not isinstance(row.get("step"), int):
            raise RunError(
                f"{where}: step: got {row.get('step')!r}, expected an integer", remedy=DAMAGED
            )
        for name, value in row.items():
            if value is not None and not isinstance(value, int | float):
                raise RunError(
                    f"{where}: {name}: got {type(value).__name__}, expected a number",
                    remedy=DAMAGED,
                )
        yield row


def samples(path: Path) -> list[dict[str, Any]]:
    """Prompts with what the model said at step 0 and at the last step sampled."""
    rows = list(_rows(path))
    for where, row in rows:
        for name, kind in (("step", int), ("prompt", str), ("completion", str)):
            if not isinstance(row.get(name), kind):
                raise RunError(
                    f"{where}: {name}: got {type(row.get(name)).__name__}, expected"
                    f" {kind.__name__}",
                    remedy=DAMAGED,
                )
    last = max((row["step"] for _, row in rows), default=0)
    pairs: dict[tuple[int, str], dict[str, Any]] = {}
    for _, row in rows:
        if row["step"] in (0, last):
            of = {name: row[name] for name in ("of", "held_out") if isinstance(row.get(name), int)}
            pair = pairs.setdefault(
                (row.get("index", 0), row["prompt"]),
                {"prompt": row["prompt"], "before": None, "after": None, "step": last, **of},
            )
            pair["before" if row["step"] == 0 else "after"] = row["completion"]
    return list(pairs.values())


def _clean(value: Any) -> Any:
    """What every JSON reader and UTF-8 can hold: NaN and infinities become null, half characters a
    replacement sign.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8") if not value.isascii() else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_clean(key): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value
