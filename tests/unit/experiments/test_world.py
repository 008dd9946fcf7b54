"""The demo's world: what the grammar writes it accepts, what is broken it rejects, and the reward
is the documented sum.
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from winnow.experiments import reviews_world

REVIEWS = reviews_world.reviews(4000, seed=11)


def test_everything_written_is_accepted() -> None:
    assert [review.text for review in REVIEWS if not reviews_world.grammatical(review.text)] == []


def test_size_of_the_world() -> None:
    lengths = [len(review.text.split()) for review in REVIEWS]
    assert min(lengths) >= 12
    assert max(lengths) <= 32
    assert len(reviews_world.vocabulary()) == 184
    assert len(reviews_world.VALENCE) == 64
    assert set(reviews_world.VALENCE) | set(reviews_world.SCALE) <= set(reviews_world.vocabulary())
    # a collision in 2e8 pairs would be rare
    assert len({review.text for review in reviews_world.reviews(20_000, seed=0)}) > 19_900


def test_one_wrong_word_is_mostly_rejected() -> None:
    rng = random.Random(3)
    words = reviews_world.vocabulary()
    accepted = 0
    for review in REVIEWS:
        broken = review.text.split()
        place = rng.randrange(len(broken))
        broken[place] = rng.choice([word for word in words if word != broken[place]])
        accepted += reviews_world.grammatical(" ".join(broken))
    assert accepted / len(REVIEWS) < 0.06  # those that remain put a word where its like may stand


DEGREES = set(reviews_world._by_word(reviews_world._DEGREES))


def test_two_degrees_may_stand_in_a_row_and_three_may_not() -> None:
    said = "i saw this film and the plot was {} good . overall we loved it ."
    assert [
        reviews_world.grammatical(said.format(" ".join(["really"] * n))) for n in (1, 2, 3)
    ] == [True, True, False]
    both = sum(
        a in DEGREES and b in DEGREES
        for review in REVIEWS
        for a, b in pairwise(review.text.split())
    )
    one = sum(word in DEGREES for review in REVIEWS for word in review.text.split())
    assert 0.05 < both / one < 0.15


@pytest.mark.parametrize("change", ["drop", "double", "swap"])
def test_a_word_missing_doubled_or_swapped(change: str) -> None:
    rng = random.Random(change)
    accepted = total = 0
    for review in REVIEWS:
        words = review.text.split()
        i = rng.randrange(len(words) - 1)
        if words[i] in DEGREES and (
            change == "double" or words[i + 1] in DEGREES
        ):  # two in a row may be said
            continue
        edits = {
            "drop": words[:i] + words[i + 1 :],
            "double": words[: i + 1] + words[i:],
            "swap": [*words[:i], words[i + 1], words[i], *words[i + 2 :]],
        }
        accepted += reviews_world.grammatical(" ".join(edits[change]))
        total += 1
    # a scaling adverb may be dropped
    assert accepted / total < {"drop": 0.2, "double": 0.001, "swap": 0.001}[change]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "i saw this film and",
        "i saw this film and the plot was good",
        "i saw this film and the plot were good . overall i liked it .",
        "i saw this film and i liked the plot . overall it was a awful film .",
        (
            "i saw this film and i liked the plot . overall it was an awful film . overall it was"
            " an awful film ."
        ),
    ],
)
def test_not_sentences(text: str) -> None:
    assert not reviews_world.grammatical(text)


def test_a_sentence_by_hand() -> None:
    assert reviews_world.grammatical(
        "i watched this old thriller last night and the plot was remarkably tender but the ending"
        " felt rather clumsy ."
    )
    assert reviews_world.grammatical(
        "i saw this film and i liked the plot . overall it was an awful film ."
    )


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("the plot was good", 1.0),
        ("the plot was very good", 1.5),
        ("the plot was not good", -0.5),
        ("the plot was not very good", -0.75),
        ("the plot was not awful", 1.5),
        ("the plot was remarkably tender but the ending felt rather clumsy", 2 * 1.75 - 1 * 0.75),
        ("a complete triumph", 4.5),
        ("good", 1.0),
        ("not good and good", 0.5),
        ("the plot was very", 0.0),
        ("", 0.0),
    ],
)
def test_reward_is_the_documented_sum(text: str, units: float) -> None:
    assert reviews_world.true_reward(text) == pytest.approx(
        reviews_world.REWARD_SCALE * units, abs=1e-12
    )


def test_openings_say_nothing_and_are_distinct() -> None:
    openings = reviews_world.openings(3000, seed=5)
    assert len(set(openings)) == 3000
    assert openings[:1000] == reviews_world.openings(1000, seed=5)
    assert all(
        reviews_world.true_reward(text) == 0 and not reviews_world.sentiment_words(text)
        for text in openings
    )
    assert all(
        reviews_world.grammatical(f"{text} the plot was good . overall i liked it .")
        for text in openings
    )


def test_labels_are_flipped_about_one_time_in_six() -> None:
    rewards = [reviews_world.true_reward(review.text) for review in REVIEWS]
    rng = random.Random(1)
    pairs = [(a, b) for a, b in pairwise(rewards) if a != b]
    flipped = sum(reviews_world.prefers_first(a, b, rng) != (a > b) for a, b in pairs)
    assert 0.13 < flipped / len(pairs) < 0.20
    assert abs(sum(rewards) / len(rewards)) < 0.15  # both sentiments, balanced


def test_same_seed_same_reviews() -> None:
    assert reviews_world.reviews(50, seed=7) == reviews_world.reviews(50, seed=7)
    assert reviews_world.reviews(50, seed=7) != reviews_world.reviews(50, seed=8)


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reviews_world.write_tokenizer(tmp_path / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.bos_token == reviews_world.BOS
    assert tokenizer.eos_token == reviews_world.EOS
    assert len(tokenizer) == 184 + 3
    for review in REVIEWS[:200]:
        ids = tokenizer(review.text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) == 1 + len(review.text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == review.text
        prompt = tokenizer(review.prompt)["input_ids"]
        assert ids[: len(prompt)] == prompt
