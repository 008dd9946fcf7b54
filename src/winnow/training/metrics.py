"""Sums and counts, divided once; `metrics.jsonl`; trackers as optional sinks behind one
function.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from winnow.errors import SettingsError
from winnow.system.console import safe, say
from winnow.system.files import read_jsonl, sync_file, write_jsonl, writing
from winnow.system.launch import leads

Sums = dict[str, tuple[float, float]]
Row = dict[str, float | int]


def add(into: Sums, more: Sums) -> None:
    """Add sums and counts name by name."""
    for name, (total, count) in more.items():
        before = into.get(name, (0.0, 0.0))
        into[name] = (before[0] + total, before[1] + count)


def divide(sums: Sums) -> Row:
    """Means; a name that counted nothing has none."""
    return {name: total / count for name, (total, count) in sums.items() if count}


class MetricsFile:
    """`metrics.jsonl`, one flushed line per row, and the trackers that get the same rows."""

    def __init__(
        self, path: Path, *, trackers: Sequence[str] = (), resume_at: int = 0, evaluated: int = -1
    ) -> None:
        """Rows past step `resume_at`, and of evaluations past step `evaluated`, are cut: they will
        be written again. Of several processes one writes.
        """
        self.path = path
        self.sinks: list[Sink] = []
        if not leads():
            return
        kept = (
            [
                row
                for row in read_jsonl(path, "step")
                if row["step"] <= (evaluated if _held_out(row) else resume_at)
            ]
            if resume_at
            else []
        )
        if resume_at and (not kept or kept[-1]["step"] < resume_at):
            say(
                f"[yellow]metrics:[/] rows up to step {resume_at} are gone from {safe(path)}:"
                " nothing but this file had them"
            )
        write_jsonl(path, kept)
        self.sinks = [TRACKERS[name](path.parent, resume_at) for name in trackers]

    def write(self, row: Mapping[str, float | int]) -> None:
        """Append one row; numbers that are not finite become null, because JSON has no others."""
        if not leads():
            return
        clean = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(clean) + "\n")
        for sink in self.sinks:
            sink({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def sync(self) -> None:
        """Make the rows survive a power cut, as the checkpoint of their step will."""
        if leads():
            sync_file(self.path)


def _held_out(row: Mapping[str, float | int]) -> bool:
    return any(name.startswith("eval_") for name in row)


Sink = Callable[[Mapping[str, float | int], int], None]


def require(trackers: Sequence[str]) -> None:
    """Raises SettingsError for a tracker that is not installed: before a run has begun, not after
    its reference pass.
    """
    for name in trackers:
        try:
            __import__(name)
        except ImportError as error:
            raise SettingsError(
                f"trackers: {name} is not installed",
                remedy=f"pip install {name} (or 'winnow-lm[{name}]')",
            ) from error


def _tensorboard(run: Path, resume_at: int) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(
        str(run / "tensorboard"), purge_step=resume_at + 1 if resume_at else None
    )

    def sink(row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return sink


def _wandb(run: Path, resume_at: int) -> Sink:
    wandb: Any = __import__("wandb")
    session = wandb.init(project="winnow", name=run.name, dir=str(run), id=_id(run), resume="allow")
    return lambda row, step: session.log(dict(row), step=step)


def _trackio(run: Path, resume_at: int) -> Sink:
    trackio: Any = __import__("trackio")
    trackio.init(project="winnow", name=f"{run.name}-{_id(run)}", resume="allow")
    return lambda row, step: trackio.log(dict(row), step=step)


def _id(run: Path) -> str:
    """The same for the same folder, another for a folder of the same name elsewhere: a resumed run
    finds itself, and only itself.
    """
    return hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]


TRACKERS: dict[str, Callable[[Path, int], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
