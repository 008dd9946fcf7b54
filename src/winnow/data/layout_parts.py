"""What the layouts of rows share: turns, comparisons, groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

from winnow.data import fields
from winnow.data.fields import BadRow
from winnow.data.jsonl import Row, json_type
from winnow.data.records import Comparison, Completion, Message, PreferenceGroup, Text

As = Literal["text", "chat"] | None

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_END = "\n\nAssistant:"


def hh_split(row: Row, key: str) -> tuple[str, str]:
    text = fields.text(row, key)
    at = text.rfind(_HH_END) + len(_HH_END)
    if at < len(_HH_END):
        raise BadRow(
            key,
            r'has no turn "\n\nAssistant:", so where the prompt ends is not known',
            "add a prompt column",
        )
    if _HH_TURN.search(text, at):
        raise BadRow(key, "ends with a turn of Human, expected the Assistant's")
    return text[:at], text[at:]


def hh_turns(prompt: str) -> tuple[Message, ...]:
    r"""Text that ends with "\n\nAssistant:" as the turns before it."""
    before, *parts = _HH_TURN.split("\n\n" + prompt.lstrip("\n"))
    if before.strip():
        raise BadRow(
            "chosen", f"begins with {fields.short(before.strip())}, expected a turn of Human"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = tuple(
        Message(roles[who], words.strip()) for who, words in zip(parts[:-2:2], parts[1:-2:2])
    )
    if not turns:
        raise BadRow("chosen", "has no turn before the answer")
    return turns


def alpaca_prompt(row: Row) -> str:
    instruction = fields.text(row, "instruction")
    given = fields.text(row, "input") if row.values.get("input") is not None else ""
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def all_pairs(scores: Sequence[float]) -> list[Comparison]:
    ordered = (
        (i, j) if a > b else (j, i)
        for (i, a), (j, b) in combinations(enumerate(scores), 2)
        if a != b
    )
    return [
        Comparison(winner, loser, margin=scores[winner] - scores[loser])
        for winner, loser in ordered
    ]


def comparison_of(row: Row) -> Comparison:
    """Chosen over rejected, with the row's probability, weight and margin (or score gap, as in
    UltraFeedback).
    """
    given = {
        name: fields.number(row.values[name], name)
        for name in ON_PAIRS[:-1]
        if row.values.get(name) is not None
    }
    scores = given.pop("score_chosen", None), given.pop("score_rejected", None)
    if "margin" not in given and scores[0] is not None and scores[1] is not None:
        given["margin"] = scores[0] - scores[1]
    return Comparison(0, 1, **given)


def indexed(value: Any, name: str) -> Comparison:
    if not isinstance(value, dict):
        raise BadRow(name, f"is {json_type(value)}, expected an object with winner and loser")
    known = ("winner", "loser", "probability", "weight", "margin")
    for key in value:
        if key not in known:  # a misspelt probability would otherwise be lost
            raise BadRow(
                name,
                f"has the unknown key {fields.short(key)}, known: {', '.join(known)}",
                fields.near(key, known),
            )
    for key in known[:2]:
        if key not in value:
            raise fields.missing(f"{name}.{key}", key, value.keys())
        if type(value[key]) is not int:
            raise BadRow(
                f"{name}.{key}",
                f"is {fields.shown(value[key])}, expected the index of a completion, from 0",
            )
    numbers = {
        key: fields.number(value[key], f"{name}.{key}")
        for key in known[2:]
        if value.get(key) is not None
    }
    return Comparison(value["winner"], value["loser"], **numbers)


def build_group(
    row: Row,
    as_: As,
    prompt: Text,
    answers: Sequence[Text],
    comparisons: Sequence[Comparison] = (),
    labels: Sequence[bool | None] = (),
) -> PreferenceGroup:
    """The parts as one group, all text or all messages: a dialogue anywhere in the row makes the
    rest turns of it.
    """
    chat = as_ == "chat" or not all(isinstance(text, str) for text in (prompt, *answers))
    if chat and as_ == "text":
        raise BadRow(
            "prompt",
            "is or belongs to a list of messages, which has no text without a chat template",
            "leave out --as text",
        )
    tools = fields.tools(row.values.get("tools"))
    if tools and not chat:
        raise BadRow("tools", "are given, but the row is plain text", "--as chat")
    if chat:
        prompt, answers = (
            fields.spoken(prompt, "user"),
            [fields.spoken(answer, "assistant") for answer in answers],
        )
    completions = tuple(
        Completion(text, label) for text, label in zip(answers, labels or [None] * len(answers))
    )
    return PreferenceGroup(prompt, completions, tuple(comparisons), tools, row.where)


ON_PAIRS = ("probability", "weight", "margin", "score_chosen", "score_rejected", "tools")
