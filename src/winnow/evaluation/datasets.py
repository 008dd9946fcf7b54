"""The held-out sets of an evaluation: each with its name, its answers as tokens and as text, and
the columns it is split by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from winnow.config.evaluation import EvalSettings
from winnow.data import sources
from winnow.data.dataset import Dataset, Wanted, held_out_alone
from winnow.data.records import PreferenceGroup
from winnow.data.render import Renderer
from winnow.errors import SettingsError
from winnow.evaluation import slices
from winnow.system.console import safe, say
from winnow.system.files import sha256_file

SUBSET = "subset"  # RewardBench's column


@dataclass(frozen=True)
class HeldOut:
    """One set. name: as it is told apart, empty for the only one; columns: column -> where a row
    stands -> its value; files: with their hashes.
    """

    name: str
    title: str
    data: Dataset
    texts: list[PreferenceGroup]
    columns: dict[str, dict[str, str]]
    files: list[dict[str, Any]]


def read(settings: EvalSettings, rendered: Renderer, wanted: Wanted, seed: int) -> list[HeldOut]:
    """The sets of --data, each by itself. Raises DataError, SettingsError before any model is
    loaded.
    """
    columns = [
        {name: _values(spec, name, settings.limit) for name in settings.by}
        for _, spec in map(sources.named, settings.data)
    ]
    return _made(settings.data, columns, settings, rendered, wanted, seed) if settings.data else []


def bench(settings: EvalSettings, rendered: Renderer, seed: int) -> HeldOut | None:
    """The rows of --rewardbench, with their subsets: prompts are turns of a user where the
    tokenizer has a template, as the benchmark wants it.
    """
    spec = settings.rewardbench
    if spec is None:
        return None
    columns = {SUBSET: _values(spec, SUBSET, settings.limit)}
    as_ = settings.as_ or ("chat" if rendered.template else "text")
    (made,) = _made(
        (spec,), [columns], settings.model_copy(update={"as_": as_}), rendered, Wanted("any"), seed
    )
    return replace(made, name="rewardbench")


def _made(
    specs: Sequence[str],
    columns: Sequence[dict[str, dict[str, str]]],
    settings: EvalSettings,
    rendered: Renderer,
    wanted: Wanted,
    seed: int,
) -> list[HeldOut]:
    data, texts = held_out_alone(specs, rendered, settings, wanted, seed)
    found, at = [], 0
    for (prefix, one), spec, own in zip(data.items(), specs, columns, strict=True):
        (source,) = one.account.sources
        part, at = texts[at : at + source.used], at + source.used
        files = [
            {"name": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sources.files_of(sources.named(spec)[1])
        ]
        found.append(
            HeldOut(
                prefix.removeprefix("eval_").removesuffix("_"),
                source.name,
                one,
                part,
                own,
                files,
            )
        )
        if one.account.dropped:
            dropped = ", ".join(f"{n:,} {why}" for why, n in one.account.dropped.items())
            say(f"{safe(source.name)}: left out: {safe(dropped)}")
    return found


def _values(spec: str, column: str, limit: int | None) -> dict[str, str]:
    """The values of a column by row, as names of slices. Raises SettingsError for a column that is
    not there, or is none of kinds.
    """
    found: dict[str, str] = {}
    for where, value in sources.column(spec, column, limit).items():
        try:
            found[where] = slices.name_of(value)
        except ValueError as error:
            raise SettingsError(
                f"{where}: column {column!r} {error}", remedy="another column"
            ) from error
    many = len(set(found.values()))
    if many > slices.MOST:
        raise SettingsError(
            f"{spec}: column {column!r} has {many:,} values, a column to split by has at most"
            f" {slices.MOST}",
            remedy="another column",
        )
    return found
