"""`winnow label`: answers compared by people, blind and side by side, on a page of this machine"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from markupsafe import Markup

from winnow.config.collection import LabelSettings
from winnow.config.resolve import Resolved
from winnow.errors import DataError, SettingsError
from winnow.preferences.items import Item, items
from winnow.preferences.labeling import sanitize
from winnow.preferences.labeling.server import serve
from winnow.preferences.tasks import How
from winnow.preferences.votes_db import Store
from winnow.system.console import safe, say

GOLDS = 0.1  # of an annotator's tasks, where there are any whose answer is known


def run(resolved: Resolved[LabelSettings]) -> Path:
    """Serve until a signal comes; votes are in `out` by then. Raises what opening the file, the
    items and the port raise.
    """
    settings = resolved.settings
    people = _people(settings.annotator)
    if settings.overlap > len(people):
        named = f"{len(people)} {'is' if len(people) == 1 else 'are'} named"
        raise SettingsError(
            f"overlap: {settings.overlap} annotators per pair, and {named}",
            remedy="--annotator NAME for each, or a smaller --overlap",
        )
    if settings.out.suffix.lower() in (".jsonl", ".json", ".csv", ".parquet"):
        raise SettingsError(
            f"out: {settings.out}: votes are an SQLite file",
            remedy="--out votes.db; rows come from winnow votes export",
        )
    guidelines = _guidelines(settings.guidelines) if settings.guidelines else None
    asked, gold = (
        items(settings.answers, settings.limit),
        (_gold(settings.gold) if settings.gold else []),
    )
    how = How(
        settings.seed,
        settings.overlap,
        settings.repeats,
        GOLDS if gold else 0.0,
        settings.pairs,
        settings.random_share,
    )
    store = Store.open(settings.out, asked, how, gold)
    try:
        before = len(store.votes())
        say(
            f"{len(asked):,} prompts with {sum(len(one.answers) for one in asked):,} answers;"
            f" {safe(settings.out)}: {before:,} votes"
        )
        serve(
            store,
            people,
            guidelines,
            settings.host,
            settings.port,
            settings.open and len(people) == 1 and _display(),
        )
    finally:
        say(f"{safe(settings.out)}: {len(store.votes()):,} votes")
        store.close()
    return settings.out


def _people(names: tuple[str, ...]) -> tuple[str, ...]:
    """Who labels: the names given, or whoever gave the command. Raises SettingsError."""
    people = tuple(name.strip() for name in names) or (getpass.getuser(),)
    if len(set(people)) < len(people) or not all(people):
        raise SettingsError(
            f"annotator: {', '.join(map(repr, names))}: names must differ, and have letters"
        )
    return people


def _gold(spec: str) -> list[Item]:
    """Items whose answer is known. Raises DataError where it is not."""
    found = items(spec)
    unknown = [
        one.where for one in found if not any(known.probability != 0.5 for known in one.known)
    ]
    if unknown:
        raise DataError(
            f"{spec}: rows that do not say which answer is better: {len(unknown):,}, the first at"
            f" {unknown[0]}",
            remedy="leave them out of --gold",
        )
    return found


def _guidelines(path: Path) -> Markup:
    """A markdown file as HTML; a long one as it stands. Raises SettingsError where it cannot be
    read.
    """
    try:
        words = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"guidelines: {path} cannot be read: {error}", remedy="give a text file in UTF-8"
        ) from error
    return sanitize.drawn(words) or Markup('<div class="raw">{}</div>').format(sanitize.raw(words))


def _display() -> bool:
    """Whether a browser would show a window: one that runs in the terminal would hide the links."""
    return sys.stdout.isatty() and (
        sys.platform in ("darwin", "win32")
        or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )
