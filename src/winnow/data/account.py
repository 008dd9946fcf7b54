"""What became of the rows of a data set, as data.json tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from winnow.config.options import DataSettings
from winnow.data import sources
from winnow.data.records import PreferenceGroup
from winnow.data.render import Renderer
from winnow.data.tokens import Tokens
from winnow.errors import DataError, Problem


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


def account_of(parts: Sequence[SourcePart], groups: Tokens, name: str) -> dict[str, Any]:
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
        "dropped": dropped_rows(parts),
        "used": len(groups),
        "identical": sum(part.identical for part in parts),
        "not_chosen": sum(part.not_chosen for part in parts),
        "decided": int((c["probability"] != 0.5).sum()),
        "comparisons": len(c["winner"]),
        "labels": int((c["label"] >= 0).sum()),
        "good": int((c["label"] == 1).sum()) + len(c["winner"]),
        "bad": int((c["label"] == 0).sum()) + len(c["winner"]),
        "margins": int((c["margin"] != 0).sum()),
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


def refuse_cut(
    account: dict[str, Any], groups: Tokens, renderer: Renderer, settings: DataSettings
) -> None:
    """Truncation is a decision: more than cut_budget of the completion tokens cut is an error."""
    cut, scored = account["tokens"]["cut"], account["tokens"]["scored"]
    allowed = cut_budget(settings)
    share = cut / (cut + scored)
    account["tokens"]["cut_share"], account["tokens"]["cut_budget"] = share, allowed
    if share > allowed:
        lost = groups.per_group("cut")
        hurt = np.flatnonzero(lost)
        rows = [
            Problem(where, "completions", f"{count:,} tokens cut")
            for where, count in zip(groups.where(hurt), lost[hurt].tolist())
        ]
        raise DataError(
            f"max_length {renderer.limit} cuts {share:.1%} of the completion tokens, the budget is"
            f" {allowed:.0%}",
            rows,
            remedy="raise --max-length or --cut-budget, or drop the long rows",
        )


def cut_budget(settings: DataSettings) -> float:
    """Share of completion tokens that may be cut: nothing, unless a length was asked for."""
    if settings.cut_budget is not None:
        return settings.cut_budget
    return 0.0 if settings.max_length is None else 0.1
