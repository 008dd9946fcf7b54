"""The small world of `winnow demo`: film reviews from a grammar, with a true reward known in closed
form.

One grammar object does everything: `reviews` samples it, `grammatical` is its automaton,
`vocabulary` its leaves. A review is an opening without sentiment (the prompt) and a body of one to
three judgements (the completion):

    i watched this old thriller last night and | the plot was remarkably tender but the ending felt
    rather clumsy .

Texts are lower case with single spaces, so decoded tokens are the text. Everything is a pure
function of its seed.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

# ---------------------------------------------------------------- words: what each one is worth

_ADJECTIVES = {
    3.0: "superb brilliant magnificent masterful stunning wonderful exquisite",
    2.0: "great moving gripping elegant delightful charming tender inventive",
    1.0: "good decent clever warm graceful lively fresh",
    -3.0: "awful dreadful terrible atrocious horrible unbearable dismal",
    -2.0: "bad boring tedious lifeless hollow shallow painful bland",
    -1.0: "clumsy dull flat weak stale slow predictable",
}
_VERBS = {
    3.0: "loved adored",
    2.0: "enjoyed admired",
    1.0: "liked appreciated",
    -3.0: "hated loathed",
    -2.0: "disliked resented",
    -1.0: "endured tolerated",
}
_NOUNS = {
    3.0: "triumph masterpiece",
    2.0: "gem treat",
    -3.0: "disaster",
    -2.0: "mess bore",
    -1.0: "letdown",
}
_DEGREES = {
    2.0: "extremely utterly",
    1.75: "remarkably",
    1.5: "truly very",
    1.25: "really surprisingly",
    1.0: "quite",
    0.75: "rather fairly",
    0.5: "somewhat mildly",
    0.25: "slightly",
}
# of a noun: "a complete triumph", "a minor letdown"
_SIZES = {
    1.5: "complete",
    1.25: "real",
    0.5: "minor",
}


def _by_word(*tables: dict[float, str]) -> dict[str, float]:
    return {
        word: value for table in tables for value, words in table.items() for word in words.split()
    }


VALENCE = _by_word(_ADJECTIVES, _VERBS, _NOUNS)
SCALE = _by_word(_DEGREES, _SIZES)
NEGATED = -0.5  # "not good" is worth minus half of "good": milder than "bad"
REWARD_SCALE = 0.55  # with it about 16 % of Bradley-Terry labels contradict the true order

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"


# ---------------------------------------------------------------- the grammar: one object that
# writes and reads


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of the options, each equally likely."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Taste:
    """A judgement: `praise` with the review's own probability of liking things, else `blame`."""

    praise: Node
    blame: Node


# a string is words in order, a tuple is parts in order
Node = str | tuple["Node", ...] | AnyOf | Taste


def _any(*options: Node) -> AnyOf:
    return AnyOf(options)


def _of(words: str | Iterable[str], before: Node = (), after: Node = ()) -> AnyOf:
    """Any one of the words, between the same two neighbours."""
    return AnyOf(
        tuple(
            (before, word, after) for word in (words.split() if isinstance(words, str) else words)
        )
    )


def _with_article(words: Iterable[str], after: Node = ()) -> AnyOf:
    return _of([f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words], after=after)


def _liked(table: dict[float, str], sign: int) -> list[str]:
    return [word for value, words in table.items() if value * sign > 0 for word in words.split()]


def _grammar() -> tuple[Node, Node]:
    """(opening, body). No rule refers to itself, so the language is finite and a regular expression
    accepts it.
    """
    good, bad = _of(_liked(_ADJECTIVES, +1)), _of(_liked(_ADJECTIVES, -1))
    degree = _of(_by_word(_DEGREES))
    again = AnyOf(("",) * 7 + (degree,))  # "really very good" is said, though seldom
    much = (degree, again)
    unlike = _any("not", "not very")
    quality = Taste(
        praise=_any(good, (much, good), (much, good), (unlike, bad)),
        blame=_any(bad, (much, bad), (much, bad), (unlike, good)),
    )
    opinion = Taste(praise=_of(_liked(_VERBS, +1)), blame=_of(_liked(_VERBS, -1)))
    thing = Taste(
        praise=_with_article(_by_word(_SIZES), _of(_liked(_NOUNS, +1))),
        blame=_with_article(_by_word(_SIZES), _of(_liked(_NOUNS, -1))),
    )
    described = Taste(
        praise=_any(
            _with_article(_liked(_ADJECTIVES, +1)), _with_article(_by_word(_DEGREES), (again, good))
        ),
        blame=_any(
            _with_article(_liked(_ADJECTIVES, -1)), _with_article(_by_word(_DEGREES), (again, bad))
        ),
    )
    genre = _of(
        "film movie drama comedy thriller western romance mystery musical fantasy documentary"
        " biopic sequel prequel remake"
    )
    one = _of(
        "plot story acting script ending music pacing dialogue direction photography humour cast"
        " lead hero villain climax finale score editing"
    )
    many = _of(
        "actors characters scenes jokes visuals costumes songs sets twists stunts effects"
        " performances"
    )
    judged = _any(
        ("the", one, _of("was felt seemed proved"), quality),
        ("the", many, _of("were felt seemed proved"), quality),
    )
    clause = _any(judged, judged, judged, (_of("i we"), opinion, "the", _any(one, many)))
    link = _of("but yet and while though although")
    verdict = (
        _any("overall", "in the end", "all in all"),
        _any(("it was", described, genre), ("it is", thing), (_of("i we"), opinion, "it")),
    )
    opening = _opening(genre)
    alone, both = (judged, "for a", genre), (clause, link, clause)
    shorter = _any(
        (alone, "."),
        (alone, ".", verdict, "."),
        (clause, ".", verdict, "."),
        (both, "."),
        (both, "."),
    )
    body = _any(shorter, (both, ".", verdict, "."))
    return opening, body


def _opening(genre: Node) -> Node:
    """How a review begins: what was watched, and when."""
    return (
        _of("i we"),
        _of("watched saw caught rented streamed borrowed"),
        _of("this the"),
        _any("", _of("new old french italian short silent quiet local british japanese indie")),
        genre,
        _any(
            "",
            "today",
            "yesterday",
            "alone",
            "at home",
            "last night",
            "last week",
            "on sunday",
            "on monday",
            "on holiday",
            "in town",
            "with friends",
        ),
        "and",
    )


OPENING, BODY = _grammar()


def _write(node: Node, liking: float, rng: random.Random) -> Iterator[str]:
    """The words of one sentence of the node's language."""
    if isinstance(node, str):
        yield from node.split()
    elif isinstance(node, tuple):
        for part in node:
            yield from _write(part, liking, rng)
    elif isinstance(node, Taste):
        yield from _write(node.praise if rng.random() < liking else node.blame, liking, rng)
    else:
        yield from _write(rng.choice(node.options), liking, rng)


def _pattern(node: Node) -> str:
    """The node's language as a regular expression over words that each end in a space."""
    if isinstance(node, str):
        return "".join(re.escape(word) + " " for word in node.split())
    if isinstance(node, tuple):
        return "".join(_pattern(part) for part in node)
    options = (node.praise, node.blame) if isinstance(node, Taste) else node.options
    return "(?:" + "|".join(dict.fromkeys(_pattern(option) for option in options)) + ")"


def _leaves(node: Node) -> Iterator[str]:
    if isinstance(node, str):
        yield from node.split()
    else:
        parts = (
            node
            if isinstance(node, tuple)
            else (node.praise, node.blame)
            if isinstance(node, Taste)
            else node.options
        )
        for part in parts:
            yield from _leaves(part)


@cache
def _accepts() -> re.Pattern[str]:
    return re.compile(_pattern(OPENING) + _pattern(BODY))


def grammatical(text: str) -> bool:
    """Whether the whole review (opening and body) is a sentence of the grammar; exact."""
    return _accepts().fullmatch(" ".join(text.split()) + " ") is not None


def vocabulary() -> list[str]:
    """Every word the grammar can write, sorted."""
    return sorted({*_leaves(OPENING), *_leaves(BODY)})


# ---------------------------------------------------------------- reviews


@dataclass(frozen=True, slots=True)
class Review:
    """`completion` begins with its space, so that the text is the two put together."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        return self.prompt + self.completion


LIKINGS = (0.85, 0.5, 0.15)  # a review's author is pleased, in two minds, or displeased


def reviews(count: int, seed: int) -> list[Review]:
    """Demonstrations of both sentiments."""
    rng = random.Random(f"reviews {seed}")
    found = []
    for _ in range(count):
        liking = rng.choice(LIKINGS)
        found.append(
            Review(
                " ".join(_write(OPENING, liking, rng)), " " + " ".join(_write(BODY, liking, rng))
            )
        )
    return found


def openings(count: int, seed: int) -> list[str]:
    """Prompts, all different; a longer list of the same seed begins with the shorter one, so slices
    are held out.
    """
    rng = random.Random(f"openings {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(_write(OPENING, 0.5, rng))] = None
    return list(found)


# ---------------------------------------------------------------- the true reward


def sentiment_words(text: str) -> list[str]:
    """The words that carry sentiment, in order, repetitions included."""
    return [word for word in text.split() if word in VALENCE]


def true_reward(text: str) -> float:
    """r = REWARD_SCALE * sum over sentiment words w of valence(w) * scale(word before w, if any) *
    (NEGATED if "not" stands before)

    "not" counts when it stands directly before the word, or before its scaling word: "not good",
    "not very good".
    """
    words = ["", "", *text.split()]
    total = 0.0
    for i, word in enumerate(words):
        if word in VALENCE:
            scaled = words[i - 1] in SCALE
            negated = words[i - 1 - scaled] == "not"
            total += VALENCE[word] * SCALE.get(words[i - 1], 1.0) * (NEGATED if negated else 1.0)
    return REWARD_SCALE * total


def rewarded(prompt: str, completion: str) -> float:
    """The true reward of a review in two parts: `winnow judge --judge
    winnow.recipes.world:rewarded` is a judge who knows it.
    """
    return true_reward(f"{prompt} {completion}")


def prefers_first(first: float, second: float, rng: random.Random) -> bool:
    """A Bradley-Terry label: P(first is preferred) = 1 / (1 + exp(second - first))."""
    return rng.random() < 1.0 / (1.0 + math.exp(second - first))


# ---------------------------------------------------------------- the tokenizer


def write_tokenizer(folder: Path) -> None:
    """One token per word, <s> in front, as a folder that transformers' AutoTokenizer reads."""
    ids = {word: i for i, word in enumerate((BOS, EOS, UNKNOWN, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.add_special_tokens([BOS, EOS, UNKNOWN])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 64,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )
