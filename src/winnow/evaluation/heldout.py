"""Held-out preferences: which side does the model prefer, by how much, and how sure can one be of
the share?

Two accuracies, because they answer different questions. Implicit-reward accuracy asks whether log
pi - log pi_ref is larger for the preferred side: what training moves. Raw ranking accuracy asks
whether log pi itself is: what sampling sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor

from winnow.data.render import RenderedGroup
from winnow.data.tokens import tokens_of
from winnow.evaluation.statistics.intervals import flat, mean, share
from winnow.system.figure import Figure


def interval(wins: int, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share. Raises ValueError on an empty count."""
    found = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def by_completion(
    value: Float[Tensor, " all"], groups: Sequence[RenderedGroup]
) -> list[list[float]]:
    """Sums over each completion (float64, so that differences of long sums stay exact)."""
    tokens = tokens_of(groups)
    lengths = torch.from_numpy((tokens.columns["length"] - tokens.columns["start"]).astype("int64"))
    sums = torch.segment_reduce(value.double(), "sum", lengths=lengths)
    return [part.tolist() for part in sums.split(tokens.columns["sequences"].tolist())]


def prompts(groups: Sequence[RenderedGroup]) -> list[int]:
    """The number of each group's prompt: groups that answer the same prompt have the same one."""
    numbers: dict[tuple[int, ...], int] = {}
    found = []
    for group in groups:
        first = group.sequences[0]
        found.append(
            numbers.setdefault(
                first.ids[: min(sequence.start for sequence in group.sequences)], len(numbers)
            )
        )
    return found


def nll(value: Float[Tensor, " all"], groups: Sequence[RenderedGroup]) -> Figure:
    """Mean negative log-prob per token (nats) of the groups' own answers, without those that belong
    to other prompts. Its count is of answers.
    """
    losses: list[float] = []
    lengths: list[int] = []
    numbers: list[int] = []
    for group, sums, number in zip(groups, by_completion(value, groups), prompts(groups)):
        own = len(group.sequences) - group.mismatched
        lengths += [sequence.scored for sequence in group.sequences[:own]]
        losses += [-one for one in sums[:own]]
        numbers += [number] * own
    return mean([loss / length for loss, length in zip(losses, lengths)], numbers, lengths)


def rows(
    groups: Sequence[RenderedGroup],
    policy: list[list[float]],
    reference: list[list[float]] | None,
    beta: float,
) -> list[dict[str, Any]]:
    """One row per comparison: log-probs, rewards and margins in nats; `correct` is null for a tie
    label.

    moved/*: how far log-probs have gone from the reference; prompt: rows with one number answer one
    prompt.
    """
    found: list[dict[str, Any]] = []
    for i, (group, number) in enumerate(zip(groups, prompts(groups))):
        for row in _sides(group, number):
            w, v = row["chosen"], row["rejected"]
            row |= {"logps/chosen": policy[i][w], "logps/rejected": policy[i][v]}
            decided = row["probability"] != 0.5
            row["raw_correct"] = policy[i][w] > policy[i][v] if decided else None
            if reference is not None:
                moved = {k: policy[i][k] - reference[i][k] for k in (w, v)}
                row |= {"moved/chosen": moved[w], "moved/rejected": moved[v]} | _rewarded(
                    beta * moved[w], beta * moved[v], decided
                )
            found.append(row)
    return found


def scored(groups: Sequence[RenderedGroup], scores: list[list[float]]) -> list[dict[str, Any]]:
    """One row per comparison of a reward model's scores, one per completion of each group: rewards,
    margins, and whether the winner has the larger one.
    """
    found: list[dict[str, Any]] = []
    for group, own, number in zip(groups, scores, prompts(groups), strict=True):
        found += [
            row | _rewarded(own[row["chosen"]], own[row["rejected"]], row["probability"] != 0.5)
            for row in _sides(group, number)
        ]
    return found


def _sides(group: RenderedGroup, number: int) -> list[dict[str, Any]]:
    """A row per comparison with its two sides; the side with the larger label probability is the
    chosen one.
    """
    found = []
    for comparison in group.comparisons:
        w, v = (
            (comparison.winner, comparison.loser)
            if comparison.probability >= 0.5
            else (comparison.loser, comparison.winner)
        )
        row: dict[str, Any] = {"where": group.where, "prompt": number, "chosen": w, "rejected": v}
        row["probability"] = max(comparison.probability, 1 - comparison.probability)
        row |= {
            f"length/{side}": len(group.sequences[k].ids) - group.sequences[k].start
            for side, k in (("chosen", w), ("rejected", v))
        }
        found.append(row)
    return found


def _rewarded(chosen: float, rejected: float, decided: bool) -> dict[str, Any]:
    margin = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
    }
    return margin | {"correct": chosen > rejected if decided else None}


MEANS = (
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "length/chosen",
    "length/rejected",
)
SHARES = {"rewards/accuracies": "correct", "raw/accuracies": "raw_correct"}


def figures(found: Sequence[dict[str, Any]]) -> dict[str, Figure | int]:
    """Means over the comparisons, and both accuracies, with intervals over prompts. Tie labels are
    counted, and count in none of them, as in what training logs under the same names: neither side
    of a tie was chosen.
    """
    decided = [row for row in found if row["probability"] != 0.5]
    result: dict[str, Figure | int] = {"comparisons": len(found), "ties": len(found) - len(decided)}
    if not decided:
        return result
    numbers = [row["prompt"] for row in decided]
    result |= {
        name: mean([row[name] for row in decided], numbers) for name in MEANS if name in decided[0]
    }
    for side in ("chosen", "rejected") if "moved/chosen" in decided[0] else ():
        lengths = [row[f"length/{side}"] for row in decided]
        result[f"logratio/{side}"] = mean(
            [row[f"moved/{side}"] / n for row, n in zip(decided, lengths)], numbers, lengths
        )
    return result | {
        name: share([row[key] for row in decided], numbers)
        for name, key in SHARES.items()
        if key in decided[0]
    }


def summary(found: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """The same as plain numbers, by name."""
    return flat(figures(found))


def thumbs(
    groups: Sequence[RenderedGroup],
    policy: list[list[float]],
    reference: list[list[float]] | None,
    beta: float,
) -> list[dict[str, Any]]:
    """One row per labelled answer: its log-prob and, where there is a reference, its reward
    (nats).
    """
    found: list[dict[str, Any]] = []
    for i, (group, number) in enumerate(zip(groups, prompts(groups))):
        for k, label in enumerate(group.labels):
            if label is not None and not group.comparisons:
                sequence = group.sequences[k]
                row = {"where": group.where, "prompt": number, "completion": k, "label": label}
                row |= {"logps": policy[i][k], "length": sequence.scored}
                found.append(
                    row
                    if reference is None
                    else row | {"reward": beta * (policy[i][k] - reference[i][k])}
                )
    return found


def scored_thumbs(
    groups: Sequence[RenderedGroup], scores: list[list[float]]
) -> list[dict[str, Any]]:
    """One row per labelled answer with a reward model's score."""
    made = thumbs(groups, scores, None, 1.0)
    return [
        {**{name: value for name, value in row.items() if name != "logps"}, "reward": row["logps"]}
        for row in made
    ]


def thumbs_figures(found: Sequence[dict[str, Any]]) -> dict[str, Figure | int]:
    """Means over good ("chosen") and bad ("rejected") answers, as training logs them, and how often
    a good one has the larger reward than a bad one (rewards/auc; raw/auc of log-probs), equal ones
    counting half.
    """
    if not found:
        return {}
    sides = {
        "chosen": [row for row in found if row["label"]],
        "rejected": [row for row in found if not row["label"]],
    }
    result: dict[str, Figure | int] = {"labels": len(found)}
    for column, name in (("logps", "logps"), ("reward", "rewards"), ("length", "length")):
        for side, part in sides.items():
            if part and column in part[0]:
                result[f"{name}/{side}"] = mean(
                    [row[column] for row in part], [row["prompt"] for row in part]
                )
    for name, column in (("rewards/auc", "reward"), ("raw/auc", "logps")):
        if all(part and column in part[0] for part in sides.values()):
            result[name] = _area(sides["chosen"], sides["rejected"], column)
    return result


def _area(good: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]], column: str) -> Figure:
    """P(good > bad) + P(equal) / 2. Interval over prompts: an answer's part in the area is the
    share of the other side that it beats, and the influence of a prompt the sum of its answers'
    (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988; Obuchowski, Biometrics 53, 1997).
    """
    value_G, value_B = (np.array([row[column] for row in side]) for side in (good, bad))
    order_B, order_G = np.sort(value_B), np.sort(value_G)
    beats_G = (
        np.searchsorted(order_B, value_G, "left") + np.searchsorted(order_B, value_G, "right")
    ) / (2 * len(bad))
    loses_B = 1 - (
        np.searchsorted(order_G, value_B, "left") + np.searchsorted(order_G, value_B, "right")
    ) / (2 * len(good))
    area = float(beats_G.mean())
    scale = len(good) + len(bad)  # so that the mean over all answers of the parts is the area
    parts = [
        area + (one - area) * scale / len(side)
        for side, ones in ((good, beats_G), (bad, loses_B))
        for one in ones
    ]
    made = mean(parts, [row["prompt"] for row in (*good, *bad)])
    low, high = (
        (None, None)
        if made.low is None or made.high is None
        else (max(0.0, made.low), min(1.0, made.high))
    )
    return Figure(area, low, high, made.count, made.prompts, made.why)
