"""`winnow sample`: several answers to each prompt, to be compared. A file that grows as they come,
and goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from winnow.config.collection import SampleSettings
from winnow.config.resolve import Resolved
from winnow.data.prompts import prompts
from winnow.data.records import Completion, Message, PreferenceGroup, Text
from winnow.data.render import RenderedGroup, Renderer
from winnow.errors import ModelError
from winnow.generation import vllm
from winnow.generation.prompts import PromptBatch, ask, load
from winnow.generation.sampler import Answer, drawn, seeds, words
from winnow.models import hashes, model_folder
from winnow.models.device import keep_memory
from winnow.models.loading import LoadedModel
from winnow.system.append_file import AppendFile
from winnow.system.console import safe, say
from winnow.system.files import locked, make_folder, sha256_json

# of a row: what its answers depend on
SAYS_HOW = (
    "weights",
    "template",
    "k",
    "max_new_tokens",
    "temperature",
    "top_p",
    "seed",
)


def run(resolved: Resolved[SampleSettings]) -> Path:
    """Write a group of `k` completions for each prompt into `out`, in the order of the prompts.
    Raises RunError where another command's answers lie there.
    """
    settings = resolved.settings
    keep_memory()
    _refuse(settings)
    asked_for = prompts(settings.prompts, settings.limit)
    make_folder(settings.out.absolute().parent)
    with locked(settings.out):
        # vLLM has its own
        loaded = load(
            settings.model,
            (
                settings
                if settings.sampler == "transformers"
                else settings.model_copy(update={"device": "cpu"})
            ),
        )
        asked = ask(settings.model, loaded, asked_for, settings)
        how = _how(settings, loaded, asked)
        names = _names(asked)
        file = AppendFile(settings.out, "sampled", "prompts", "answered")
        rows = file.there(names, {key: how[key] for key in SAYS_HOW})
        if len(rows) == len(names):
            say(f"{safe(settings.out)}: all {len(names):,} prompts are answered; nothing to do")
            return settings.out
        file.refuse_format(rows)
        done = {i for i, name in enumerate(names) if name in rows}
        file.grow(
            rows,
            _rows(settings, loaded, asked, how, names, [where for where, _ in asked_for], done),
            "sampling",
            len(names) - len(done),
        )
        file.settle(rows, names)
    _told(settings, asked.how.max_new_tokens, list(rows.values()))
    return settings.out


def _how(settings: SampleSettings, loaded: LoadedModel, asked: PromptBatch) -> dict[str, Any]:
    """Where answers come from, for every row."""
    template = (
        None
        if isinstance(asked.texts[0], str)
        else sha256_json(loaded.tokenizer.chat_template)[:16]
    )
    drawn = {
        "k": settings.k,
        "max_new_tokens": asked.how.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
    }
    return {
        "model": settings.model,
        "weights": hashes.weights_hash(loaded.model)[:16],
        "template": template,
        **drawn,
        "sampler": settings.sampler,
    }


def _names(asked: PromptBatch) -> list[str]:
    """Of each prompt: its tokens, and how many times it stood before."""
    found, before = [], dict[str, int]()
    for ids in asked.ids:
        told = sha256_json(ids)[:12]
        before[told] = before.get(told, 0) + 1
        found.append(told if before[told] == 1 else f"{told}-{before[told]}")
    return found


def _rows(
    settings: SampleSettings,
    loaded: LoadedModel,
    asked: PromptBatch,
    how: dict[str, Any],
    names: list[str],
    places: list[str],
    done: set[int],
) -> Iterator[dict[str, Any]]:
    """A row for each prompt that is not `done`, as they come."""
    renderer = Renderer(loaded.tokenizer)
    for i, answers in _drawn(settings, loaded, asked, done):
        yield {
            "id": names[i],
            **_row(renderer, asked.texts[i], asked.ids[i], answers),
            "sampled": how,
            "from": places[i],
        }


def _drawn(
    settings: SampleSettings, loaded: LoadedModel, asked: PromptBatch, done: set[int]
) -> Iterator[tuple[int, list[Answer]]]:
    if settings.sampler == "transformers":
        return drawn(loaded, asked.ids, asked.how, k=settings.k, done=done)
    llm = vllm.engine(
        loaded.source, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code
    )
    return vllm.drawn(
        llm, asked.ids, seeds(asked.ids, settings.seed), asked.how, k=settings.k, done=done
    )


def _refuse(settings: SampleSettings) -> None:
    """Raises ModelError for what vLLM cannot have."""
    if settings.sampler == "vllm" and model_folder.is_adapter_folder(settings.model):
        raise ModelError(
            f"sampler: vllm is given whole models, and {settings.model} is an adapter",
            remedy="winnow export --merge first",
        )
    if settings.sampler == "vllm" and settings.quantize is not None:
        raise ModelError("sampler: vllm does not take --quantize", remedy="leave one of them away")


def _row(
    renderer: Renderer, prompt: Text, ids: tuple[int, ...], answers: list[Answer]
) -> dict[str, Any]:
    """A group nobody has compared yet. An answer without a word cannot be judged, one with a NUL
    character cannot be read: counted, and left out.
    """
    said = [(one, words(renderer.tokenizer, ids, one)) for one in answers]
    kept = [(one, text) for one, text in said if text.strip() and "\0" not in text]
    plain = isinstance(prompt, str)
    return {
        "prompt": (
            prompt
            if isinstance(prompt, str)
            else [{"role": turn.role, "content": turn.content, **turn.extra} for turn in prompt]
        ),
        "completions": [
            text if plain else [{"role": "assistant", "content": text}] for _, text in kept
        ],
        "comparisons": [],
        "logps": [sum(one.logps) for one, _ in kept],
        "tokens": [len(one.logps) for one, _ in kept],
        "finished": [one.finished for one, _ in kept],
        "left_out": len(said) - len(kept),
        "other_tokens": sum(not _read_back(renderer, prompt, ids, one, text) for one, text in kept),
    }


def _read_back(
    renderer: Renderer, prompt: Text, ids: tuple[int, ...], answer: Answer, text: str
) -> bool:
    """Whether training will read the tokens that were sampled, and not others that spell the
    same.
    """
    completion = Completion(text if isinstance(prompt, str) else (Message("assistant", text),))
    (found,) = renderer.render_all([PreferenceGroup(prompt, (completion,))])
    return isinstance(found, RenderedGroup) and found.sequences[0].ids[
        : len(ids) + len(answer.ids)
    ] == (*ids, *answer.ids)


def _told(settings: SampleSettings, room: int, rows: list[dict[str, Any]]) -> None:
    """What came of it, in numbers. room: most tokens of an answer."""
    tokens = [n for row in rows for n in row["tokens"]]
    cut, left_out, alike = (
        sum(not done for row in rows for done in row["finished"]),
        sum(row["left_out"] for row in rows),
        0,
    )
    for row in rows:
        texts = [json.dumps(text) for text in row["completions"]]
        alike += len(texts) - len(set(texts))
    say(
        f"{len(tokens):,} answers to {len(rows):,} prompts,"
        f" {sum(tokens) / max(1, len(tokens)):,.0f} tokens each; cut off at {room:,} tokens:"
        f" {cut:,}; the same as another: {alike:,}; left out, without a word or with a NUL"
        f" character: {left_out:,}"
    )
    other = sum(row["other_tokens"] for row in rows)
    if other:
        say(
            f"of them {other:,} are read back as other tokens than were sampled, spelling the same:"
            " training sees those"
        )
    say(f"written: {safe(settings.out)}")
