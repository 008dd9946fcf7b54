"""A file of votes: SQLite, an append-only log, each vote on the disk before it is acknowledged.
Several threads and processes may share it.

The log is the truth: the last row of a task counts, and a row without an outcome takes it back.
What `tasks` and `pairs` say beside it (state, opinions) is counted from it in the same transaction.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Self

from filelock import FileLock, Timeout

from winnow.errors import DataError, Problem, RunError
from winnow.preferences import queue
from winnow.preferences.database import WAIT, body_of, connect, create, item_of, said
from winnow.preferences.items import Item
from winnow.preferences.pairing import different, draw
from winnow.preferences.tasks import Cast, How, LabelProgress, LogRow, NoTask, Outdated, Task
from winnow.preferences.vote_log import COUNTS, ENTRY, LOG, next_number, write
from winnow.preferences.votes import OUTCOMES, Vote
from winnow.system.files import make_folder, sync_folder
from winnow.system.identity import differences, refuse_other

RECENT = 50  # votes whose time is looked at


class Store:
    """One connection, which threads take in turn; processes wait for each other. Raises RunError
    where the disk or another process refuses.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self._db, self._lock = path, db, threading.RLock()
        self.items: dict[str, Item] = {}
        self.how = How()
        self._models: tuple[int, dict[str, float]] = (0, {})
        self._know()

    @classmethod
    def open(cls, path: Path, items: Sequence[Item], how: How, gold: Sequence[Item] = ()) -> Self:
        """Create a file, or go on with it: items that are new are added. `gold` items are asked
        about their first known comparison that is no tie.

        Raises RunError for a file made of other items or asked otherwise, with all differences, and
        for one that is no such file or damaged; DataError for gold items without a known
        comparison.
        """
        unknown = [
            Problem(item.where, "comparisons", "none says which answer is better")
            for item in gold
            if not queue.decided(item)
        ]
        if unknown:
            raise DataError(f"gold items without a known answer: {len(unknown):,}", unknown)
        make_folder(path.absolute().parent)
        turn = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            with turn.acquire(timeout=WAIT), said(path):
                db = connect(path, "rwc")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                create(db, how)
                sync_folder(path.absolute().parent)
                Path(turn.lock_file).unlink(missing_ok=True)
        except Timeout as error:
            raise RunError(
                f"{path}: another process has been opening it for {WAIT:g} seconds",
                remedy="end it, and try again",
            ) from error
        store = cls(path, db)
        try:
            store._take(items, gold, how)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def existing(cls, path: Path) -> Self:
        """A file to be read. Raises RunError where there is none."""
        if not path.is_file():
            raise RunError(
                f"{path}: there is no such file of votes", remedy="winnow label makes one"
            )
        with said(path):
            return cls(path, connect(path, "rw"))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # --- asking

    def next(self, annotator: str) -> Task | None:
        """What the annotator is to look at now: the same until it is voted on, in whatever tab and
        after whatever restart. None: all is done.
        """
        with self._reading() as db:
            task = queue.open_task(db, annotator)
        if task is None:
            with self._writing(
                durable=False
            ) as db:  # a power cut may forget who was given what, and no vote
                if db.execute("SELECT count(*) FROM items").fetchone()[0] > len(
                    self.items
                ):  # another process has added some
                    self._know()
                task = queue.open_task(db, annotator) or queue.assign(
                    db, self.items, self._strengths(db), self.how, annotator, time.time()
                )
        return task

    def task(self, name: str, annotator: str) -> Task:
        """A task by its id. Raises NoTask where it is not this annotator's."""
        found = self._rows(
            f"SELECT {queue.TASK} {queue.TASKS} WHERE t.id = ? AND t.annotator = ?", name, annotator
        )
        if not found:
            raise NoTask("there is no such task", remedy="go on with the next one")
        return Task(*found[0])

    def order(self, name: str, annotator: str) -> tuple[int, ...]:
        """All different answers of a task's item, in the order in which this annotator sees them
        where they are ranked.
        """
        item = self.items[self.task(name, annotator).item]
        return tuple(
            sorted(
                different(item), key=lambda i: draw(self.how.seed, item.id, i, annotator, "order")
            )
        )

    # --- answering

    def cast(self, cast: Cast) -> int:
        """Write a vote; when this returns it is on the disk. Its number in the log. What was sent
        twice is one vote, and its number is the first one's.

        Raises Outdated for a form that is not the task's current one, NoTask for a task that is not
        this annotator's.
        """
        if cast.outcome not in OUTCOMES or cast.strength not in range(4):
            raise ValueError(f"no vote: outcome {cast.outcome!r}, strength {cast.strength!r}")
        with self._writing() as db:
            task = self.task(cast.task, cast.annotator)
            if cast.revision != task.revision:
                return self._sent_before(cast, task)
            return write(db, task, cast, next_number(db))

    def _sent_before(self, cast: Cast, task: Task) -> int:
        """The number of the task's last row where that is this very vote."""
        content = (cast.outcome, cast.strength, cast.reason)
        last = self._rows(
            f"SELECT l.number, l.revision, l.outcome, l.strength, l.reason FROM {LOG} WHERE t.id ="
            " ? AND l.revision = t.revision - 1",
            task.id,
        )
        if not last or last[0][1:] != (cast.revision, *content):
            raise Outdated(task)
        return int(last[0][0])

    def rank(
        self,
        name: str,
        annotator: str,
        revision: int,
        tiers: Sequence[Sequence[int]],
        *,
        reason: str = "",
        seconds: float = 0.0,
    ) -> int:
        """All different answers of a task's item, best first, equals in one tier, as a vote on
        every pair of them: one act, written at once. Its number.

        Raises ValueError where an answer is missing or stands twice, Outdated and NoTask as `cast`.
        """
        order = self.order(name, annotator)
        place = {answer: i for i, tier in enumerate(tiers) for answer in tier}
        if sorted(place) != sorted(order) or sum(map(len, tiers)) != len(order):
            raise ValueError(f"no ranking of the answers {sorted(order)}: {tiers}")
        with self._writing() as db:
            task = self.task(name, annotator)
            if task.revision != revision:
                raise Outdated(task)
            act, kind = next_number(db), "gold" if task.kind == "gold" else "once"
            for first, second in combinations(order, 2):
                itself = {first, second} == {task.left, task.right}
                one = (
                    task
                    if itself
                    else queue.task_for(
                        db, task.item, first, second, annotator, time.time(), kind, served=False
                    )
                )
                gap = place[one.left] - place[one.right]
                write(
                    db,
                    one,
                    Cast(
                        one.id,
                        annotator,
                        "tie" if not gap else "first" if gap < 0 else "second",
                        one.revision,
                        0,
                        reason,
                        seconds,
                    ),
                    act,
                )
        return act

    def undo(self, annotator: str, act: int | None = None) -> Task | None:
        """Take back the annotator's last act that counts: a vote, or a whole ranking. What he is to
        look at then; None where there was nothing.

        act: only where that is the last one, so that an undo that is sent twice takes one back.
        """
        with self._writing() as db:
            last = self._rows(
                f"SELECT max(l.act) FROM {LOG} WHERE {COUNTS} AND l.annotator = ?", annotator
            )[0][0]
            if last is None or act not in (None, last):
                return None
            again, number = (
                self._rows(
                    f"SELECT l.task FROM {LOG} WHERE {COUNTS} AND l.act = ? ORDER BY t.served", last
                ),
                next_number(db),
            )
            for (task,) in again:
                write(db, queue.numbered(db, task), annotator, number)
        return self.next(annotator)

    # --- reading

    def history(
        self, annotator: str, limit: int = -1, offset: int = 0
    ) -> list[tuple[Task, LogRow]]:
        """The annotator's votes that count, the latest first; limit -1: all of them."""
        query = (
            f"SELECT {queue.TASK}, {ENTRY} FROM {LOG} WHERE {COUNTS} AND l.annotator = ? ORDER BY"
            " l.number DESC LIMIT ? OFFSET ?"
        )
        return [
            (Task(*row[:6]), LogRow(*row[6:]))
            for row in self._rows(query, annotator, limit, offset)
        ]

    def current(self, name: str, annotator: str) -> LogRow | None:
        """The vote on a task that counts; None where it was not voted on, or that was taken back.
        Raises NoTask as `task`.
        """
        found = self._rows(
            f"SELECT {ENTRY} FROM {LOG} WHERE {COUNTS} AND t.id = ?", self.task(name, annotator).id
        )
        return LogRow(*found[0]) if found else None

    def votes(self) -> list[Vote]:
        """Every vote that counts, in the order in which they were cast."""
        columns = (
            "p.item, t.first, t.second, l.outcome, l.annotator, l.strength, l.reason, l.at, t.kind"
        )
        return [
            Vote(*row)
            for row in self._rows(f"SELECT {columns} FROM {LOG} WHERE {COUNTS} ORDER BY l.number")
        ]

    def log(self) -> list[LogRow]:
        """Everything that was ever written."""
        return [LogRow(*row) for row in self._rows(f"SELECT {ENTRY} FROM {LOG} ORDER BY l.number")]

    def progress(self, annotator: str) -> LabelProgress:
        """How far the annotator is."""
        done, skipped = self._rows(
            "SELECT count(*), coalesce(sum(state = 'passed'), 0) FROM tasks WHERE annotator = ? AND"
            " state != 'open'",
            annotator,
        )[0]
        took = [entry.seconds for _, entry in self.history(annotator, RECENT)]
        with self._reading() as db:
            return LabelProgress(
                done, skipped, queue.left(db, self.how, annotator), median(took) if took else None
            )

    # --- the file

    def _strengths(self, db: sqlite3.Connection) -> dict[str, float]:
        """How good models are over all items, fitted anew whenever there are half as many rows of
        the log again: a function of the log alone.
        """
        until = 16
        while until * 3 // 2 < next_number(db):
            until = until * 3 // 2
        if self._models[0] != until:
            self._models = until, queue.strengths(db, self.items, until)
        return self._models[1]

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._reading() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, said(self.path):
            yield self._db

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """All of it is written, or nothing; other writers wait. durable: it is on the disk then,
        with all before it; else a killed process loses nothing, and a power cut only what came
        after the last durable one.
        """
        with self._lock, said(self.path):
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _take(self, items: Sequence[Item], gold: Sequence[Item], how: How) -> None:
        """Check that the file is of these items, and add those that are new."""
        given = {item.id: (item, False) for item in items} | {
            item.id: (item, True) for item in gold
        }
        with self._writing() as db:
            there = {
                name: (body, bool(known))
                for name, body, known in db.execute("SELECT id, body, gold FROM items")
            }
            before = json.loads(
                db.execute("SELECT value FROM settings WHERE name = 'how'").fetchone()[0]
            )
            gone = [name for name in there if name not in given]
            other = [f"items: {len(gone):,} of its {len(there):,} are not given now"] * bool(gone)
            for name, (item, known) in given.items():
                if name not in there:
                    wanted = 0 if known else queue.wanted(item, how)
                    row = (name, draw(how.seed, name), json.dumps(body_of(item)), known, wanted)
                    db.execute(
                        "INSERT INTO items (id, place, body, gold, wanted) VALUES (?, ?, ?, ?, ?)",
                        row,
                    )
                elif (
                    json.loads(there[name][0]) | {"where": ""} != body_of(item) | {"where": ""}
                    or there[name][1] != known
                ):
                    other.append(
                        f"{item.where}: its models, its known comparisons or whether it is gold are"
                        " not as before"
                    )
            refuse_other(
                self.path,
                "was made otherwise",
                differences(before, asdict(how)),
                *other,
                remedy="give what it was made with, or choose another --out",
            )
        self._know()

    def _know(self) -> None:
        """Items and settings as the file has them."""
        self.how = How(
            **json.loads(self._rows("SELECT value FROM settings WHERE name = 'how'")[0][0])
        )
        self.items = {
            name: item_of(name, json.loads(body))
            for name, body in self._rows("SELECT id, body FROM items ORDER BY place")
        }
