"""What an annotator is asked next: pairs that lack opinions, then new ones, with repeats and gold
items mixed in. All inside the caller's transaction.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping

from winnow.data.records import Comparison
from winnow.evaluation.statistics.bradley_terry import Game, fit
from winnow.preferences.items import Item
from winnow.preferences.pairing import SPREAD, chosen, different, draw
from winnow.preferences.tasks import How, Task

TASK, TASKS = (
    "t.id, p.item, t.first, t.second, t.kind, t.revision",
    "FROM tasks t JOIN pairs p ON p.number = t.pair",
)
IN_FLIGHT = (
    1800.0  # seconds for which a task that was given out, and not answered, is kept from others
)
LACKING = """FROM pairs p JOIN items i ON i.id = p.item WHERE p.opinions < ? AND NOT i.gold
    AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.pair = p.number AND t.annotator = ?)"""
_POINTS = {"first": 1.0, "second": 0.0}  # of the left one; a tie is half
APART = 5  # tasks of an annotator at least, before one of them is asked again


def wanted(item: Item, how: How) -> int:
    """How many pairs of an item are to be asked: one fewer than it has different answers (enough to
    order them), unless told.
    """
    count = len(different(item))
    return min(
        count - 1 if how.pairs is None else how.pairs if isinstance(how.pairs, int) else count**2,
        count * (count - 1) // 2,
    )


def decided(item: Item) -> list[Comparison]:
    """The known comparisons of an item that say which answer is better."""
    return [one for one in item.known if one.probability != 0.5]


def open_task(db: sqlite3.Connection, annotator: str) -> Task | None:
    """The task the annotator was given and has not answered: what was taken back comes first. One
    query, so that what it says was so at one moment.
    """
    query = (
        f"SELECT {TASK} {TASKS} WHERE t.annotator = ? AND t.state = 'open' AND t.served ORDER BY"
        " t.revision > 0 DESC, t.at DESC LIMIT 1"
    )
    found = db.execute(query, (annotator,)).fetchone()
    return None if found is None else Task(*found)


def numbered(db: sqlite3.Connection, number: int) -> Task:
    """A task by its number in the file."""
    return Task(*db.execute(f"SELECT {TASK} {TASKS} WHERE t.number = ?", (number,)).fetchone())


def assign(
    db: sqlite3.Connection,
    items: Mapping[str, Item],
    models: Mapping[str, float],
    how: How,
    annotator: str,
    now: float,
) -> Task | None:
    """A new task for the annotator; None where nothing is left. What kind it is, which pair and
    which side stands left is drawn from the seed.
    """
    turn = db.execute(
        "SELECT count(*) FROM tasks WHERE annotator = ? AND served", (annotator,)
    ).fetchone()[0]
    kind = draw(how.seed, annotator, turn, "kind")
    if kind < how.golds and (found := _gold(db, items, how, annotator)):
        return task_for(db, *found, annotator, now, "gold")
    if how.golds <= kind < how.golds + how.repeats and (found := _repeat(db, how, annotator, turn)):
        return task_for(db, *found, annotator, now, "repeat")
    found = _lacking(db, how, annotator, now) or _fresh(db, items, models, how, annotator)
    return None if found is None else task_for(db, *found, annotator, now)


def task_for(
    db: sqlite3.Connection,
    item: str,
    first: int,
    second: int,
    annotator: str,
    now: float,
    kind: str = "once",
    *,
    served: bool = True,
) -> Task:
    """The annotator's task about two answers, `first` on the left; made where there is none.
    served: whether it waits for an answer of its own.
    """
    low, high = min(first, second), max(first, second)
    if db.execute(
        "INSERT OR IGNORE INTO pairs (item, low, high) VALUES (?, ?, ?)", (item, low, high)
    ).rowcount:
        db.execute("UPDATE items SET asked = asked + 1 WHERE id = ?", (item,))
    pair = db.execute(
        "SELECT number FROM pairs WHERE item = ? AND low = ? AND high = ?", (item, low, high)
    ).fetchone()[0]
    db.execute(
        "INSERT OR IGNORE INTO tasks (id, pair, annotator, first, second, kind, served, state, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'open', ?)",
        (secrets.token_hex(16), pair, annotator, first, second, kind, served, now),
    )
    return Task(
        *db.execute(
            f"SELECT {TASK} {TASKS} WHERE t.pair = ? AND t.annotator = ? AND t.kind = ?",
            (pair, annotator, kind),
        ).fetchone()
    )


def count(db: sqlite3.Connection, pair: int) -> None:
    """Count again how many annotators have an opinion on a pair."""
    opinions = "SELECT count(*) FROM tasks WHERE pair = ? AND kind = 'once' AND state = 'opinion'"
    db.execute(f"UPDATE pairs SET opinions = ({opinions}) WHERE number = ?", (pair, pair))


def left(db: sqlite3.Connection, how: How, annotator: str) -> int:
    """How many tasks the annotator may still be given, if nobody else answers: his open one, pairs
    that lack opinions, new pairs.
    """
    waiting = db.execute(
        "SELECT count(*) FROM tasks WHERE annotator = ? AND state = 'open' AND served", (annotator,)
    ).fetchone()[0]
    lacking = db.execute(f"SELECT count(*) {LACKING}", (how.overlap, annotator)).fetchone()[0]
    return int(
        waiting
        + lacking
        + db.execute(
            "SELECT coalesce(sum(wanted - asked), 0) FROM items WHERE asked < wanted"
        ).fetchone()[0]
    )


def _lacking(
    db: sqlite3.Connection, how: How, annotator: str, now: float
) -> tuple[str, int, int] | None:
    """A pair that others began and that lacks opinions, those in flight counted."""
    flying = (
        "(SELECT count(*) FROM tasks t WHERE t.pair = p.number AND t.kind = 'once' AND t.served AND"
        " t.state = 'open' AND t.at > ?)"
    )
    query = (
        f"SELECT p.item, p.low, p.high {LACKING} AND p.opinions + {flying} < ? ORDER BY p.number"
        " LIMIT 1"
    )
    found = db.execute(query, (how.overlap, annotator, now - IN_FLIGHT, how.overlap)).fetchone()
    return None if found is None else _sides(how, found[0], found[1], found[2], annotator)


def _fresh(
    db: sqlite3.Connection,
    items: Mapping[str, Item],
    models: Mapping[str, float],
    how: How,
    annotator: str,
) -> tuple[str, int, int] | None:
    """A new pair of the item that was asked about least often, so that an early end leaves no item
    far behind.
    """
    found = db.execute(
        "SELECT id FROM items WHERE asked < wanted ORDER BY asked, place LIMIT 1"
    ).fetchone()
    if found is None:
        return None
    asked = {
        (low, high) for low, high in db.execute("SELECT low, high FROM pairs WHERE item = ?", found)
    }
    pair = chosen(
        items[found[0]],
        _games(db, found[0]),
        asked,
        models,
        seed=how.seed,
        random_share=how.random_share,
    )
    return None if pair is None else _sides(how, found[0], *pair, annotator)


def _games(db: sqlite3.Connection, item: str) -> list[Game]:
    """The votes with an opinion on one item."""
    query = (
        "SELECT t.first, t.second, l.outcome FROM pairs p JOIN tasks t ON t.pair = p.number JOIN"
        " log l ON l.task = t.number AND l.revision = t.revision - 1"
    )
    return [
        Game(one, other, _POINTS.get(said, 0.5))
        for one, other, said in db.execute(
            f"{query} WHERE p.item = ? AND t.state = 'opinion'", (item,)
        )
    ]


def strengths(db: sqlite3.Connection, items: Mapping[str, Item], until: int) -> dict[str, float]:
    """Bradley-Terry strengths of models over all items, as the first rows of the log, up to number
    `until`, tell them.
    """
    last = "SELECT max(m.revision) FROM log m WHERE m.task = l.task AND m.number <= ?"
    rows = db.execute(
        "SELECT p.item, t.first, t.second, l.outcome FROM log l JOIN tasks t ON t.number = l.task"
        " JOIN pairs p ON p.number = t.pair WHERE l.number <= ? AND l.outcome NOT IN ('skip',"
        f" 'error') AND l.revision = ({last})",
        (until, until),
    )
    met = [
        (items[item].models[one], items[item].models[other], outcome)
        for item, one, other, outcome in rows
        if item in items
    ]
    places = {
        name: i
        for i, name in enumerate(sorted({name for *both, _ in met for name in both if name}))
    }
    games = [
        Game(places[one], places[other], _POINTS.get(said, 0.5))
        for one, other, said in met
        if one and other and one != other
    ]
    return (
        dict(zip(places, fit(len(places), games, ridge=SPREAD**-2).strengths.tolist()))
        if games
        else {}
    )


def _gold(
    db: sqlite3.Connection, items: Mapping[str, Item], how: How, annotator: str
) -> tuple[str, int, int] | None:
    """A gold item the annotator has not seen."""
    seen = (
        "SELECT 1 FROM tasks t JOIN pairs p ON p.number = t.pair WHERE p.item = i.id AND"
        " t.annotator = ?"
    )
    found = db.execute(
        f"SELECT id FROM items i WHERE gold AND NOT EXISTS ({seen}) ORDER BY place LIMIT 1",
        (annotator,),
    ).fetchone()
    if found is None:
        return None
    known = decided(items[found[0]])[0]
    return _sides(how, found[0], known.winner, known.loser, annotator)


def _repeat(
    db: sqlite3.Connection, how: How, annotator: str, turn: int
) -> tuple[str, int, int] | None:
    """A pair the annotator had an opinion on some while ago, with its sides changed; none a second
    time.
    """
    again = (
        "SELECT 1 FROM tasks r WHERE r.pair = t.pair AND r.annotator = t.annotator AND r.kind ="
        " 'repeat'"
    )
    served = (
        "SELECT number, pair, first, second, kind, state FROM tasks WHERE annotator = ? AND served"
        " ORDER BY number DESC LIMIT -1 OFFSET ?"
    )
    found = db.execute(
        f"SELECT p.item, t.second, t.first FROM (SELECT *, ? AS annotator FROM ({served})) t JOIN"
        " pairs p ON p.number = t.pair WHERE t.kind = 'once' AND t.state = 'opinion' AND NOT"
        f" EXISTS ({again}) ORDER BY t.number",
        (annotator, annotator, APART),
    ).fetchall()
    return found[int(draw(how.seed, annotator, turn, "repeat") * len(found))] if found else None


def _sides(how: How, item: str, one: int, other: int, annotator: str) -> tuple[str, int, int]:
    """Which of two stands left, for this annotator."""
    low, high = min(one, other), max(one, other)
    return (
        (item, low, high) if draw(how.seed, item, low, high, annotator) < 0.5 else (item, high, low)
    )
