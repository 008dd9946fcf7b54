"""The collection page: numbers against arithmetic done here, what is undefined in words, foreign
text inert, equal votes equal bytes.
"""

from __future__ import annotations

import json
import math
import random
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

import runs
from report_parts import NASTY, Page, make
from winnow.errors import RunError
from winnow.preferences import summary
from winnow.preferences.items import items as read_items
from winnow.preferences.tasks import Cast, How
from winnow.preferences.votes import Outcome
from winnow.preferences.votes_db import Store
from winnow.reports import run_report, votes_report
from winnow.system.files import sha256_json
from winnow.system.format import wilson

SAYS = {"A": "first", "B": "second", "T": "tie", "X": "bad", "S": "skip", "E": "error"}
START = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC


def vote(
    letter: str, by: str = "ann", first: int = 0, second: int = 1, **more: Any
) -> dict[str, Any]:
    return {"first": first, "second": second, "outcome": SAYS[letter], "by": by, **more}


def row(
    n: object, votes: list[dict[str, Any]], models: list[str] | None = None, **more: Any
) -> dict[str, Any]:
    """A prompt with an answer of each model, and the votes on it."""
    models = models or ["old", "new"]
    prompt, answers = f"prompt {n}", [f"answer {k} to {n}" for k in range(len(models))]
    name = sha256_json([prompt, answers])[:16]
    return {
        "id": name,
        "prompt": prompt,
        "completions": answers,
        "comparisons": [],
        "models": models,
        "votes": votes,
        **more,
    }


def voted(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def of(path: Path) -> dict[str, Any]:
    """The figures of one file."""
    (found,) = run_report.build([path])["collections"]
    return found


def told(share: float, count: int) -> str:
    """A share of as many prompts as the page writes it: they are clusters, whose spread costs
    one.
    """
    low, high = wilson(share, count - 1)
    return f"{100 * share:.0f} % ({100 * low:.0f}–{100 * high:.0f} %, n = {count})"


def words(html: str) -> str:
    """What a page says, tags as blanks."""
    text = re.sub(
        r"<(style|svg).*?</\1>|<[^>]*>", " ", html[html.index("<body>") :], flags=re.DOTALL
    )
    return re.sub(r"\s+", " ", unescape(text))


def text_of(path: Path) -> str:
    return words(run_report.render(run_report.build([path])))


def test_who_voted_how_often_on_what(tmp_path: Path) -> None:
    rows = [
        row(n, [vote(said[0]), vote(said[1], "bob")])
        for n, said in enumerate(["AA", "AB", "TX", "SE"])
    ]
    rows.append(row(9, [], ["old", "new", "third"]))  # three pairs that nobody was asked about
    found = of(voted(tmp_path / "votes.jsonl", rows))
    assert (found["items"], found["votes"], found["pairs"]) == (5, 8, {"asked": 4, "of": 4 + 3})
    assert found["outcomes"] == {"first": 3, "second": 1, "tie": 1, "bad": 1, "skip": 1, "error": 1}
    ann, bob = found["voters"]
    assert (ann["name"], ann["votes"], ann["pairs"], ann["seconds"]) == ("ann", 4, 4, None)
    assert ann["outcomes"] == {"first": 2, "second": 0, "tie": 1, "bad": 0, "skip": 1, "error": 0}
    assert bob["outcomes"] == {"first": 1, "second": 1, "tie": 0, "bad": 1, "skip": 0, "error": 1}
    text = text_of(tmp_path / "votes.jsonl")
    assert "4 of 7, of 5 prompts" in text
    assert (
        "Voter Votes Pairs Left Right Ties Both bad Skipped No verdict ann 4 4 2 0 1 0 1 0 bob 4 4"
        " 1 1 0 1 0 1" in text
    )


def test_nobody_is_asked_about_equal_answers(tmp_path: Path) -> None:
    prompt, answers = "prompt", ["one", "two", "one"]
    same = row(1, [vote("A")], ["a", "b", "c"]) | {
        "id": sha256_json([prompt, answers])[:16],
        "prompt": prompt,
        "completions": answers,
    }
    assert of(voted(tmp_path / "votes.jsonl", [same]))["pairs"] == {"asked": 1, "of": 1}


def test_agreement(tmp_path: Path) -> None:
    pairs = ["AA", "AB", "BB", "TT"]
    found = of(
        voted(
            tmp_path / "votes.jsonl",
            [row(n, [vote(said[0]), vote(said[1], "bob")]) for n, said in enumerate(pairs)],
        )
    )["agreement"]
    assert (found["raw"]["value"], found["raw"]["count"]) == (0.75, 4)
    # prompts are clusters, whose spread costs one
    assert (found["raw"]["low"], found["raw"]["high"]) == pytest.approx(wilson(0.75, 4 - 1))
    chance = (2 * 1 + 1 * 2 + 1 * 1) / 4**2  # ann: A 2, B 1, T 1; bob: A 1, B 2, T 1
    (kappa,) = found["kappa"]
    assert (kappa["one"], kappa["other"], kappa["count"]) == ("ann", "bob", 4)
    assert kappa["value"] == pytest.approx((0.75 - chance) / (1 - chance))
    # one pair of votes differs; of 8 votes A 3, B 3, T 2
    apart, expected = (
        2 / 8,
        (8**2 - 3**2 - 3**2 - 2**2) / (8 * 7),
    )
    assert found["alpha"]["value"] == pytest.approx(1 - apart / expected)
    text = text_of(tmp_path / "votes.jsonl")
    assert f"All voters: the same verdict {told(0.75, 4)}" in text
    assert "ann and bob: Cohen's kappa 0.64 (n = 4 pairs)" in text


def test_sides_repeats_and_known_answers(tmp_path: Path) -> None:
    rows = [row(n, [vote("A" if n < 9 else "B")]) for n in range(10)]
    # the same answer again, now on the right
    rows[0]["votes"].append(vote("B", first=1, second=0, kind="repeat"))
    # the other answer: left again
    rows[1]["votes"].append(vote("A", first=1, second=0, kind="repeat"))
    rows += [row("gold", [vote("A", kind="gold")]) | {"comparisons": [{"winner": 1, "loser": 0}]}]
    (ann,) = of(voted(tmp_path / "votes.jsonl", rows))["voters"]
    assert (ann["repeats"]["value"], ann["repeats"]["count"]) == (0.5, 2)
    assert (ann["gold"]["value"], ann["gold"]["count"]) == (0.0, 1)
    # pair 0 was seen both ways with one verdict, and tells nothing of sides; pair 1 was left both
    # times; gold was left
    assert (ann["left"]["value"], ann["left"]["count"]) == (pytest.approx(9 / 10), 10)
    assert ann["p_left"] == pytest.approx(2 * (1 + 10) / 2**10)
    text = text_of(tmp_path / "votes.jsonl")
    assert "p = 0.021" in text
    assert told(0.9, 10) in text


def test_all_voters_together_on_sides(tmp_path: Path) -> None:
    ways = [(0, 1), (1, 0)]  # the answers stand on either side
    rows = [
        row(n, [vote("A", "ann", *ways[n % 2]), vote("AB"[n // 4], "bob", *ways[n % 2])])
        for n in range(8)
    ]
    left = of(voted(tmp_path / "votes.jsonl", rows))["left"]
    assert (left["value"], left["count"]) == (12 / 16, 16)
    assert (left["low"], left["high"]) == pytest.approx(wilson(0.75, 16))
    assert left["p"] == pytest.approx(binomtest(12, 16).pvalue)


def test_two_models_in_closed_form(tmp_path: Path) -> None:
    letters = "BBBBBBB" + "TX" + "A"  # new wins 7, ties 2, loses 1: 8 points of 10
    rows = [
        row(n, [vote(letter), vote("S", "bob"), vote("A", kind="repeat" if n % 2 else "gold")])
        for n, letter in enumerate(letters)
    ]
    models = of(voted(tmp_path / "votes.jsonl", rows))["models"]
    (group,) = models["groups"]
    gap, half = math.log(0.8 / 0.2), 1.959964 / math.sqrt(10 * 0.8 * 0.2)
    best, other = group["strengths"]
    assert (best["model"], other["model"], best["votes"], models["votes"], models["prompts"]) == (
        "new",
        "old",
        10,
        10,
        10,
    )
    # the ridge holds them together a little
    assert best["strength"] == pytest.approx(gap / 2, abs=0.01)
    assert best["strength"] == pytest.approx(-other["strength"])
    assert (best["high"] - best["low"]) / 2 == pytest.approx(half / 2, rel=0.02)
    cell = group["wins"][0][1]
    assert (cell["points"], cell["count"], group["wins"][0][0]) == (8.0, 10, None)
    assert cell["share"] == pytest.approx(0.8, abs=0.005)
    assert [cell["low"], cell["high"]] == pytest.approx(
        [1 / (1 + math.exp(-gap + half)), 1 / (1 + math.exp(-gap - half))], abs=0.01
    )
    assert cell["share"] + group["wins"][1][0]["share"] == pytest.approx(1)
    assert models["best"] == {"model": "new", "against": "old", **cell}
    text = text_of(tmp_path / "votes.jsonl")
    # the interval begins at 46 %
    assert "new wins 80 % of comparisons with old: too close to tell them apart." in text
    assert "Bradley-Terry over 10 votes on 10 prompts; ties and both bad are half a win." in text
    assert "old 20 %" in text


def test_models_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    rows = [row(n, [vote(letter)], ["a", "b"]) for n, letter in enumerate("AAB")] + [
        row(n, [vote("A")], ["c", "d"]) for n in range(10, 12)
    ]
    rows += [row(20, [vote("T", kind="gold"), vote("S")], ["e", "e"])]
    models = of(voted(tmp_path / "votes.jsonl", rows))["models"]
    assert [[one["model"] for one in group["strengths"]] for group in models["groups"]] == [
        ["a", "b"],
        ["c", "d"],
    ]
    assert models["unseen"] == ["e"]
    # as if the others were not there
    assert models["groups"][0]["strengths"][0]["strength"] == pytest.approx(
        math.log(2) / 2, abs=0.01
    )
    text = text_of(tmp_path / "votes.jsonl")
    assert (
        "No chain of votes leads from one of these groups to another, so their models cannot be"
        " compared: a, b; c, d." in text
    )
    assert "Without a vote beside another model: e." in text


def test_what_is_undefined_is_said(tmp_path: Path) -> None:
    text = text_of(voted(tmp_path / "votes.jsonl", [row(1, [vote("S")], ["", ""])]))
    for words in (
        "undefined: no pair has votes of two annotators",
        "Left answer preferred – undefined: no vote is for one answer",
        "Same when asked again: undefined, no pair was asked again.",
        "Right where it is known: undefined, no gold item was asked.",
        "Same in both orders: undefined, no pair was asked in both orders.",
        "Undefined: no vote is about answers of two models that have names.",
        "No votes over time: the file does not say of every vote when it was cast.",
        "1 vote by 1 voter.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        ([0, 30, 61, 200], "minute", [0, 2, 3, 3, 4]),
        ([0, 3600, 3 * 3600 + 1], "hour", [0, 1, 2, 2, 3]),
        ([0, 90_000, 6 * 86_400], "day", [0, 1, 2, 2, 2, 2, 2, 3]),
    ],
)
def test_votes_over_time(tmp_path: Path, times: list[int], unit: str, expected: list[int]) -> None:
    found = of(
        voted(
            tmp_path / "votes.jsonl",
            [row(n, [vote("A", at=START + at)]) for n, at in enumerate(times)],
        )
    )
    assert found["over_time"]["so_far"] == {"ann": expected}
    assert (found["over_time"]["unit"], found["over_time"]["began"]) == (unit, "2026-09-21 14:13")
    (drawing,) = votes_report.drawings(found)
    assert f"ann from 0 at {unit} 0 to {len(times)}.00 at {unit} {len(expected) - 1}" in drawing.svg
    assert f"At the end of each {unit} since 2026-09-21 14:13 UTC." in drawing.caption


def test_many_voters_share_a_line(tmp_path: Path) -> None:
    rows = [row(n, [vote("A", f"voter {n % 9}", at=START + n)]) for n in range(40)]
    (drawing,) = votes_report.drawings(of(voted(tmp_path / "votes.jsonl", rows)))
    assert [line.label for line in drawing.lines] == [*(f"voter {n}" for n in range(5)), "4 others"]
    assert [line.points[-1][1] for line in drawing.lines] == [5, 5, 5, 5, 4, 16]
    assert len({(line.ink, line.dash, line.marker) for line in drawing.lines}) == 6


JUDGED = {"judge": "http://localhost/v1", "model": "robot"}


def beside(root: Path) -> tuple[Path, Path]:
    """People on ten pairs, and a judge in both orders on the first nine of them."""
    people = "AAAAA" + "BBB" + "T" + "A"
    # what it says of (0, 1) and of (1, 0): AA is a tie of sides, not of answers
    judge = [
        "AB",
        "AB",
        "AB",
        "BA",
        "AA",
        "BA",
        "BA",
        "AB",
        "TT",
    ]
    votes = [
        row(n, [vote(letter), vote(letter, "bob"), *([vote("A", "cat")] if n == 9 else [])])
        for n, letter in enumerate(people)
    ]
    judged = [
        row(n, [vote(says[0], "robot"), vote(says[1], "robot", 1, 0)], judged=JUDGED)
        for n, says in enumerate(judge)
    ]
    return voted(root / "people.jsonl", votes), voted(root / "judged.jsonl", judged)


def test_a_judge_beside_people(tmp_path: Path) -> None:
    (one,) = run_report.build(beside(tmp_path))["judges"]
    assert (one["judge"], one["file"], one["people"]) == ("robot", "judged.jsonl", 2)
    assert one["table"] == {
        "low": {"low": 3, "high": 1, "tie": 1},
        "high": {"low": 1, "high": 2, "tie": 0},
        "tie": {"low": 0, "high": 0, "tie": 1},
    }
    assert (one["all_pairs"]["value"], one["all_pairs"]["count"]) == (pytest.approx(6 / 9), 9)
    assert (one["all_pairs"]["low"], one["all_pairs"]["high"]) == pytest.approx(
        wilson(6 / 9, 9 - 1)
    )
    assert (one["decided"]["value"], one["decided"]["count"]) == (pytest.approx(5 / 7), 7)
    assert (one["swapped"]["value"], one["swapped"]["count"]) == (pytest.approx(8 / 9), 9)
    text = words(run_report.page(beside(tmp_path), tmp_path / "page.html").read_text())
    assert (
        "What robot (judged.jsonl) says of the pairs on which 2 people gave an opinion too." in text
    )
    assert (
        "Earlier answer Later answer Tie Earlier answer 3 1 1 Later answer 1 2 0 Tie 0 0 1" in text
    )
    assert f"Same verdict, all pairs {told(6 / 9, 9)}" in text
    assert f"Same verdict in both orders (the judge alone) {told(8 / 9, 9)}" in text


def test_a_judge_and_people_in_one_file(tmp_path: Path) -> None:
    apart = run_report.build(beside(tmp_path))["judges"]
    rows = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in beside(tmp_path)
    ]
    both = {one["id"]: one for one in rows[0]}
    for one in rows[1]:
        both[one["id"]] = one | {"votes": both[one["id"]]["votes"] + one["votes"]}
    (one,) = run_report.build([voted(tmp_path / "both.jsonl", list(both.values()))])["judges"]
    assert one == apart[0] | {"file": "both.jsonl"}
    assert run_report.build([tmp_path / "judged.jsonl"])["judges"] == []  # nobody to be beside
    rows[1] = [{key: value for key, value in one.items() if key != "judged"} for one in rows[1]]
    # the judge's votes once more, not said to be a judge's
    exported = voted(tmp_path / "exported.jsonl", rows[1])
    assert (
        run_report.build([tmp_path / "people.jsonl", tmp_path / "judged.jsonl", exported])["judges"]
        == apart
    )


def test_a_store_of_winnow_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = voted(tmp_path / "answers.jsonl", [row(n, []) for n in range(12)])
    store = Store.open(tmp_path / "votes.db", read_items(str(answers)), How(overlap=2))
    for by, took in (("ann", [1.0, 2.0, 9.0]), ("bob", [4.0, 5.0])):
        for seconds in took:
            task = store.next(by)
            assert task is not None
            better: Outcome = (
                "first" if store.items[task.item].models[task.left] == "new" else "second"
            )
            store.cast(Cast(task.id, by, better, task.revision, seconds=seconds, reason="shorter"))
    store.close()
    found = of(tmp_path / "votes.db")
    assert [(one["name"], one["votes"], one["seconds"]) for one in found["voters"]] == [
        ("ann", 3, 2.0),
        ("bob", 2, 4.5),
    ]
    assert (found["seconds"], found["pairs"]["of"]) == (4.0, 12)
    assert found["models"]["groups"][0]["wins"][0][1]["points"] == 5.0
    assert found["agreement"]["raw"]["value"] == 1.0
    assert {one["outcome"] for one in found["shown"]} <= {"first", "second"}
    before = (tmp_path / "votes.db").read_bytes()
    assert (
        runs.winnow(
            monkeypatch, "report", tmp_path / "votes.db", "--out", tmp_path / "new" / "page.html"
        )
        == 0
    )
    assert "new wins" in (tmp_path / "new" / "page.html").read_text()
    assert (
        runs.winnow(monkeypatch, "report", tmp_path / "votes.db", "--out", tmp_path / "votes.db")
        == 2
    )
    assert (
        runs.winnow(monkeypatch, "report", tmp_path / "nothing.db", "--out", tmp_path / "page.html")
        == 2
    )
    # nobody voted
    assert runs.winnow(monkeypatch, "report", answers, "--out", tmp_path / "page.html") == 2
    assert (tmp_path / "votes.db").read_bytes() == before
    assert not (tmp_path / "page.html").exists()


def test_a_run_and_votes_on_one_page(tmp_path: Path) -> None:
    run, (votes, judged) = make(tmp_path / "run"), beside(tmp_path)
    made = run_report.build([run, votes, judged])
    assert (made["title"], len(made["runs"]), len(made["collections"])) == (
        "run · people.jsonl · judged.jsonl",
        1,
        2,
    )
    assert made["runs"] == run_report.build([run])["runs"]
    page = Page(run_report.page([run, votes, judged], tmp_path / "page.html").read_text())
    assert "Prefers the chosen answer in 75" in page.text
    assert (
        page.text.index("Preference training")
        < page.text.index("Judge against people")
        < page.text.index("drawn at random")
    )
    assert len(page.ids) == len(set(page.ids))


def test_votes_are_drawn_not_picked(tmp_path: Path) -> None:
    rows = [
        row(n, [vote("AB"[n % 2], reason=f"because {n}", share=0.25 if n % 2 else None)])
        for n in range(100)
    ]
    shown = of(voted(tmp_path / "a.jsonl", rows))["shown"]
    assert len({one["prompt"] for one in shown}) == summary.HANDFUL
    random.Random(1).shuffle(rows)
    assert of(voted(tmp_path / "b.jsonl", rows))["shown"] == shown
    assert all(
        one["sides"][0] == {"model": "old", "text": f"answer 0 to {one['prompt'][7:]}"}
        for one in shown
    )
    better = [one["sides"][one["outcome"] == "second"]["text"] for one in shown]
    html = run_report.render(run_report.build([tmp_path / "a.jsonl"]))
    assert (
        re.findall(r'<div class="said after"><span class="tag">.*?</span>(.*?)\s*</div>', html)
        == better
    )
    text = text_of(tmp_path / "a.jsonl")
    assert f"6 votes of 100, drawn at random Prompt {shown[0]['prompt']}" in text
    assert "ann preferred the right answer, left with a probability of 25 %. because" in text


def test_equal_votes_give_equal_bytes(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        files = beside(tmp_path / name)
        pages.append(run_report.page(files, tmp_path / name / "page.html").read_bytes())
        assert json.loads(json.dumps(run_report.build(files))) == run_report.build(files)
    assert pages[0] == pages[1]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_foreign_text_is_inert(tmp_path: Path, text: str) -> None:
    text = text.replace("\0", "").replace("\ud800", "")  # rows with these are refused
    prompt, answers = f"prompt {text}", [text, f"other {text}"]
    one = row(
        1,
        [vote("A", text[:2000], reason=text, at=START), vote("B", "bob", reason=text, at=START)],
        [text[:2000], f"z{text[:2000]}"],
        judged={"judge": "bob"},
    )
    one |= {"id": sha256_json([prompt, answers])[:16], "prompt": prompt, "completions": answers}
    html = (
        run_report.page([voted(tmp_path / "votes.jsonl", [one])], tmp_path / "page.html")
        .read_bytes()
        .decode()
    )
    page = Page(html)
    assert page.danger == []
    assert page.tags.count("style") == 1
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", html)
    assert len(html) < 1_500_000
    (shown,) = run_report.build([tmp_path / "votes.jsonl"])["collections"]
    assert [side["text"] for side in shown["shown"][0]["sides"]] in (answers, answers[::-1])


def test_the_page_is_not_written_over_the_votes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is what the page is made of"):
        run_report.page(
            [voted(tmp_path / "votes.jsonl", [row(1, [vote("A")])])], tmp_path / "votes.jsonl"
        )
