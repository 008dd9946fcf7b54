"""The SQLite file of votes as a file: its tables, opening it, what it refuses in words, and items
as they lie in it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from winnow.data.records import Comparison, Message, Text, as_json
from winnow.errors import RunError
from winnow.preferences.items import Item
from winnow.preferences.tasks import How

APPLICATION, SCHEMA = 0x57_4E_56_54, 1
WAIT = 20.0  # seconds for another process that writes
TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE items (
    id TEXT PRIMARY KEY, place REAL NOT NULL, body TEXT NOT NULL, gold INTEGER NOT NULL,
    wanted INTEGER NOT NULL, asked INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX items_waiting ON items (asked, place, wanted) WHERE asked < wanted;
CREATE TABLE pairs (
    number INTEGER PRIMARY KEY, item TEXT NOT NULL REFERENCES items, low INTEGER NOT NULL,
    high INTEGER NOT NULL, opinions INTEGER NOT NULL DEFAULT 0,
    UNIQUE (item, low, high), CHECK (low < high)
) STRICT;
CREATE INDEX pairs_lacking ON pairs (opinions, number);
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, pair INTEGER NOT NULL REFERENCES pairs,
    annotator TEXT NOT NULL, first INTEGER NOT NULL,
    second INTEGER NOT NULL, kind TEXT NOT NULL, served INTEGER NOT NULL, state TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL,
    UNIQUE (pair, annotator, kind)
) STRICT;
CREATE INDEX tasks_of ON tasks (annotator, state);
CREATE TABLE log (
    number INTEGER PRIMARY KEY, act INTEGER NOT NULL, task INTEGER NOT NULL REFERENCES tasks,
    annotator TEXT NOT NULL, revision INTEGER NOT NULL,
    outcome TEXT, strength INTEGER NOT NULL, reason TEXT NOT NULL, seconds REAL NOT NULL,
    at REAL NOT NULL, UNIQUE (task, annotator, revision)
) STRICT;
CREATE INDEX log_of ON log (annotator, number);
CREATE TRIGGER log_stays BEFORE UPDATE ON log
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_is_kept BEFORE DELETE ON log
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=WAIT,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        application, schema = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] or mode != "rwc":
            if application != APPLICATION:
                raise RunError(
                    f"{path}: is a database, but no file of votes",
                    remedy="give one that winnow label has written",
                )
            if schema != SCHEMA:
                raise RunError(
                    f"{path}: has form {schema}, this version of winnow reads {SCHEMA}",
                    remedy="use the version that wrote it",
                )
            wrong = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if wrong != "ok":
                raise RunError(
                    f"{path}: is damaged: {wrong}",
                    remedy="restore it from a copy; `sqlite3 FILE .recover` may save what is left",
                )
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def create(db: sqlite3.Connection, how: How) -> None:
    """Tables in a new file, all at once."""
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    settings = json.dumps(asdict(how)).replace("'", "''")
    script = (
        f"{TABLES} INSERT INTO settings VALUES ('how', '{settings}'); PRAGMA application_id ="
        f" {APPLICATION}; PRAGMA user_version = {SCHEMA};"
    )
    db.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")


@contextmanager
def said(path: Path) -> Iterator[None]:
    """What SQLite refuses, in words. Raises RunError."""
    try:
        yield
    except sqlite3.Error as error:
        raise RunError(
            f"{path}: {error}",
            remedy="is the disk full, the file damaged, or another process writing for long?",
        ) from error


def body_of(item: Item) -> dict[str, Any]:
    return {
        "prompt": as_json(item.prompt),
        "answers": [as_json(answer) for answer in item.answers],
        "models": list(item.models),
        "where": item.where,
        "known": [asdict(one) for one in item.known],
        "tools": [dict(tool) for tool in item.tools],
    }


def item_of(name: str, body: dict[str, Any]) -> Item:
    known = tuple(Comparison(**one) for one in body["known"])
    answers = tuple(_text(answer) for answer in body["answers"])
    return Item(
        name,
        _text(body["prompt"]),
        answers,
        tuple(body["models"]),
        body["where"],
        known,
        tuple(body["tools"]),
    )


def _text(value: Any) -> Text:
    if isinstance(value, str):
        return value
    return tuple(
        Message(
            one["role"],
            one["content"],
            {key: v for key, v in one.items() if key not in ("role", "content")},
        )
        for one in value
    )
