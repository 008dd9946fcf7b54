"""`winnow generate`: what a model answers, alone or beside the model it was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from winnow import models
from winnow.config import GenerateSettings
from winnow.console import console, safe, say
from winnow.data.jsonl import read_rows
from winnow.data.records import Message, Text
from winnow.data.render import Renderer
from winnow.device import keep_memory
from winnow.errors import DataError, Problem
from winnow.files import write_jsonl
from winnow.resolved import Resolved, read_text
from winnow.sample import Sampling, sample


def run(resolved: Resolved[GenerateSettings]) -> list[dict[str, Any]]:
    """Answers of one model, or of two side by side; one row per prompt."""
    settings = resolved.settings
    keep_memory()
    prompts = _prompts(settings)
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        name: _answers(source, prompts, settings)
        for name, source in (("before", settings.before), ("after" if settings.before else "answer", settings.model))
        if source
    }
    rows: list[dict[str, Any]] = [{"prompt": prompt, **{name: answers[i] for name, answers in columns.items()}} for i, prompt in enumerate(prompts)]
    for row in rows:
        table = Table(title=safe(row["prompt"]), title_justify="left", show_lines=settings.k > 1)
        for name in columns:
            table.add_column(name, ratio=1, overflow="fold")
        for answers in zip(*(row[name] for name in columns)):
            table.add_row(*(safe(answer) for answer in answers))
        console.print(table)
    if settings.out is not None:
        write_jsonl(settings.out, rows)
        say(f"written: {safe(settings.out)}")
    return rows


def _prompts(settings: GenerateSettings) -> list[str]:
    found = list(settings.prompt)
    if settings.prompts is not None:
        rows = settings.prompts.name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz"))
        found += _of_rows(settings.prompts) if rows else [line for line in read_text(settings.prompts, "the file of prompts").split("\n") if line.strip()]
    if not found:
        raise DataError(f"{settings.prompts}: there is no prompt in it")
    return found


def _of_rows(path: Path) -> Iterator[str]:
    for row in read_rows(path):
        if isinstance(row, Problem):
            raise DataError("prompts cannot be read", [row])
        if not isinstance(row.values.get("prompt"), str):
            raise DataError("a row without a prompt", [Problem(row.where, "prompt", "expected a column prompt that holds text")])
        yield row.values["prompt"]


def _answers(name: str, prompts: list[str], settings: GenerateSettings) -> list[list[str]]:
    quantize = settings.quantize or models.quantized_as(name)
    if quantize != settings.quantize:
        say(f"from the run {safe(name)}: quantize={quantize}")
    loaded = models.load(name, dtype=settings.dtype, device=settings.device, quantize=quantize, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template is not None:
        loaded.tokenizer.chat_template = read_text(settings.chat_template, "the chat template")
    renderer = Renderer(loaded.tokenizer)
    chat = settings.as_ == "chat" or (settings.as_ is None and bool(renderer.template))
    texts: list[Text] = [(Message("user", prompt),) if chat else prompt for prompt in prompts]
    ids = [renderer.prompt_ids(text) for text in texts]
    room = _room(name, ids, settings)
    how = Sampling(renderer.end_id(chat), room, settings.temperature, settings.top_p, settings.seed)
    answers = sample(loaded, ids, how, k=settings.k)
    return [[loaded.tokenizer.decode(one.ids, skip_special_tokens=True) for one in many] for many in answers]


def _room(name: str, prompts: list[tuple[int, ...]], settings: GenerateSettings) -> int:
    """Tokens an answer may have: what was asked for, or what the model's limit leaves. Raises DataError by prompt."""
    limit = models.length_limit(name, trust_remote_code=settings.trust_remote_code)
    bad = [Problem(f"prompt {i}", "", "has no tokens", "say something, or use a tokenizer that writes BOS") for i, ids in enumerate(prompts, 1) if not ids]
    if limit is not None:
        bad += [Problem(f"prompt {i}", "", f"has {len(ids):,} tokens, the model's limit is {limit:,}") for i, ids in enumerate(prompts, 1) if len(ids) >= limit]
    if bad:
        raise DataError(f"{name}: prompts that cannot be answered", bad)
    room = settings.max_new_tokens if limit is None else min(settings.max_new_tokens, limit - max(map(len, prompts)))
    if room < settings.max_new_tokens:
        say(f"{safe(name)}: answers of at most {room:,} tokens: its limit is {limit:,} with the prompt")
    return room
