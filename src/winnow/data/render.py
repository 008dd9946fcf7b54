"""Group -> token ids with scored spans. The only place that calls a chat template.

Prompt and completion are tokenised *together*, then the boundary is found in tokens. BOS stands
where the tokenizer (plain text) or the template (messages) writes it and nowhere else. A completion
ends with its end token: the template's, or EOS; it is scored, because it ends the answer. Text in
the data that spells a special token is encoded as plain text.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from winnow.data.encoder import TextEncoder
from winnow.data.fields import spoken
from winnow.data.records import Comparison, Completion, Message, PreferenceGroup, Text
from winnow.errors import DataError, ModelError, Problem
from winnow.system.files import sha256_json

_PROBE = "winnowprobe"


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Prompt and one completion as token ids; `ids[start:]` are scored (the end token included)."""

    ids: tuple[int, ...]
    start: int
    cut: int = 0  # scored tokens lost to max_length
    moved: bool = (
        False  # a token spans prompt and completion: it is scored, the boundary moved before it
    )

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class RenderedGroup:
    """A PreferenceGroup as tokens: sequence k is completion k of the group."""

    sequences: tuple[TokenSequence, ...]
    comparisons: tuple[Comparison, ...]
    labels: tuple[bool | None, ...]
    where: str
    special: int = 0  # texts in the data that spell a special token; they are encoded as plain text
    mismatched: int = (
        0  # sequences at the end whose answer belongs to another prompt: nobody judged them
    )


class _Draft(NamedTuple):
    """A group as strings, before the tokenizer: the prompt, and the prompt with each completion."""

    head: str
    fulls: tuple[str, ...]
    chat: bool


class Renderer:
    """Turns groups into token ids for one tokenizer, template and length limit.

    limit: most tokens of prompt and completion; may_cut: whether a longer completion is cut (and
    counted) or refused. whole: for models that judge answers. Dialogues go to the last character
    the template writes, and where there is a template, text is one turn of the user and one of the
    assistant: as everybody renders them who asks a reward model. Raises ModelError where the
    tokenizer lacks an end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        limit: int | None = None,
        may_cut: bool = False,
        whole: bool = False,
    ) -> None:
        if tokenizer.eos_token_id is None:
            what = (
                f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, so the"
                " model could never learn to stop"
            )
            raise ModelError(
                what.removeprefix(": "), remedy="set eos_token in tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.encoder = TextEncoder(tokenizer)
        self.template = chat_template or tokenizer.chat_template
        self.limit = limit
        self.may_cut = may_cut
        self.whole = whole
        self._end: int | None = None

    def render(self, group: PreferenceGroup) -> RenderedGroup:
        """The group as tokens. Raises DataError with a Problem per completion that cannot be
        scored.
        """
        (made,) = self.render_all([group])
        if isinstance(made, DataError):
            raise made
        return made

    def render_all(self, groups: Sequence[PreferenceGroup]) -> list[RenderedGroup | DataError]:
        """Each group as `render` gives it, or the error it would raise. One call of the tokenizer
        for all of them, which is several times faster.
        """
        drafts = [self._draft(group) for group in groups]
        texts = [
            (text, draft.chat)
            for draft in drafts
            if isinstance(draft, _Draft)
            for text in (draft.head, *draft.fulls)
        ]
        ids = iter(self.encoder.all_ids(texts))
        return [
            draft if isinstance(draft, DataError) else self._rendered(group, draft, ids)
            for group, draft in zip(groups, drafts)
        ]

    def _draft(self, group: PreferenceGroup) -> _Draft | DataError:
        """The group's strings, or why there are none."""
        try:
            group = self._spoken(group)
            self.encoder.refuse_marks(group)
            head = self._text(group.prompt, (), group)
            return _Draft(
                head,
                tuple(
                    self._text(group.prompt, completion.text, group)
                    for completion in group.completions
                ),
                not isinstance(group.prompt, str),
            )
        except DataError as error:
            return error

    def _rendered(
        self, group: PreferenceGroup, draft: _Draft, ids: Iterator[tuple[int, ...]]
    ) -> RenderedGroup | DataError:
        """The group from its strings and their ids, taken from the front of `ids`: the prompt's,
        then each completion's with the prompt.
        """
        prompt_ids = next(ids)
        sequences: list[TokenSequence] = []
        problems: list[Problem] = []
        for k, full in enumerate(draft.fulls):
            made = self._sequence(draft.head, prompt_ids, full, list(next(ids)), draft.chat)
            if isinstance(made, str):
                problems.append(Problem(group.where, f"completions[{k}]", *made.split(" -> ")))
            else:
                sequences.append(made)
        if not problems:
            for comparison in group.comparisons:
                winner, loser = sequences[comparison.winner], sequences[comparison.loser]
                if winner.ids == loser.ids:
                    why = (
                        "identical after cutting to max_length"
                        if winner.cut or loser.cut
                        else "identical as tokens"
                    )
                    problems.append(
                        Problem(
                            group.where,
                            "comparisons",
                            f"winner and loser are {why}",
                            "raise --max-length, or --on-bad-row skip",
                        )
                    )
        if problems:
            return DataError(f"{group.where}: cannot be scored", problems)
        return RenderedGroup(
            tuple(sequences),
            group.comparisons,
            tuple(c.label for c in group.completions),
            group.where,
            self.encoder.spellings(group),
        )

    def identity(self) -> str | None:
        """SHA-256 of everything that decides which ids a text becomes; None where a tokenizer
        written in Python decides it, which no hash sees.
        """
        if not self.tokenizer.is_fast:
            return None
        kind = type(self.tokenizer)
        special = [self.tokenizer.eos_token, self.encoder.special, self.encoder.leading]
        try:
            # a template may write the date
            probe = (
                self._apply((Message("user", _PROBE), Message("assistant", _PROBE)), (), False)
                if self.template
                else ""
            )
        except DataError as error:  # it wants other dialogues than this one, which the data may be
            probe = str(error.problems)
        versions = [importlib.metadata.version(name) for name in ("tokenizers", "transformers")]
        backend = self.tokenizer.backend_tokenizer.to_str()
        how = [self.limit, self.may_cut, *(["whole"] if self.whole else [])]
        return sha256_json(
            [
                f"{kind.__module__}.{kind.__qualname__}",
                backend,
                special,
                self.template,
                probe,
                *how,
                versions,
            ]
        )

    def prompt_ids(self, prompt: Text, tools: tuple[Any, ...] = ()) -> tuple[int, ...]:
        """The prompt alone, ready to be answered."""
        group = PreferenceGroup(prompt, (), (), tools, "prompt")
        self.encoder.refuse_marks(group)
        return self.encoder.ids(self._text(prompt, (), group), chat=not isinstance(prompt, str))

    def whole_ids(
        self, prompt: Text, answer: Text, tools: tuple[Any, ...] = (), where: str = ""
    ) -> tuple[int, ...]:
        """A prompt with its answer, as a model reads it that judges them: the ids of `render` where
        this is a `whole` renderer, and nothing is cut.
        """
        group = self._spoken(PreferenceGroup(prompt, (Completion(answer),), (), tools, where))
        self.encoder.refuse_marks(group)
        chat = not isinstance(group.prompt, str)
        ids = self.encoder.ids(
            self._text(group.prompt, group.completions[0].text, group), chat=chat
        )
        return ids if chat else (*ids, self.end_id(chat))

    def _spoken(self, group: PreferenceGroup) -> PreferenceGroup:
        """The group as turns where its whole dialogues are read and there is a template to write
        them.
        """
        if not self.whole or not self.template:
            return group
        said = tuple(
            dataclasses.replace(one, text=spoken(one.text, "assistant"))
            for one in group.completions
        )
        return dataclasses.replace(group, prompt=spoken(group.prompt, "user"), completions=said)

    def end_id(self, chat: bool) -> int:
        """The token a completion ends with: the template's end of turn for messages, EOS for plain
        text.
        """
        if not chat:
            return int(self.tokenizer.eos_token_id)
        if self._end is None:
            tail = self._apply(
                (Message("user", "a"), Message("assistant", _PROBE)), (), False
            ).rpartition(_PROBE)[2]
            ends = [i for i in self.encoder.ids(tail, chat=True) if i in self.encoder.special_ids]
            self._end = ends[0] if ends else int(self.tokenizer.eos_token_id)
            self._template_ends = bool(ends)
        return self._end

    def _sequence(
        self, head: str, prompt_ids: tuple[int, ...], full: str, ids: list[int], chat: bool
    ) -> TokenSequence | str:
        if not full.startswith(head):
            return (
                "the chat template writes the prompt differently when an answer follows -> use a"
                " template whose generation prompt is a prefix"
            )
        start, moved = self._boundary(head, prompt_ids, full, ids, chat)
        if start == 0 and prompt_ids:
            return (
                "the first token holds prompt and answer, so nothing predicts it -> end the prompt"
                " with a line break, or take a tokenizer that writes BOS"
            )
        if start == 0:
            return (
                "the prompt has no tokens, so nothing predicts the answer's first one -> give a"
                " prompt, or a tokenizer that writes BOS"
            )
        end = self.end_id(chat)
        if not (self.whole and chat):  # there the template has said all there is to say
            if end in ids[start:]:
                # what the template writes after its end token is not the answer
                del ids[ids.index(end, start) + 1 :]
            else:
                ids.append(end)
        if len(ids) == start + 1 and not moved:
            return "has no tokens"
        cut = 0
        if self.limit is not None and len(ids) > self.limit:
            if start >= self.limit:
                return (
                    f"the prompt alone has {start:,} tokens, the limit is {self.limit:,} -> raise"
                    " --max-length, or --on-bad-row skip"
                )
            if not self.may_cut:
                return (
                    f"needs {len(ids):,} tokens, the model's limit is {self.limit:,} ->"
                    f" --max-length {self.limit} to cut, --on-bad-row skip to drop the row"
                )
            cut = len(ids) - self.limit
            del ids[self.limit :]
        return TokenSequence(tuple(ids), start, cut, moved)

    def _boundary(
        self, head: str, prompt_ids: tuple[int, ...], full: str, ids: list[int], chat: bool
    ) -> tuple[int, bool]:
        """Index of the first scored token, and whether a merge moved it: the token that contains
        the boundary is scored.
        """
        if tuple(ids[: len(prompt_ids)]) == prompt_ids:
            return len(prompt_ids), False
        shared = 0
        while shared < min(len(prompt_ids), len(ids)) and prompt_ids[shared] == ids[shared]:
            shared += 1
        if self.tokenizer.is_fast:  # tokens re-cut inside the prompt still belong to it
            ends = self.encoder.ends(full, chat)
            shift = len(ids) - len(ends)
            while shared < len(ids) and ends[shared - shift] <= len(head):
                shared += 1
        return shared, True

    def _text(self, prompt: Text, completion: Text, group: PreferenceGroup) -> str:
        """Prompt (and completion, unless it is ()) as one string; in a chat, special-token
        spellings of the data are marked.
        """
        if isinstance(prompt, str):
            return prompt + (completion if isinstance(completion, str) else "")
        turns = tuple(self._marked(m) for m in (*prompt, *completion) if isinstance(m, Message))
        text = self._apply(
            turns,
            tuple(self.encoder.guard(tool) for tool in group.tools),
            not completion,
            group.where,
        )
        if completion and not self.whole:
            self.end_id(chat=True)
            if (
                not self._template_ends
            ):  # a template without end token: the answer ends where its content ends
                text = text[: _end_of(turns[-1].content, text, group.where)]
        return text

    def _marked(self, message: Message) -> Message:
        return Message(
            self.encoder.guard(message.role),
            self.encoder.guard(message.content),
            self.encoder.guard(message.extra),
        )

    def _apply(
        self, turns: tuple[Message, ...], tools: tuple[Any, ...], prompting: bool, where: str = ""
    ) -> str:
        if not self.template:
            begin = f"{where}: " if where else ""
            raise ModelError(
                f"{begin}the data has messages, the tokenizer has no chat template",
                remedy="give --chat-template FILE, or a tokenizer that has one",
            )
        conversation = [{"role": m.role, "content": m.content, **m.extra} for m in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    conversation,
                    tools=list(tools) or None,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=prompting,
                )
            )
        except Exception as error:  # Jinja's raise_exception and every template mistake
            raise DataError(
                "the chat template refused a dialogue", [Problem(where, "messages", str(error))]
            ) from error


def _end_of(content: str, text: str, where: str) -> int:
    """Where the answer's content ends in a rendered dialogue; templates may strip it."""
    for words in (content, content.strip()):
        at = text.rfind(words)
        if at >= 0:
            return at + len(words)
    why = (
        "it changes the answer's text and writes no end token, so the answer's end cannot be found"
    )
    raise DataError(
        "the chat template cannot be used",
        [Problem(where, "messages", why, "use a template that ends each turn")],
    )
