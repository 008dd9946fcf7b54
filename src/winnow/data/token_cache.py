"""Tokens by what they were made from: made once, then read. A second start with the same data and
tokenizer tokenises nothing.

Large sets lie below `$WINNOW_CACHE` (default `~/.cache/winnow`) as `tokens/KEY/`, where the key is
a hash of every text, of the tokenizer, its template and the length limit. What another version
wrote there is made again, and that is said. Small ones are quicker made than looked up: they stay
in memory, and no file is written.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from winnow.data import tokens
from winnow.data.parallel import Chunk, rendered, workers
from winnow.data.records import PreferenceGroup
from winnow.data.render import Renderer
from winnow.data.tokens import Tokens
from winnow.errors import Problem, RunError
from winnow.system.console import ProgressBar, safe, say
from winnow.system.files import cache_folder, folder_atomic, remove_folder, sha256_json

LARGE = (
    20_000  # sequences: from here on helpers and files pay, about seven seconds of one processor
)


def tokenised(
    texts: Sequence[PreferenceGroup], name: str, renderer: Renderer
) -> tuple[Tokens, list[Problem]]:
    """The texts that can be scored as tokens, and what is wrong with the others, in the order of
    the texts. Raises ModelError, RunError.

    name: what `said` makes of the texts.
    """
    if sum(len(text.completions) for text in texts) < LARGE:
        return _in_memory(rendered(texts, renderer, 1, lambda done: None))
    who = renderer.identity()
    if who is None:
        say(
            "tokens: the tokenizer is written in Python and has no identity to store tokens by:"
            " made at each start, in one process, kept in memory"
        )
        with ProgressBar("tokens", len(texts)) as steps:
            return _in_memory(rendered(texts, renderer, 1, steps.advance))
    key = sha256_json([who, name])
    folder = cache_folder("tokens") / key[:16]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_suffix(".lock")):
            there = folder.exists()
            if there and tokens.form_of(folder) != tokens.form():
                say(
                    f"tokens: {safe(folder)} is in the format of another version of winnow: made"
                    " again"
                )
                remove_folder(folder)
                there = False
            if not there:
                for left in folder.parent.glob(
                    f"{folder.name}.tmp-*"
                ):  # by a process that was killed: nobody else writes here now
                    shutil.rmtree(left)
                with folder_atomic(folder) as new, ProgressBar("tokens", len(texts)) as steps:
                    tokens.write(new, key, rendered(texts, renderer, workers(), steps.advance))
            made, problems = tokens.opened(folder, key)
    except OSError as error:
        raise RunError(
            f"{folder}: tokens cannot be stored: {error.strerror or error}",
            remedy="export WINNOW_CACHE=a folder with room",
        ) from error
    say(
        f"tokens: {len(made):,} groups {'from' if there else 'written to'} {safe(folder)}"
        + (", nothing tokenised" if there else "")
    )
    return made, problems


def said(texts: Iterable[PreferenceGroup]) -> str:
    """SHA-256 over everything the texts say, in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(repr(text).encode())
    return digest.hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time. Of two runs that are begun together the second one reads what the
    first one writes.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"tokens: another process is making them; waiting for {safe(path)}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _in_memory(chunks: Iterable[Chunk]) -> tuple[Tokens, list[Problem]]:
    held, problems = [], []
    for columns, found in chunks:
        held.append(columns)
        problems += found
    return tokens.gathered(held), problems
