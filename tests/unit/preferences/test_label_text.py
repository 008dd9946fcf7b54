"""Foreign text as HTML that does nothing: markdown, differences, lengths."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some
from markupsafe import Markup, escape

from winnow.data.records import Message
from winnow.preferences.items import Item
from winnow.preferences.labeling.sanitize import (
    LONGEST,
    MOST_WORDS,
    TAGS,
    difference,
    drawn,
    lengths,
    raw,
    turns,
)
from winnow.preferences.labeling.views import looked_at, shown, took
from winnow.preferences.tasks import Task

TAG = re.compile(r"<(/?)([a-z0-9]+)([^<>]*)>")


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** *b* `c`", "<p><strong>a</strong> <em>b</em> <code>c</code></p>\n"),
        ("# A", "<h3>A</h3>"),
        ("###### A", "<h6>A</h6>"),
        ("[words](http://a.example/?x=1&y=2)", "<p>words ⟨http://a.example/?x=1&amp;y=2⟩</p>\n"),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>\n"),
        ("<http://a.example>", "<p>http://a.example ⟨http://a.example⟩</p>\n"),
        (
            "![a cat](http://a.example/cat.png)",
            "<p>[image: a cat ⟨http://a.example/cat.png⟩]</p>\n",
        ),
        ("[![i](/i.png)](/there)", "<p>[image: i ⟨/i.png⟩] ⟨/there⟩</p>\n"),
        ("<b onclick=x>a</b>", "<p>&lt;b onclick=x&gt;a&lt;/b&gt;</p>\n"),
        ("```js\na<b\n```", "<pre><code>a&lt;b\n</code></pre>\n"),
        ("a\x1b[31m\u202eb", "<p>a␛[31m⟨U+202E⟩b</p>\n"),
    ],
)
def test_markdown_is_drawn_without_links_images_and_attributes(text, html):
    assert drawn(text) == Markup(html)


@given(
    some.text(alphabet=some.sampled_from("<>\"'&[]()!`*_#|\\/:=- \nabjsx\u202e\x00"), max_size=200)
)
def test_whatever_the_text_only_these_tags_come_out(text):
    for _, name, attributes in TAG.findall(drawn(text)):
        assert name in TAGS
        assert attributes.strip(" /") == ""
    assert "<" not in raw(text)


def test_long_and_hard_markdown_takes_no_time():
    assert drawn("a" * (LONGEST + 1)) is None
    begun = time.monotonic()
    for hard in ("[", ">", "*a ", "_a", "`", "|a", "![a](", "<a", "- "):
        assert drawn((hard * LONGEST)[:LONGEST])
    assert time.monotonic() - begun < 60  # a parser of quadratic time would take hours


def test_turns_of_a_dialogue():
    found = turns(
        (Message("user", "hi"), Message("assistant", "", {"tool_calls": [{"name": "<f>"}]}))
    )
    assert [turn.role for turn in found] == ["user", "assistant"]
    assert "&lt;f&gt;" in found[1].raw
    assert "&lt;f&gt;" in (found[1].drawn or "")
    assert [turn.role for turn in turns("plain")] == [""]


def test_differences_are_whole_words():
    assert difference("a small cat", "a large cat") == (
        Markup("a <del>small</del> cat"),
        Markup("a <ins>large</ins> cat"),
    )
    assert difference("same", "same") == (Markup("same"), Markup("same"))
    assert difference("", "<b>") == (Markup(""), Markup("<ins>&lt;b&gt;</ins>"))
    assert difference("word " * MOST_WORDS, "x") is None


@given(some.text(max_size=60), some.text(max_size=60))
def test_a_difference_leaves_both_texts_as_they_were(one, other):
    for side, text in zip(difference(one, other) or (), (one, other)):
        assert re.sub(r"</?(del|ins)>", "", side) == str(escape(raw(text)))


def test_hard_differences_take_no_time():
    begun = time.monotonic()
    words = [str(i) for i in range(MOST_WORDS // 2)]
    for one, other in (
        (words, words[::-1]),
        (["a"] * len(words), ["a", "b"] * (len(words) // 2)),
        (["a", "b"] * (len(words) // 2), ["b", "a"] * (len(words) // 2)),
    ):
        assert difference(" ".join(one), " ".join(other)) is not None
    assert time.monotonic() - begun < 30


def test_before_a_vote_nothing_tells_the_answers_apart_but_they_themselves():
    item = Item("i", "Why?", ("short", "rather longer"), ("model-a", "model-b"), "file:1")
    before, after = shown(item, (1, 0)), looked_at(item, Task("t", "i", 1, 0, "once", 1))
    assert (before.lengths, before.difference) == ((), None)
    assert [answer[0].raw for answer in before.answers] == ["rather longer", "short"]
    assert after.lengths == ((2, 13), (1, 5))
    assert lengths("two words\n") == (2, 10)
    for text in ("model", "file"):
        assert text not in repr(before) + repr(after)


def test_times_as_people_say_them():
    assert [took(seconds) for seconds in (0, 8.4, 99, 150, 3600, 9000)] == [
        "0 s",
        "8 s",
        "99 s",
        "2 min",
        "60 min",
        "2.5 h",
    ]
