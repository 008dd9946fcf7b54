"""What the numbers of a training on rewards should tell its owner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from winnow.system.findings import Finding
from winnow.system.format import RECENT, Points, number, percent, points, recent

Run = Mapping[str, Any]
# share of the returns' variance that a critic explains: below, its values are hardly better than
# one number
IGNORANT = 0.1
# share of tokens whose slope is clipped away: beyond, much of what was sampled teaches nothing
HURRIED = 0.3
# nats per token moved since answers were drawn: ten times a healthy pace, and 0.05 for 200 tokens
# are 10 nats in an iteration
HURRIED_KL = 0.05
# mean KL over the target, or the inverse: less is the usual swing of a controller that only answers
# to what it has seen
OFF_TARGET = 1.5
# fall of the share of answers that end by themselves: with 100 answers at either end nearly three
# standard errors
UNENDING = 0.2
LATE = 10  # a tenth of the iterations is what is meant by the first and the last ones


def ignorant(run: Run) -> Finding | None:
    """The critic has learned next to nothing late in a run: it is no better than one number for
    all.
    """
    series, complete = (
        points(run["metrics"], "explained_variance"),
        run.get("status", {}).get("state") == "complete",
    )
    if len(series) < (RECENT if complete else STUCK_STEPS) or recent(series) >= IGNORANT:
        return None
    text = (
        f"The critic explains {number(recent(series), 2)} of the returns’ variance over the last"
        f" {RECENT} logged steps: it knows next to nothing."
    )
    return Finding(
        "warning",
        "ignorant",
        text,
        remedy="Raise critic_lr, raise lam to 1, or take advantage=rloo, which has no critic.",
    )


def hurried(run: Run) -> Finding | None:
    """The policy goes so far within an iteration that what was sampled before is no longer about
    it.
    """
    clip, kl = points(run["metrics"], "clip_fraction"), points(run["metrics"], "kl/step")
    if recent(clip) <= HURRIED and recent(kl) <= HURRIED_KL:
        return None
    text = (
        f"Within an iteration {percent(recent(clip))} of the tokens lost their slope to clipping"
        f" and {number(recent(kl), 2)} nats per token were moved"
    )
    return Finding(
        "warning",
        "hurried",
        f"{text}, means of the last {min(RECENT, len(clip))} logged steps: the steps are too"
        " large.",
        remedy="Lower lr, or epochs.",
    )


def off_target(run: Run) -> Finding | None:
    """The KL that was asked for is not the one that came of it, late in a run."""
    target, series, complete = (
        run["settings"].get("target_kl"),
        points(run["metrics"], "kl"),
        run.get("status", {}).get("state") == "complete",
    )
    if not isinstance(target, int | float) or len(series) < (FEW if complete else STUCK_STEPS):
        return None
    late = _tenth(series)
    kl = average(series[-late:])
    if target / OFF_TARGET <= kl <= target * OFF_TARGET:
        return None
    text = (
        f"KL to the reference is {number(kl)} nats per answer, mean of the last {late:,}"
        f" iterations, and target_kl is {number(float(target))}"
    )
    return Finding(
        "warning",
        "off-target",
        f"{text}: beta has not brought it there.",
        remedy="Train for more iterations, or lower horizon; raise horizon where beta swings.",
    )


def unending(run: Run) -> Finding | None:
    """Answers stop ending by themselves: what is cut off costs the policy nothing."""
    series = points(run["metrics"], "finished")
    late = _tenth(series)
    if len(series) < 2 * late:
        return None
    start, now = average(series[:late]), average(series[-late:])
    if start - now <= UNENDING:
        return None
    text = (
        f"Own answers that end by themselves fell from {percent(start)} in the first {late:,}"
        f" iterations to {percent(now)} in the last {late:,}"
    )
    return Finding(
        "warning",
        "unending",
        f"{text}: the others are cut off.",
        remedy="Give answers that are cut off a worse score with --unfinished.",
    )


def _tenth(series: Points) -> int:
    return max(FEW, len(series) // LATE)


STUCK_STEPS = (
    20  # logged steps before "stuck" is said of a run under way: a warm-up may rightly be slow
)


FEW = 3  # iterations, at the least, in such a tenth


def average(series: Points) -> float:
    return math.fsum(value for _, value in series) / len(series)
