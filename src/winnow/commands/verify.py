"""`winnow verify`: is every byte of a run folder as it was written? Reads everything, changes
nothing.
"""

from __future__ import annotations

from pathlib import Path

from winnow.errors import RunError
from winnow.system.console import safe, say
from winnow.system.files import read_json, read_jsonl, sha256_file, unsealed
from winnow.system.run_folder import RunFolder
from winnow.training import checkpoint


def run(folder: str) -> list[str]:
    """Say what was looked at; the list of what is wrong. Raises RunError for a folder that is no
    run.
    """
    here = RunFolder(folder)
    if not here.started:
        raise RunError(
            f"{here.root}: no run was begun here",
            remedy="give a run folder, as --out of winnow sft or dpo named it",
        )
    wrong = [*_readable(here), *_checkpoints(here), *_sealed(here)]
    for one in wrong:
        say(f"[bold red]damaged:[/] {safe(one)}")
    return wrong


def _checkpoints(run: RunFolder) -> list[str]:
    """Every checkpoint, file by file."""
    wrong = []
    for folder in checkpoint.saved(run.checkpoints):
        found = checkpoint.complaints(folder)
        wrong += found
        say(
            f"checkpoint {folder.name}: "
            + (
                f"{len(found)} of its files are damaged"
                if found
                else f"{_count(folder)} files, as they were saved"
            )
        )
    return wrong


def _count(folder: Path) -> int:
    return len(read_json(folder / "manifest.json")["files"])


def _readable(run: RunFolder) -> list[str]:
    """What every run holds from its beginning on can be read."""
    wrong = []
    for read, file in (
        (read_json, run.environment),
        (read_json, run.root / "data.json"),
        (read_jsonl, run.metrics),
    ):
        try:
            read(file)
        except RunError as error:
            wrong.append(error.what)
    return wrong


def _sealed(run: RunFolder) -> list[str]:
    """What a finished run holds is as it was when it was finished."""
    if not run.manifest.exists():
        if run.finished and read_json(run.environment).get("sealed"):
            return [f"{run.manifest}: missing"]
        say(
            "finished by a version that wrote no hashes of model and metrics"
            if run.finished
            else "not finished: model and metrics have no hashes yet"
        )
        return []
    try:
        files = unsealed(run.manifest)["files"]
    except RunError as error:
        return [str(error)]
    wrong = []
    for name, expected in files.items():
        file = run.root / name
        if not file.is_file():
            wrong.append(f"{file}: missing")
        elif file.stat().st_size != expected["bytes"] or sha256_file(file) != expected["sha256"]:
            wrong.append(f"{file}: its bytes are not those of the finished run")
    wrong += [f"{file}: not a file of the finished run" for file in run.foreign(files)]
    say(
        f"model, metrics, samples and records: {len(files)} files, {len(wrong)} of them not as they"
        " were"
    )
    return wrong
