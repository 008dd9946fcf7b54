"""Votes as rows for training: what becomes of each vote, the commands around it, and a training on
what was exported.
"""

from __future__ import annotations

import json

import pytest

import runs
import tiny
from winnow.data.records import Comparison
from winnow.data.sources import load
from winnow.errors import DataError, RunError
from winnow.preferences.agreement import alpha, labels
from winnow.preferences.export import Rules, Sheet, rows, votes_of
from winnow.preferences.items import Item, items
from winnow.preferences.tasks import Cast, How
from winnow.preferences.votes import Vote
from winnow.preferences.votes_db import Store
from winnow.system.console import console
from winnow.system.files import read_jsonl


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(console, "_width", 220)  # whatever the terminal's was when it was made
        code = runs.winnow(monkeypatch, *words)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def sheet(*votes, answers=3):
    made = [
        Item(
            name,
            f"{name}?",
            tuple(f" {name}{k}" for k in range(answers)),
            ("a", "b", "c")[:answers],
            "f:1",
        )
        for name in ("x", "y")
    ]
    return Sheet({item.id: item for item in made}, votes, {})


def vote(first, second, outcome, by="ann", item="x", **more):
    return Vote(item, first, second, outcome, by, **more)


def compared(found):
    return {row["id"]: row["comparisons"] for row in found}


def comparison(winner, loser, probability=1.0, weight=1.0, margin=0.0):
    return {
        "winner": winner,
        "loser": loser,
        "probability": pytest.approx(probability),
        "weight": weight,
        "margin": pytest.approx(margin),
    }


# ---------------------------------------------------------------- from votes to comparisons


def test_half_of_what_a_judge_was_asked_counts_nowhere():
    """One order of a pair answered, the other not: what is left holds the order's whole effect.
    People's votes on it stay.
    """
    from winnow.preferences.summary import played

    cast = [
        vote(0, 1, "first", "judge"),
        vote(1, 0, "error", "judge"),
        vote(0, 1, "second", "ann"),
        vote(1, 2, "error", "judge"),
        vote(2, 1, "first", "judge"),
    ]
    found, counted = rows(sheet(*cast), Rules())
    assert compared(found) == {"x": [comparison(1, 0)]}
    assert (
        counted["votes used"],
        counted["beside a question without a verdict"],
        counted["without a verdict"],
    ) == (1, 2, 2)
    assert [game[:3] for game in played(sheet(*cast))] == [("a", "b", 0.0)]


def test_a_row_that_stands_twice_is_counted_once(tmp_path):
    row = {"prompt": "p", "completions": ["a", "b"], "comparisons": []}
    (item,) = items(str(tiny.write(tmp_path / "once.jsonl", [row])))
    told = {
        **row,
        "id": item.id,
        "votes": [{"first": 0, "second": 1, "outcome": "first", "by": "judge"}],
    }
    tiny.write(tmp_path / "twice.jsonl", [told, told])
    assert len(votes_of(tmp_path / "twice.jsonl").votes) == 1


def test_probability_is_the_share_of_votes():
    cast = [
        vote(0, 1, "first"),
        vote(1, 0, "second", "bob"),
        vote(1, 0, "first", "cat"),
        vote(0, 1, "tie", "dan"),
        vote(2, 0, "first"),
    ]
    found, counted = rows(sheet(*cast), Rules())
    assert compared(found) == {"x": [comparison(0, 1, 2.5 / 4), comparison(2, 0)]}
    assert counted == {
        "votes": 5,
        "votes used": 5,
        "of them both bad, counted as ties": 0,
        "comparisons": 2,
        "groups": 1,
        "items without a comparison": 1,
    }
    assert found[0]["models"] == ["a", "b", "c"]
    assert found[0]["completions"] == [" x0", " x1", " x2"]


def test_a_judges_share_counts_as_it_is():
    # 0.9 and 0.7 for the first answer
    cast = [
        vote(0, 1, "first", share=0.9),
        vote(1, 0, "second", share=0.3),
    ]
    assert compared(rows(sheet(*cast), Rules())[0]) == {"x": [comparison(0, 1, 0.8)]}


def test_every_vote_is_used_or_counted():
    cast = [
        vote(0, 1, "first"),
        vote(0, 1, "skip", "bob"),
        vote(0, 1, "error", "judge"),
        vote(0, 1, "bad", "cat"),
        vote(1, 0, "second", kind="repeat"),
        vote(0, 1, "first", item="y", kind="gold"),
        vote(0, 1, "second", "mallory"),
    ]
    found, counted = rows(sheet(*cast), Rules(exclude=("mallory",)))
    assert compared(found) == {"x": [comparison(0, 1, 0.75)]}
    reasons = {
        "skipped": 1,
        "without a verdict": 1,
        "repeats": 1,
        "gold": 1,
        "of annotators left out": 1,
    }
    assert counted == reasons | {
        "votes": 7,
        "votes used": 2,
        "of them both bad, counted as ties": 1,
        "comparisons": 1,
        "groups": 1,
        "items without a comparison": 1,
    }
    assert counted["votes"] == counted["votes used"] + sum(reasons.values())
    # what was left out is still told
    assert [one["by"] for one in found[0]["votes"]] == [
        "ann",
        "bob",
        "judge",
        "cat",
        "ann",
        "mallory",
    ]


def test_ties_are_kept_or_dropped():
    cast = [
        vote(0, 1, "first"),
        vote(0, 1, "second", "bob"),
        vote(1, 2, "tie"),
        vote(0, 2, "first"),
    ]
    kept, counted = rows(sheet(*cast), Rules())
    assert compared(kept) == {"x": [comparison(0, 1, 0.5), comparison(1, 2, 0.5), comparison(0, 2)]}
    dropped, again = rows(sheet(*cast), Rules(ties="drop"))
    assert compared(dropped) == {"x": [comparison(0, 2)]}
    assert counted["pairs that are ties"] == again["pairs that are ties"] == 2


def test_min_votes_annotators_and_weights():
    cast = [
        vote(0, 1, "first"),
        vote(0, 1, "first", "bob"),
        vote(1, 2, "first"),
        vote(0, 1, "second", "cat"),
    ]
    assert compared(rows(sheet(*cast), Rules(min_votes=2))[0]) == {"x": [comparison(0, 1, 2 / 3)]}
    assert rows(sheet(*cast), Rules(min_votes=2))[1]["pairs with too few votes"] == 1
    assert compared(rows(sheet(*cast), Rules(weight="votes"))[0]) == {
        "x": [comparison(0, 1, 2 / 3, 3.0), comparison(1, 2)]
    }
    assert compared(rows(sheet(*cast), Rules(annotators=("cat",)))[0]) == {"x": [comparison(1, 0)]}
    assert rows(sheet(*cast), Rules(annotators=("nobody",)))[0] == []


def test_margin_is_the_mean_strength_for_the_winner():
    cast = [
        vote(0, 1, "first", strength=3),
        vote(1, 0, "first", "bob", strength=1),
        vote(0, 1, "tie", "cat"),
        vote(1, 0, "second", "dan"),
    ]
    # dan told none
    assert compared(rows(sheet(*cast), Rules())[0]) == {
        "x": [comparison(0, 1, 2.5 / 4, margin=(3 - 1 + 0) / 3)]
    }
    told_by_none = [vote(0, 1, "first"), vote(0, 1, "tie", "bob")]
    assert compared(rows(sheet(*told_by_none), Rules())[0]) == {"x": [comparison(0, 1, 0.75)]}


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Twelve prompts with three answers each; the model `better` says yes."""
    file = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    rows = [
        {
            "prompt": f"{n}: green?",
            "completions": [f" yes, {n}", f" no, {n}", f" no and no, {n}"],
            "comparisons": [],
        }
        for n in range(12)
    ]
    return tiny.write(file, [row | {"models": ["better", "worse", "worst"]} for row in rows])


@pytest.fixture(scope="module")
def stored(answers, tmp_path_factory):
    """What two people said of them, one of whom knows."""
    path = tmp_path_factory.mktemp("votes") / "votes.db"
    gold = [Item("gold", "gold?", (" right", " wrong"), ("", ""), "gold:1", (Comparison(0, 1),))]
    store = Store.open(
        path, items(str(answers)), How(overlap=2, repeats=0.2, golds=0.2, seed=1), gold
    )
    for n in range(60):
        for who in ("ann", "bob"):
            task = store.next(who)
            if task is not None:
                lower = "first" if task.left < task.right else "second"
                other = "skip" if n % 9 == 0 else "second" if lower == "first" else "first"
                store.cast(
                    Cast(
                        task.id,
                        who,
                        lower if who == "ann" or n % 3 else other,
                        task.revision,
                        seconds=2.0,
                        strength=2 * (who == "ann"),
                    )
                )
    store.close()
    return path


def test_a_store_goes_to_rows_and_back(stored, call, tmp_path):
    out = tmp_path / "deep" / "pairs.jsonl"
    code, told, _ = call("votes", "export", stored, "--out", out)
    assert code == 0
    assert "comparisons 24; groups 12; items without a comparison 1" in told
    loaded = load(str(out))
    assert (loaded.layout, len(loaded.groups), loaded.problems) == ("grouped", 12, [])
    before, after = votes_of(stored), votes_of(out)
    assert sorted(
        (v.item, v.first, v.second, v.outcome, v.by, v.strength, v.at, v.kind) for v in after.votes
    ) == sorted(
        (v.item, v.first, v.second, v.outcome, v.by, v.strength, v.at, v.kind)
        for v in before.votes
        if v.kind != "gold"
    )
    assert {name: item.answers for name, item in after.items.items()} == {
        name: item.answers for name, item in before.items.items() if name != "gold"
    }
    again = tmp_path / "again.jsonl"
    assert call("votes", "export", out, "--out", again)[0] == 0
    assert {row["id"]: row["comparisons"] for row in read_jsonl(again)} == {
        row["id"]: row["comparisons"] for row in read_jsonl(out)
    }


@pytest.mark.slow
def test_training_takes_what_was_exported(stored, call, tmp_path, monkeypatch):
    world = runs.world(tmp_path)
    assert (
        call("votes", "export", stored, "--out", tmp_path / "pairs.jsonl", "--ties", "drop")[0] == 0
    )
    code, _, error = call(
        *runs.line("dpo", world, tmp_path / "run", data=tmp_path / "pairs.jsonl", steps=3)
    )
    assert code == 0, error
    numbers = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert numbers[-1]["loss"] < numbers[0]["loss"]


def test_agreement_and_stats_in_words(stored, call, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    assert call("votes", "export", stored, "--out", pairs, "--annotators", "ann")[0] == 0
    judged = [
        row
        | {
            "votes": [
                one | {"by": "judge"}
                for one in row["votes"]
                if one["by"] == "ann" and one["kind"] == "once"
            ]
        }
        for row in read_jsonl(pairs)
    ]
    file = tiny.write(tmp_path / "judged.jsonl", judged)
    code, told, _ = call("votes", "agreement", stored, file)
    assert code == 0
    for words in (
        f"{alpha(labels(votes_of(stored).votes)).value:.2f} (n = ".replace("-", "−"),
        "ann and bob: Cohen's kappa",
        "Same when asked again",
        "Right where it is known",
        "against people",
        "Earlier answer",
        "People ↓ judge →",
    ):
        assert words in told, words
    code, told, _ = call("votes", "agreement", file)
    assert "alpha" not in told  # one annotator has nobody to agree with
    rule = tiny.write(
        tmp_path / "rule.jsonl",
        [
            {**row, "votes": [{"first": 0, "second": 1, "outcome": "first", "by": "rule"}]}
            for row in judged
        ],
    )
    told = call("votes", "agreement", rule)[1]
    assert "Left answer preferred: undefined, the lower answer stood on the same side" in told
    code, told, _ = call("votes", "stats", stored)
    assert code == 0
    strengths = told[told.index("Strength in nats") :]
    order = [strengths.index(f" {name} ") for name in ("better", "worse", "worst")]
    assert order == sorted(order)
    nameless = tiny.write(
        tmp_path / "nameless.jsonl", [{**row, "models": ["", "", ""]} for row in judged]
    )
    assert (
        "no vote is about answers of two models that have names"
        in (call("votes", "stats", nameless)[1])
    )


def test_names_are_shown_and_not_obeyed(call, tmp_path):
    row = {
        "prompt": "p",
        "completions": ["a", "b"],
        "comparisons": [],
        "models": ["[red]\x1b[31m", "[/]"],
    }
    plain = tiny.write(tmp_path / "plain.jsonl", [row])
    (item,) = items(str(plain))
    file = tiny.write(
        tmp_path / "votes.jsonl",
        [
            {
                **row,
                "id": item.id,
                "votes": [{"first": 0, "second": 1, "outcome": "first", "by": "[bold]\x1b[2J"}],
            }
        ],
    )
    for words in (("votes", "stats", file), ("votes", "agreement", file)):
        code, told, _ = call(*words)
        assert code == 0
        assert "\x1b" not in told
        assert "[bold]\\x1b" in told


# ---------------------------------------------------------------- what is refused


def test_errors_say_what_to_do(stored, call, tmp_path):
    code, _, error = call("votes", "export", tmp_path / "none.db", "--out", tmp_path / "p.jsonl")
    assert (code, "no such file" in error) == (2, True)
    code, _, error = call(
        "votes", "export", stored, "--out", tmp_path / "p.jsonl", "--exclude", "bbo"
    )
    assert (code, "nobody named 'bbo' voted" in error, "ann, bob" in error) == (2, True, True)
    code, _, error = call("votes", "export", stored, "--out", stored)
    assert (code, "is the file of the votes" in error) == (2, True)
    code, _, error = call(
        "votes", "export", stored, "--out", tmp_path / "p.jsonl", "--min-votes", 5
    )
    assert (code, "no comparison is left" in error, "24 pairs with too few votes" in error) == (
        2,
        True,
        True,
    )
    code, _, error = call("votes", "export", stored, "--out", tmp_path / "p.jsonl", "--min-vote", 5)
    assert (code, "min-votes" in error or "min_votes" in error) == (2, True)
    assert not (tmp_path / "p.jsonl").exists()


def test_rows_without_votes_are_refused(answers):
    with pytest.raises(DataError, match="holds no votes"):
        votes_of(answers)
    with pytest.raises(RunError, match="no such file"):
        votes_of(answers.with_name("nothing"))


GOOD = {"first": 0, "second": 1, "outcome": "first", "by": "ann"}


@pytest.mark.parametrize(
    ("told", "field", "reason"),
    [
        ({"votes": {}}, "votes", "not a list"),
        ({"votes": [GOOD], "id": "other"}, "id", "not the id"),
        ({"votes": ["x"]}, "votes[0]", "expected first, second"),
        ({"votes": [GOOD, {**GOOD, "oops": 1}]}, "votes[1]", "expected first, second"),
        (
            {"votes": [{"first": 0, "second": 1, "outcome": "first"}]},
            "votes[0]",
            "expected first, second",
        ),
        ({"votes": [{**GOOD, "first": 3}]}, "votes[0]", "has first"),
        ({"votes": [{**GOOD, "second": True}]}, "votes[0]", "has second"),
        ({"votes": [{**GOOD, "second": 0}]}, "votes[0]", "has second"),
        ({"votes": [{**GOOD, "outcome": "left"}]}, "votes[0]", "has outcome text ('left')"),
        ({"votes": [{**GOOD, "share": 1.5}]}, "votes[0]", "has share"),
        ({"votes": [{**GOOD, "strength": 4}]}, "votes[0]", "has strength"),
        ({"votes": [{**GOOD, "at": "noon"}]}, "votes[0]", "has at"),
        ({"votes": [{**GOOD, "by": 3}]}, "votes[0]", "has by"),
    ],
)
def test_votes_that_cannot_be_read(answers, tmp_path, told, field, reason):
    (item,) = items(str(answers), limit=1)
    row = json.loads(answers.read_text().splitlines()[0])
    file = tiny.write(tmp_path / "votes.jsonl", [{**row, "id": item.id, **told}])
    with pytest.raises(DataError) as error:
        votes_of(file)
    (problem,) = error.value.problems
    assert (problem.where, problem.field) == (f"{file}:1", field)
    assert reason in problem.reason
