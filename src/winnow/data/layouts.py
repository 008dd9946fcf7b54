"""Row -> PreferenceGroup: one plain function per layout, one table of them, detection by columns.

Every function has the signature `(row, as_) -> PreferenceGroup` and raises `BadRow` with the field
and the reason. `as_` says what becomes of string prompts: "text" leaves them, "chat" makes them one
user turn (and each answer one assistant turn), None goes by the row: strings stay text, message
lists stay messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from winnow.data import fields
from winnow.data.fields import BadRow
from winnow.data.jsonl import Row, json_type
from winnow.data.records import Comparison, Completion, Message, PreferenceGroup, Text, problems_of
from winnow.errors import Problem

As = Literal["text", "chat"] | None


def group_of(row: Row, layout: Layout, as_: As) -> PreferenceGroup | list[Problem]:
    """The group a row holds, or everything that is wrong with it in the words of the row's own
    columns.
    """
    try:
        group = layout.read(row, as_)
    except BadRow as bad:
        return [Problem(row.where, bad.name, bad.reason, bad.fix)]
    problems = problems_of(group)
    return [
        replace(problem, field=layout.names.get(problem.field, problem.field))
        for problem in problems
    ] or group


# --- the layouts


def pairs(row: Row, as_: As) -> PreferenceGroup:
    """prompt, chosen, rejected. A string prompt before whole dialogues (UltraFeedback) is only
    checked: the dialogue is the truth.
    """
    prompt = fields.text_or_turns(row, "prompt")
    if isinstance(prompt, str) and any(
        isinstance(row.values.get(side), list) and len(row.values[side]) > 1
        for side in ("chosen", "rejected")
    ):
        group = implicit_prompt(row, as_)
        first = next(
            (
                turn.content
                for turn in group.prompt
                if isinstance(turn, Message) and turn.role == "user"
            ),
            "",
        )
        if first.strip() != prompt.strip():
            reason = f"{fields.short(prompt)} is not the first user turn {fields.short(first)}"
            raise BadRow("prompt", reason, "remove the prompt column to go by the dialogue alone")
        return group
    return _group(
        row,
        as_,
        prompt,
        [fields.answer(row, "chosen"), fields.answer(row, "rejected")],
        [_comparison(row)],
    )


def implicit_prompt(row: Row, as_: As) -> PreferenceGroup:
    """chosen and rejected as whole dialogues: the prompt is what stands before the last assistant
    turn, on both sides alike.
    """
    before, answers = zip(*(fields.dialogue(row, side) for side in ("chosen", "rejected")))
    if before[0] != before[1]:
        turn = next((i for i, (a, b) in enumerate(zip(*before)) if a != b), min(map(len, before)))
        raise BadRow(
            "rejected",
            f"the dialogues differ before the last answer, from turn {turn + 1}",
            "both sides must answer the same prompt",
        )
    return _group(row, as_, before[0], answers, [_comparison(row)])


def hh(row: Row, as_: As) -> PreferenceGroup:
    r"""chosen and rejected as "\n\nHuman: ...\n\nAssistant: ..." (Anthropic HH): split at the last
    "\n\nAssistant:".
    """
    before, answers = zip(*(_hh_split(row, side) for side in ("chosen", "rejected")))
    if before[0] != before[1]:
        raise BadRow(
            "rejected",
            "the dialogues differ before the last answer",
            "both sides must answer the same prompt",
        )
    if as_ != "chat":
        return _group(row, as_, before[0], answers, [_comparison(row)])
    return _group(
        row, as_, _hh_turns(before[0]), [answer.strip() for answer in answers], [_comparison(row)]
    )


def alpaca(row: Row, as_: As) -> PreferenceGroup:
    """instruction, input, chosen, rejected (the `output` beside them is one of the two and is not
    read).
    """
    return _group(
        row,
        as_,
        _alpaca_prompt(row),
        [fields.text(row, "chosen"), fields.text(row, "rejected")],
        [_comparison(row)],
    )


def alpaca_demonstration(row: Row, as_: As) -> PreferenceGroup:
    """instruction, input, output."""
    return _group(row, as_, _alpaca_prompt(row), [fields.text(row, "output")])


def unpaired(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completion, label: a thumb up (true, 1) or down (false, 0)."""
    label = fields.cell(row, "label")
    if not isinstance(label, (bool, int)) or label not in (0, 1):
        raise BadRow("label", f"is {fields.shown(label)}, expected true or false")
    return _group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        [fields.answer(row, "completion")],
        labels=[bool(label)],
    )


def demonstration(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completion."""
    return _group(row, as_, fields.text_or_turns(row, "prompt"), [fields.answer(row, "completion")])


def dialogue(row: Row, as_: As) -> PreferenceGroup:
    """messages: the answer is the last assistant turn, the prompt all before it."""
    prompt, answer = fields.dialogue(row, "messages")
    return _group(row, as_, prompt, [answer])


def grouped(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completions, comparisons: each a winner and a loser by index from 0; probability,
    weight, margin if wanted.
    """
    items = fields.listed(row, "comparisons")
    return _group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        fields.answers(row),
        [_indexed(item, f"comparisons[{i}]") for i, item in enumerate(items)],
    )


def scored(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completions, scores: the higher score wins, the margin is the gap, equal scores are
    not compared.
    """
    answers = fields.answers(row)
    return _group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        answers,
        _all_pairs(fields.numbers(row, "scores", len(answers))),
    )


def ranked(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completions, ranks: rank 1 is the best, the margin is the gap, equal ranks are not
    compared.
    """
    answers = fields.answers(row)
    return _group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        answers,
        _all_pairs([-rank for rank in fields.numbers(row, "ranks", len(answers))]),
    )


# --- the table

_PAIR = {
    "completions[0]": "chosen",
    "completions[1]": "rejected",
    **{f"comparisons[0].{name}": name for name in ("probability", "weight", "margin")},
}
_ON_PAIRS = ("probability", "weight", "margin", "score_chosen", "score_rejected", "tools")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a layout is known (`needs`, and `strings`: a column that must hold text), what else it
    reads, what reads it.
    """

    read: Callable[[Row, As], PreferenceGroup]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ("tools",)
    # our names of fields -> the columns they came from
    names: Mapping[str, str] = field(default_factory=dict)
    strings: str = ""
    all_pairs: bool = False  # pairs that are not compared are ties


# The first that fits is taken, so the more particular stands before the more general.
LAYOUTS: dict[str, Layout] = {
    "grouped": Layout(grouped, ("prompt", "completions", "comparisons")),
    "scored": Layout(scored, ("prompt", "completions", "scores"), all_pairs=True),
    "ranked": Layout(ranked, ("prompt", "completions", "ranks"), all_pairs=True),
    "alpaca": Layout(alpaca, ("instruction", "chosen", "rejected"), ("input", *_ON_PAIRS), _PAIR),
    "ultrafeedback": Layout(
        pairs, ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), _ON_PAIRS, _PAIR
    ),
    "rewardbench": Layout(
        pairs, ("prompt", "chosen", "rejected", "chosen_model", "rejected_model"), _ON_PAIRS, _PAIR
    ),
    "pairs": Layout(pairs, ("prompt", "chosen", "rejected"), _ON_PAIRS, _PAIR),
    "hh": Layout(hh, ("chosen", "rejected"), _ON_PAIRS, _PAIR, strings="chosen"),
    "implicit_prompt": Layout(implicit_prompt, ("chosen", "rejected"), _ON_PAIRS, _PAIR),
    "unpaired": Layout(
        unpaired, ("prompt", "completion", "label"), names={"completions[0]": "completion"}
    ),
    "demonstration": Layout(
        demonstration, ("prompt", "completion"), names={"completions[0]": "completion"}
    ),
    "alpaca_demonstration": Layout(
        alpaca_demonstration,
        ("instruction", "output"),
        ("input", "tools"),
        {"completions[0]": "output"},
    ),
    "dialogue": Layout(dialogue, ("messages",), names={"completions[0]": "messages"}),
}


def detect(sample: Sequence[Row]) -> str | None:
    """The name of the layout whose columns all stand in the sample (in any of its rows: one row may
    lack one).
    """
    columns = {name for row in sample for name in row.values}
    for name, layout in LAYOUTS.items():
        if columns.issuperset(layout.needs) and (
            not layout.strings
            or any(isinstance(row.values.get(layout.strings), str) for row in sample)
        ):
            return name
    return None


def advice(columns: Collection[str]) -> str:
    """What to do about columns that fit no layout: the nearest one, what it lacks, and all that are
    known.
    """
    known = "; ".join(f"{name} ({', '.join(layout.needs)})" for name, layout in LAYOUTS.items())
    nearest = min(
        LAYOUTS.items(),
        key=lambda item: len(set(item[1].needs) - set(columns)) / len(item[1].needs),
    )
    lacks = [need for need in nearest[1].needs if need not in columns]
    if len(lacks) == len(nearest[1].needs):
        return f"layouts known: {known}"
    hints = "".join(
        f"; {fields.near(need, columns)}" for need in lacks if fields.near(need, columns)
    )
    return f"nearest is {nearest[0]}, without {', '.join(lacks)}{hints}. Layouts known: {known}"


def unread(layout: str, columns: Collection[str]) -> str:
    """Columns that the layout does not read, each with the one of its own that may have been
    meant.
    """
    meant = {name: fields.near(name, LAYOUTS[layout].takes) for name in columns}
    return ", ".join(f"{name} ({near})" if near else name for name, near in meant.items())


# --- parts of these layouts


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_END = "\n\nAssistant:"


def _hh_split(row: Row, key: str) -> tuple[str, str]:
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


def _hh_turns(prompt: str) -> tuple[Message, ...]:
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


def _alpaca_prompt(row: Row) -> str:
    instruction = fields.text(row, "instruction")
    given = fields.text(row, "input") if row.values.get("input") is not None else ""
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def _all_pairs(scores: Sequence[float]) -> list[Comparison]:
    ordered = (
        (i, j) if a > b else (j, i)
        for (i, a), (j, b) in combinations(enumerate(scores), 2)
        if a != b
    )
    return [
        Comparison(winner, loser, margin=scores[winner] - scores[loser])
        for winner, loser in ordered
    ]


def _comparison(row: Row) -> Comparison:
    """Chosen over rejected, with the row's probability, weight and margin (or score gap, as in
    UltraFeedback).
    """
    given = {
        name: fields.number(row.values[name], name)
        for name in _ON_PAIRS[:-1]
        if row.values.get(name) is not None
    }
    scores = given.pop("score_chosen", None), given.pop("score_rejected", None)
    if "margin" not in given and scores[0] is not None and scores[1] is not None:
        given["margin"] = scores[0] - scores[1]
    return Comparison(0, 1, **given)


def _indexed(value: Any, name: str) -> Comparison:
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


def _group(
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
