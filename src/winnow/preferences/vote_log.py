"""The log in a file of votes: how its rows are read, and how another is written with all that
follows from it.
"""

from __future__ import annotations

import sqlite3
import time

from winnow.preferences import queue
from winnow.preferences.tasks import Cast, Task

ENTRY = (
    "l.number, l.act, t.id, l.annotator, l.revision, l.outcome, l.strength, l.reason, l.seconds,"
    " l.at"
)
LOG = "log l JOIN tasks t ON t.number = l.task JOIN pairs p ON p.number = t.pair"
COUNTS = (  # the last row of its task, if that took nothing back
    "l.revision = t.revision - 1 AND l.outcome IS NOT NULL"
)


def write(db: sqlite3.Connection, task: Task, by: Cast | str, act: int) -> int:
    """A row of the log, and what follows from it; `by` is a vote, or the annotator who takes the
    last one back. Its number.
    """
    number, now = next_number(db), time.time()
    row = (
        (by.annotator, by.outcome, by.strength, by.reason, by.seconds)
        if isinstance(by, Cast)
        else (by, None, 0, "", 0.0)
    )
    key, pair = db.execute("SELECT number, pair FROM tasks WHERE id = ?", (task.id,)).fetchone()
    db.execute(
        "INSERT INTO log (number, act, task, revision, at, annotator, outcome, strength, reason,"
        " seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, act, key, task.revision, now, *row),
    )
    state = "open" if row[1] is None else "passed" if row[1] in ("skip", "error") else "opinion"
    db.execute(
        "UPDATE tasks SET state = ?, revision = revision + 1, at = ? WHERE number = ?",
        (state, now, key),
    )
    queue.count(db, pair)
    return number


def next_number(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(number), 0) + 1 FROM log").fetchone()[0])
