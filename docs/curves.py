"""Draws docs/objectives-*.svg: `python docs/curves.py`. Each family's losses and their slopes,
against beta times the margin.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from winnow.objectives import losses
from winnow.objectives.table import TABLE

HERE = Path(__file__).parent
X = torch.linspace(-6, 6, 601, dtype=torch.float64)
Curve = Callable[[Tensor], Tensor]


def beta(name: str) -> float:
    """The objective's own."""
    return float(TABLE[name].settings["beta"])


def own(name: str) -> dict[str, float]:
    """All settings of its function."""
    return dict(TABLE[name].settings)


MARGIN: dict[str, Curve] = {
    "dpo": lambda z: losses.logistic(z, 1.0),
    "cdpo, e = 0.1": lambda z: 0.9 * losses.logistic(z, 1.0) + 0.1 * losses.logistic(-z, 1.0),
    "robust, e = 0.1, bound 4": lambda z: losses.robust(z, 1.0, 0.1, 4.0),
    "ipo, scaled": lambda z: losses.square(z, 1 / 4) / 4,
    "hinge": lambda z: losses.hinge(z, 1.0),
    "exo": lambda z: losses.exo(z, 1.0, 1e-3),
    "discopop": lambda z: losses.discopop(z, 1.0, 0.05),
}
# along w = z/2, l = -z/2, in units of beta
SIDES: dict[str, Curve] = {
    "nca": lambda z: losses.nca(z / 2, -z / 2, 1.0),
    "bco, shift 0": lambda z: losses.bco(z / 2, -z / 2, 1.0, 0.0),
    "sppo, scaled": lambda z: losses.sppo(z / 2, -z / 2, 1 / 4) / 8,
    "apo_zero": lambda z: losses.apo_zero(z / 2, -z / 2, 1.0),
    "apo_down": lambda z: losses.apo_down(z / 2, -z / 2, 1.0),
    "dpop, penalty 1": lambda z: losses.dpop(z / 2, -z / 2, 1.0, 1.0),
}
THUMBS: dict[str, Curve] = {
    "kto, good": lambda z: losses.kto(z, True, 1.0, 0.0),
    "kto, bad": lambda z: losses.kto(z, False, 1.0, 0.0),
    "bco_unpaired, good": lambda z: losses.bco_unpaired(z, True, 1.0, 0.0),
    "bco_unpaired, bad": lambda z: losses.bco_unpaired(z, False, 1.0, 0.0),
}
# the loser at a mean log-prob of -2, the winner from -4 to 0
WINNER = torch.linspace(-4, -0.02, 600, dtype=torch.float64)
FREE: dict[str, Curve] = {
    "simpo": lambda w: losses.simpo(w + 2, **own("simpo")),
    "alphapo": lambda w: losses.alphapo(w, torch.full_like(w, -2), **own("alphapo")),
    "orpo": lambda w: losses.orpo(w, torch.full_like(w, -2), 0.1),
    "cpo, 10 tokens": lambda w: losses.cpo(10 * w, torch.full_like(w, -20), -w, 0.1, 1.0),
    "sft, per token": lambda w: losses.nll(w),
}
# three answers: the best at z, the next at 0, the last at -z
RANKED: dict[str, Curve] = {
    "plackett_luce": lambda z: torch.stack(
        [losses.plackett_luce(torch.stack([x, x * 0, -x]), [0, 1, 2], 1.0) for x in z]
    ),
    "dpo, the mean of all pairs": (
        lambda z: (2 * losses.logistic(z, 1.0) + losses.logistic(2 * z, 1.0)) / 3
    ),
    "plackett_luce, the last two tied": lambda z: torch.stack(
        [losses.plackett_luce(torch.stack([x, x * 0, -x]), [0, 1, 1], 1.0) for x in z]
    ),
}
PLOTS: dict[str, tuple[dict[str, Curve], Tensor, str]] = {
    "margin": (MARGIN, X, "beta times the margin"),
    "sides": (SIDES, X, "beta times the margin, half of it on each side"),
    "thumbs": (THUMBS, X, "beta times the answer's log-ratio, shift and baseline 0"),
    "free": (FREE, WINNER, "the winner's mean log-prob; the loser's is -2"),
    "rankings": (RANKED, X, "beta r of three answers: z, 0, -z"),
}
INKS = ("#4269d0", "#ff725c", "#3ca951", "#a463f2", "#9c6b4e", "#e2a400", "#6cc5b0")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "winnow",
    "font.size": 10.0,
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
}


def draw(curves: dict[str, Curve], at: Tensor, label: str) -> Figure:
    """Losses on the left, slopes on the right."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, curve), ink in zip(curves.items(), INKS):
        x = at.clone().requires_grad_()
        value = curve(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        left.plot(at.tolist(), value.detach().tolist(), color=ink, label=name, linewidth=1.6)
        right.plot(at.tolist(), slope.tolist(), color=ink, linewidth=1.6)
    for axes, title in ((left, "loss"), (right, "slope")):
        axes.set_title(title, loc="left")
        axes.set_xlabel(label)
        axes.axhline(0, color="#888", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(
        min(-1.0, float(left.get_ylim()[0])) if "robust" in str(list(curves)) else 0,
        min(6.5, left.get_ylim()[1]),
    )
    right.set_ylim(max(-3.2, right.get_ylim()[0]), min(2.2, right.get_ylim()[1]))
    figure.legend(loc="outside right upper", frameon=False)
    return figure


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        for name, plot in PLOTS.items():
            draw(*plot).savefig(HERE / f"objectives-{name}.svg", metadata={"Date": None})
