"""Where everything of a run lies: a folder readable without the code that made it, with one writer
at a time.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from winnow.errors import RunError
from winnow.system.files import make_writable, sha256_file, write_atomic, write_sealed


class RunFolder:
    """Where everything of a run lies. A run is a folder readable without the code that made it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._made = False  # whether `create` made the folder
        self.config = self.root / "config.yaml"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.model = self.root / "model"
        self.samples = self.root / "samples.jsonl"
        self.report_json = self.root / "report.json"
        self.report_html = self.root / "report.html"
        self.manifest = self.root / "manifest.json"

    @property
    def started(self) -> bool:
        """Whether a run was begun here."""
        return self.environment.exists()

    @property
    def finished(self) -> bool:
        """Whether the run here came to its end: its manifest is sealed, whatever became of the
        report.

        A run of a version that wrote no manifest has `report.json` alone, which that version wrote
        last.
        """
        return self.manifest.exists() or self.report_json.exists()

    def create(self, *, ours: Collection[str] = ("config.yaml", "data.json")) -> None:
        """Make the folder, or say why it cannot be written, before anything is loaded. `ours` as in
        `refuse_foreign`.
        """
        self.refuse_foreign(ours)
        self._made = not self.root.exists()
        make_writable(self.root, "choose another --out")

    def refuse_foreign(self, ours: Collection[str]) -> None:
        """A folder that holds something and is no run is refused: it may be a model, or somebody's
        data.

        ours: what a run that was killed while it began may have left.
        """
        if not self.started and self.root.is_dir():
            foreign = sorted(
                p.name
                for p in self.root.iterdir()
                if p.name not in ours and not p.name.startswith((".", "lock"))
            )
            if foreign:
                raise RunError(
                    f"{self.root}: not a run folder, and not empty: it holds"
                    f" {', '.join(foreign[:5])}",
                    remedy="choose a new --out",
                )

    def seal(self) -> None:
        """Write down size and hash of everything a finished run holds, but for the report, which
        can be made again.
        """
        kept = [
            self.config,
            self.environment,
            self.root / "data.json",
            self.metrics,
            self.samples,
            *sorted(self.model.rglob("*")),
        ]
        files = {
            str(file.relative_to(self.root)): {
                "bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
            for file in kept
            if file.is_file()
        }
        write_sealed(self.manifest, {"schema": 2, "files": files})

    def foreign(self, files: Collection[str]) -> list[Path]:
        """What lies in the model's folder and is not among `files`, relative to the run."""
        return [
            file
            for file in sorted(self.model.rglob("*"))
            if file.is_file() and str(file.relative_to(self.root)) not in files
        ]

    def unfinish(self) -> None:
        """Take back that the run is finished: it is to go on. The manifest goes last: a run without
        one is not finished by its report.
        """
        for file in (self.report_json, self.manifest):
            file.unlink(missing_ok=True)

    def promise(self) -> None:
        """What `create` checks, for a folder that is written only at the end: nothing is left
        behind.
        """
        there = self.root.exists()
        make_writable(self.root, "choose another --out")
        if not there:
            self.root.rmdir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One writer per run folder; the kernel lets go of the lock when the process dies, however
        it dies.

        A run that was refused before it wrote anything leaves nothing behind. (Removing a lock file
        that is held is safe: FileLock looks for a file that was removed under it, and takes the
        next one.)
        """
        holder = self.root / "lock.json"
        lock = FileLock(self.root / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            who = holder.read_text() if holder.exists() else "unknown"
            raise RunError(
                f"{self.root}: another process is writing here: {who}",
                remedy="wait for it, or choose another --out",
            ) from error
        try:
            write_atomic(holder, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
            yield
        finally:
            holder.unlink(missing_ok=True)
            if list(self.root.iterdir()) == [Path(lock.lock_file)]:
                Path(lock.lock_file).unlink()
                if self._made:
                    self.root.rmdir()
            lock.release()
