"""Who saves a run's checkpoints: while everybody waits, or on the side."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from winnow.system import files, launch
from winnow.training import checkpoint
from winnow.training.checkpoint import Progress


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
        checkpoint.save(self.folder, progress, weights, optimizer, self.identity, reference)
        self.prune(progress)
        if launch.leads():
            files.reached("pruned")

    def prune(self, progress: Progress) -> None:
        """Delete the checkpoints that this state makes old: after each save, and at the end of a
        run, for one that was killed between its last save and this.
        """
        if launch.leads():
            checkpoint.prune(
                self.folder,
                keep=self.keep,
                best=progress.best_step if self.keep_best else None,
                current=progress.step,
            )
