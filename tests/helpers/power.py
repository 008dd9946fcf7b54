"""A power cut, for one process: what it wrote and did not sync is lost, and so are new names in a
folder it did not sync; what it renamed there has its old name. Deletions are taken for durable.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class Power:
    """Watches this process's syncs and renames below `root`; `cut` leaves the disk as a power cut
    may.
    """

    def __init__(self, root: Path, aside: Path) -> None:
        self.root, self.aside = root.resolve(), aside
        self.sizes: dict[
            int, tuple[int, int]
        ] = {}  # inode -> (time of its last change, its size) when it was synced
        self.renames: list[tuple[str, str, str | None]] = []  # from, to, what stood there before
        self.before = {path.stat().st_ino: path.stat().st_mtime_ns for path in self._files()}
        # of a folder, by its inode, those that will last
        self.names = {folder.stat().st_ino: _entries(folder) for folder in self._folders()}
        self._fsync, self._rename, self._replace = os.fsync, os.rename, os.replace
        os.fsync, os.rename, os.replace = self.fsync, self.rename, self.replace  # type: ignore[assignment]

    def fsync(self, handle: int) -> None:
        self._fsync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            self.renames = [one for one in self.renames if Path(one[1]).parent != path]
            self.names[path.stat().st_ino] = _entries(path)
        else:
            found = os.fstat(handle)
            self.sizes[found.st_ino] = found.st_mtime_ns, found.st_size

    def rename(self, source: os.PathLike[str], target: os.PathLike[str]) -> None:
        kept = None
        if Path(target).is_file():
            kept = str(self.aside / f"kept-{len(self.renames)}-{os.stat(target).st_ino}")
            Path(kept).unlink(missing_ok=True)
            os.link(target, kept)
        self._rename(source, target)
        self.renames.append((str(Path(source).absolute()), str(Path(target).absolute()), kept))

    replace = rename

    def cut(self) -> None:
        for path in self._files():
            found = path.stat()
            changed, size = self.sizes.get(
                found.st_ino,
                (
                    self.before.get(found.st_ino, 0),
                    found.st_size if found.st_ino in self.before else 0,
                ),
            )
            if changed != found.st_mtime_ns:
                os.truncate(path, min(size, found.st_size))
        for source, target, kept in reversed(self.renames):
            if Path(target).exists():
                self._rename(target, source)
            if kept is not None:
                self._rename(kept, target)
        for folder in self._folders():
            for name, _ in (
                _entries(folder) - self.names.get(folder.stat().st_ino, set())
                if folder.exists()
                else ()
            ):
                lost = folder / name
                shutil.rmtree(lost) if lost.is_dir() else lost.unlink()

    def _folders(self) -> list[Path]:
        return (
            [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]
            if self.root.exists()
            else []
        )

    def _files(self) -> list[Path]:
        return (
            [path for path in self.root.rglob("*") if path.is_file()] if self.root.exists() else []
        )


def _entries(folder: Path) -> set[tuple[str, int]]:
    return {(path.name, path.lstat().st_ino) for path in folder.iterdir()}
