"""Specs -> tokens: load, clean, split, render, examine; every row that was read is accounted
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from winnow.config.options import DataSettings
from winnow.data import checks, sources
from winnow.data import pairs as ranking
from winnow.data.account import DataAccount, SourcePart, account_of, dropped_rows, refuse_cut
from winnow.data.order import MixShare
from winnow.data.pairs import Pairs, with_mismatched
from winnow.data.records import PreferenceGroup, demonstration
from winnow.data.render import Renderer
from winnow.data.split import split_by_prompt
from winnow.data.token_cache import said, tokenised
from winnow.data.tokens import Tokens
from winnow.errors import SHOWN, DataError, NothingLeft, Problem, SettingsError

Kind = Literal["preference", "judged", "demonstration", "any"]


@dataclass(frozen=True)
class Wanted:
    """What of the data is wanted. kind: groups with comparisons; with comparisons or labels; as
    demonstrations; or all of them.

    pairs: which comparisons; mismatched: answers to other prompts besides; whose: the objective
    that needs certain labels (without probabilities and weights of their own) or margins above 0.
    """

    kind: Kind
    pairs: Pairs = "all"
    mismatched: bool = False
    certain_labels: bool = False
    positive_margins: bool = False
    whose: str = ""


EVERYTHING = Wanted("any")


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training, and what became of every row. The texts are not held: nobody
    reads them while a model trains.
    """

    groups: Tokens
    shares: list[MixShare]
    account: DataAccount
    chat: bool  # whether prompts are messages


def prepare(
    specs: Sequence[str],
    renderer: Renderer,
    settings: DataSettings,
    wanted: Wanted,
    *,
    held_out: Sequence[str] = (),
    fraction: float = 0.0,
    seed: int = 0,
) -> tuple[Dataset, dict[str, Dataset]]:
    """The training set and the held-out sets by metric prefix ("eval_", or "eval_NAME_" where there
    are several).

    Raises DataError when a row cannot be used (unless on_bad_row is skip), when too much is cut,
    when nothing is left, or when a pair stands on both sides.
    """
    parts = [_read(spec, settings, wanted, mixed=wanted.kind != "any") for spec in specs]
    if fraction:
        sides = split_by_prompt([part.texts for part in parts], fraction, seed)
        aside = [
            SourcePart(part.loaded, right, {**part.dropped, "used for training": len(left)})
            for part, (left, right) in zip(parts, sides)
        ]
        for part, (left, right) in zip(parts, sides):
            part.texts = left
            part.dropped["set aside for evaluation"] = len(right)
        evaluations = {"eval_": aside}
    else:
        evaluations = _evaluations(held_out, settings, wanted)
    for part in parts:
        if part.texts and not round(len(part.texts) * part.loaded.weight):
            raise DataError(
                f"{part.loaded.name}: {len(part.texts):,} rows at weight {part.loaded.weight:g} are"
                " less than one an epoch",
                remedy="a higher weight",
            )
    train = _finish(parts, renderer, settings, wanted, seed, _texts(evaluations))
    return train, {
        prefix: _finish(side, renderer, settings, wanted, seed, [])
        for prefix, side in evaluations.items()
    }


def held_out_alone(
    specs: Sequence[str], renderer: Renderer, settings: DataSettings, wanted: Wanted, seed: int
) -> tuple[dict[str, Dataset], list[PreferenceGroup]]:
    """The held-out sets by metric prefix, as `prepare` gives them, and their texts, which no part
    of a stream must hold.
    """
    evaluations = _evaluations(specs, settings, wanted)
    return {
        prefix: _finish(side, renderer, settings, wanted, seed, [])
        for prefix, side in evaluations.items()
    }, _texts(evaluations)


def _evaluations(
    specs: Sequence[str], settings: DataSettings, wanted: Wanted
) -> dict[str, list[SourcePart]]:
    named = [sources.named(spec) for spec in specs]
    each = [[_read(spec, settings, wanted, mixed=False)] for _, spec in named]
    evaluations = {
        _prefix(name or part[0].loaded.name, len(each)): part
        for (name, _), part in zip(named, each)
    }
    if len(evaluations) != len(each):
        raise DataError(
            "two evaluation sets have the same name", remedy="give one a name of its own: NAME=FILE"
        )
    return evaluations


def _texts(evaluations: dict[str, list[SourcePart]]) -> list[PreferenceGroup]:
    return [text for side in evaluations.values() for part in side for text in part.texts]


def window(
    loaded: sources.Loaded,
    renderer: Renderer,
    settings: DataSettings,
    wanted: Wanted,
    seed: int,
    elsewhere: Sequence[PreferenceGroup],
) -> Dataset:
    """A part of a stream as a data set of its own; `elsewhere` are the held-out texts, which it
    must not hold. Raises DataError as `prepare` does.
    """
    return _finish(
        [_cleaned(loaded, settings, wanted)], renderer, settings, wanted, seed, elsewhere
    )


def _read(spec: str, settings: DataSettings, wanted: Wanted, *, mixed: bool) -> SourcePart:
    loaded = sources.load(spec, as_=settings.as_, limit=settings.limit)
    if loaded.weight != 1 and not mixed:
        raise SettingsError(
            f"{spec}: a weight mixes training data; held-out rows are all measured, once",
            remedy=f"leave @{loaded.weight:g} away",
        )
    return _cleaned(loaded, settings, wanted)


def _cleaned(loaded: sources.Loaded, settings: DataSettings, wanted: Wanted) -> SourcePart:
    """What is kept of a source. Raises DataError for rows that cannot be used, unless they are to
    be skipped.
    """
    part = SourcePart(loaded, list(loaded.groups), {})
    _handle(
        loaded.problems,
        f"{loaded.name}: rows that cannot be used",
        settings,
        part.dropped,
        loaded.counts["bad"],
    )
    if wanted.kind == "demonstration":
        made = [demonstration(text) for text in part.texts]
        part.texts = [text for text in made if text is not None]
        part.dropped["nothing preferred"] = len(made) - len(part.texts)
    else:
        _drop_unjudged(part, wanted.kind)
        _choose_pairs(part, settings, wanted)
        _refuse_unfit(part, wanted)
    part.dropped = {reason: n for reason, n in part.dropped.items() if n}
    return part


def _drop_unjudged(part: SourcePart, kind: Kind) -> None:
    """Leave out comparisons of identical completions, and groups about which nothing is said that
    could be learnt.
    """
    texts, gone = checks.clean(part.texts)
    identical = set(gone.get(checks.IDENTICAL, ()))
    # groups: a row is dropped for one reason, so that the counts add up
    lost = gone.get(checks.UNCOMPARED, [])
    part.dropped["identical completions"] = sum(where in identical for where in lost)
    part.dropped["no comparison"] = len(lost) - part.dropped["identical completions"]
    part.identical = sum(where not in set(lost) for where in gone.get(checks.IDENTICAL, ()))
    part.texts = texts
    if kind == "any":
        return
    part.texts = [
        text
        for text in texts
        if text.comparisons
        or (kind == "judged" and any(one.label is not None for one in text.completions))
    ]
    bare = len(texts) - len(part.texts)
    part.dropped["no comparison" if kind == "preference" else "not judged"] = (
        bare + part.dropped.pop("no comparison")
    )
    if bare and not part.texts:
        labels = (
            "; labels without comparisons train with winnow dpo --objective kto"
            if part.loaded.layout == "unpaired"
            else ""
        )
        raise NothingLeft(
            f"{part.loaded.name}: layout {part.loaded.layout} has no comparisons to learn from"
            + ("" if kind == "preference" else ", and no labels"),
            part.dropped,
            remedy=(
                "preference training needs chosen and rejected, scores, ranks or comparisons;"
                f" demonstrations train with winnow sft{labels}"
            ),
        )


def _choose_pairs(part: SourcePart, settings: DataSettings, wanted: Wanted) -> None:
    """Leave in each group the comparisons that are wanted. Raises DataError where a group's
    comparisons are no ranking.
    """
    before = sum(len(text.comparisons) for text in part.texts)
    made = [ranking.chosen(text, wanted.pairs) for text in part.texts]
    _handle(
        [one for one in made if isinstance(one, Problem)],
        f"{part.loaded.name}: no ranking for --pairs {wanted.pairs}",
        settings,
        part.dropped,
    )
    part.texts = [
        one
        for one in made
        if isinstance(one, PreferenceGroup) and (one.comparisons or wanted.kind != "preference")
    ]
    if wanted.pairs != "all":
        part.dropped["all completions tied"] = sum(
            isinstance(one, PreferenceGroup) for one in made
        ) - len(part.texts)
        part.not_chosen = max(0, before - sum(len(text.comparisons) for text in part.texts))


def _refuse_unfit(part: SourcePart, wanted: Wanted) -> None:
    """Raises DataError for labels that the objective cannot use as they are."""
    found: list[Problem] = []
    for text in part.texts:
        for i, c in enumerate(text.comparisons):
            if wanted.certain_labels and (c.probability, c.weight) != (1, 1):
                found.append(
                    Problem(
                        text.where,
                        f"comparisons[{i}]",
                        f"has probability {c.probability:g} and weight {c.weight:g}",
                    )
                )
            if wanted.positive_margins and not c.margin > 0:
                found.append(Problem(text.where, f"comparisons[{i}].margin", f"is {c.margin:g}"))
    if not found:
        return
    if wanted.certain_labels:
        what, remedy = (
            "sorts a batch's answers, so single comparisons cannot have a probability or weight",
            "another objective, or remove the columns",
        )
    else:
        what, remedy = (
            "asks by how much each winner is better, so margins (or score gaps) must be above 0",
            "another objective, or add margins",
        )
    raise DataError(
        f"{part.loaded.name}: {wanted.whose} {what}: {len(found):,} do not fit",
        found,
        remedy=remedy,
    )


def _finish(
    parts: Sequence[SourcePart],
    renderer: Renderer,
    settings: DataSettings,
    wanted: Wanted,
    seed: int,
    elsewhere: Sequence[PreferenceGroup],
) -> Dataset:
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
        raise NothingLeft(
            f"{names}: no row is left to use",
            dropped_rows(parts),
            remedy="winnow check shows what became of each",
        )
    account = account_of(parts, groups, name, settings)
    refuse_cut(account, groups, renderer.limit)
    account = replace(account, findings=checks.examine(texts, groups, list(elsewhere)))
    shares = [MixShare(len(part.texts), part.loaded.weight) for part in parts]
    if wanted.mismatched:
        groups = with_mismatched(groups, seed, renderer.limit)
        tokens = replace(account.tokens, longest=int(groups.columns["length"].max()))
        account = replace(account, mismatched=len(groups), tokens=tokens)
    chat = any(not isinstance(text.prompt, str) for text in texts)
    return Dataset(groups, shares, account, chat)


def _drop_unscored(parts: Sequence[SourcePart], groups: Tokens) -> None:
    """Leave in each part the texts that became groups, and count the others."""
    first = 0
    for part in parts:
        count = len(part.texts)
        kept = (
            groups.columns["text"][
                slice(*np.searchsorted(groups.columns["text"], [first, first + count]))
            ]
            - first
        )
        if len(kept) < count:
            part.texts = [part.texts[i] for i in kept]
            part.dropped["cannot be scored"] = count - len(kept)
        first += count


def stop_on_errors(*datasets: Dataset) -> None:
    """Raises DataError with every finding that makes training meaningless."""
    findings = [finding for dataset in datasets for finding in dataset.account.findings]
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        problems = [
            Problem(
                f.rows[0] if f.rows else "data",
                f.code,
                f.message + (f" ({f.named(SHOWN)})" if f.rows[1:] else ""),
                f.remedy,
            )
            for f in errors
        ]
        raise DataError(
            "the data should not be trained on",
            problems,
            remedy="winnow check shows all that was found",
        )


def _handle(
    problems: Sequence[Problem],
    what: str,
    settings: DataSettings,
    dropped: dict[str, int],
    rows: int | None = None,
) -> None:
    """Raises DataError for problems, or counts the rows that have them, of which there are `rows`
    where places alone do not tell.
    """
    rows = len({problem.where for problem in problems}) if rows is None else rows
    if rows and settings.on_bad_row == "error":
        raise DataError(
            f"{what}: {rows:,}",
            problems,
            remedy="mend them, or --on-bad-row skip to leave them out and count them",
        )
    if rows:
        dropped["cannot be used"] = dropped.get("cannot be used", 0) + rows


def _prefix(name: str, count: int) -> str:
    stem = name.rstrip("/").rpartition("/")[2].partition(".")[0].partition(":")[0]
    return "eval_" if count == 1 else f"eval_{stem}_"
