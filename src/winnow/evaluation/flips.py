"""`winnow eval --label-noise`: which labels are most likely wrong, how many are, and whether
margins are probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from winnow.errors import DataError
from winnow.evaluation.statistics import label_noise
from winnow.system.console import console, safe, say

SHOWN = 10  # most suspicious rows that are printed


def say_all(found: Sequence[dict[str, Any]], trained_on: bool) -> dict[str, Any]:
    """Say it, tell each decided row its `p_flipped`, and return the figures. found: rows of an
    evaluation; trained_on: by the policy itself.

    Raises DataError where there are too few.
    """
    decided = [row for row in found if row["correct"] is not None]
    margin_M = np.array([row["rewards/margins"] for row in decided])
    try:
        flips = label_noise.estimate(margin_M)
    except ValueError as error:
        raise DataError(
            f"label_noise: {error}", remedy="more comparisons, or leave --label-noise away"
        ) from error
    for row, p in zip(decided, label_noise.flipped(margin_M, flips).tolist()):
        row["p_flipped"] = p
    bins = label_noise.calibration(margin_M)
    far = label_noise.calibration_error(bins)
    _say_calibration(bins)
    say(
        f"calibration error: {far:.1%} (mean distance of the first two columns); margins times"
        f" {flips.temperature:.3g} fit best"
    )
    say(
        f"flipped labels: {flips.rate:.1%} estimated (95 % interval {flips.low:.1%} to"
        f" {flips.high:.1%}), beyond what a noisy choice explains"
    )
    if trained_on:
        say(
            "[yellow]these are the rows it was trained on:[/] it has learnt part of their flips, so"
            " fewer are found than by a model that has not seen them"
        )
    say("most likely mislabelled:")
    for row in sorted(decided, key=lambda row: float(row["rewards/margins"]))[:SHOWN]:
        sides = f"completion {row['chosen']} over {row['rejected']}"
        say(
            f"  {safe(row['where'])}: {sides}, margin {row['rewards/margins']:+.2f} nats, flipped"
            f" with probability {row['p_flipped']:.0%}"
        )
    return {
        "label_noise": {
            **asdict(flips),
            "calibration_error": far,
            "calibration": [asdict(one) for one in bins],
        }
    }


def _say_calibration(bins: Sequence[label_noise.Bin]) -> None:
    table = Table(title="is s(margin) a probability?", title_justify="left", box=None)
    for column in ("the policy claims", "labels agree", "95 % interval", "comparisons"):
        table.add_column(column, justify="right")
    for one in bins:
        table.add_row(
            f"{one.claimed:.1%}",
            f"{one.agreed:.1%}",
            f"{one.low:.1%} to {one.high:.1%}",
            f"{one.count:,}",
        )
    console.print(table)
