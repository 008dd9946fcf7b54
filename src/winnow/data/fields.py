"""Cells of a row, each as the type a layout needs, or a `BadRow` that names the field, the JSON
type found and the remedy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

from winnow.data.jsonl import Row, json_type, strict_json
from winnow.data.records import Message, Text


class BadRow(Exception):
    """A row that does not fit its layout: the field, what is wrong with it, how to mend it."""

    def __init__(self, name: str, reason: str, fix: str = "") -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason, self.fix = name, reason, fix


def near(name: str, columns: Collection[str]) -> str:
    """The question whether a similar name was meant; empty if there is none."""
    names = difflib.get_close_matches(name, columns, n=1)
    return f"did you mean {names[0]!r}?" if names else ""


def short(text: str) -> str:
    """Text in a message: quoted, escaped, not longer than 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def shown(value: Any) -> str:
    """A value in a message: numbers and short text as they are, anything else by its type."""
    brief = isinstance(value, (str, float)) or (type(value) is int and abs(value) < 1e18)
    return f"{json_type(value)} ({short(str(value))})" if brief else json_type(value)


def missing(name: str, key: str, keys: Collection[str]) -> BadRow:
    """What to raise where `key` is not among `keys`."""
    found = ", ".join(map(short, list(keys)[:12])) + (", ..." if len(keys) > 12 else "")
    return BadRow(name, f"is missing; keys found: {found or 'none'}", near(key, keys))


def cell(row: Row, key: str) -> Any:
    """The value of a column, whatever it is."""
    if key not in row.values:
        raise missing(key, key, row.values.keys())
    return row.values[key]


def text(row: Row, key: str) -> str:
    """A column that must hold text."""
    value = cell(row, key)
    if not isinstance(value, str):
        raise BadRow(key, f"is {json_type(value)}, expected text")
    return value


def listed(row: Row, key: str) -> list[Any]:
    """A column that must hold a list."""
    value = cell(row, key)
    if not isinstance(value, list):
        raise BadRow(key, f"is {json_type(value)}, expected a list")
    return value


def text_or_turns(row: Row, key: str) -> Text:
    """A column that holds text or a list of messages."""
    return as_text(cell(row, key), key)


def as_text(value: Any, name: str) -> Text:
    """Text or a list of messages, from a value called `name`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return turns(value, name)
    raise BadRow(name, f"is {json_type(value)}, expected text or a list of messages")


def turns(value: list[Any], name: str) -> tuple[Message, ...]:
    """A list of at least one message."""
    if not value:
        raise BadRow(name, "is an empty list, expected messages")
    return tuple(message(item, f"{name}[{i}]") for i, item in enumerate(value))


def message(value: Any, name: str) -> Message:
    """One turn; keys beside role and content are kept for the chat template."""
    if not isinstance(value, dict):
        raise BadRow(name, f"is {json_type(value)}, expected a message with role and content")
    # Arrow fills gaps with null
    extra = {
        key: part
        for key, part in value.items()
        if key not in ("role", "content") and part is not None
    }
    content: Any = value.get("content")
    if content is None and extra.get("tool_calls"):
        content = ""  # a turn that only calls tools says nothing
    elif "content" not in value:
        if "from" in value and "value" in value:  # ShareGPT's names
            raise BadRow(
                name,
                "has from and value, expected role and content",
                "rename them (human is user, gpt is assistant)",
            )
        raise missing(f"{name}.content", "content", value.keys())
    if "role" not in value:
        raise missing(f"{name}.role", "role", value.keys())
    for key, part in (("role", value["role"]), ("content", content)):
        if not isinstance(part, str):
            raise BadRow(f"{name}.{key}", f"is {json_type(part)}, expected text")
    return Message(value["role"], content, extra)


def answer(row: Row, key: str) -> Text:
    """A column that holds one answer: text, or a list of exactly one assistant message."""
    return one_answer(text_or_turns(row, key), key)


def one_answer(text: Text, name: str) -> Text:
    """`text`, if it is one answer and not several turns."""
    if not isinstance(text, str) and (len(text) != 1 or text[0].role != "assistant"):
        roles = ", ".join(short(turn.role) for turn in text[:6])
        raise BadRow(
            name,
            f"has {len(text)} turn(s) ({roles}), expected exactly one assistant message",
            "put the turns before it into the prompt",
        )
    return text


def answers(row: Row) -> list[Text]:
    """The column `completions`: a list of answers."""
    values = listed(row, "completions")
    return [
        one_answer(as_text(value, f"completions[{k}]"), f"completions[{k}]")
        for k, value in enumerate(values)
    ]


def dialogue(row: Row, key: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A whole dialogue as (all turns before the last, the last): the last must be the
    assistant's.
    """
    said = turns(listed(row, key), key)
    if said[-1].role != "assistant":
        raise BadRow(key, f"ends with a turn of {short(said[-1].role)}, expected the assistant's")
    if len(said) == 1:
        raise BadRow(
            key,
            "has no turn before the answer",
            "give the prompt as its first turn or in a prompt column",
        )
    return said[:-1], said[-1:]


def number(value: Any, name: str) -> float:
    """A finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow(name, f"is {json_type(value)}, expected a number")
    try:
        finite = float(value)
    except OverflowError:
        finite = math.inf
    if not math.isfinite(finite):
        raise BadRow(name, "is no finite number")
    return finite


def numbers(row: Row, key: str, count: int) -> list[float]:
    """A column that holds one number per completion."""
    values = listed(row, key)
    if len(values) != count:
        raise BadRow(key, f"has {len(values)} values for {count} completions")
    return [number(value, f"{key}[{i}]") for i, value in enumerate(values)]


def tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The functions a dialogue may call: a list of objects, or such a list as JSON text."""
    if isinstance(
        value, str
    ):  # Arrow cannot hold objects of different shapes, so many sets store them as JSON text
        try:
            value = strict_json(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise BadRow("tools", f"is text that is not JSON: {error}") from error
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(
            "tools",
            (
                f"is {json_type(value)}, expected a list of objects"
                if not isinstance(value, list)
                else "holds something that is no object"
            ),
        )
    return tuple(value)


def spoken(text: Text, role: str) -> tuple[Message, ...]:
    """Text as one turn of `role`; turns as they are."""
    return (Message(role, text),) if isinstance(text, str) else text
