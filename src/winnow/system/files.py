"""Files written whole or not at all, hashes of content, and where things lie in a run folder."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from winnow.errors import RunError

DAMAGED = "restore it from a copy, or begin again with another --out"


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make a file's bytes survive a power cut."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
    reached(f"{path.stem} synced")


def reached(point: str) -> None:
    """A point of a save. Nothing happens here; tests put a kill in its place."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses, as an OSError that names `path`: a full disk is told of a write, which
    knows no name, and by safetensors in words alone.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Readers see the old file or the new one, never a part: temp file, fsync, rename, fsync of the
    folder.
    """
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    # of a file's name that is no UTF-8, JSON keeps the escapes
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with writing(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            reached(f"{path.name} written")
            os.fsync(file.fileno())
        reached(f"{path.name} synced")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """A folder filled under a temporary name and renamed into place when the block ends without an
    error.
    """
    with writing(path), _renamed_when_filled(path) as temporary:
        yield temporary


@contextmanager
def _renamed_when_filled(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    make_folder(temporary)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(_READABLE)  # safetensors leaves its files to their owner alone
                sync_file(file)
        sync_folder(temporary)
        reached("folder synced")
        old = path.with_name(f"{path.name}.old-{uuid.uuid4().hex}")
        if path.exists():
            path.rename(old)
            reached("old one set aside")
        temporary.rename(path)
        reached("renamed")
        sync_folder(path.parent)
        reached("parent synced")
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_LEFT = re.compile(r"\.(tmp|old)-[0-9a-f]{32}$")


def tidy(folder: Path) -> None:
    """Delete what writes that were interrupted have left in a folder that is ours."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFT.search(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_folder(path: Path) -> None:
    """Delete a folder so that a half of it is never taken for the whole: it has another name
    first.
    """
    doomed = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    path.rename(doomed)
    reached("renamed to be deleted")
    shutil.rmtree(doomed)


def versions(*more: str) -> dict[str, str]:
    """Of everything that numbers may depend on."""
    names = ("winnow-lm", "torch", "transformers", "peft", "datasets", *more)
    return {name: importlib.metadata.version(name) for name in names} | {
        "python": platform.python_version()
    }


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def _umask() -> int:
    """What this process takes away from new files; asking means setting it, so it is asked before
    there are threads.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_READABLE = 0o666 & ~_umask()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One writer of a file. Raises RunError where there is another. The kernel lets go of the lock
    when the process dies.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{path}: another process is writing here",
            remedy="wait for it, or choose another --out",
        ) from error
    try:
        yield
    finally:
        # removing it while it is held is safe: FileLock looks again
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; NaN and infinities are refused, because other readers refuse
    them.
    """
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`value` as JSON, with a hash of itself: for manifests, which vouch for other files."""
    write_json(path, {**value, "sealed": sha256_json(value)})


def unsealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote; also a manifest from before there were seals. Raises RunError when
    it is damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged: it is no manifest")
    seal = value.pop("sealed", None)
    if seal != sha256_json(value) and not (seal is None and value.get("schema") == 1):
        raise RunError(f"{path}: damaged: its bytes are not those that were saved")
    return value


def read_json(path: Path, *needed: str) -> Any:
    """A JSON file this project wrote; `needed`: keys it must have. Raises RunError when it is
    damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON: {error}") from error
    must_have(path, value, needed)
    return value


def must_have(where: object, value: Any, needed: Collection[str]) -> None:
    """Raises RunError where `value`, read from `where`, is no JSON object with these keys."""
    gone = [key for key in needed if not isinstance(value, dict) or key not in value]
    if gone:
        raise RunError(f"{where}: damaged: {gone[0]!r} is missing in it", remedy=DAMAGED)


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One JSON object per line, the whole file atomically."""
    write_atomic(
        path, "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
    )


def read_jsonl(path: Path, *needed: str) -> list[Any]:
    """The rows of a JSON-lines file this project wrote; a torn last line (a killed writer) is left
    out. `needed`: keys each row must have.

    Raises RunError for a line that is damaged.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], 1):
        try:
            row = json.loads(line.decode()) if line else None
        except ValueError as error:
            raise RunError(f"{path}:{number}: damaged: {error}", remedy=DAMAGED) from error
        if row is not None:
            must_have(f"{path}:{number}", row, needed)
            rows.append(row)
    return rows


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: the identity of settings and data."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode(
            errors="backslashreplace"
        )
    ).hexdigest()


def cache_folder(kind: str) -> Path:
    """Where what is computed once is kept for all runs: `$WINNOW_CACHE`, or `~/.cache/winnow`.
    Anything in it may be deleted.
    """
    asked = os.environ.get("WINNOW_CACHE")
    return (Path(asked).expanduser() if asked else Path.home() / ".cache" / "winnow") / kind


def make_writable(folder: Path, remedy: str) -> None:
    """Make a folder, and try a file in it. Raises RunError with the remedy."""
    try:
        make_folder(folder)
        probe = folder / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"{folder}: cannot write here: {error.strerror}", remedy=remedy) from error
