"""`winnow generate`: what a model answers, alone or beside the model it was before."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from winnow.config.collection import GenerateSettings
from winnow.config.resolve import Resolved
from winnow.data.prompts import Prompt, prompts
from winnow.data.records import plain
from winnow.generation.prompts import ask, load
from winnow.generation.sampler import sample, words
from winnow.models.device import keep_memory
from winnow.system.console import console, safe, say
from winnow.system.files import write_jsonl


def run(resolved: Resolved[GenerateSettings]) -> list[dict[str, Any]]:
    """Answers of one model, or of two side by side; one row per prompt."""
    settings = resolved.settings
    keep_memory()
    asked: list[Prompt] = [
        (f"prompt {number}", text) for number, text in enumerate(settings.prompt, 1)
    ]
    asked += prompts(settings.prompts) if settings.prompts is not None else []
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        name: _answers(source, asked, settings)
        for name, source in (
            ("before", settings.before),
            ("after" if settings.before else "answer", settings.model),
        )
        if source
    }
    rows: list[dict[str, Any]] = [
        {"prompt": plain(text), **{name: many[i] for name, many in columns.items()}}
        for i, (_, text) in enumerate(asked)
    ]
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


def _answers(name: str, prompts: list[Prompt], settings: GenerateSettings) -> list[list[str]]:
    loaded = load(name, settings)
    asked = ask(name, loaded, prompts, settings)
    answers = sample(loaded, asked.ids, asked.how, k=settings.k)
    return [
        [words(loaded.tokenizer, ids, one) for one in many] for ids, many in zip(asked.ids, answers)
    ]
