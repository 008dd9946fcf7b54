"""Whose answers are compared: models that are asked, and files of answers, each with its answers to
every prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.commands import sample
from winnow.config.collection import SampleSettings
from winnow.config.evaluation import WinrateSettings
from winnow.config.model_spec import model_spec
from winnow.config.resolve import Resolved, handed_on
from winnow.data import fields
from winnow.data.fields import BadRow
from winnow.data.jsonl import Row
from winnow.data.layouts import LAYOUTS, group_of
from winnow.data.prompts import Prompt
from winnow.data.records import PreferenceGroup, Text, plain
from winnow.data.sources import layout_of, open_rows
from winnow.errors import DataError, Problem, SettingsError
from winnow.generation.prompts import name_of
from winnow.models import loading, model_folder
from winnow.system.console import safe, say
from winnow.system.files import sha256_file, sha256_json

SHOWN = 5  # of the prompts that have no answer, all for one reason

Answers = list[list[str | None]]  # of each prompt; None: the model said nothing that can be judged


@dataclass(frozen=True)
class Player:
    """A model, or a file of answers. source: as it was given; number: its place in the command,
    from 1; content: what it is, as a hash.
    """

    name: str
    source: str
    number: int
    file: bool
    content: str

    def seed(self, seed: int) -> int:
        """Of what it is asked: random numbers of its own, the same whoever else plays and wherever
        in the command it stands.
        """
        return int(sha256_json([seed, self.content])[:12], 16)


def players(settings: WinrateSettings) -> list[Player]:
    """All of them, by the shortest ends of their paths that tell them apart. Raises ModelError
    where a model is not there, before anything is sampled.
    """
    names = _names(settings.models)
    found = [
        Player(name, source, i, Path(source).is_file(), content(source))
        for i, (name, source) in enumerate(zip(names, settings.models, strict=True), 1)
    ]
    for one in found:
        if not one.file:
            model_folder.load_config(model_spec(settings, one.source))
            loading.load_tokenizer(model_spec(settings, one.source))
    if settings.temperatures and all(one.file for one in found[:-1]):
        raise SettingsError(
            "temperatures: files of answers have none",
            remedy="name a model before the baseline, or leave temperatures away",
        )
    return found


def content(source: str) -> str:
    """A hash of a file of answers, or of a model's weights and configuration as they lie in its
    folder; of a model elsewhere its name.
    """
    path = Path(source if Path(source).is_file() else model_folder.locate(source))
    files = (
        [path]
        if path.is_file()
        else sorted([*path.glob("*.safetensors"), *path.glob("*config.json")])
    )
    return sha256_json({file.name: sha256_file(file) for file in files}) if files else source


def _names(sources: Sequence[str]) -> list[str]:
    parts = [Path(source.rstrip("/")).parts for source in sources]
    different = len(set(parts))
    depth = next(
        n
        for n in range(1, max(map(len, parts)) + 1)
        if len({own[-n:] for own in parts}) == different
    )
    names = ["/".join(own[-depth:]) for own in parts]
    return [
        name if names.count(name) == 1 else f"{name} #{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]


def sampled(
    resolved: Resolved[WinrateSettings],
    player: Player,
    prompts: Path,
    out: Path,
    temperature: float,
) -> Path:
    """Ask a model, as `winnow sample` does, with random numbers of its own: two models must not say
    the same because they drew the same.
    """
    own: dict[str, Any] = {
        "model": player.source,
        "prompts": str(prompts),
        "limit": None,
        "out": out,
    }
    own |= {
        "k": resolved.settings.k,
        "temperature": temperature,
        "seed": player.seed(resolved.settings.seed),
    }
    if (quantize := resolved.settings.quantize) is not None:
        own["quantize"] = quantize
    say(f"{safe(player.name)}, temperature {temperature:g}:")
    return sample.run(handed_on(SampleSettings, resolved, own))


def asked_as(how: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a sampled row says of itself all that its answers depend on but the random numbers:
    two models with the same are one.
    """
    return {key: how[key] for key in sample.SAYS_HOW if key != "seed"}


def answers(source: str, asked: Sequence[Prompt]) -> Answers:
    """A file's answers to the prompts. Raises DataError with the rows that cannot be read, and the
    prompts that have no answer.
    """
    said: dict[str, list[str | None]] = {}
    problems = []
    for row in _read(source):
        if isinstance(row, Problem):
            problems.append(row)
        else:
            said.setdefault(row[0], []).extend(row[1])
    if problems:
        raise DataError(f"{source}: rows that are no answers: {len(problems):,}", problems)
    named = [name_of(text) for _, text in asked]
    lacking = [
        Problem(where, "prompt", f"has no answer in {source}")
        for (where, _), name in zip(asked, named, strict=True)
        if name not in said
    ]
    if lacking:
        what = f"{source}: prompts without an answer: {len(lacking):,} of {len(asked):,}" + (
            f", the first {SHOWN} of them" if len(lacking) > SHOWN else ""
        )
        raise DataError(what, lacking[:SHOWN], remedy="answer them, or leave the prompts away")
    aside = len(said.keys() - set(named))
    if aside:
        say(f"{safe(source)}: left aside, answers to prompts that are not asked: {aside:,} prompts")
    return [said[name] for name in named]


def _read(source: str) -> Iterator[tuple[str, list[str | None]] | Problem]:
    """(prompt's name, its answers) of each row: what `sample` wrote, what `generate` wrote, or any
    layout with answers.
    """
    title, rows = open_rows(source)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source}: there is no row in it")
    rows, layout = iter([first, *rows]), ""
    ours = isinstance(first, Row) and bool({"sampled", "answer", "after"} & first.values.keys())
    if not ours:
        layout, rows = layout_of(title, rows, None)
    for row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        try:
            yield _ours(row) if ours else _other(row, layout)
        except BadRow as bad:
            yield Problem(row.where, bad.name, bad.reason, bad.fix)


def _ours(row: Row) -> tuple[str, list[str | None]]:
    """A row of `sample`, whose wordless answers are None, or of `generate`."""
    if "after" in row.values:
        raise BadRow(
            "after",
            "stands beside before: answers of two models",
            "generate without --before, once for each",
        )
    prompt = fields.text_or_turns(row, "prompt")
    if "answer" in row.values:
        texts: list[Text] = [
            fields.as_text(value, f"answer[{i}]")
            for i, value in enumerate(fields.listed(row, "answer"))
        ]
        return name_of(prompt), [plain(text) if _spoken(text) else None for text in texts]
    return name_of(prompt), [
        *map(plain, fields.answers(row)),
        *[None] * int(row.values.get("left_out", 0)),
    ]


def _other(row: Row, layout: str) -> tuple[str, list[str | None]]:
    group = group_of(row, LAYOUTS[layout], None)
    if not isinstance(group, PreferenceGroup):
        raise BadRow(group[0].field, group[0].reason, group[0].fix)
    if group.comparisons:
        raise BadRow(
            "",
            "compares answers, so they are not all of one writer",
            "give rows with prompt and completion",
        )
    return name_of(group.prompt), [plain(one.text) for one in group.completions]


def _spoken(text: Text) -> bool:
    return bool(plain(text).strip()) and "\0" not in plain(text)
