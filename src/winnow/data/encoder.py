"""Text -> token ids for one tokenizer, where text in the data that spells a special token is
encoded as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from winnow.data.records import PreferenceGroup
from winnow.errors import DataError, ModelError, Problem

# Unicode noncharacters: they stand for a special token's spelling while the template runs.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class _TemplatePiece(NamedTuple):
    """A part of a text: where it begins and ends in it, the words meant, and whether special tokens
    in them are only spelled.
    """

    begin: int
    end: int
    words: str
    spelled: bool


class TextEncoder:
    """Ids of texts. A template's text holds marks in place of the special tokens that the data only
    spells: `guard` puts them there, before the template runs.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = {str(t) for t in tokenizer.all_special_tokens} | {
            t.content for t in tokenizer.added_tokens_decoder.values() if t.special
        }
        # the longest first, and no order of chance: it is hashed
        self.special = sorted(special, key=lambda token: (-len(token), token))
        self._spelled = re.compile("|".join(map(re.escape, self.special))) if special else None
        self.special_ids = {tokenizer.convert_tokens_to_ids(token) for token in special}
        self.leading = self._leading_ids()

    def ids(self, text: str, *, chat: bool) -> tuple[int, ...]:
        (ids,) = self.all_ids([(text, chat)])
        return ids

    def all_ids(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, ...]]:
        """The ids of each (text, whether a template wrote it); what occurs in several of them is
        tokenised once.
        """
        pieces = [list(self._pieces(text, chat)) for text, chat in texts]
        known: dict[tuple[str, bool], list[int]] = {}
        for spelled in (False, True):
            words = list(
                dict.fromkeys(
                    piece.words for many in pieces for piece in many if piece.spelled == spelled
                )
            )
            if words:
                made = self.tokenizer(
                    words,
                    add_special_tokens=False,
                    split_special_tokens=spelled,
                    return_attention_mask=False,
                )["input_ids"]
                known |= {(one, spelled): ids for one, ids in zip(words, made)}
        leading = [() if chat else self.leading for _, chat in texts]
        return [
            (*before, *chain.from_iterable(known[piece.words, piece.spelled] for piece in many))
            for before, many in zip(leading, pieces)
        ]

    def ends(self, text: str, chat: bool) -> list[int]:
        """Where in `text` each token of `ids` ends, but for those before the text."""
        ends: list[int] = []
        for piece in self._pieces(text, chat):
            made = self.tokenizer(
                piece.words,
                add_special_tokens=False,
                split_special_tokens=piece.spelled,
                return_offsets_mapping=True,
            )
            # a mark is longer or shorter than its words, and stands on one side of the boundary
            marked = chat and piece.spelled
            ends += [
                piece.end if marked else piece.begin + end for _, end in made["offset_mapping"]
            ]
        return ends

    def _pieces(self, text: str, chat: bool) -> Iterator[_TemplatePiece]:
        """A template's text: what it wrote, and between it the special tokens that the data only
        spells. Plain text: one piece.
        """
        if not chat:
            yield _TemplatePiece(0, len(text), text, True)
            return
        at = 0
        for mark in _MARK.finditer(text):
            if mark.start() > at:
                yield _TemplatePiece(at, mark.start(), text[at : mark.start()], False)
            yield _TemplatePiece(mark.start(), mark.end(), self.special[int(mark[1])], True)
            at = mark.end()
        if at < len(text):
            yield _TemplatePiece(at, len(text), text[at:], False)

    def guard(self, value: Any) -> Any:
        """Marks for special-token spellings in text, and in every text inside lists and objects
        (keys too).
        """
        if isinstance(value, str):
            return (
                self._spelled.sub(
                    lambda match: f"{_OPEN}{self.special.index(match.group())}{_CLOSE}", value
                )
                if self._spelled
                else value
            )
        if isinstance(value, Mapping):
            return {self.guard(key): self.guard(part) for key, part in value.items()}
        return [self.guard(part) for part in value] if isinstance(value, list) else value

    def spellings(self, group: PreferenceGroup) -> int:
        """How often the data of a group spells a special token."""
        return (
            sum(len(self._spelled.findall(text)) for text in _texts_of(group))
            if self._spelled
            else 0
        )

    def _leading_ids(self) -> tuple[int, ...]:
        """What the tokenizer writes before plain text: BOS, or nothing."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        dressed = self.tokenizer("a")["input_ids"]
        for at in range(len(dressed) - len(bare) + 1):
            if dressed[at : at + len(bare)] == bare:
                return tuple(dressed[:at])
        raise ModelError("the tokenizer encodes a text differently with and without special tokens")

    def refuse_marks(self, group: PreferenceGroup) -> None:
        if any(_OPEN in text or _CLOSE in text for text in _texts_of(group)):
            raise DataError(
                f"{group.where}: cannot be scored",
                [
                    Problem(
                        group.where,
                        "",
                        "holds the Unicode noncharacter U+FDD0 or U+FDD1",
                        "remove it",
                    )
                ],
            )


def _texts_of(group: PreferenceGroup) -> Iterator[str]:
    """Every text of a group: contents, roles, what stands beside them, tools."""
    for text in (group.prompt, *(completion.text for completion in group.completions)):
        if isinstance(text, str):
            yield text
        else:
            yield from _texts_in([[turn.role, turn.content, turn.extra] for turn in text])
    yield from _texts_in(list(group.tools))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_in([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)
