"""What unfinished work was begun with, and what it is asked for now: compared, and refused where
the two differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.errors import RunError
from winnow.system.files import versions

RUN_FORMAT = 1  # of what unfinished work leaves on the disk; another number is another way to go on
SAME_AGAIN = "choose another --out, or give the same again"
Differences = dict[str, tuple[Any, Any]]  # by name: then, now


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """What of `now` is another one than it was then; what was not there then was None."""
    return {name: (then.get(name), value) for name, value in now.items() if then.get(name) != value}


def refuse_other(
    where: object, verdict: str, differ: Differences, *more: str, remedy: str = SAME_AGAIN
) -> None:
    """Raises RunError that lists what differs, if anything does.

    verdict: what the differences mean of `where`; more: differences that have a sentence of their
    own.
    """
    lines = [f"{name}: {then!r} -> {now!r}" for name, (then, now) in differ.items()]
    lines += more
    if lines:
        raise RunError(f"{where}: {verdict}:\n  " + "\n  ".join(lines), remedy=remedy)


def refuse_format(where: object, head: Mapping[str, Any]) -> None:
    """Raises RunError where unfinished work is of another format than this version goes on with.

    head: what the work recorded of itself when it began.
    """
    if head.get("format") == RUN_FORMAT:
        return
    before = head.get("versions", {}).get("winnow-lm", "of an unrecorded version")
    raise RunError(
        f"{where}: winnow {before} began this in format {head.get('format', 'none')}, and this is"
        f" winnow {versions()['winnow-lm']}, which goes on with format {RUN_FORMAT} alone",
        remedy=(
            "finish it with the version of winnow that began it, or begin again with another --out"
        ),
    )
