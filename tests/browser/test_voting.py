"""Voting in a real browser: every key, and whatever a person may do that must not cost or double a
vote.
"""

from __future__ import annotations

import signal

import pytest
from hands import press, ready, texts

import served
from served import MODELS

pytestmark = pytest.mark.browser


def outcomes(watched):
    return [vote.outcome for vote in watched.served.votes()]


def test_every_key(label):
    watched = label(served.rows(12, 3), "--guidelines", __file__)
    page = watched.enter()
    for key in ("1", "2", "3", "4", "s"):
        press(page, key)
    assert outcomes(watched) == ["first", "second", "tie", "bad", "skip"]
    press(page, "u")
    assert outcomes(watched) == ["first", "second", "tie", "bad"]
    assert "Taken back" in page.locator("#status").inner_text()
    for i in (1, 2, 3):
        page.keyboard.press(f"Shift+Digit{i}")
        assert page.locator("input[name=strength]:checked").get_attribute("value") == str(i)
    page.keyboard.press("e")
    page.keyboard.type("1 2 3 s u ? because")  # keys of the page are letters here
    page.keyboard.press("Escape")
    press(page, "2")
    last = watched.served.votes()[-1]
    assert (last.outcome, last.strength, last.reason) == ("second", 3, "1 2 3 s u ? because")
    # of that vote alone
    assert page.locator("input[name=strength]:checked").get_attribute("value") == "0"
    for key, panel in (("?", "#help"), ("g", "#guide")):
        before = page.locator(panel).get_attribute("open") is not None
        page.keyboard.press(key)
        assert (page.locator(panel).get_attribute("open") is not None) is not before
    assert page.locator(".answer strong").count() == 2
    press(page, "m")
    assert page.locator(".answer strong").count() == 0
    assert "Answer **" in page.locator(".answer .raw").first.inner_text()
    press(page, "m")
    press(page, "h")
    assert page.locator(".list li").count() == 5
    page.go_back()
    ready(page)
    press(page, "r")
    assert page.locator("#rank").count() == 1
    assert watched.said == []


def test_keys_with_control_or_held_down_do_nothing(label):
    watched = label(served.rows(3))
    page = watched.enter()
    page.keyboard.press("Control+1")
    page.keyboard.press("Alt+2")
    page.locator("input[name=strength]").nth(1).focus()
    page.keyboard.press("Enter")  # would press a form's first button
    page.keyboard.down("s")
    page.keyboard.down("s")
    page.wait_for_timeout(800)
    page.keyboard.up("s")
    assert outcomes(watched) == ["skip"]


def test_a_key_pressed_twice_votes_once(label):
    watched = label(served.rows(4))
    page = watched.enter()
    page.keyboard.press("1")
    page.keyboard.press("1")
    page.keyboard.press("1")
    page.wait_for_timeout(800)
    assert outcomes(watched) == ["first"]


def test_a_button_pressed_twice_votes_once(label):
    watched = label(served.rows(4))
    page = watched.enter()
    page.locator("button.first").dblclick()
    page.wait_for_timeout(500)
    assert outcomes(watched) == ["first"]


def test_keys_can_be_turned_off(label):
    watched = label(served.rows(3))
    page = watched.enter()
    page.keyboard.press("?")
    page.get_by_role("button", name="Turn keys off").click()
    ready(page)
    page.keyboard.press("1")
    page.wait_for_timeout(500)
    assert outcomes(watched) == []
    page.get_by_role("button", name="Tie").click()
    ready(page)
    page.locator("summary", has_text="Keys").click()
    page.get_by_role("button", name="Turn keys on").click()
    ready(page)
    press(page, "1")
    assert outcomes(watched) == ["tie", "first"]


def test_a_refresh_keeps_the_pair_and_its_sides(label):
    watched = label(served.rows(30, 3), "--pairs", "all")
    page = watched.enter()
    for _ in range(3):
        before = texts(page)
        for _ in range(3):
            page.reload()
            assert texts(ready(page)) == before
        press(page, "1")
    assert texts(page) != before


def test_two_annotators(label):
    ann, ben = label(
        served.rows(2), "--annotator", "ann", "--annotator", "ben", "--overlap", "2", browsers=2
    )
    one, other = ann.enter("ann"), ben.enter("ben")
    for _ in range(2):
        press(one, "1")
        press(other, "2")
    for page in (one, other):
        assert "All done" in page.locator("h1").inner_text()
    votes = ann.served.votes()
    assert (
        sorted((vote.by, vote.outcome) for vote in votes)
        == [("ann", "first")] * 2 + [("ben", "second")] * 2
    )
    assert len({vote.item for vote in votes}) == 2
    press(one, "u")  # one's own last vote, nobody else's
    assert sorted(vote.by for vote in ann.served.votes()) == ["ann", "ben", "ben"]


def test_two_tabs_are_one_annotator(label):
    watched = label(served.rows(5))
    one = watched.enter()
    other = watched.context.new_page()
    other.goto(watched.served.url)
    ready(other)
    assert texts(one) == texts(other)
    press(one, "1")
    press(other, "1")  # the same vote: counted once
    assert outcomes(watched) == ["first"]
    press(one, "2")
    stale = watched.context.new_page()
    stale.goto(watched.served.url)
    ready(stale)
    other.reload()
    ready(other)
    press(other, "3")
    with stale.expect_navigation() as going:
        stale.keyboard.press("4")  # another vote on a pair that was voted on: said, not counted
    assert going.value.status == 409
    assert "voted on already" in stale.locator("h1").inner_text()
    assert outcomes(watched) == ["first", "second", "tie"]


def test_the_back_button_and_a_sent_form_again(label):
    watched = label(served.rows(6))
    page = watched.enter()
    first = texts(page)
    press(page, "1")
    press(page, "2")
    page.go_back()
    ready(page)
    page.go_back()
    # pages are not kept: going back shows what is to be done now
    assert texts(ready(page)) != first
    press(page, "3")
    page.reload()
    ready(page)
    assert outcomes(watched) == ["first", "second", "tie"]
    assert len({vote.item for vote in watched.served.votes()}) == 3


def test_killed_after_a_vote_nothing_is_lost(label):
    watched = label(served.rows(8))
    page = watched.enter()
    for done in range(1, 4):
        press(page, "1")
        watched.served.end(signal.SIGKILL)
        watched.served.again()
        assert len(watched.served.votes()) == done
        page.reload()  # the same session
        ready(page)
        assert f"{done} done" in page.locator(".progress").inner_text()


def test_an_earlier_vote_is_looked_at_and_changed(label):
    watched = label(served.rows(4))
    page = watched.enter()
    seen = texts(page)
    page.locator("textarea").fill("shorter")
    page.keyboard.press("Escape")
    press(page, "1")
    assert page.locator("del, ins").count() == 0
    page.locator("#status a").click()
    ready(page)
    assert page.locator("h1").inner_text() == "Your vote: Answer 1 is better"
    assert page.locator(".prompt").inner_text() == seen[0]
    assert "4 words, 18 characters" in page.locator("#answer-1").inner_text()
    assert (page.locator(".raw del").count(), page.locator(".raw ins").count()) == (1, 1)
    assert page.locator("textarea").input_value() == "shorter"
    assert page.locator("button.first").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Shift+Digit2")
    press(page, "2")
    assert page.locator("h1").inner_text() == "Your vote: Answer 2 is better, clearly"
    assert page.locator("input[name=strength]:checked").get_attribute("value") == "2"
    assert [(vote.outcome, vote.strength, vote.reason) for vote in watched.served.votes()] == [
        ("second", 2, "shorter")
    ]


def test_a_ranking_by_keys(label):
    watched = label(served.rows(2, 3))
    page = watched.enter()
    press(page, "r")
    answers = [text.splitlines()[-1] for text in page.locator(".answer").all_inner_texts()]
    for key in ("3", "1", "Backspace", "2", "=", "1"):
        page.keyboard.press(key)
    assert page.locator("#order").inner_text() == "Best first: 3 > 2 = 1"
    press(page, "Enter")
    votes = watched.served.votes()
    assert len(votes) == 3
    item = votes[0].item
    assert all(vote.item == item for vote in votes)
    letters = [text[len("Answer ")] for text in answers]  # "Answer a to 0."
    wins = {frozenset("abc"[i] for i in (vote.first, vote.second)): vote for vote in votes}
    assert wins[frozenset((letters[0], letters[1]))].outcome == "tie"
    for loser in letters[:2]:
        vote = wins[frozenset((letters[2], loser))]
        winner = vote.first if vote.outcome == "first" else vote.second
        assert vote.outcome in ("first", "second")
        assert "abc"[winner] == letters[2]
    press(page, "u")  # the whole ranking
    assert watched.served.votes() == []


def test_without_javascript(label):
    watched = label(served.rows(4, 3), java_script_enabled=False)
    page = watched.context.new_page()
    page.goto(watched.served.links["ann"])
    page.locator("input[name=strength]").nth(2).check()
    page.locator("textarea").fill("why not")
    page.get_by_role("button", name="Answer 2 is better").click()
    vote = watched.served.votes()[0]
    assert (vote.outcome, vote.strength, vote.reason) == ("second", 2, "why not")
    page.get_by_role("button", name="Undo").click()
    assert watched.served.votes() == []
    page.get_by_role("button", name="Tie").click()
    page.get_by_role("link", name="My votes").click()
    page.locator(".list a").click()
    page.get_by_role("button", name="Both bad").click()
    assert outcomes(watched) == ["bad"]
    page.get_by_role("button", name="Show raw text").click()
    assert page.url.startswith(watched.served.url + "/votes/")
    page.get_by_role("link", name="Label", exact=True).click()
    page.get_by_role("link", name="Rank all 3").click()
    for i, place in enumerate(("2", "1", "3")):
        page.locator("select").nth(i).select_option(place)
    page.get_by_role("button", name="Send the ranking").click()
    assert len(watched.served.votes()) in (3, 4)


def test_no_response_says_who_wrote_what(label):
    watched = label(served.rows(4, 3))
    page = watched.enter()
    bodies = page.content()
    for key in ("1", "3", "r", "h"):
        bodies += press(page, key).content()
    page.locator(".list a").first.click()
    bodies += ready(page).content()
    assert "Question" in bodies
    for name in (*MODELS, "answers-of", "votes.db"):
        assert name not in bodies


@pytest.mark.parametrize("kind", ["repeats", "gold"])
def test_a_repeat_and_a_gold_item_look_like_any(label, tmp_path, kind):
    gold = served.tiny.write(
        tmp_path / "gold.jsonl",
        [{"prompt": f"Known {i}?", "chosen": "good", "rejected": "bad"} for i in range(3)],
    )
    watched = label(
        served.rows(30),
        "--seed",
        2,
        *(("--repeats", "0.5") if kind == "repeats" else ("--gold", gold)),
    )
    page = watched.enter()
    shapes = set()
    for _ in range(30):
        shapes.add(
            (
                page.locator("button").count(),
                page.locator("input").count(),
                page.locator("#status a").count(),
            )
        )
        press(page, "1")
    assert len(shapes) <= 2  # without and with a vote before
    assert {vote.kind for vote in watched.served.votes()} == {
        "once",
        "repeat" if kind == "repeats" else "gold",
    }
