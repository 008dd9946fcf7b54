"""The file of votes: what is asked, what counts, what survives a kill, two processes at once, and
what is refused.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter

import pytest

from winnow.data.records import Comparison, Message
from winnow.errors import DataError, RunError
from winnow.preferences import queue
from winnow.preferences.items import Item
from winnow.preferences.queue import APART
from winnow.preferences.tasks import Cast, How, NoTask, Outdated
from winnow.preferences.votes import Vote, by_pair
from winnow.preferences.votes_db import Store


def made(count=6, answers=3, name="i", known=()):
    texts = [tuple(f" {name}{n}, {k}" for k in range(answers)) for n in range(count)]
    return [
        Item(
            f"{name}{n}",
            f"{name}{n}?",
            texts[n],
            tuple("abcdefgh"[:answers]),
            f"file:{n + 1}",
            known,
        )
        for n in range(count)
    ]


@pytest.fixture
def store(tmp_path):
    """A new file, closed when the test ends."""
    opened = []

    def make(items=None, gold=(), **how):
        opened.append(
            Store.open(tmp_path / "votes.db", made() if items is None else items, How(**how), gold)
        )
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def say(task, who, outcome="first", **more):
    return Cast(task.id, who, outcome, task.revision, **more)


def through(store, who, choose=lambda task: "first"):
    """Everything one annotator is asked, answered."""
    asked = []
    while (task := store.next(who)) is not None:
        store.cast(say(task, who, choose(task)))
        asked.append(task)
    return asked


# ---------------------------------------------------------------- what is asked


def test_a_task_stays_until_it_is_answered(store, tmp_path):
    first = store()
    task = first.next("ann")
    assert first.next("ann") == task == first.task(task.id, "ann")
    again = store()  # as after a restart, or in another process
    assert again.next("ann") == task
    again.cast(say(task, "ann"))
    assert again.next("ann") != task


def test_everything_wanted_is_asked_once(store):
    one = store(pairs=2)
    asked = through(one, "ann")
    assert Counter(task.item for task in asked) == dict.fromkeys(one.items, 2)
    assert len({(task.item, frozenset((task.left, task.right))) for task in asked}) == 12
    assert one.next("ann") is None
    assert one.next("bob") is None  # one opinion is enough
    assert one.progress("ann").left == one.progress("bob").left == 0


@pytest.mark.parametrize(("pairs", "expected"), [(None, 3), (1, 1), (5, 5), (99, 6), ("all", 6)])
def test_pairs_per_item(store, pairs, expected):
    assert len(through(store(made(1, answers=4), pairs=pairs), "ann")) == expected


def test_items_are_asked_in_rounds(store):
    asked = through(store(pairs=2), "ann")
    assert len({task.item for task in asked[:6]}) == 6


def test_equal_texts_are_never_asked(store):
    item = Item("x", "x?", ("same", "other", "same"), ("a", "b", "c"), "file:1")
    alike = Item("y", "y?", ("same", "same"), ("a", "b"), "file:2")
    asked = through(store([item, alike], pairs="all"), "ann")
    assert [(task.item, {task.left, task.right}) for task in asked] == [("x", {0, 1})]


def test_overlap(store):
    one = store(overlap=2)
    for who in ("ann", "bob", "cat"):
        through(one, who)
    votes = by_pair(one.votes())
    assert {len({vote.by for vote in pair}) for pair in votes.values()} == {2}
    assert one.next("dan") is None


def test_a_pair_in_flight_is_kept_for_who_has_it(store, monkeypatch):
    one = store(made(1, answers=2))
    task = one.next("ann")
    assert one.next("bob") is None
    monkeypatch.setattr(queue, "IN_FLIGHT", -1.0)
    late = one.next("bob")
    assert (late.item, {late.left, late.right}) == (task.item, {task.left, task.right})
    one.cast(say(late, "bob"))
    one.cast(say(task, "ann"))  # he may still say it
    assert {vote.by for vote in one.votes()} == {"ann", "bob"}


def test_what_is_skipped_is_asked_of_others(store):
    one = store(made(1, answers=2))
    one.cast(say(one.next("ann"), "ann", "skip"))
    assert one.next("ann") is None
    assert one.next("bob") is not None
    assert one.progress("ann").skipped == 1


def test_repeats_come_later_with_sides_changed(store):
    one = store(made(100, answers=2), repeats=0.2, seed=3)
    asked = through(one, "ann")
    repeats = [i for i, task in enumerate(asked) if task.kind == "repeat"]
    assert 12 <= len(repeats) <= 40  # of about 125 tasks a fifth
    first = {task.item: (i, task) for i, task in enumerate(asked) if task.kind == "once"}
    for i in repeats:
        before, task = first[asked[i].item]
        assert (asked[i].left, asked[i].right) == (task.right, task.left)
        assert i - before >= APART
    assert len({asked[i].item for i in repeats}) == len(repeats)


def test_gold_items_are_mixed_in(store):
    gold = made(5, answers=2, name="gold", known=(Comparison(1, 0),))
    one = store(made(100, answers=2), gold, golds=0.1)
    asked = through(one, "ann")
    assert sorted(task.item for task in asked if task.kind == "gold") == sorted(
        item.id for item in gold
    )
    assert Counter(vote.kind for vote in one.votes()) == {"once": 100, "gold": 5}
    assert one.next("bob") is None or one.next("bob").kind == "gold"


def test_sides_are_drawn_and_even(store):
    asked = through(store(made(400, answers=2)), "ann")
    assert 160 < sum(task.left == 0 for task in asked) < 240


def test_the_same_seed_asks_the_same(tmp_path):
    def all_of(name, seed):
        one = Store.open(
            tmp_path / name, made(20, answers=4), How(seed=seed, repeats=0.2, random_share=0.3)
        )
        asked = [
            (task.item, task.left, task.right, task.kind)
            for task in through(
                one, "ann", lambda task: "first" if task.left < task.right else "second"
            )
        ]
        ids = {entry.task for entry in one.log()}
        one.close()
        return asked, ids

    (one, ids), (same, others), (different, _) = (
        all_of("a.db", 1),
        all_of("b.db", 1),
        all_of("c.db", 2),
    )
    assert one == same
    assert one != different
    assert not ids & others  # nothing can be read from an id


# ---------------------------------------------------------------- what counts


def test_a_vote_is_what_was_said(store):
    one = store(made(1, answers=2))
    task = one.next("ann")
    number = one.cast(say(task, "ann", "second", strength=2, reason="shorter", seconds=1.5))
    (vote,) = one.votes()
    assert vote == Vote(
        task.item, task.left, task.right, "second", "ann", 2, "shorter", vote.at, "once", None
    )
    ((again, entry),) = one.history("ann")
    assert (again.id, again.revision, entry.number, entry.seconds) == (task.id, 1, number, 1.5)
    assert one.current(task.id, "ann") == entry
    assert one.progress("ann").seconds == 1.5


def test_sent_twice_is_one_vote(store):
    one = store()
    task = one.next("ann")
    assert one.cast(say(task, "ann", seconds=1.0)) == one.cast(say(task, "ann", seconds=9.0))
    assert len(one.log()) == 1


def test_an_old_form_is_outdated(store):
    one = store()
    task = one.next("ann")
    one.cast(say(task, "ann", "first"))
    with pytest.raises(Outdated) as error:
        one.cast(say(task, "ann", "second"))
    now = error.value.task
    one.cast(say(now, "ann", "second"))  # edited
    with pytest.raises(Outdated):
        one.cast(say(task, "ann", "first"))
    with pytest.raises(Outdated):
        one.cast(Cast(task.id, "ann", "first", 7))
    assert [entry.outcome for entry in one.log()] == ["first", "second"]
    assert [vote.outcome for vote in one.votes()] == ["second"]


def test_nobody_votes_on_another_ones_task(store):
    one = store()
    task = one.next("ann")
    for name, who in ((task.id, "bob"), ("0" * 32, "ann")):
        with pytest.raises(NoTask):
            one.task(name, who)
        with pytest.raises(NoTask):
            one.cast(Cast(name, who, "first", 0))
    assert one.log() == []


def test_undo_takes_back_one_act_and_shows_it_again(store):
    one = store()
    first, second = one.next("ann"), None
    one.cast(say(first, "ann"))
    second = one.next("ann")
    act = one.cast(say(second, "ann"))
    third = one.next("ann")
    back = one.undo("ann", act)
    assert (back.id, back.revision) == (second.id, 2)
    assert one.undo("ann", act) is None  # sent twice
    assert [vote.item for vote in one.votes()] == [first.item]
    assert one.undo("ann").id == first.id
    assert one.undo("ann") is None
    assert one.votes() == []
    for expected in (first, second, third):  # in the order in which they were shown
        task = one.next("ann")
        assert task.id == expected.id
        one.cast(say(task, "ann"))
    assert [entry.outcome for entry in one.log()] == [
        "first",
        "first",
        None,
        None,
        "first",
        "first",
        "first",
    ]


def test_a_ranking_is_a_vote_on_every_pair(store):
    one = store(made(3, answers=4))
    task = one.next("ann")
    order = one.order(task.id, "ann")
    assert sorted(order) == [0, 1, 2, 3]
    act = one.rank(task.id, "ann", task.revision, [[2], [0, 3], [1]], reason="clear")
    worth = {2: 3, 0: 2, 3: 2, 1: 1}
    votes = one.votes()
    assert len(votes) == 6
    for vote in votes:
        gap = worth[vote.first] - worth[vote.second]
        assert vote.outcome == ("tie" if not gap else "first" if gap > 0 else "second")
    assert {entry.act for entry in one.log()} == {act}
    with pytest.raises(Outdated):
        one.rank(task.id, "ann", task.revision, [[2], [0, 3], [1]])
    assert one.next("ann").item != task.item
    assert one.undo("ann").id == task.id
    assert one.votes() == []
    assert one.progress("ann").done == 0


@pytest.mark.parametrize("kind", ["gold", "repeat"])
def test_a_ranking_of_a_gold_item_stays_gold_and_a_repeat_stays_one(store, kind):
    gold = made(5, name="gold", known=(Comparison(1, 0),))
    one = store(made(30), gold, golds=0.3, repeats=0.3)
    while (task := one.next("ann")).kind != kind:
        one.cast(say(task, "ann"))
    before = len(one.votes())
    one.rank(task.id, "ann", task.revision, [[0], [1], [2]])
    assert one.current(task.id, "ann") is not None
    ranked = [vote for vote in one.votes() if vote.item == task.item]
    assert {vote.kind for vote in ranked} == ({"gold"} if kind == "gold" else {"once", "repeat"})
    assert len(one.votes()) > before
    assert one.next("ann").id != task.id


@pytest.mark.parametrize("tiers", [[[0, 1]], [[0], [1], [1, 2]], [[0], [1], [2], [3]], []])
def test_a_ranking_names_every_answer_once(store, tiers):
    one = store()
    task = one.next("ann")
    with pytest.raises(ValueError, match="no ranking"):
        one.rank(task.id, "ann", task.revision, tiers)
    assert one.log() == []


def test_the_log_cannot_be_changed(store):
    one = store()
    one.cast(say(one.next("ann"), "ann"))
    for query in ("UPDATE log SET outcome = 'second'", "DELETE FROM log"):
        with (
            pytest.raises(sqlite3.IntegrityError, match="append-only"),
            sqlite3.connect(one.path) as other,
        ):
            other.execute(query)


def test_models_that_are_known_guide_the_choice(store):
    """Where b and c always lose to a, and are equals, the pair to ask is b and c."""
    one = store(made(60, answers=3), pairs=1, random_share=0.0)
    worth = {0: 9, 1: 1, 2: 1}
    asked = through(
        one,
        "ann",
        lambda task: (
            "tie"
            if worth[task.left] == worth[task.right]
            else "first"
            if worth[task.left] > worth[task.right]
            else "second"
        ),
    )
    late = Counter(frozenset((task.left, task.right)) for task in asked[-15:])
    assert late[frozenset((1, 2))] > 12


# ---------------------------------------------------------------- threads, processes, kills

VOTER = """
import sys
from pathlib import Path
from winnow.preferences.items import Item
from winnow.preferences.votes_db import Store
from winnow.preferences.tasks import Cast, How
texts = [tuple(f" {n}, {k}" for k in range(3)) for n in range(int(sys.argv[3]))]
items = [
    Item(f"i{n}", f"i{n}?", answers, ("a", "b", "c"), f"file:{n}")
    for n, answers in enumerate(texts)
]
store = Store.open(Path(sys.argv[1]), items, How(overlap=2))
while (task := store.next(sys.argv[2])) is not None:
    print(store.cast(Cast(task.id, sys.argv[2], "first", task.revision)), flush=True)
"""


def voter(path, who, count=40):
    return subprocess.Popen(
        [sys.executable, "-c", VOTER, str(path), who, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "after", [pytest.param(1, marks=pytest.mark.soak), 7, pytest.param(30, marks=pytest.mark.soak)]
)
def test_a_kill_loses_no_acknowledged_vote(tmp_path, after):
    path = tmp_path / "votes.db"
    process = voter(path, "ann", 200)
    told = [int(process.stdout.readline()) for _ in range(after)]
    os.kill(process.pid, signal.SIGKILL)
    # communicate would pass over what readline has read ahead
    told += [int(line) for line in process.stdout.read().split()]
    process.communicate()
    one = Store.existing(path)
    written = [entry.number for entry in one.log()]
    assert set(told) <= set(written)
    assert len(written) - len(told) <= 1  # written, and killed before it was said
    assert len(one.votes()) == len(written)
    assert one.next("ann").revision == 0  # it goes on
    one.close()


@pytest.mark.process
def test_two_processes_make_and_fill_one_file(tmp_path):
    path = tmp_path / "votes.db"
    both = [voter(path, who) for who in ("ann", "bob")]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    numbers = [int(line) for out, _ in told for line in out.split()]
    assert len(numbers) == len(set(numbers)) == 160
    one = Store.existing(path)
    assert sorted(numbers) == [entry.number for entry in one.log()]
    assert {len({vote.by for vote in pair}) for pair in by_pair(one.votes()).values()} == {2}
    one.close()


def test_threads_share_a_store(store):
    one = store(made(30, answers=2), overlap=3)
    numbers = []

    def vote(who):
        while (task := one.next(who)) is not None:
            numbers.append(one.cast(say(task, who)))

    threads = [threading.Thread(target=vote, args=(who,)) for who in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 91))


def test_one_annotator_in_two_threads_votes_once(store):
    one = store(made(20, answers=2))
    found = []

    def vote():
        while (task := one.next("ann")) is not None:
            try:
                found.append(one.cast(say(task, "ann")))
            except Outdated:
                found.append(0)

    threads = [threading.Thread(target=vote) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(one.log()) == len(one.votes()) == 20


# ---------------------------------------------------------------- what is refused


def test_items_may_be_added(store):
    one = store(made(2))
    other = store(made(4))
    asked = through(one, "ann")  # the first one learns of them
    assert {task.item for task in asked} == {"i0", "i1", "i2", "i3"}
    assert len(other.items) == 4


def test_other_items_and_settings_are_refused(store):
    store(made(3), overlap=2).close()
    with pytest.raises(RunError) as error:
        store([*made(2), Item("i9", "?", ("a", "b"), ("x", "y"), "f:9")], seed=5)
    assert "seed: 0 -> 5" in str(error.value)
    assert "overlap: 2 -> 1" in str(error.value)
    assert "items: 1 of its 3 are not given now" in str(error.value)
    assert len(store(made(3), overlap=2).items) == 3  # and nothing was added
    renamed = [
        Item(item.id, item.prompt, item.answers, ("x", "y", "z"), item.where) for item in made(3)
    ]
    with pytest.raises(RunError, match="file:1: its models"):
        store(renamed, overlap=2)


def test_gold_items_need_a_known_answer(store):
    with pytest.raises(DataError, match="file:1: comparisons: none says which"):
        store(gold=made(1, name="gold", known=(Comparison(0, 1, probability=0.5),)))
    tied_first = made(1, name="gold", known=(Comparison(0, 1, probability=0.5), Comparison(1, 2)))
    task = store(gold=tied_first, golds=1.0).next("ann")
    assert (task.kind, {task.left, task.right}) == ("gold", {1, 2})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no database at all, but long enough to look at" * 40,
        b"SQLite format 3\0" + b"\1" * 4000,
    ],
)
def test_what_is_no_file_of_votes(tmp_path, content):
    path = tmp_path / "votes.db"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"votes\.db"):
        Store.existing(path)
    if content:
        with pytest.raises(RunError, match=r"votes\.db"):
            Store.open(path, made(), How())
        assert path.read_bytes() == content


def test_other_databases_and_later_forms(tmp_path, store):
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(RunError, match="no file of votes"):
        Store.open(tmp_path / "other.db", made(), How())
    store().close()
    later = sqlite3.connect(tmp_path / "votes.db")
    later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(RunError, match="has form 99"):
        store()
    with pytest.raises(RunError, match="no such file"):
        Store.existing(tmp_path / "nothing.db")
    assert not (tmp_path / "nothing.db").exists()


def test_a_damaged_file_is_refused(tmp_path, store):
    one = store(made(300))
    through(one, "ann")
    one.close()
    path = tmp_path / "votes.db"
    content = bytearray(path.read_bytes())
    content[8192 : 8192 + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged|malformed"):
        Store.existing(path)


def test_dialogues_come_back_as_they_were(store):
    chat = Item(
        "c",
        (Message("user", "Hi", {"name": "x"}),),
        ((Message("assistant", "a"),), (Message("assistant", "b"),)),
        ("", ""),
        "f:1",
        (),
        ({"t": 1},),
    )
    store([chat]).close()
    assert store([chat]).items == {"c": chat}
