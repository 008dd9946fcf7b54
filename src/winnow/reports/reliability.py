"""The drawing of a calibration: how often labels agree with what a model claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from winnow.system.format import percent

LEFT, TOP, WIDE, HIGH = 44, 12, 340, 176  # of the plot's field, CSS pixels


def reliability(bins: Sequence[Mapping[str, float]]) -> Markup:
    """Agreed against claimed, a point per bin with its interval; on the diagonal claims are true.
    Both axes in percent.
    """
    bottom = min(0.5, *(one["low"] for one in bins)) // 0.1 * 0.1

    def x(claimed: float) -> float:
        return LEFT + WIDE * (claimed - 0.5) / 0.5

    def y(agreed: float) -> float:
        return TOP + HIGH * (1 - agreed) / (1 - bottom)

    parts = []
    for tenth in range(round(10 * bottom), 11):
        at = y(tenth / 10)
        if (10 - tenth) % (1 if bottom > 0.4 else 2) == 0:
            parts.append(
                f'<path d="M{LEFT} {at:.1f}H{LEFT + WIDE}" stroke="var(--rule)"/><text'
                f' x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10 * tenth}</text>'
            )
    parts += [
        f'<text x="{x(tenth / 10):.1f}" y="{TOP + HIGH + 22}"'
        f' text-anchor="middle">{10 * tenth}</text>'
        for tenth in range(5, 11)
    ]
    parts.append(
        f'<path d="M{x(0.5):.1f} {y(0.5):.1f}L{x(1):.1f} {y(1):.1f}" stroke="var(--muted)"'
        ' stroke-dasharray="4 3" fill="none"/>'
    )
    line = "L".join(f"{x(one['claimed']):.1f} {y(one['agreed']):.1f}" for one in bins)
    parts.append(f'<path d="M{line}" stroke="var(--c1)" stroke-width="2" fill="none"/>')
    for one in bins:
        parts.append(
            f'<path d="M{x(one["claimed"]):.1f} {y(one["low"]):.1f}V{y(one["high"]):.1f}"'
            ' stroke="var(--c1)" stroke-width="1.6" opacity=".6"/>'
        )
        parts.append(
            f'<circle cx="{x(one["claimed"]):.1f}" cy="{y(one["agreed"]):.1f}" r="3.6"'
            ' fill="var(--c1)"/>'
        )
    said = "; ".join(
        f"{percent(one['claimed'])} claimed, {percent(one['agreed'])} agreed" for one in bins
    )
    head = (
        '<svg class="plot" viewBox="0 0 400 226" role="img" aria-label="Labels that agree, by'
        f' claim: {said}" font-size="12" fill="var(--muted)">'
    )
    return Markup(head + "".join(parts) + "</svg>")
