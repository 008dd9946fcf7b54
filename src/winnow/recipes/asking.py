"""A model and the prompts it is to answer: loaded, told as tokens, with room for an answer. What the commands that sample share"""

from __future__ import annotations

from dataclasses import dataclass

from winnow import models
from winnow.collect.items import as_json
from winnow.config_collect import SamplingSettings
from winnow.console import safe, say
from winnow.data.prompts import Prompt, as_turns
from winnow.data.records import Text
from winnow.data.render import Renderer
from winnow.errors import DataError, Problem
from winnow.files import sha256_json
from winnow.models import LoadedModel
from winnow.resolved import read_text
from winnow.sample import Sampling


@dataclass(frozen=True)
class Asked:
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
    quantize = settings.quantize or models.quantized_as(name)
    if quantize != settings.quantize:
        say(f"from the run {safe(name)}: quantize={quantize}")
    loaded = models.load(name, dtype=settings.dtype, device=settings.device, quantize=quantize, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template is not None:
        loaded.tokenizer.chat_template = read_text(settings.chat_template, "the chat template")
    return loaded


def ask(name: str, loaded: LoadedModel, prompts: list[Prompt], settings: SamplingSettings) -> Asked:
    """The prompts for this model. Raises DataError, prompt by prompt, where it cannot answer them."""
    renderer = Renderer(loaded.tokenizer)
    turns = settings.as_ == "chat" or (settings.as_ is None and bool(renderer.template))
    told = [as_turns(text) if turns else text for _, text in prompts]
    spoken = {isinstance(text, str) for text in told}
    if len(spoken) > 1:
        raise DataError("some prompts are text, others lists of messages", remedy="--as chat makes text one user turn")
    ids = [renderer.prompt_ids(text) for text in told]
    room = _room(name, [where for where, _ in prompts], ids, settings)
    return Asked(told, ids, Sampling(renderer.end_id(not spoken.pop()), room, settings.temperature, settings.top_p, settings.seed))


def _room(name: str, places: list[str], prompts: list[tuple[int, ...]], settings: SamplingSettings) -> int:
    """Tokens an answer may have: what was asked for, or what the model's limit leaves. Raises DataError by prompt."""
    limit = models.length_limit(name, trust_remote_code=settings.trust_remote_code)
    bad = [Problem(where, "", "has no tokens", "say something, or use a tokenizer that writes BOS") for where, ids in zip(places, prompts) if not ids]
    if limit is not None:
        bad += [Problem(where, "", f"has {len(ids):,} tokens, the model's limit is {limit:,}") for where, ids in zip(places, prompts) if len(ids) >= limit]
    if bad:
        raise DataError(f"{name}: prompts that cannot be answered", bad)
    room = settings.max_new_tokens if limit is None else min(settings.max_new_tokens, limit - max(map(len, prompts)))
    if room < settings.max_new_tokens:
        say(f"{safe(name)}: answers of at most {room:,} tokens: its limit is {limit:,} with the prompt")
    return room
