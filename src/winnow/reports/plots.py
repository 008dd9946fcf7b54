"""Curves as inline SVG that takes its colours from the page's style sheet, so they follow light,
dark and print.

matplotlib draws with stand-in colours that are then replaced by CSS variables. No text of a user's
ever enters a drawing: names stand in the legend, which is HTML. Equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from winnow.reports.panels import PANELS, Panel
from winnow.system.format import Points, number, points, visible

WIDTH, HEIGHT = 400, 226  # CSS pixels at scale 1; three of them stand side by side on a laptop
MOST = 600  # points drawn per line: more are finer than the screen's pixels
SMOOTH_FROM = 40  # logged steps from which a running mean is drawn over the single steps
# whatever matplotlibrc the machine has
STYLE: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
STYLE |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "winnow",
    "font.size": 12.0,
    "axes.unicode_minus": True,
    "path.simplify": True,
}

Curve = Sequence[tuple[int | float, float]]

# stand-ins
INK = {
    name: f"#a1b2{i:02x}"
    for i, name in enumerate(
        ("ink", "muted", "rule", "c1", "c2", "r1", "r2", "r3", "r4", "r5", "r6"), 1
    )
}
RUN_INKS = ("r1", "r2", "r3", "r4", "r5", "r6")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: dict[str, tuple[int, tuple[float, ...]]] = {
    "solid": (0, ()),
    "dashed": (0, (5.0, 2.5)),
    "dotted": (0, (1.5, 2.0)),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One curve with everything that tells it apart: colour, dash, marker. `smooth`: a running mean
    is drawn; `faint`: the single steps behind it; `spans`: the interval of each point (low, high),
    where there are any. Points of a curve over steps are counted, others have any place on the
    axis.
    """

    points: Curve
    run: str
    label: str
    ink: str
    dash: str
    marker: str = ""
    smooth: bool = False
    faint: bool = False
    spans: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished plot for the template: SVG, and its legend as lines."""

    title: str
    caption: str
    svg: Markup
    lines: tuple[Line, ...] = field(default=())


def draw(runs: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """Every panel for which at least one of the runs has numbers, all runs in the same axes."""
    drawings, paired = [], any("rewards/margins" in run["final"] for run in runs)
    scored = all(run["recipe"] == "reward" for run in runs)
    for panel in PANELS:
        lines = [
            line
            for index, run in enumerate(runs)
            for line in _lines(panel, run, index, alone=len(runs) == 1)
        ]
        if lines:
            level = _clip(runs) if panel.metrics == ("grad_norm",) else panel.level
            caption = (scored and panel.scored) or (
                panel.caption if paired or not panel.unpaired else panel.unpaired
            )
            drawings.append(Drawing(panel.title, caption, _svg(panel, lines, level), tuple(lines)))
    return drawings


def draw_one(panel: Panel, lines: Sequence[Line]) -> Drawing:
    """One panel with the lines given."""
    return Drawing(panel.title, panel.caption, _svg(panel, lines, panel.level), tuple(lines))


def _lines(panel: Panel, run: Mapping[str, Any], index: int, *, alone: bool) -> list[Line]:
    """The curves of one run: training lines, then a marked line per evaluation set."""
    rows, found = run["metrics"], []
    for side, metric in enumerate(panel.metrics):
        role = metric.partition("/")[2] if len(panel.metrics) > 1 else ""
        colour = ("c1", "c2")[side] if alone else RUN_INKS[index % len(RUN_INKS)]
        if series := _series(rows, metric):
            marker = "" if alone and panel.label != "own samples" else MARKERS[index % len(MARKERS)]
            long = panel.smooth and len(series) >= SMOOTH_FROM
            found.append(
                Line(
                    series,
                    run["name"],
                    role or panel.label,
                    colour,
                    ("solid", "dashed")[side],
                    marker,
                    long,
                    long and alone,
                )
            )
        for place, (title, key) in enumerate(_evaluations(rows, metric)):
            ink = "ink" if alone and not role else colour
            marker = (
                MARKERS[(place + 2 * side) % len(MARKERS)]
                if alone
                else MARKERS[index % len(MARKERS)]
            )
            found.append(
                Line(
                    _series(rows, key),
                    run["name"],
                    f"{role}, {title}" if role else title,
                    ink,
                    "dotted",
                    marker,
                )
            )
    return found


def _evaluations(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[str, str]]:
    """(title, key) of the evaluations of a metric: `eval_METRIC`, and `eval_NAME_METRIC` of named
    sets.
    """
    plain = f"eval_{metric}"
    named = {
        key
        for row in rows
        for key in row
        if key.startswith("eval_") and key.endswith(f"_{metric}") and key != plain
    }
    return [
        ("held out" if key == plain else key[len("eval_") : -len(metric) - 1], key)
        for key in (plain, *sorted(named))
        if _series(rows, key)
    ]


def _series(rows: Sequence[Mapping[str, Any]], metric: str) -> Points:
    """The points to draw. At step 0 every pair is a tie and no win is strict: an accuracy of 0
    there says nothing.
    """
    return [
        (step, value)
        for step, value in points(rows, metric)
        if step > 0 or not metric.endswith("rewards/accuracies")
    ]


def _clip(runs: Sequence[Mapping[str, Any]]) -> float | None:
    clips = {run["settings"].get("clip") for run in runs}
    clip = clips.pop() if len(clips) == 1 else None
    return float(clip) if isinstance(clip, int | float) else None


def thin(series: Curve, most: int = MOST) -> Curve:
    """At most `most` points that keep the outline: the lowest and the highest of each stretch."""
    if len(series) <= most:
        return series
    size = -(-len(series) // (most // 2))
    kept: list[tuple[int | float, float]] = []
    for start in range(0, len(series), size):
        stretch = series[start : start + size]
        kept += sorted(
            {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        )
    return kept


def smooth(series: Curve) -> Curve:
    """A running mean centred on each point, over a fifteenth of the run."""
    half, total = max(1, len(series) // 30), [0.0]
    for _, value in series:
        total.append(total[-1] + value)
    reach = [(max(0, i - half), min(len(series), i + half + 1)) for i in range(len(series))]
    return [
        (step, (total[high] - total[low]) / (high - low))
        for (step, _), (low, high) in zip(series, reach, strict=True)
    ]


def _svg(panel: Panel, lines: Sequence[Line], level: float | None) -> Markup:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes(
            (48 / WIDTH, 26 / HEIGHT, (WIDTH - 60) / WIDTH, (HEIGHT - 36) / HEIGHT)
        )
        _dress(axes, whole=all(isinstance(step, int) for line in lines for step, _ in line.points))
        for line in lines:
            _trace(axes, line)
        _scale(axes, panel, lines, level)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _page_svg(buffer.getvalue(), visible(_spoken(panel, lines)))


def _dress(axes: Axes, whole: bool) -> None:
    """No box: hairlines across, small grey numbers, nothing else. whole: the horizontal axis
    counts.
    """
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(axis="y", color=INK["rule"], linewidth=1)
    axes.tick_params(length=0, labelcolor=INK["muted"], labelsize=12, pad=6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "−")
    text = f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.6g}"
    mantissa, mark, exponent = text.partition("e")
    return (f"{float(mantissa):g}e{int(exponent)}" if mark else text).replace("-", "−")


def _trace(axes: Axes, line: Line) -> None:
    dash = DASHES[line.dash]
    if line.faint:
        axes.plot(
            *zip(*thin(line.points), strict=True), color=INK[line.ink], linewidth=0.9, alpha=0.28
        )
    if line.spans:
        axes.vlines(
            [step for step, _ in line.points],
            *zip(*line.spans, strict=True),
            color=INK[line.ink],
            linewidth=1.6,
            alpha=0.6,
        )
    series = thin(smooth(line.points) if line.smooth else line.points)
    marked: dict[str, Any] = (
        {"marker": line.marker, "markersize": 4.6, "markeredgewidth": 0} if line.marker else {}
    )
    if line.marker and line.dash != "dotted":
        marked["markevery"] = max(1, len(series) // 7)
    if len(series) == 1 and not line.marker:
        marked = {"marker": "o", "markersize": 4.6, "markeredgewidth": 0}
    axes.plot(
        *zip(*series, strict=True),
        color=INK[line.ink],
        linewidth=1.2 if line.dash == "dotted" else 2.0,
        linestyle=dash,
        **marked,
    )


def _scale(axes: Axes, panel: Panel, lines: Sequence[Line], level: float | None) -> None:
    """Limits; and the level to compare with, drawn only where it lies near the curves."""
    steps = [step for line in lines for step, _ in line.points]
    if min(steps) < max(steps):
        # few points: their markers are seen whole
        beside = 0 if panel.axis == "step" else 0.04 * (max(steps) - min(steps))
        axes.set_xlim(min(steps) - beside, max(steps) + beside)
    if not all(float(step).is_integer() for step in steps):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.08)
    if panel.bottom is not None:
        axes.set_ylim(bottom=panel.bottom)
    bottom, top = axes.get_ylim()
    if level is not None and bottom - 0.3 * (top - bottom) <= level <= top + 0.3 * (top - bottom):
        axes.axhline(level, color=INK["muted"], linewidth=1, alpha=0.8)


def _spoken(panel: Panel, lines: Sequence[Line]) -> str:
    """The plot in a sentence, for those who hear it."""
    several = len({line.run for line in lines}) > 1
    parts = []
    for line in lines:
        (first, start), (last, end) = line.points[0], line.points[-1]
        who = f"{line.run}, {line.label}" if several else line.label
        parts.append(
            f"{who} from {number(start)} at {panel.axis} {number(first)} to {number(end)} at"
            f" {panel.axis} {number(last)}"
        )
    return f"{panel.title} by {panel.axis}: {'; '.join(parts)}."


def _page_svg(text: str, spoken: str) -> Markup:
    """matplotlib's file as a piece of a page: no prologue, no metadata, no global style, ids of its
    own, colours by name.
    """
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    head = (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(spoken)}">'
    )
    text, name = text[text.index(">") + 1 :], "p" + hashlib.sha256(text.encode()).hexdigest()[:10]
    text = re.sub(r"<defs>\s*</defs>", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", text)
    text = re.sub(
        r"font: ([0-9.]+)px [^;\"]*|font-size: ([0-9.]+)px; font-family: [^;\"]*",
        r"font-size: \1\2px",
        text,
    )
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    for ink, stand_in in INK.items():
        text = text.replace(stand_in, f"var(--{ink})")
    return Markup(head + re.sub(r"\n\s*", "\n", text))
