"""Checkpoints: atomic, verified by hash, exact. safetensors and JSON only; nothing here can run code.

A checkpoint folder `step_N/` is complete or absent: it is written under another name, flushed, and renamed. Its manifest
holds the SHA-256 of every file; resuming takes the newest folder whose manifest verifies.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from winnow.data.stream import Cursor
from winnow.errors import RunError
from winnow.files import folder_atomic, must_have, read_json, sha256_file, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Progress:
    """Where a run stands, all of it printable: optimizer steps done, position in the data, tokens seen, best evaluation."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    known: dict[str, float] = field(default_factory=dict)  # what the objective has learnt of its batches so far


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds."""

    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    identity: dict[str, Any]
    reference: dict[str, Tensor]


def save(
    folder: Path, progress: Progress, weights: dict[str, Tensor], optimizer: dict[str, Tensor], identity: dict[str, Any], reference: dict[str, Tensor]
) -> Path:
    """Write `folder/step_N`. `identity`: hashes of settings, data and reference, compared on resume; `reference`: its weights, where they move."""
    target = folder / f"step_{progress.step}"
    with folder_atomic(target) as temporary:
        save_file({name: t.contiguous().cpu() for name, t in weights.items()}, temporary / "weights.safetensors")
        save_file({name: t.contiguous().cpu() for name, t in optimizer.items()}, temporary / "optimizer.safetensors")
        if reference:
            save_file({name: t.contiguous().cpu() for name, t in reference.items()}, temporary / "reference.safetensors")
        write_json(temporary / "progress.json", asdict(progress))
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"schema": SCHEMA, "torch": torch.__version__, "identity": identity, "files": files})
    return target


def load(folder: Path) -> Checkpoint:
    """A checkpoint, every byte verified first. Raises RunError naming the file that is damaged or missing."""
    path = folder / "manifest.json"
    manifest = read_json(path, "schema")
    if manifest["schema"] != SCHEMA:
        raise RunError(f"{folder}: written by another version (schema {manifest['schema']}, this one reads {SCHEMA})")
    must_have(path, manifest, ("files", "identity"))
    for name, expected in manifest["files"].items():
        must_have(path, expected, ("bytes", "sha256"))
        file = folder / name
        if not file.exists():
            raise RunError(f"{file}: missing")
        if file.stat().st_size != expected["bytes"] or sha256_file(file) != expected["sha256"]:
            raise RunError(f"{file}: damaged: its bytes are not those that were saved")
    progress = read_json(folder / "progress.json")
    progress["cursor"] = Cursor(**progress["cursor"])
    parts = [load_file(folder / f"{name}.safetensors") if f"{name}.safetensors" in manifest["files"] else {} for name in ("weights", "optimizer", "reference")]
    return Checkpoint(Progress(**progress), parts[0], parts[1], manifest["identity"], parts[2])


def saved(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones. Raises RunError when none of them does."""
    complaints: list[str] = []
    for path in reversed(saved(folder)):
        try:
            return load(path), complaints
        except RunError as error:
            complaints.append(error.what)
    if complaints:
        raise RunError(f"{folder}: no checkpoint is intact:\n  " + "\n  ".join(complaints), remedy="start again with another --out")
    return None, []


def prune(folder: Path, *, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and leftovers of interrupted writes."""
    for path in saved(folder)[:-keep]:
        if path.name != f"step_{best}":
            shutil.rmtree(path)
    for path in [*folder.glob("step_*.tmp-*"), *folder.glob("step_*.old-*")]:
        shutil.rmtree(path)
