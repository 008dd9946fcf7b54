"""What became of the rows of a data set, as data.json tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from winnow.config.options import DataSettings
from winnow.data import sources
from winnow.data.records import PreferenceGroup
from winnow.data.tokens import Tokens
from winnow.errors import DataError, Problem
from winnow.system.findings import Finding


@dataclass
class SourcePart:
    """One source on its way: what is kept of it and why the rest is not."""

    loaded: sources.Loaded
    texts: list[PreferenceGroup]
    dropped: dict[str, int]
    identical: int = 0  # comparisons of identical completions, dropped from groups that keep others
    not_chosen: int = 0  # comparisons left out because other pairs are wanted


def dropped_rows(parts: Sequence[SourcePart]) -> dict[str, int]:
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return dropped


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """One file or data set: its rows, and the groups used of them."""

    name: str
    layout: str
    rows: int
    ties: int
    used: int
    weight: float
    ignored: list[str]  # columns


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of all groups. cut_share, cut_budget: of the completion tokens."""

    prompt: int
    scored: int
    cut: int
    longest: int
    cut_share: float
    cut_budget: float


@dataclass(frozen=True, slots=True)
class DataAccount:
    """What became of the rows of a data set. dropped: rows by reason; identical, not_chosen:
    comparisons left out of groups that keep others; decided: comparisons that are no ties; good,
    bad: completions of that side; mismatched: groups with a completion of another prompt's.
    """

    sources: list[SourceCounts]
    read: int
    dropped: dict[str, int]
    used: int
    identical: int
    not_chosen: int
    decided: int
    comparisons: int
    labels: int
    good: int
    bad: int
    margins: int
    completions: int
    tokens: TokenCounts
    moved_boundaries: int
    special_spellings: int
    fingerprint: str
    text_fingerprint: str
    findings: list[Finding] = field(default_factory=list)
    mismatched: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The account as data.json and reports hold it."""
        account = asdict(self)
        account["findings"] = [
            finding | {"rows": list(finding["rows"])} for finding in account["findings"]
        ]
        if self.mismatched is None:
            del account["mismatched"]
        return account


def account_of(
    parts: Sequence[SourcePart], groups: Tokens, name: str, settings: DataSettings
) -> DataAccount:
    """The account of a data set whose text is known by the fingerprint `name`."""
    c = groups.columns
    cut, scored = int(c["cut"].sum()), int((c["length"] - c["start"]).sum())
    labels = c["label"]
    return DataAccount(
        sources=[_counts_of(part) for part in parts],
        read=sum(part.loaded.counts["rows"] for part in parts),
        dropped=dropped_rows(parts),
        used=len(groups),
        identical=sum(part.identical for part in parts),
        not_chosen=sum(part.not_chosen for part in parts),
        decided=int((c["probability"] != 0.5).sum()),
        comparisons=len(c["winner"]),
        labels=int((labels >= 0).sum()),
        good=int((labels == 1).sum()) + len(c["winner"]),
        bad=int((labels == 0).sum()) + len(c["winner"]),
        margins=int((c["margin"] != 0).sum()),
        completions=len(c["length"]),
        tokens=TokenCounts(
            prompt=int(np.minimum.reduceat(c["start"], groups.sequence_at[:-1]).sum()),
            scored=scored,
            cut=cut,
            longest=int(c["length"].max()),
            cut_share=cut / (cut + scored),
            cut_budget=cut_budget(settings),
        ),
        moved_boundaries=int(c["moved"].sum()),
        special_spellings=int(c["special"].sum()),
        fingerprint=groups.identity(),
        text_fingerprint=name,
    )


def _counts_of(part: SourcePart) -> SourceCounts:
    loaded = part.loaded
    return SourceCounts(
        loaded.name,
        loaded.layout,
        loaded.counts["rows"],
        loaded.counts["ties"],
        len(part.texts),
        loaded.weight,
        list(loaded.ignored),
    )


def refuse_cut(account: DataAccount, groups: Tokens, limit: int | None) -> None:
    """Truncation is a decision: more than cut_budget of the completion tokens cut is an error."""
    share, allowed = account.tokens.cut_share, account.tokens.cut_budget
    if share > allowed:
        lost = groups.per_group("cut")
        hurt = np.flatnonzero(lost)
        rows = [
            Problem(where, "completions", f"{count:,} tokens cut")
            for where, count in zip(groups.where(hurt), lost[hurt].tolist())
        ]
        raise DataError(
            f"max_length {limit} cuts {share:.1%} of the completion tokens, the budget is"
            f" {allowed:.0%}",
            rows,
            remedy="raise --max-length or --cut-budget, or drop the long rows",
        )


def cut_budget(settings: DataSettings) -> float:
    """Share of completion tokens that may be cut: nothing, unless a length was asked for."""
    if settings.cut_budget is not None:
        return settings.cut_budget
    return 0.0 if settings.max_length is None else 0.1
