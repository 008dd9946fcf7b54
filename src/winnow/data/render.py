"""Group -> token ids with scored spans. The only place that calls a chat template.

Prompt and completion are tokenised *together*, then the boundary is found in tokens. BOS stands where the tokenizer
(plain text) or the template (messages) writes it and nowhere else. A completion ends with its end token: the template's,
or EOS; it is scored, because it ends the answer. Text in the data that spells a special token is encoded as plain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from winnow.data.records import Comparison, Message, PreferenceGroup, Text
from winnow.errors import DataError, ModelError, Problem

# Unicode noncharacters: they stand for a special token's spelling while the template runs.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_PROBE = "winnowprobe"


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Prompt and one completion as token ids; `ids[start:]` are scored (the end token included)."""

    ids: tuple[int, ...]
    start: int
    cut: int = 0  # scored tokens lost to max_length
    moved: bool = False  # a token spans prompt and completion: it is scored, the boundary moved before it


@dataclass(frozen=True, slots=True)
class RenderedGroup:
    """A PreferenceGroup as tokens: sequence k is completion k of the group."""

    sequences: tuple[TokenSequence, ...]
    comparisons: tuple[Comparison, ...]
    labels: tuple[bool | None, ...]
    where: str
    special: int = 0  # texts in the data that spell a special token; they are encoded as plain text


class Renderer:
    """Turns groups into token ids for one tokenizer, template and length limit.

    limit: most tokens of prompt and completion; may_cut: whether a longer completion is cut (and counted) or refused.
    Raises ModelError where the tokenizer lacks an end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, *, chat_template: str | None = None, limit: int | None = None, may_cut: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end-of-sequence token, so the model could never learn to stop", remedy="set eos_token in tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.template = chat_template or tokenizer.chat_template
        self.limit = limit
        self.may_cut = may_cut
        special = sorted(
            {str(t) for t in tokenizer.all_special_tokens} | {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}, key=len, reverse=True
        )
        self._special = special
        self._spelled = re.compile("|".join(map(re.escape, special))) if special else None
        self._special_ids = {tokenizer.convert_tokens_to_ids(token) for token in special}
        self._leading = self._leading_ids()
        self._end: int | None = None

    def render(self, group: PreferenceGroup) -> RenderedGroup:
        """The group as tokens. Raises DataError with a Problem per completion that cannot be scored."""
        self._refuse_marks(group)
        head = self._text(group.prompt, (), group)
        prompt_ids = self._ids(head, chat=not isinstance(group.prompt, str))
        sequences: list[TokenSequence] = []
        problems: list[Problem] = []
        for k, completion in enumerate(group.completions):
            made = self._sequence(head, prompt_ids, completion.text, group)
            if isinstance(made, str):
                problems.append(Problem(group.where, f"completions[{k}]", *made.split(" -> ")))
            else:
                sequences.append(made)
        if not problems:
            for comparison in group.comparisons:
                winner, loser = sequences[comparison.winner], sequences[comparison.loser]
                if winner.ids == loser.ids:
                    why = "identical after cutting to max_length" if winner.cut or loser.cut else "identical as tokens"
                    problems.append(Problem(group.where, "comparisons", f"winner and loser are {why}", "raise --max-length, or --on-bad-row skip"))
        if problems:
            raise DataError(f"{group.where}: cannot be scored", problems)
        special = head.count(_OPEN) + sum(self._guard(m).count(_OPEN) for c in group.completions for m in _contents(c.text))
        return RenderedGroup(tuple(sequences), group.comparisons, tuple(c.label for c in group.completions), group.where, special)

    def prompt_ids(self, prompt: Text, tools: tuple[Any, ...] = ()) -> tuple[int, ...]:
        """The prompt alone, ready to be answered."""
        group = PreferenceGroup(prompt, (), (), tools)
        return self._ids(self._text(prompt, (), group), chat=not isinstance(prompt, str))

    def end_id(self, chat: bool) -> int:
        """The token a completion ends with: the template's end of turn for messages, EOS for plain text."""
        if not chat:
            return int(self.tokenizer.eos_token_id)
        if self._end is None:
            tail = self._apply((Message("user", "a"), Message("assistant", _PROBE)), (), False).rpartition(_PROBE)[2]
            ends = [i for i in self._encode(tail) if i in self._special_ids]
            self._end = ends[0] if ends else int(self.tokenizer.eos_token_id)
            self._template_ends = bool(ends)
        return self._end

    def _sequence(self, head: str, prompt_ids: tuple[int, ...], completion: Text, group: PreferenceGroup) -> TokenSequence | str:
        chat = not isinstance(group.prompt, str)
        full = self._text(group.prompt, completion, group)
        if not full.startswith(head):
            return "the chat template writes the prompt differently when an answer follows -> use a template whose generation prompt is a prefix"
        ids = list(self._ids(full, chat=chat))
        start, moved = self._boundary(head, prompt_ids, full, ids)
        if start == 0:
            return "the prompt has no tokens, so nothing predicts the answer's first one -> give a prompt, or a tokenizer that writes BOS"
        end = self.end_id(chat)
        if end in ids[start:]:
            del ids[ids.index(end, start) + 1 :]  # what the template writes after its end token is not the answer
        else:
            ids.append(end)
        if len(ids) == start + 1 and not moved:
            return "has no tokens"
        cut = 0
        if self.limit is not None and len(ids) > self.limit:
            if start >= self.limit:
                return f"the prompt alone has {start:,} tokens, the limit is {self.limit:,} -> raise --max-length, or --on-bad-row skip"
            if not self.may_cut:
                return f"needs {len(ids):,} tokens, the model's limit is {self.limit:,} -> --max-length {self.limit} to cut, --on-bad-row skip to drop the row"
            cut = len(ids) - self.limit
            del ids[self.limit :]
        return TokenSequence(tuple(ids), start, cut, moved)

    def _boundary(self, head: str, prompt_ids: tuple[int, ...], full: str, ids: list[int]) -> tuple[int, bool]:
        """Index of the first scored token, and whether a merge moved it: the token that contains the boundary is scored."""
        shared = 0
        while shared < min(len(prompt_ids), len(ids)) and prompt_ids[shared] == ids[shared]:
            shared += 1
        if shared == len(prompt_ids):
            return shared, False
        if self.tokenizer.is_fast and _OPEN not in full:  # tokens re-cut inside the prompt still belong to it
            offsets = self.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            shift = len(ids) - len(offsets)
            while shared < len(ids) and offsets[shared - shift][1] <= len(head):
                shared += 1
        return shared, True

    def _text(self, prompt: Text, completion: Text, group: PreferenceGroup) -> str:
        """Prompt (and completion, unless it is ()) as one string, special-token spellings in it marked."""
        if isinstance(prompt, str):
            return self._guard(prompt) + (self._guard(completion) if isinstance(completion, str) else "")
        turns = tuple(Message(m.role, self._guard(m.content), m.extra) for m in (*prompt, *completion) if isinstance(m, Message))
        text = self._apply(turns, group.tools, not completion, group.where)
        if completion:
            self.end_id(chat=True)
            if not self._template_ends:  # a template without end token: the answer ends where its content ends
                content = turns[-1].content.strip()
                at = text.rfind(content)
                if at < 0:
                    why = "it changes the answer's text and writes no end token, so the answer's end cannot be found"
                    raise DataError("the chat template cannot be used", [Problem(group.where, "messages", why, "use a template that ends each turn")])
                text = text[: at + len(content)]
        return text

    def _apply(self, turns: tuple[Message, ...], tools: tuple[Any, ...], prompting: bool, where: str = "") -> str:
        if not self.template:
            raise ModelError("the data has messages, the tokenizer has no chat template", remedy="give --chat-template FILE, or a tokenizer that has one")
        conversation = [{"role": m.role, "content": m.content, **m.extra} for m in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    conversation, tools=list(tools) or None, chat_template=self.template, tokenize=False, add_generation_prompt=prompting
                )
            )
        except Exception as error:  # Jinja's raise_exception and every template mistake
            raise DataError("the chat template refused a dialogue", [Problem(where, "messages", str(error))]) from error

    def _ids(self, text: str, *, chat: bool) -> tuple[int, ...]:
        return (*(() if chat else self._leading), *self._encode(text))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(_MARK.split(text)):  # odd parts: the number of a spelled special token
            if part:
                words = self._special[int(part)] if i % 2 else part
                ids += self.tokenizer(words, add_special_tokens=False, split_special_tokens=bool(i % 2))["input_ids"]
        return ids

    def _guard(self, text: str) -> str:
        if self._spelled is None:
            return text
        return self._spelled.sub(lambda match: f"{_OPEN}{self._special.index(match.group())}{_CLOSE}", text)

    def _leading_ids(self) -> tuple[int, ...]:
        """What the tokenizer writes before plain text: BOS, or nothing."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        dressed = self.tokenizer("a")["input_ids"]
        for at in range(len(dressed) - len(bare) + 1):
            if dressed[at : at + len(bare)] == bare:
                return tuple(dressed[:at])
        raise ModelError("the tokenizer encodes a text differently with and without special tokens")

    def _refuse_marks(self, group: PreferenceGroup) -> None:
        for text in (group.prompt, *(c.text for c in group.completions)):
            if any(_OPEN in part or _CLOSE in part for part in _contents(text)):
                raise DataError(f"{group.where}: cannot be scored", [Problem(group.where, "", "holds the Unicode noncharacter U+FDD0 or U+FDD1", "remove it")])


def _contents(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(message.content for message in text)
