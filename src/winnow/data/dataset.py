"""Specs -> tokens: load, clean, split, render, examine; every row that was read is accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from winnow.config import DataSettings
from winnow.data import doctor, sources
from winnow.data.doctor import Finding
from winnow.data.records import PreferenceGroup, demonstration
from winnow.data.render import RenderedGroup, Renderer
from winnow.data.split import split_by_prompt
from winnow.data.stream import Share
from winnow.errors import DataError, Problem, SettingsError
from winnow.files import sha256_json

Kind = Literal["preference", "demonstration", "any"]


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training: texts and tokens side by side, and what became of every row."""

    texts: list[PreferenceGroup]
    groups: list[RenderedGroup]
    shares: list[Share]
    account: dict[str, Any]
    findings: list[Finding]

    @property
    def chat(self) -> bool:
        """Whether prompts are messages."""
        return any(not isinstance(text.prompt, str) for text in self.texts)


@dataclass
class _Part:
    """One source on its way: what is kept of it and why the rest is not."""

    loaded: sources.Loaded
    texts: list[PreferenceGroup]
    dropped: dict[str, int]
    groups: list[RenderedGroup]
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
        aside = [_Part(part.loaded, right, {**part.dropped, "used for training": len(left)}, []) for part, (left, right) in zip(parts, sides)]
        for part, (left, right) in zip(parts, sides):
            part.texts = left
            part.dropped["set aside for evaluation"] = len(right)
        evaluations = {"eval_": aside}
    else:
        each = [[_read(spec, settings, kind, mixed=False)] for spec in held_out]
        evaluations = {_prefix(part[0].loaded.name, len(each)): part for part in each}
        if len(evaluations) != len(each):
            raise DataError("two evaluation sets have the same name", remedy="rename one file: its name is the metric's name")
    for part in parts:
        if part.texts and not round(len(part.texts) * part.loaded.weight):
            raise DataError(
                f"{part.loaded.name}: {len(part.texts):,} rows at weight {part.loaded.weight:g} are less than one an epoch", remedy="a higher weight"
            )
    train = _finish(parts, renderer, settings, [text for side in evaluations.values() for part in side for text in part.texts])
    return train, {prefix: _finish(side, renderer, settings, []) for prefix, side in evaluations.items()}


def fingerprint(groups: Sequence[RenderedGroup]) -> str:
    """SHA-256 over everything training sees of a data set, in its order."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(repr(([(s.start, s.ids) for s in group.sequences], group.comparisons, group.labels)).encode())
    return digest.hexdigest()


def _read(spec: str, settings: DataSettings, kind: Kind, *, mixed: bool) -> _Part:
    loaded = sources.load(spec, as_=settings.as_, limit=settings.limit)
    if loaded.weight != 1 and not mixed:
        raise SettingsError(f"{spec}: a weight mixes training data; held-out rows are all measured, once", remedy=f"leave @{loaded.weight:g} away")
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
                raise DataError(
                    f"{loaded.name}: layout {loaded.layout} has no comparisons to learn from",
                    remedy="preference training needs chosen and rejected, scores, ranks or comparisons; demonstrations train with winnow sft",
                )
            texts = [text for text in texts if text.comparisons]
            dropped["no comparison"] += len(bare)
    return _Part(loaded, texts, {reason: n for reason, n in dropped.items() if n}, [], spared)


def _finish(parts: Sequence[_Part], renderer: Renderer, settings: DataSettings, elsewhere: Sequence[PreferenceGroup]) -> Dataset:
    problems: list[Problem] = []
    for part in parts:
        kept: list[PreferenceGroup] = []
        for text in part.texts:
            try:
                part.groups.append(renderer.render(text))
                kept.append(text)
            except DataError as error:
                part.dropped["cannot be scored"] = part.dropped.get("cannot be scored", 0) + 1
                problems += error.problems
        part.texts = kept
    _handle(problems, "rows that cannot be scored", settings, {})
    texts = [text for part in parts for text in part.texts]
    groups = [group for part in parts for group in part.groups]
    if not groups:
        raise DataError(f"{', '.join(part.loaded.name for part in parts)}: no row is left to use", remedy="winnow check shows what became of each")
    account = _account(parts, groups)
    _within_budget(account, groups, renderer, settings)
    findings = doctor.examine(texts, groups, list(elsewhere))
    account["findings"] = [{"level": f.level, "code": f.code, "message": f.message, "rows": list(f.rows), "remedy": f.remedy} for f in findings]
    return Dataset(texts, groups, [Share(len(part.texts), part.loaded.weight) for part in parts], account, findings)


def stop_on_errors(*datasets: Dataset) -> None:
    """Raises DataError with every finding that makes training meaningless."""
    errors = [finding for dataset in datasets for finding in dataset.findings if finding.level == "error"]
    if errors:
        raise DataError("the data should not be trained on", [Problem(f.rows[0] if f.rows else "data", f.code, f.message, f.remedy) for f in errors])


def _account(parts: Sequence[_Part], groups: Sequence[RenderedGroup]) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    scored = sum(len(s.ids) - s.start for group in groups for s in group.sequences)
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
        "dropped": dropped,
        "used": len(groups),
        "identical": sum(part.identical for part in parts),
        "decided": sum(c.probability != 0.5 for group in groups for c in group.comparisons),
        "comparisons": sum(len(group.comparisons) for group in groups),
        "completions": sum(len(group.sequences) for group in groups),
        "tokens": {
            "prompt": sum(min(s.start for s in group.sequences) for group in groups),
            "scored": scored,
            "cut": sum(s.cut for group in groups for s in group.sequences),
            "longest": max(len(s.ids) for group in groups for s in group.sequences),
        },
        "moved_boundaries": sum(s.moved for group in groups for s in group.sequences),
        "special_spellings": sum(group.special for group in groups),
        "fingerprint": fingerprint(groups),
        "text_fingerprint": sha256_json([repr(text) for part in parts for text in part.texts]),
    }


def _within_budget(account: dict[str, Any], groups: Sequence[RenderedGroup], renderer: Renderer, settings: DataSettings) -> None:
    """Truncation is a decision: more than cut_budget of the completion tokens cut is an error."""
    cut, scored = account["tokens"]["cut"], account["tokens"]["scored"]
    allowed = cut_budget(settings)
    share = cut / (cut + scored)
    account["tokens"]["cut_share"], account["tokens"]["cut_budget"] = share, allowed
    if share > allowed:
        rows = [Problem(g.where, "completions", f"{sum(s.cut for s in g.sequences):,} tokens cut") for g in groups if any(s.cut for s in g.sequences)]
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
