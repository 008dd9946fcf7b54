"""The one record of preference data: a prompt, its completions, and which of them were preferred.

K=1 without comparisons is a demonstration (SFT); K=2 with one comparison is a DPO pair; K>2 with
many is a ranking; labels without comparisons are thumbs up and down. A comparison names completions
by *index*, so an answer can win once and lose once and is still forwarded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from winnow.errors import Problem


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue. `extra` carries what a chat template may want beside it (tool_calls,
    name, ...).
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


Text = str | tuple[Message, ...]  # plain text, or the turns of a dialogue


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: plain text, or exactly one assistant message. `label` is a thumb up (True) or down
    (False).
    """

    text: Text
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`winner` was preferred to `loser` (indices into the group's completions).

    probability: chance that the winner is really better (0.5 = tie); weight: of this comparison in
    the loss; margin: by how much it is better, in the units of whoever scored it.
    """

    winner: int
    loser: int
    probability: float = 1.0
    weight: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """A prompt, its K completions and the comparisons between them. `where` is `file:line` for
    every message.
    """

    prompt: Text
    completions: tuple[Completion, ...]
    comparisons: tuple[Comparison, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    where: str = ""


def plain(text: Text) -> str:
    """The words alone, for looking at and for length statistics (never for training)."""
    return text if isinstance(text, str) else "\n".join(message.content for message in text)


def problems_of(group: PreferenceGroup) -> list[Problem]:
    """What makes a group unusable whatever is done with it: indices, probabilities, weights, empty
    answers.
    """
    found: list[Problem] = []
    if not group.completions:
        found.append(Problem(group.where, "completions", "there are none", "give at least one"))
    if not isinstance(group.prompt, str) and group.prompt and group.prompt[-1].role == "assistant":
        found.append(
            Problem(
                group.where,
                "prompt",
                "ends with an assistant turn, so there is nothing to answer",
                "end it with the user's turn",
            )
        )
    for k, completion in enumerate(group.completions):
        if not plain(completion.text).strip() and not _calls_tools(completion.text):
            found.append(
                Problem(
                    group.where,
                    f"completions[{k}]",
                    "is empty or blank",
                    "remove the row or --on-bad-row skip",
                )
            )
    for i in range(len(group.comparisons)):
        found += _problems_of_comparison(group, i)
    return found


def _problems_of_comparison(group: PreferenceGroup, i: int) -> list[Problem]:
    comparison, count = group.comparisons[i], len(group.completions)
    found: list[Problem] = []
    name = f"comparisons[{i}]"
    for side, index in (("winner", comparison.winner), ("loser", comparison.loser)):
        if not 0 <= index < count:
            found.append(
                Problem(
                    group.where,
                    f"{name}.{side}",
                    f"names completion {index}, there are {count}",
                    "indices count from 0",
                )
            )
    if comparison.winner == comparison.loser:
        found.append(
            Problem(group.where, name, f"completion {comparison.winner} is compared with itself")
        )
    if not 0 <= comparison.probability <= 1:
        found.append(
            Problem(
                group.where,
                f"{name}.probability",
                f"is {comparison.probability:g}, expected 0 to 1",
            )
        )
    if not 0 < comparison.weight < float("inf"):
        found.append(
            Problem(
                group.where,
                f"{name}.weight",
                f"is {comparison.weight:g}, expected a finite number above 0",
            )
        )
    if not abs(comparison.margin) < float("inf"):
        found.append(
            Problem(
                group.where,
                f"{name}.margin",
                f"is {comparison.margin:g}, expected a finite number",
            )
        )
    return found


def best(group: PreferenceGroup) -> int | None:
    """Index of the preferred completion: most net probability won over its comparisons, the first
    of equals.

    A single completion is its own best unless it is labelled bad; several that are all tied, or
    without any comparison or label, have none.
    """
    if group.comparisons:
        net = [0.0] * len(group.completions)
        for c in group.comparisons:
            net[c.winner] += c.weight * (c.probability - 0.5)
            net[c.loser] -= c.weight * (c.probability - 0.5)
        first = max(range(len(net)), key=net.__getitem__)
        return first if net[first] > 0 else None
    good = [k for k, completion in enumerate(group.completions) if completion.label]
    if good:
        return good[0]
    return 0 if len(group.completions) == 1 and group.completions[0].label is None else None


def demonstration(group: PreferenceGroup) -> PreferenceGroup | None:
    """The group with its preferred completion alone, as SFT wants it; None where nothing is
    preferred.
    """
    index = best(group)
    if index is None:
        return None
    return PreferenceGroup(group.prompt, (group.completions[index],), (), group.tools, group.where)


def _calls_tools(text: Text) -> bool:
    return not isinstance(text, str) and any(message.extra.get("tool_calls") for message in text)


def as_json(text: Text) -> Any:
    """A prompt or an answer as rows hold it: a string, or a list of messages."""
    return (
        text
        if isinstance(text, str)
        else [{"role": turn.role, "content": turn.content, **turn.extra} for turn in text]
    )
