"""Row -> PreferenceGroup: one plain function per layout, one table of them, detection by columns.

Every function has the signature `(row, as_) -> PreferenceGroup` and raises `BadRow` with the field
and the reason. `as_` says what becomes of string prompts: "text" leaves them, "chat" makes them one
user turn (and each answer one assistant turn), None goes by the row: strings stay text, message
lists stay messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from winnow.data import fields
from winnow.data.fields import BadRow
from winnow.data.jsonl import Row
from winnow.data.layout_parts import (
    ON_PAIRS,
    As,
    all_pairs,
    alpaca_prompt,
    build_group,
    comparison_of,
    hh_split,
    hh_turns,
    indexed,
)
from winnow.data.records import Message, PreferenceGroup, problems_of
from winnow.errors import Problem


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
    return build_group(
        row,
        as_,
        prompt,
        [fields.answer(row, "chosen"), fields.answer(row, "rejected")],
        [comparison_of(row)],
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
    return build_group(row, as_, before[0], answers, [comparison_of(row)])


def hh(row: Row, as_: As) -> PreferenceGroup:
    r"""chosen and rejected as "\n\nHuman: ...\n\nAssistant: ..." (Anthropic HH): split at the last
    "\n\nAssistant:".
    """
    before, answers = zip(*(hh_split(row, side) for side in ("chosen", "rejected")))
    if before[0] != before[1]:
        raise BadRow(
            "rejected",
            "the dialogues differ before the last answer",
            "both sides must answer the same prompt",
        )
    if as_ != "chat":
        return build_group(row, as_, before[0], answers, [comparison_of(row)])
    return build_group(
        row, as_, hh_turns(before[0]), [answer.strip() for answer in answers], [comparison_of(row)]
    )


def alpaca(row: Row, as_: As) -> PreferenceGroup:
    """instruction, input, chosen, rejected (the `output` beside them is one of the two and is not
    read).
    """
    return build_group(
        row,
        as_,
        alpaca_prompt(row),
        [fields.text(row, "chosen"), fields.text(row, "rejected")],
        [comparison_of(row)],
    )


def alpaca_demonstration(row: Row, as_: As) -> PreferenceGroup:
    """instruction, input, output."""
    return build_group(row, as_, alpaca_prompt(row), [fields.text(row, "output")])


def unpaired(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completion, label: a thumb up (true, 1) or down (false, 0)."""
    label = fields.cell(row, "label")
    if not isinstance(label, (bool, int)) or label not in (0, 1):
        raise BadRow("label", f"is {fields.shown(label)}, expected true or false")
    return build_group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        [fields.answer(row, "completion")],
        labels=[bool(label)],
    )


def demonstration(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completion."""
    return build_group(
        row, as_, fields.text_or_turns(row, "prompt"), [fields.answer(row, "completion")]
    )


def dialogue(row: Row, as_: As) -> PreferenceGroup:
    """messages: the answer is the last assistant turn, the prompt all before it."""
    prompt, answer = fields.dialogue(row, "messages")
    return build_group(row, as_, prompt, [answer])


def grouped(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completions, comparisons: each a winner and a loser by index from 0; probability,
    weight, margin if wanted.
    """
    items = fields.listed(row, "comparisons")
    return build_group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        fields.answers(row),
        [indexed(item, f"comparisons[{i}]") for i, item in enumerate(items)],
    )


def scored(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completions, scores: the higher score wins, the margin is the gap, equal scores are
    not compared.
    """
    answers = fields.answers(row)
    return build_group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        answers,
        all_pairs(fields.numbers(row, "scores", len(answers))),
    )


def ranked(row: Row, as_: As) -> PreferenceGroup:
    """prompt, completions, ranks: rank 1 is the best, the margin is the gap, equal ranks are not
    compared.
    """
    answers = fields.answers(row)
    return build_group(
        row,
        as_,
        fields.text_or_turns(row, "prompt"),
        answers,
        all_pairs([-rank for rank in fields.numbers(row, "ranks", len(answers))]),
    )


# --- the table

_PAIR = {
    "completions[0]": "chosen",
    "completions[1]": "rejected",
    **{f"comparisons[0].{name}": name for name in ("probability", "weight", "margin")},
}


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
    "alpaca": Layout(alpaca, ("instruction", "chosen", "rejected"), ("input", *ON_PAIRS), _PAIR),
    "ultrafeedback": Layout(
        pairs, ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), ON_PAIRS, _PAIR
    ),
    "rewardbench": Layout(
        pairs, ("prompt", "chosen", "rejected", "chosen_model", "rejected_model"), ON_PAIRS, _PAIR
    ),
    "pairs": Layout(pairs, ("prompt", "chosen", "rejected"), ON_PAIRS, _PAIR),
    "hh": Layout(hh, ("chosen", "rejected"), ON_PAIRS, _PAIR, strings="chosen"),
    "implicit_prompt": Layout(implicit_prompt, ("chosen", "rejected"), ON_PAIRS, _PAIR),
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
