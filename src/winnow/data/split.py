"""Which rows have the same prompt, and a split of a data set that never puts one prompt on both
sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from winnow.data.records import PreferenceGroup, Text
from winnow.errors import DataError

# 16 bytes of BLAKE2b: a million rows fit in memory, and chance will not make two texts equal
Key = bytes


def prompt_key(group: PreferenceGroup) -> Key:
    """Identity of a prompt and its tools. A string counts as the same as one user turn that says
    it.
    """
    return _key([_said(group.prompt, "user"), [dict(tool) for tool in group.tools]])


def completion_key(text: Text) -> Key:
    """Identity of an answer. A string counts as the same as one assistant turn that says it."""
    return _key(_said(text, "assistant"))


Sides = tuple[list[PreferenceGroup], list[PreferenceGroup]]


def split_by_prompt(
    parts: Sequence[Sequence[PreferenceGroup]], fraction: float, seed: int
) -> list[Sides]:
    """(train, evaluation) of each part: `fraction` of all their distinct prompts, at least one, go
    to evaluation with all their groups.

    Which ones depends on nothing but (seed, the prompts): not on their order, nor on how often each
    occurs.
    """
    if fraction == 0:
        return [(list(part), []) for part in parts]
    keys = [[prompt_key(group) for group in part] for part in parts]
    drawn = sorted(
        {key for part in keys for key in part},
        key=lambda key: hashlib.blake2b(key, salt=seed.to_bytes(16, "big")).digest(),
    )
    count = max(1, round(fraction * len(drawn)))
    if count >= len(drawn):
        raise DataError(
            f"{len(drawn)} different prompts cannot be split: {count} for evaluation (fraction"
            f" {fraction:g}) leaves none to train on",
            remedy="give more data or leave out the evaluation fraction",
        )
    held_out = set(drawn[:count])
    return [
        (
            [group for group, key in zip(part, own) if key not in held_out],
            [group for group, key in zip(part, own) if key in held_out],
        )
        for part, own in zip(parts, keys)
    ]


def _said(text: Text, role: str) -> list[object]:
    turns = (
        [(role, text, {})]
        if isinstance(text, str)
        else [(turn.role, turn.content, dict(turn.extra)) for turn in text]
    )
    # blanks around a turn make no other prompt
    return [[who, words.strip(), extra] for who, words, extra in turns]


def _key(value: object) -> Key:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
