"""Draws docs/benchmarks.svg from the figures of a run: pairs per second of both sides, workload by
workload.

`python bench/picture.py docs/benchmarks.json docs/benchmarks.svg`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

INK, OURS, BEST, DEFAULT = "#1f2933", "#0b6e4f", "#9aa5b1", "#cbd2d9"


def draw(figures: list[dict]) -> Figure:
    """Three bars a workload, and how many times as fast Winnow is."""
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "winnow",
            "font.size": 11,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
    figure = Figure(figsize=(9, 0.82 * len(figures) + 1.1), layout="constrained")
    axes = figure.subplots()
    for row, f in enumerate(figures):
        speed = f["pairs_per_second"]
        bars = [
            ("Winnow", speed["winnow"], OURS),
            ("TRL, its best setting", speed[f["best"]], BEST),
            ("TRL, defaults in float32", speed["trl default"], DEFAULT),
        ]
        for i, (label, value, colour) in enumerate(bars):
            axes.barh(
                row + 0.26 * (i - 1), value, 0.24, color=colour, label=label if row == 0 else None
            )
        axes.text(
            speed["winnow"],
            row - 0.26,
            f" {f['times_best']:.1f} times the best, {f['times_default']:.1f} times the default",
            va="center",
            fontsize=10,
        )
    axes.set_yticks(range(len(figures)), [f["workload"] for f in figures])
    axes.invert_yaxis()
    axes.set_xlabel("comparisons trained on per second")
    axes.set_xlim(0, 1.8 * max(f["pairs_per_second"]["winnow"] for f in figures))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    draw(found["figures"]).savefig(sys.argv[2], metadata={"Date": None})
