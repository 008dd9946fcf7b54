"""Draws docs/theory-beta.svg, docs/theory-noise.svg and docs/theory-gradient.svg, and prints the
table of docs/theory.md.

`python docs/theory_plots.py` (some seconds): what is drawn as a dot was trained or minimised with
the project's losses, what is drawn as a line is a formula.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from winnow.objectives import divergences, losses

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))
closed = importlib.import_module("closed")

INK, RULE = "#1f2933", "#d5dbe1"
COLOURS = {"dpo": "#0b6e4f", "cdpo": "#b7791f", "robust": "#7b2d8b", "ipo": "#2563a8"}
STYLE = {
    "svg.hashsalt": "winnow",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
FINE = [10 ** (-1.5 + 2.5 * i / 200) for i in range(201)]


def beta() -> Figure:
    """KL to the reference against beta, and reward against KL: the closed form, and DPO trained to
    its optimum.
    """
    world = closed.World()
    labels_XAA = closed.bradley_terry(world.reward_XA)

    def seen(logp_XA: torch.Tensor) -> tuple[float, float]:
        return float(closed.kl(logp_XA, world.reference_XA)), float(
            closed.expected(logp_XA, world.reward_XA)
        )

    formula = [seen(closed.optimum(world.reference_XA, world.reward_XA, b)) for b in FINE]
    trained = [
        seen(closed.fitted(world, labels_XAA, lambda m, b=b: losses.logistic(m, b))) for b in BETAS
    ]
    print("| beta | KL, trained | KL, formula | reward, trained |\n|---|---|---|---|")
    for b, (distance, reward) in zip(BETAS, trained):
        print(
            f"| {b:g} | {distance:.6f} |"
            f" {seen(closed.optimum(world.reference_XA, world.reward_XA, b))[0]:.6f} |"
            f" {reward:.6f} |"
        )
    print(f"| reference | 0 | 0 | {seen(world.reference_XA)[1]:.6f} |")

    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(
        FINE, [distance for distance, _ in formula], color=COLOURS["dpo"], label="closed form"
    )
    left.loglog(
        BETAS,
        [distance for distance, _ in trained],
        "o",
        color=INK,
        label="DPO, trained to its optimum",
    )
    left.set(
        xlabel="beta",
        ylabel="KL(policy || reference), nats per answer",
        title="Higher beta stays closer",
    )
    left.set_xticks(
        [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]
    )
    left.set_yticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    left.minorticks_off()
    left.legend(loc="lower left")
    right.plot(
        [distance for distance, _ in formula],
        [reward for _, reward in formula],
        color=COLOURS["dpo"],
    )
    right.plot(
        [distance for distance, _ in trained], [reward for _, reward in trained], "o", color=INK
    )
    places = {
        0.05: (-4, -15),
        0.1: (6, -13),
        0.2: (7, -11),
        0.5: (9, -6),
        1.0: (9, -4),
        5.0: (9, -3),
    }
    for b, point in zip(BETAS, trained):
        right.annotate(f"{b:g}", point, xytext=places[b], textcoords="offset points")
    right.set(
        xlabel="KL(policy || reference), nats per answer",
        ylabel="expected reward",
        title="The frontier; beside each point its beta",
        xlim=(-0.08, 2.95),
    )
    _ruled(left, right)
    return figure


def noise() -> Figure:
    """Where each loss wants beta times the margin, of labels flipped at two rates."""
    figure = Figure(figsize=(9, 4.1), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    chance = torch.linspace(0.02, 0.98, 193, dtype=torch.float64)
    some = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    for axes, rate in zip(both, (0.1, 0.3)):
        axes.axhline(0, color=RULE, linewidth=1, zorder=0)
        axes.plot(
            chance,
            chance.logit(),
            color=INK,
            linewidth=5,
            alpha=0.18,
            label="logit p, the reward itself",
        )
        for name, (label, formula, loss, scale) in _noisy(rate).items():
            axes.plot(
                chance,
                scale * formula(chance),
                "--" if name == "ipo" else "-",
                color=COLOURS[name],
                label=label,
            )
            axes.plot(
                some,
                scale * _minimiser(closed.flipped(some, rate), loss),
                "o",
                color=COLOURS[name],
                markersize=4.5,
            )
        axes.set(
            xlabel="clean p: how often the winner really is the better one",
            title=f"{rate:.0%} of the labels flipped",
            ylim=(-4, 4),
        )
    both[0].set_ylabel("minimiser of beta times the margin")
    both[0].legend(loc="upper left", fontsize=9.5)
    _ruled(*both)
    return figure


def _noisy(e: float) -> dict[str, tuple[str, Callable, Callable, float]]:
    """name -> legend, formula of the clean p, loss of z = beta m under label probability q,
    scale.
    """

    def q(p: torch.Tensor) -> torch.Tensor:
        return closed.flipped(p, e)

    return {
        "dpo": (
            "DPO: logit q",
            lambda p: q(p).logit(),
            lambda q_M, z: divergences.soft(q_M, losses.logistic(z, 1.0), losses.logistic(-z, 1.0)),
            1.0,
        ),
        "cdpo": (
            "cDPO: q shrunk once more",
            lambda p: closed.flipped(q(p), e).logit(),
            lambda q_M, z: divergences.soft(
                divergences.smoothed(q_M, e), losses.logistic(z, 1.0), losses.logistic(-z, 1.0)
            ),
            1.0,
        ),
        "robust": (
            "robust: logit p",
            lambda p: p.logit(),
            lambda q_M, z: divergences.soft(
                q_M, losses.robust(z, 1.0, e, 10.0), losses.robust(-z, 1.0, e, 10.0)
            ),
            1.0,
        ),
        "ipo": (
            "IPO, times 4: 2 (2q - 1)",
            lambda p: (2 * q(p) - 1) / 2,
            lambda q_M, z: divergences.soft(q_M, losses.square(z, 1.0), losses.square(-z, 1.0)),
            4.0,
        ),
    }


def _minimiser(
    q_M: torch.Tensor, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    z_M = torch.zeros_like(q_M).requires_grad_()
    closed.minimise([z_M], lambda: loss(q_M, z_M).sum(), steps=200)
    return z_M.detach()


def gradient() -> Figure:
    """beta s(-beta m): the slope of the DPO loss in the margin, without its sign."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    margin = torch.linspace(-60, 60, 481, dtype=torch.float64)
    dots = torch.linspace(-60, 60, 13, dtype=torch.float64, requires_grad=True)
    for colour, b in zip(("#2563a8", "#0b6e4f", "#b7791f", "#7b2d8b"), (0.05, 0.1, 0.2, 0.5)):
        (slope,) = torch.autograd.grad(losses.logistic(dots, b).sum(), dots)
        axes.plot(margin, b * (-b * margin).sigmoid(), color=colour, label=f"beta {b:g}")
        axes.plot(dots.detach(), -slope, "o", color=colour, markersize=4)
    axes.axvline(0, color=RULE, linewidth=1, zorder=0)
    axes.text(-2, 0.535, "the loser is preferred \N{LEFTWARDS ARROW}", ha="right")
    axes.text(2, 0.535, "\N{RIGHTWARDS ARROW} the winner is preferred")
    axes.set(
        xlabel="margin: log-ratio of the winner minus that of the loser, nats",
        ylabel="weight of the pair",
        title="The more the winner is preferred, the less a pair pulls",
        ylim=(-0.02, 0.58),
    )
    axes.legend(loc="center right")
    _ruled(axes)
    return figure


def _ruled(*several: Axes) -> None:
    for axes in several:
        axes.grid(color=RULE, linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    matplotlib.rcParams.update(STYLE)
    for draw in (beta, noise, gradient):
        draw().savefig(HERE / f"theory-{draw.__name__}.svg", metadata={"Date": None})
