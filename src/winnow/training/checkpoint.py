"""Checkpoints: atomic, verified by hash, exact. safetensors and JSON only; nothing here can run
code.

A checkpoint folder `step_N/` is complete or absent: it is written under another name, flushed to
the disk, and renamed. Its manifest holds the SHA-256 of every file; resuming takes the newest
folder whose manifest verifies. Several processes write a file each, with their rows of every
tensor; as many as will read them, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from winnow.data.order import Cursor
from winnow.errors import RunError, TrainingError
from winnow.models import fsdp
from winnow.system import distributed, files, launch
from winnow.system.files import (
    folder_atomic,
    must_have,
    read_json,
    remove_folder,
    sha256_file,
    sync_file,
    unsealed,
    versions,
    write_json,
    write_sealed,
    writing,
)

SCHEMA = 2
READS = (1, 2)  # 1: written by one process, before evaluations were noted
PARTS = ("weights", "optimizer", "reference")


@dataclass(frozen=True)
class Progress:
    """Where a run stands, all of it printable: optimizer steps done, position in the data, tokens
    seen, best evaluation.
    """

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    tokens: int = 0
    evaluated: int = -1  # the last step that was evaluated
    moved: bool = False  # whether a step has changed a weight yet, as every first one should
    best_step: int | None = None
    best_loss: float | None = None
    # what the objective has learnt of its batches so far
    known: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds; of tensors, the rows of this process."""

    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    identity: dict[str, Any]
    reference: dict[str, Tensor]


def save(
    folder: Path,
    progress: Progress,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    identity: dict[str, Any],
    reference: Mapping[str, Tensor],
) -> Path:
    """Write `folder/step_N`, all processes together. `identity`: hashes of settings, data and
    reference, compared on resume; `reference`: its weights, where they move. Raises OSError, and
    where it was another process that could not write, TrainingError.
    """
    target = folder / f"step_{progress.step}"
    with _shared(target) as temporary:
        written = _written(temporary, dict(zip(PARTS, (weights, optimizer, reference))))
        if launch.leads():
            write_json(temporary / "progress.json", asdict(progress))
            written |= _described(temporary / "progress.json")
            head = {
                "schema": SCHEMA,
                "world": launch.count(),
                "versions": versions(),
                "identity": identity,
                "files": written,
            }
            write_sealed(temporary / "manifest.json", head)
            files.reached("manifest written")
    return target


@contextmanager
def _shared(target: Path) -> Iterator[Path]:
    """A folder that all processes fill and the leader puts in its place; none goes on before it is
    there.
    """
    with ExitStack() as stack:
        own = str(stack.enter_context(folder_atomic(target))) if launch.leads() else ""
        yield Path(distributed.gather(own, distributed.SAVES)[0])
    distributed.gather("committed", distributed.SAVES)


def _written(temporary: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """This process's files, on the disk; what all of them wrote, by file name, with sizes and
    hashes.
    """
    of = "" if launch.count() == 1 else f".{launch.rank()}-of-{launch.count()}"
    mine: dict[str, Any] = {}
    problem: OSError | None = None
    try:
        for name, tensors in parts.items():
            if tensors:
                file = temporary / f"{name}{of}.safetensors"
                with writing(file):
                    save_file({key: t.contiguous().cpu() for key, t in tensors.items()}, file)
                files.reached(f"{name} written")
                sync_file(file)
                mine |= _described(file)
    except OSError as error:
        problem = error
    everyone = distributed.gather(
        {"files": mine, "problem": None if problem is None else str(problem)}, distributed.SAVES
    )
    if problem is not None:
        raise problem
    for number, one in enumerate(everyone):
        if one["problem"] is not None:
            raise TrainingError(
                f"rank {number} could not write its part of a checkpoint: {one['problem']}",
                remedy="the checkpoint before it is intact",
            )
    return {name: described for one in everyone for name, described in one["files"].items()}


def _described(file: Path) -> dict[str, Any]:
    return {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}}


def complaints(folder: Path, *, share: bool = False) -> list[str]:
    """What is wrong with a checkpoint folder, file by file; nothing when every byte is as it was
    saved. share: each process of the job looks at a part of the files, and all know of all.
    """
    found: list[str] = []
    manifest: dict[str, Any] = {"files": {}}
    try:
        manifest = _manifest(folder)
    except RunError as error:
        found.append(error.what)
    for number, (name, expected) in enumerate(sorted(manifest["files"].items())):
        file = folder / name
        if share and number % launch.count() != launch.rank():
            continue
        if not file.exists():
            found.append(f"{file}: missing")
        elif file.stat().st_size != expected["bytes"] or sha256_file(file) != expected["sha256"]:
            found.append(f"{file}: damaged: its bytes are not those that were saved")
    there = sorted(folder.iterdir()) if manifest["files"] else []
    found += [
        f"{file}: not a file of this checkpoint"
        for file in there
        if file.name not in (*manifest["files"], "manifest.json")
    ]
    return (
        list(dict.fromkeys(one for many in distributed.gather(found) for one in many))
        if share
        else found
    )


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = unsealed(folder / "manifest.json")
    if manifest.get("schema") not in READS:
        known = " and ".join(map(str, READS))
        raise RunError(
            f"{folder}: written by another version (schema {manifest.get('schema')}, this one reads"
            f" {known})",
            remedy="the version that wrote it",
        )
    must_have(folder / "manifest.json", manifest, ("files", "identity"))
    for described in manifest["files"].values():
        must_have(folder / "manifest.json", described, ("bytes", "sha256"))
    return manifest


def load(folder: Path) -> Checkpoint:
    """A checkpoint, every byte verified first, by all processes together. Raises RunError naming
    the file that is damaged or missing.
    """
    wrong = complaints(folder, share=True)
    if wrong:
        raise RunError("\n  ".join(wrong))
    manifest = _manifest(folder)
    progress = read_json(folder / "progress.json")
    progress["cursor"] = Cursor(**progress["cursor"])
    if manifest["schema"] == 1:  # saved after the step's evaluation, if there was one
        progress |= {"evaluated": progress["step"], "moved": True}
    weights, optimizer, reference = (_rows(_files(folder, manifest, name)) for name in PARTS)
    return Checkpoint(Progress(**progress), weights, optimizer, manifest["identity"], reference)


def _files(folder: Path, manifest: Mapping[str, Any], name: str) -> list[Path]:
    """The files that hold `name`, by the rank that wrote them."""
    found = [
        file
        for file in manifest["files"]
        if file.partition(".")[0] == name and file.endswith(".safetensors")
    ]
    return [
        folder / file
        for file in sorted(
            found,
            key=lambda file: (
                int(file.split(".")[1].partition("-")[0]) if file.count(".") > 1 else 0
            ),
        )
    ]


def _rows(paths: Sequence[Path]) -> dict[str, Tensor]:
    """This process's rows of every tensor that the files hold between them. A tensor without rows
    is the same in all.
    """
    if not paths:
        return {}
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in paths]
        return {name: _part([one.get_slice(name) for one in opened]) for name in opened[0].keys()}  # noqa: SIM118


def _part(slices: Sequence[Any]) -> Tensor:
    if not slices[0].get_shape():
        return torch.as_tensor(slices[0][...])
    sizes = [one.get_shape()[0] for one in slices]
    own = fsdp.rows(sum(sizes))
    found, first = [], 0
    for one, size in zip(slices, sizes):
        a, b = max(own.start, first), min(own.stop, first + size)
        if a < b:
            found.append(one[a - first : b - first])
        first += size
    return torch.cat(found) if found else torch.as_tensor(slices[0][:0])


def saved(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones. Raises RunError when
    none of them does.
    """
    wrong: list[str] = []
    for name in reversed(
        distributed.gather([path.name for path in saved(folder)])[0]
    ):  # as the leader sees the folder
        try:
            return load(folder / name), wrong
        except RunError as error:
            wrong.append(error.what)
    if wrong:
        raise RunError(
            f"{folder}: no checkpoint is intact:\n  " + "\n  ".join(wrong),
            remedy="start again with another --out",
        )
    return None, []


def prune(folder: Path, *, keep: int, best: int | None, current: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `current`, which is safe, and the best
    one. Later ones were passed over: they did not verify, and their steps are done again.
    """
    steps = [int(path.name.removeprefix("step_")) for path in saved(folder)]
    kept = {*[step for step in steps if step <= current][-keep:], best}
    for step in steps:
        if step not in kept:
            remove_folder(folder / f"step_{step}")


class Saver:
    """Saves checkpoints of a run and deletes old ones: while everybody waits, or on the side.

    On the side: tensors are copied, then training goes on while a thread writes. One save at a
    time: the next one waits for it, and what went wrong with it is raised there.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, keep: int, keep_best: bool, aside: bool
    ) -> None:
        self.folder, self.identity, self.keep, self.keep_best = (
            folder,
            dict(identity),
            keep,
            keep_best,
        )
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="save") if aside else None
        self.pending: Future[None] | None = None

    def close(self) -> None:
        """Until the thread is at its end, whatever became of what it wrote: `wait` tells."""
        if self.thread is not None:
            self.thread.shutdown()

    def save(
        self,
        progress: Progress,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
    ) -> None:
        """Save this state, or begin to."""
        self.wait()
        if self.thread is None:
            self._write(progress, weights, optimizer, reference)
        else:
            copies = [
                {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
                for tensors in (weights, optimizer, reference)
            ]
            self.pending = self.thread.submit(self._write, progress, *copies)

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises what went wrong."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(
        self,
        progress: Progress,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
    ) -> None:
        save(self.folder, progress, weights, optimizer, self.identity, reference)
        self.prune(progress)
        if launch.leads():
            files.reached("pruned")

    def finish(self, progress: Progress) -> None:
        """Until what was begun is on the disk, and old checkpoints are deleted: a run may have been
        killed between its last save and that.
        """
        self.wait()
        self.prune(progress)

    def prune(self, progress: Progress) -> None:
        """Delete the checkpoints that this state makes old."""
        if launch.leads():
            prune(
                self.folder,
                keep=self.keep,
                best=progress.best_step if self.keep_best else None,
                current=progress.step,
            )
