"""Specs -> tokens: load, clean, split, render, examine; every row that was read is accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from winnow.config import DataSettings
from winnow.data import doctor, sources
from winnow.data.doctor import Finding
from winnow.data.records import PreferenceGroup, demonstration
from winnow.data.render import Renderer
from winnow.data.split import split_by_prompt
from winnow.data.store import said, tokenised
from winnow.data.stream import Share
from winnow.data.tokens import Tokens
from winnow.errors import DataError, NothingLeft, Problem, SettingsError

Kind = Literal["preference", "demonstration", "any"]


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training, and what became of every row. The texts are not held: nobody reads them while a model trains."""

    groups: Tokens
    shares: list[Share]
    account: dict[str, Any]
    findings: list[Finding]
    chat: bool  # whether prompts are messages


@dataclass
class _Part:
    """One source on its way: what is kept of it and why the rest is not."""

    loaded: sources.Loaded
    texts: list[PreferenceGroup]
    dropped: dict[str, int]
    identical: int = 0  # comparisons of identical completions, dropped from groups that keep others


def prepare(
    specs: Sequence[str], renderer: Renderer, settings: DataSettings, kind: Kind, *, held_out: Sequence[str] = (), fraction: float = 0.0, seed: int = 0
) -> tuple[Dataset, dict[str, Dataset]]:
    """The training set and the held-out sets by metric prefix ("eval_", or "eval_NAME_" where there are several).

    Raises DataError when a row cannot be used (unless on_bad_row is skip), when too much is cut, when nothing is left, or
    when a pair stands on both sides.
    """
    parts = [_read(spec, settings, kind, mixed=kind != "any") for spec in specs]
    if fraction:
        sides = split_by_prompt([part.texts for part in parts], fraction, seed)
        aside = [_Part(part.loaded, right, {**part.dropped, "used for training": len(left)}) for part, (left, right) in zip(parts, sides)]
        for part, (left, right) in zip(parts, sides):
            part.texts = left
            part.dropped["set aside for evaluation"] = len(right)
        evaluations = {"eval_": aside}
    else:
        evaluations = _evaluations(held_out, settings, kind)
    for part in parts:
        if part.texts and not round(len(part.texts) * part.loaded.weight):
            raise DataError(
                f"{part.loaded.name}: {len(part.texts):,} rows at weight {part.loaded.weight:g} are less than one an epoch", remedy="a higher weight"
            )
    train = _finish(parts, renderer, settings, _texts(evaluations))
    return train, {prefix: _finish(side, renderer, settings, []) for prefix, side in evaluations.items()}


def held_out_alone(specs: Sequence[str], renderer: Renderer, settings: DataSettings, kind: Kind) -> tuple[dict[str, Dataset], list[PreferenceGroup]]:
    """The held-out sets by metric prefix, as `prepare` gives them, and their texts, which no part of a stream must hold."""
    evaluations = _evaluations(specs, settings, kind)
    return {prefix: _finish(side, renderer, settings, []) for prefix, side in evaluations.items()}, _texts(evaluations)


def _evaluations(specs: Sequence[str], settings: DataSettings, kind: Kind) -> dict[str, list[_Part]]:
    each = [[_read(spec, settings, kind, mixed=False)] for spec in specs]
    evaluations = {_prefix(part[0].loaded.name, len(each)): part for part in each}
    if len(evaluations) != len(each):
        raise DataError("two evaluation sets have the same name", remedy="rename one file: its name is the metric's name")
    return evaluations


def _texts(evaluations: dict[str, list[_Part]]) -> list[PreferenceGroup]:
    return [text for side in evaluations.values() for part in side for text in part.texts]


def window(loaded: sources.Loaded, renderer: Renderer, settings: DataSettings, kind: Kind, elsewhere: Sequence[PreferenceGroup]) -> Dataset:
    """A part of a stream as a data set of its own; `elsewhere` are the held-out texts, which it must not hold. Raises DataError as `prepare` does."""
    return _finish([_cleaned(loaded, settings, kind)], renderer, settings, elsewhere)


def _read(spec: str, settings: DataSettings, kind: Kind, *, mixed: bool) -> _Part:
    loaded = sources.load(spec, as_=settings.as_, limit=settings.limit)
    if loaded.weight != 1 and not mixed:
        raise SettingsError(f"{spec}: a weight mixes training data; held-out rows are all measured, once", remedy=f"leave @{loaded.weight:g} away")
    return _cleaned(loaded, settings, kind)


def _cleaned(loaded: sources.Loaded, settings: DataSettings, kind: Kind) -> _Part:
    """What is kept of a source. Raises DataError for rows that cannot be used, unless they are to be skipped."""
    dropped: dict[str, int] = {}
    spared = 0
    _handle(loaded.problems, f"{loaded.name}: rows that cannot be used", settings, dropped)
    texts = loaded.groups
    if kind == "demonstration":
        made = [demonstration(text) for text in texts]
        texts = [text for text in made if text is not None]
        dropped["nothing preferred"] = len(made) - len(texts)
    else:
        texts, gone = doctor.clean(texts)
        identical = set(gone.get(doctor.IDENTICAL, ()))
        lost = gone.get(doctor.UNCOMPARED, [])  # groups: a row is dropped for one reason, so that the counts add up
        dropped["identical completions"] = sum(where in identical for where in lost)
        dropped["no comparison"] = len(lost) - dropped["identical completions"]
        spared = sum(where not in set(lost) for where in gone.get(doctor.IDENTICAL, ()))
        if kind == "preference":
            bare = [text for text in texts if not text.comparisons]
            if bare and not any(text.comparisons for text in texts):
                raise NothingLeft(
                    f"{loaded.name}: layout {loaded.layout} has no comparisons to learn from",
                    {**dropped, "no comparison": dropped["no comparison"] + len(bare)},
                    remedy="preference training needs chosen and rejected, scores, ranks or comparisons; demonstrations train with winnow sft",
                )
            texts = [text for text in texts if text.comparisons]
            dropped["no comparison"] += len(bare)
    return _Part(loaded, texts, {reason: n for reason, n in dropped.items() if n}, spared)


def _finish(parts: Sequence[_Part], renderer: Renderer, settings: DataSettings, elsewhere: Sequence[PreferenceGroup]) -> Dataset:
    texts = [text for part in parts for text in part.texts]
    name = said(texts)
    groups, problems = tokenised(texts, name, renderer)
    _handle(problems, "rows that cannot be scored", settings, {})
    if problems:
        _drop_unscored(parts, groups)
        texts = [text for part in parts for text in part.texts]
        name = said(texts)
    if not groups:
        names = ", ".join(part.loaded.name for part in parts)
        raise NothingLeft(f"{names}: no row is left to use", _dropped(parts), remedy="winnow check shows what became of each")
    account = _account(parts, groups, name)
    _within_budget(account, groups, renderer, settings)
    findings = doctor.examine(texts, groups, list(elsewhere))
    account["findings"] = [{"level": f.level, "code": f.code, "message": f.message, "rows": list(f.rows), "remedy": f.remedy} for f in findings]
    shares = [Share(len(part.texts), part.loaded.weight) for part in parts]
    return Dataset(groups, shares, account, findings, any(not isinstance(text.prompt, str) for text in texts))


def _drop_unscored(parts: Sequence[_Part], groups: Tokens) -> None:
    """Leave in each part the texts that became groups, and count the others."""
    first = 0
    for part in parts:
        count = len(part.texts)
        kept = groups.columns["text"][slice(*np.searchsorted(groups.columns["text"], [first, first + count]))] - first
        if len(kept) < count:
            part.texts = [part.texts[i] for i in kept]
            part.dropped["cannot be scored"] = count - len(kept)
        first += count


def stop_on_errors(*datasets: Dataset) -> None:
    """Raises DataError with every finding that makes training meaningless."""
    errors = [finding for dataset in datasets for finding in dataset.findings if finding.level == "error"]
    if errors:
        raise DataError("the data should not be trained on", [Problem(f.rows[0] if f.rows else "data", f.code, f.message, f.remedy) for f in errors])


def _dropped(parts: Sequence[_Part]) -> dict[str, int]:
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return dropped


def _account(parts: Sequence[_Part], groups: Tokens, name: str) -> dict[str, Any]:
    c = groups.columns
    return {
        "sources": [
            {
                "name": p.loaded.name,
                "layout": p.loaded.layout,
                "rows": p.loaded.counts["rows"],
                "ties": p.loaded.counts["ties"],
                "used": len(p.texts),
                "weight": p.loaded.weight,
                "ignored": list(p.loaded.ignored),
            }
            for p in parts
        ],
        "read": sum(part.loaded.counts["rows"] for part in parts),
        "dropped": _dropped(parts),
        "used": len(groups),
        "identical": sum(part.identical for part in parts),
        "decided": int((c["probability"] != 0.5).sum()),
        "comparisons": len(c["winner"]),
        "completions": len(c["length"]),
        "tokens": {
            "prompt": int(np.minimum.reduceat(c["start"], groups.sequence_at[:-1]).sum()),
            "scored": int((c["length"] - c["start"]).sum()),
            "cut": int(c["cut"].sum()),
            "longest": int(c["length"].max()),
        },
        "moved_boundaries": int(c["moved"].sum()),
        "special_spellings": int(c["special"].sum()),
        "fingerprint": groups.identity(),
        "text_fingerprint": name,
    }


def _within_budget(account: dict[str, Any], groups: Tokens, renderer: Renderer, settings: DataSettings) -> None:
    """Truncation is a decision: more than cut_budget of the completion tokens cut is an error."""
    cut, scored = account["tokens"]["cut"], account["tokens"]["scored"]
    allowed = cut_budget(settings)
    share = cut / (cut + scored)
    account["tokens"]["cut_share"], account["tokens"]["cut_budget"] = share, allowed
    if share > allowed:
        lost = groups.per_group("cut")
        hurt = np.flatnonzero(lost)
        rows = [Problem(where, "completions", f"{count:,} tokens cut") for where, count in zip(groups.where(hurt), lost[hurt].tolist())]
        raise DataError(
            f"max_length {renderer.limit} cuts {share:.1%} of the completion tokens, the budget is {allowed:.0%}",
            rows,
            remedy="raise --max-length or --cut-budget, or drop the long rows",
        )


def cut_budget(settings: DataSettings) -> float:
    """Share of completion tokens that may be cut: nothing, unless a length was asked for."""
    if settings.cut_budget is not None:
        return settings.cut_budget
    return 0.0 if settings.max_length is None else 0.1


def _handle(problems: Sequence[Problem], what: str, settings: DataSettings, dropped: dict[str, int]) -> None:
    if problems and settings.on_bad_row == "error":
        raise DataError(f"{what}: {len(problems):,}", problems, remedy="mend them, or --on-bad-row skip to leave them out and count them")
    rows = {problem.where for problem in problems}
    if rows:
        dropped["bad row"] = len(rows)


def _prefix(name: str, count: int) -> str:
    stem = name.rstrip("/").rpartition("/")[2].partition(".")[0].partition(":")[0]
    return "eval_" if count == 1 else f"eval_{stem}_"
