"""Held-out preferences: which side does the model prefer, by how much, and how sure can one be of the share?

Two accuracies, because they answer different questions. Implicit-reward accuracy asks whether log pi - log pi_ref is
larger for the preferred side: what training moves. Raw ranking accuracy asks whether log pi itself is: what sampling sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import binomtest, mannwhitneyu
from torch import Tensor

from winnow.data.render import RenderedGroup
from winnow.data.tokens import tokens_of


def interval(wins: int, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share. Raises ValueError on an empty count."""
    found = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def by_completion(value: Float[Tensor, " all"], groups: Sequence[RenderedGroup]) -> list[list[float]]:
    """Sums over each completion (float64, so that differences of long sums stay exact)."""
    tokens = tokens_of(groups)
    lengths = torch.from_numpy((tokens.columns["length"] - tokens.columns["start"]).astype("int64"))
    sums = torch.segment_reduce(value.double(), "sum", lengths=lengths)
    return [part.tolist() for part in sums.split(tokens.columns["sequences"].tolist())]


def nll(value: Float[Tensor, " all"], groups: Sequence[RenderedGroup]) -> float:
    """Mean negative log-prob per token (nats) of the groups' own answers, without those that belong to other prompts."""
    total, count = 0.0, 0
    for group, sums in zip(groups, by_completion(value, groups)):
        own = len(group.sequences) - group.mismatched
        total += math.fsum(sums[:own])
        count += sum(len(sequence.ids) - sequence.start for sequence in group.sequences[:own])
    return -total / count


def rows(groups: Sequence[RenderedGroup], policy: list[list[float]], reference: list[list[float]] | None, beta: float) -> list[dict[str, Any]]:
    """One row per comparison: log-probs, rewards and margins in nats; `correct` is null for a tie label."""
    found: list[dict[str, Any]] = []
    for i, group in enumerate(groups):
        for comparison in group.comparisons:
            w, v = (comparison.winner, comparison.loser) if comparison.probability >= 0.5 else (comparison.loser, comparison.winner)
            row: dict[str, Any] = {"where": group.where, "chosen": w, "rejected": v, "probability": max(comparison.probability, 1 - comparison.probability)}
            row |= {"logps/chosen": policy[i][w], "logps/rejected": policy[i][v]}
            row |= {f"length/{side}": len(group.sequences[k].ids) - group.sequences[k].start for side, k in (("chosen", w), ("rejected", v))}
            decided = comparison.probability != 0.5
            row["raw_correct"] = policy[i][w] > policy[i][v] if decided else None
            if reference is not None:
                reward = {k: beta * (policy[i][k] - reference[i][k]) for k in (w, v)}
                row |= {"rewards/chosen": reward[w], "rewards/rejected": reward[v], "rewards/margins": reward[w] - reward[v]}
                row["correct"] = reward[w] > reward[v] if decided else None
            found.append(row)
    return found


def summary(found: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Means over the comparisons, and both accuracies with their 95 % intervals. Tie labels are counted, and count in none of
    them, as in what training logs under the same names: neither side of a tie was chosen.
    """
    decided = [row for row in found if row["raw_correct"] is not None]
    result: dict[str, float | int] = {"comparisons": len(found), "ties": len(found) - len(decided)}
    for name in ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins", "length/chosen", "length/rejected"):
        values = [row[name] for row in decided if name in row]
        if values:
            result[name] = math.fsum(values) / len(values)
    for name, key in (("rewards/accuracies", "correct"), ("raw/accuracies", "raw_correct")):
        right = [row[key] for row in decided if key in row]
        if right:
            low, high = interval(sum(right), len(right))
            result |= {name: sum(right) / len(right), f"{name}_low": low, f"{name}_high": high}
    return result


def thumbs(groups: Sequence[RenderedGroup], policy: list[list[float]], reference: list[list[float]] | None, beta: float) -> list[dict[str, Any]]:
    """One row per labelled answer: its log-prob and, where there is a reference, its reward (nats)."""
    found: list[dict[str, Any]] = []
    for i, group in enumerate(groups):
        for k, label in enumerate(group.labels):
            if label is not None and not group.comparisons:
                sequence = group.sequences[k]
                row: dict[str, Any] = {
                    "where": group.where,
                    "completion": k,
                    "label": label,
                    "logps": policy[i][k],
                    "length": len(sequence.ids) - sequence.start,
                }
                found.append(row if reference is None else row | {"reward": beta * (policy[i][k] - reference[i][k])})
    return found


def thumbs_summary(found: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Means over good ("chosen") and bad ("rejected") answers, as training logs them, and how often a good one has the larger reward than a bad
    one (rewards/auc; raw/auc of log-probs), equal ones counting half.
    """
    if not found:
        return {}
    sides = {"chosen": [row for row in found if row["label"]], "rejected": [row for row in found if not row["label"]]}
    result: dict[str, float | int] = {"labels": len(found)}
    for column, name in (("logps", "logps"), ("reward", "rewards"), ("length", "length")):
        result |= {f"{name}/{side}": math.fsum(row[column] for row in part) / len(part) for side, part in sides.items() if part and column in part[0]}
    for name, column in (("rewards/auc", "reward"), ("raw/auc", "logps")):
        if all(part and column in part[0] for part in sides.values()):
            good, bad = ([row[column] for row in part] for part in sides.values())
            result[name] = float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))
    return result
