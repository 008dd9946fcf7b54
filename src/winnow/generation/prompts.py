"""A model and the prompts it is to answer: loaded, told as tokens, with room for an answer. What
the commands that sample share
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from winnow.config.collection import SamplingSettings
from winnow.config.model_spec import model_spec
from winnow.config.resolve import read_text
from winnow.data.dataset import Dataset
from winnow.data.prompts import Prompt, as_turns
from winnow.data.records import Text, as_json
from winnow.data.render import Renderer
from winnow.errors import DataError, Problem
from winnow.generation.sampler import Sampling
from winnow.models import loading, model_folder
from winnow.models.loading import LoadedModel
from winnow.system.console import safe, say
from winnow.system.files import sha256_json


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as they were understood, their tokens, and how to sample."""

    texts: list[Text]
    ids: list[tuple[int, ...]]
    how: Sampling


def name_of(prompt: Text) -> str:
    """The same for the same question, as text or as the user's turn."""
    return sha256_json(as_json(as_turns(prompt)))[:16]


def distinct(asked: list[Prompt]) -> list[Prompt]:
    """Each prompt once: the same one is never trained on and held out, nor counted twice."""
    found = {name_of(text): (where, text) for where, text in reversed(asked)}
    if len(found) < len(asked):
        say(f"{len(asked) - len(found):,} prompts stand there more than once: taken once")
    return list(reversed(found.values()))


def load(name: str, settings: SamplingSettings) -> LoadedModel:
    """A model to be asked, in the bits its run had."""
    quantize = settings.quantize or model_folder.quantized_as(name)
    if quantize != settings.quantize:
        say(f"from the run {safe(name)}: quantize={quantize}")
    loaded = loading.load(model_spec(settings, name), quantize=quantize)
    if settings.chat_template is not None:
        loaded.tokenizer.chat_template = read_text(settings.chat_template, "the chat template")
    return loaded


def ask(
    name: str, loaded: LoadedModel, prompts: list[Prompt], settings: SamplingSettings
) -> PromptBatch:
    """The prompts for this model. Raises DataError, prompt by prompt, where it cannot answer
    them.
    """
    renderer = Renderer(loaded.tokenizer)
    turns = settings.as_ == "chat" or (settings.as_ is None and bool(renderer.template))
    told = [as_turns(text) if turns else text for _, text in prompts]
    spoken = {isinstance(text, str) for text in told}
    if len(spoken) > 1:
        raise DataError(
            "some prompts are text, others lists of messages",
            remedy="--as chat makes text one user turn",
        )
    ids = [renderer.prompt_ids(text) for text in told]
    room = _room(name, [where for where, _ in prompts], ids, settings)
    return PromptBatch(
        told,
        ids,
        Sampling(
            renderer.end_id(not spoken.pop()),
            room,
            settings.temperature,
            settings.top_p,
            settings.seed,
        ),
    )


def _room(
    name: str, places: list[str], prompts: list[tuple[int, ...]], settings: SamplingSettings
) -> int:
    """Tokens an answer may have: what was asked for, or what the model's limit leaves. Raises
    DataError by prompt.
    """
    limit = loading.length_limit(model_spec(settings, name))
    bad = [
        Problem(where, "", "has no tokens", "say something, or use a tokenizer that writes BOS")
        for where, ids in zip(places, prompts)
        if not ids
    ]
    if limit is not None:
        bad += [
            Problem(where, "", f"has {len(ids):,} tokens, the model's limit is {limit:,}")
            for where, ids in zip(places, prompts)
            if len(ids) >= limit
        ]
    if bad:
        raise DataError(f"{name}: prompts that cannot be answered", bad)
    room = (
        settings.max_new_tokens
        if limit is None
        else min(settings.max_new_tokens, limit - max(map(len, prompts)))
    )
    if room < settings.max_new_tokens:
        say(
            f"{safe(name)}: answers of at most {room:,} tokens: its limit is {limit:,} with the"
            " prompt"
        )
    return room


SHOWN = 6  # prompts whose answers stand in the report


LONGEST = 128  # tokens of an answer


LOOKED = 20 * SHOWN  # rows of the training data that are looked at for prompts that leave room


@dataclass(frozen=True)
class Probe:
    """Prompts to be answered while training goes on, in random order, how long an answer may be,
    and the token that ends it.

    of: how many prompts they were drawn from (of training data: rows), which are held out or not;
    seed: of the order and of the answers.
    """

    prompts: list[tuple[int, ...]]
    room: int
    end: int
    of: int = 0
    held_out: bool = False
    seed: int = 0


def probe(
    held_out: dict[str, Dataset], train_set: Dataset, renderer: Renderer, seed: int = 0
) -> Probe:
    """The distinct prompts of the first held-out set that leave room for an answer, in an order of
    chance; of the training data, where nothing is held out, a few, for there may be millions.
    """
    source = next(iter(held_out.values()), train_set)
    room = LONGEST if renderer.limit is None else max(1, min(LONGEST, renderer.limit // 2))
    count, rng = len(source.groups), random.Random(seed)
    numbers = range(count) if held_out else rng.sample(range(count), min(count, LOOKED))
    prompts = (
        first.ids[: first.start] for first in (source.groups[i].sequences[0] for i in numbers)
    )
    fitting = list(
        _distinct(
            prompt
            for prompt in prompts
            if renderer.limit is None or len(prompt) + room <= renderer.limit
        )
    )
    asked = shuffled(
        fitting, room, renderer.end_id(train_set.chat), held_out=bool(held_out), seed=seed
    )
    return asked if held_out else replace(asked, prompts=asked.prompts[:SHOWN], of=count)


def shuffled(
    prompts: Sequence[tuple[int, ...]], room: int, end: int, *, held_out: bool, seed: int
) -> Probe:
    """These prompts in an order of chance."""
    order = random.Random(f"prompts {seed}").sample(range(len(prompts)), len(prompts))
    return Probe([prompts[i] for i in order], room, end, len(prompts), held_out, seed)


def _distinct(prompts: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The prompts in their order, each once."""
    seen: set[tuple[int, ...]] = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
            yield prompt
