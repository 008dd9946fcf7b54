"""What is wrong, or worth knowing, about a data set before any model is loaded. Each finding names
its rows.

`clean` removes what cannot teach anything (an answer compared with itself) and counts it; `examine`
only looks. Rows that repeat a prompt with other answers are normal and are no finding.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.data.records import Comparison, PreferenceGroup, plain
from winnow.data.render import RenderedGroup
from winnow.data.split import Key, completion_key, prompt_key
from winnow.data.token_checks import length_findings, preference, token_findings
from winnow.system.findings import Finding, by_level

# Reasons that `clean` gives.
IDENTICAL = "comparison of identical completions"
UNCOMPARED = "group without a comparison"


def clean(groups: Sequence[PreferenceGroup]) -> tuple[list[PreferenceGroup], dict[str, list[str]]]:
    """(groups kept, where by reason of what was dropped): comparisons of an answer with itself,
    then groups that teach nothing.

    A group of several completions needs a comparison or a label; a single completion is a
    demonstration and stays.
    """
    kept: list[PreferenceGroup] = []
    dropped: dict[str, list[str]] = {}
    for group in groups:
        useful = tuple(c for c in group.comparisons if not _identical(group, c))
        lost = len(group.comparisons) - len(useful)
        if lost:
            dropped.setdefault(IDENTICAL, []).extend([group.where] * lost)
        labelled = any(completion.label is not None for completion in group.completions)
        if not useful and not labelled and (group.comparisons or len(group.completions) > 1):
            dropped.setdefault(UNCOMPARED, []).append(group.where)
        else:
            kept.append(replace(group, comparisons=useful) if lost else group)
    return kept, dropped


def examine(
    groups: Sequence[PreferenceGroup],
    rendered: Sequence[RenderedGroup] | None = None,
    eval_groups: Sequence[PreferenceGroup] | None = None,
) -> list[Finding]:
    """All findings, errors first. `rendered` is parallel to `groups`; with `eval_groups` leaks are
    looked for.
    """
    if not groups:
        return [
            Finding("error", "empty", "there is no group to look at", remedy="check the data files")
        ]
    prompts = _prompts(groups)
    looks: list[Callable[[], Iterable[Finding]]] = [
        partial(look, groups) for look in (_identicals, _empty_prompts, _duplicates)
    ]
    looks += [
        partial(_conflicts, groups, prompts),
        partial(_shape, groups, prompts),
        partial(_soft, groups),
        partial(length_findings, groups, rendered),
    ]
    if rendered is not None:
        looks += [partial(token_findings, rendered)]
    if eval_groups:
        looks += [partial(_leaks, groups, eval_groups)]
    found = [finding for look in looks for finding in look()]
    return by_level(found)


# --- the text


def _identical(group: PreferenceGroup, c: Comparison) -> bool:
    return group.completions[c.winner].text == group.completions[c.loser].text


def _identicals(groups: Sequence[PreferenceGroup]) -> Iterator[Finding]:
    total = sum(len(group.comparisons) for group in groups)
    rows = tuple(group.where for group in groups for c in group.comparisons if _identical(group, c))
    if rows and len(rows) == total:
        yield Finding(
            "error",
            "all_identical",
            f"all {total:,} comparisons are between identical completions",
            rows,
            "check which columns are read",
        )
    elif rows:
        yield Finding(
            "warning",
            "identical",
            f"{len(rows):,} of {total:,} comparisons are between identical completions",
            rows,
            "they teach nothing",
        )


def _empty_prompts(groups: Sequence[PreferenceGroup]) -> Iterator[Finding]:
    rows = tuple(group.where for group in groups if not plain(group.prompt).strip())
    if rows:
        yield Finding(
            "warning",
            "empty_prompt",
            f"{len(rows):,} groups have an empty prompt",
            rows,
            "check the prompt column",
        )


def _keys(keys: Iterable[Key]) -> NDArray[Any]:
    """Keys side by side: 16 bytes each, where a set of them takes a hundred."""
    return np.frombuffer(b"".join(keys), dtype="S16")


def _prompts(groups: Sequence[PreferenceGroup]) -> NDArray[Any]:
    """The number of each group's prompt: equal where the prompts are."""
    return np.unique(_keys(map(prompt_key, groups)), return_inverse=True)[1]


def _duplicates(groups: Sequence[PreferenceGroup]) -> Iterator[Finding]:
    _, first = np.unique(_keys(map(_identity, groups)), return_index=True)
    if len(first) < len(groups):
        again = np.delete(np.arange(len(groups)), first).tolist()
        rows = tuple(groups[i].where for i in again)
        yield Finding(
            "warning",
            "duplicates",
            f"{len(rows):,} groups say the same as an earlier one",
            rows,
            "they count twice: remove them",
        )


def _identity(group: PreferenceGroup) -> Key:
    """What a group says, whatever the order of its completions."""
    answers = [completion_key(completion.text) for completion in group.completions]
    judged = {
        (answers[c.winner], answers[c.loser], c.probability, c.weight, c.margin)
        for c in group.comparisons
    }
    given = {
        (answer, str(completion.label)) for answer, completion in zip(answers, group.completions)
    }
    return hashlib.blake2b(
        repr((prompt_key(group), sorted(given), sorted(judged))).encode(), digest_size=16
    ).digest()


def _conflicts(groups: Sequence[PreferenceGroup], prompt_of: NDArray[Any]) -> Iterator[Finding]:
    """Contradictions and circles: what compares answers of one prompt across rows. One prompt's
    answers are in memory at a time.
    """
    judgements = [
        len(group.comparisons)
        + sum(completion.label is not None for completion in group.completions)
        for group in groups
    ]
    # most prompts have a single pair, which agrees with itself
    several = np.flatnonzero((np.bincount(prompt_of, judgements) > 1)[prompt_of])
    order = several[np.argsort(prompt_of[several], kind="stable")]
    together = np.split(order, np.flatnonzero(np.diff(prompt_of[order])) + 1) if len(order) else []
    opposed: list[int] = []
    circular: list[str] = []
    for numbers in sorted((part.tolist() for part in together), key=min):
        against, around = _conflict({i: groups[i] for i in numbers})
        opposed += against
        circular += around[:1]
    if opposed:
        rows = tuple(groups[i].where for i in sorted(opposed))
        yield Finding(
            "warning",
            "contradictions",
            f"{len(rows):,} groups contradict an earlier judgement of the same answers",
            rows,
            "check them",
        )
    if circular:
        message = (
            f"for {len(circular):,} prompts the preferences run in a circle (A over B over C"
            " over A)"
        )
        yield Finding("note", "cycles", message, tuple(circular))


def _conflict(groups: Mapping[int, PreferenceGroup]) -> tuple[list[int], list[str]]:
    """Of one prompt's groups: the numbers of those that contradict an earlier one, and the rows of
    one circle.
    """
    edges: dict[tuple[Key, Key], str] = {}  # (better, worse) -> the first row that says so
    thumbs: dict[Key, bool] = {}
    opposed: list[int] = []
    for number, group in groups.items():
        answers = [completion_key(completion.text) for completion in group.completions]
        against = False
        for better, worse in filter(None, map(preference, group.comparisons)):
            edge = answers[better], answers[worse]
            against |= edge[::-1] in edges and edge[0] != edge[1]
            edges.setdefault(edge, group.where)
        for completion, answer in zip(group.completions, answers):
            if completion.label is not None:
                against |= thumbs.setdefault(answer, completion.label) != completion.label
        if against:
            opposed.append(number)
    return opposed, _cycle(edges)


def _cycle(relation: dict[tuple[Key, Key], str]) -> list[str]:
    """The rows of one circle of three or more; those of two are contradictions and are left out."""
    one_way = {edge: row for edge, row in relation.items() if edge[::-1] not in relation}
    sorter: TopologicalSorter[Key] = TopologicalSorter()
    for better, worse in one_way:
        sorter.add(worse, better)
    try:
        sorter.prepare()
    except CycleError as error:
        around = error.args[1]
        return [one_way[edge] for edge in pairwise(around) if edge in one_way]
    return []


def _shape(groups: Sequence[PreferenceGroup], prompt_of: NDArray[Any]) -> Iterator[Finding]:
    sizes = Counter(len(group.completions) for group in groups)
    comparisons = sum(len(group.comparisons) for group in groups)
    labels = Counter(
        completion.label
        for group in groups
        for completion in group.completions
        if completion.label is not None
    )
    thumbs = f", {labels[True]:,} labelled good and {labels[False]:,} bad" if labels else ""
    counted = ", ".join(f"{sizes[k]:,} with {k}" for k in sorted(sizes))
    yield Finding(
        "note",
        "shape",
        f"{len(groups):,} groups of {len(np.unique(prompt_of)):,} prompts; by number of"
        f" completions: {counted}; {comparisons:,} comparisons{thumbs}",
    )


def _soft(groups: Sequence[PreferenceGroup]) -> Iterator[Finding]:
    ties = tuple(group.where for group in groups for c in group.comparisons if c.probability == 0.5)
    turned = tuple(
        group.where for group in groups for c in group.comparisons if c.probability < 0.5
    )
    negative = tuple(group.where for group in groups for c in group.comparisons if c.margin < 0)
    if ties:
        yield Finding("note", "ties", f"{len(ties):,} comparisons are ties (probability 0.5)", ties)
    if turned:
        yield Finding(
            "warning",
            "unlikely_winner",
            f"{len(turned):,} comparisons name the less likely winner (probability below 0.5)",
            turned,
        )
    if negative:
        yield Finding(
            "warning",
            "negative_margin",
            f"{len(negative):,} winners scored lower than their losers (margin below 0)",
            negative,
            "check the scores",
        )


# --- lengths and tokens


# --- two data sets


def _leaks(
    groups: Sequence[PreferenceGroup], eval_groups: Sequence[PreferenceGroup]
) -> Iterator[Finding]:
    prompts, pairs = (
        {prompt_key(group) for group in eval_groups},
        {pair for group in eval_groups for pair in _pairs(group)},
    )
    # the evaluation data is the smaller side: its keys are held, not all
    near = [group for group in groups if prompt_key(group) in prompts]
    known = pairs.intersection(pair for group in near for pair in _pairs(group))
    leaks = tuple(group.where for group in eval_groups if not known.isdisjoint(_pairs(group)))
    if leaks:
        fix = "remove them from one side, or set a fraction of the prompts aside instead"
        yield Finding(
            "error",
            "leak",
            f"{len(leaks):,} of {len(eval_groups):,} evaluation groups are in the training"
            " data too",
            leaks,
            fix,
        )
    both = {prompt_key(group) for group in near}
    shared = tuple(group.where for group in eval_groups if prompt_key(group) in both)
    if shared:
        yield Finding(
            "note",
            "shared_prompts",
            f"{len(shared):,} of {len(eval_groups):,} evaluation groups have a prompt of the"
            " training data",
            shared,
        )


def _pairs(group: PreferenceGroup) -> Iterator[tuple[Key, frozenset[Key]]]:
    """Each pair that is compared, whoever wins; of groups without comparisons, each answer."""
    prompt, answers = (
        prompt_key(group),
        [completion_key(completion.text) for completion in group.completions],
    )
    judged = [{answers[c.winner], answers[c.loser]} for c in group.comparisons] or [
        {answer} for answer in answers
    ]
    return ((prompt, frozenset(pair)) for pair in judged)
