"""Means and shares of rows of which several may share a prompt, with 95 % intervals over prompts:
answers to one prompt are no independent looks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from winnow.system.figure import Figure
from winnow.system.format import wilson

Vector = NDArray[np.float64]


def mean(
    values: Sequence[float | int],
    prompts: Sequence[Hashable],
    weights: Sequence[float | int] | None = None,
) -> Figure:
    """Sum of weight times value over sum of weights (default: 1 each), with the interval of a
    ratio; with a row per prompt the usual one of a mean.
    """
    value_N, weight_N = (
        np.asarray(values, dtype=float),
        (np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)),
    )
    return ratio(weight_N * value_N, weight_N, prompts)


def ratio(
    over: Sequence[float | int] | Vector,
    under: Sequence[float | int] | Vector,
    prompts: Sequence[Hashable],
) -> Figure:
    """Sum of `over` divided by sum of `under`, with Student's t interval of P - 1 degrees over the
    P prompts.

    Variance P / (P - 1) sum_p (sum_{i of p} over_i - ratio under_i)^2 / (sum under)^2, linearised
    (W. Cochran, "Sampling Techniques", 1977, 6.3; Cameron and Miller, "A practitioner's guide to
    cluster-robust inference", 2015).
    """
    over_N, under_N = np.asarray(over, dtype=float), np.asarray(under, dtype=float)
    total, middle = float(under_N.sum()), math.fsum(over_N) / math.fsum(under_N)
    slope_P = _by_prompt(over_N - middle * under_N, prompts)
    many = len(slope_P)
    if many < 2:
        return Figure(middle, None, None, len(over_N), many, ONE)
    half = float(
        t.ppf(0.975, many - 1) * math.sqrt(many / (many - 1) * float(slope_P @ slope_P)) / total
    )
    return Figure(middle, middle - half, middle + half, len(over_N), many)


ONE = "one prompt has no spread to make an interval of"


def share(hits: Sequence[bool], prompts: Sequence[Hashable]) -> Figure:
    """The share of rows that are hits. One row per prompt: Wilson's interval.

    Otherwise Wilson's with as many rows as, independent, would vary as much as the prompts do, and
    Student's t (Franco, Little, Louis and Slud, "Comparative study of confidence intervals for
    proportions in complex sample surveys", 2019); where all prompts have one share, with the
    prompts.
    """
    count, many = len(hits), len(set(prompts))
    value = sum(hits) / count
    if many < 2 <= count:
        return Figure(value, None, None, count, many, ONE)
    n, z = float(many), float(norm.ppf(0.975))
    if many < count:
        slope_P = _by_prompt(np.asarray(hits, dtype=float) - value, prompts)
        variance = many / (many - 1) * float(slope_P @ slope_P) / count**2
        if variance > 1e-12 and 0 < value < 1:
            n, z = value * (1 - value) / variance, float(t.ppf(0.975, many - 1))
    return Figure(value, *wilson(value, n, z), count, many)


def stratified(figures: Sequence[Figure], weights: Sequence[float]) -> Figure:
    """The weighted mean of independent shares; its interval recovers each one's variance from that
    one's own limits: the distance to the lower limit is the root of sum (w_i (p_i - low_i))^2, and
    so for the upper (Zou and Donner, "Construction of confidence limits about effect measures",
    2008).
    """
    share_S = np.asarray(weights, dtype=float) / math.fsum(weights)
    value_S = np.asarray([one.value for one in figures], dtype=float)
    value = math.fsum(w * one for w, one in zip(share_S, value_S, strict=True))
    count, prompts = sum(one.count for one in figures), sum(one.prompts for one in figures)
    if why := next((one.why for one in figures if one.low is None or one.high is None), ""):
        return Figure(value, None, None, count, prompts, why)
    down, up = (
        math.sqrt(
            sum((w * (one - (end or 0.0))) ** 2 for w, one, end in zip(share_S, value_S, ends))
        )
        for ends in _ends(figures)
    )
    return Figure(value, max(0.0, value - down), min(1.0, value + up), count, prompts)


def flat(figures: Mapping[str, Figure | int]) -> dict[str, float | int]:
    """Figures as plain numbers: NAME, and NAME_low and NAME_high where there is an interval."""
    found: dict[str, float | int] = {}
    for name, one in figures.items():
        if not isinstance(one, Figure):
            found[name] = one
            continue
        ends = ((name, one.value), (f"{name}_low", one.low), (f"{name}_high", one.high))
        found |= {key: value for key, value in ends if value is not None}
    return found


def told(figures: Mapping[str, Figure | int]) -> dict[str, Any]:
    """The same for a file, with everything that belongs to a figure."""
    return {name: asdict(one) if isinstance(one, Figure) else one for name, one in figures.items()}


def _by_prompt(value_N: Vector, prompts: Sequence[Hashable]) -> Vector:
    """Sums over the rows of each prompt."""
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return np.asarray(
        np.bincount([number[prompt] for prompt in prompts], value_N, minlength=len(number)),
        dtype=float,
    )


def _ends(figures: Sequence[Figure]) -> tuple[list[float | None], list[float | None]]:
    return [one.low for one in figures], [one.high for one in figures]
