"""Small line charts side by side as one SVG, for what changes over steps of training or over numbers of shots."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from workbench.views.drawing import COLOURS, DASHES, INK, LINE, PAGE, SOFT

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, TOP, ACROSS, UP = 300, 190, 52, 44, 236, 108


def curve_pictures(
    charts: Mapping[str, Mapping[str, Points]],
    *,
    columns: int = 3,
    ticks: Mapping[float, str] | None = None,
    over: str = "steps",
) -> str:
    """Return the SVG of several charts over the same steps.

    Args:
        charts: A chart's title to its lines; a line's name to its points (step, value).
        columns: Charts in a row.
        ticks: What stands below which step; None marks 0 and the last one.
        over: What the steps are.
    """
    rows = math.ceil(len(charts) / columns)
    width, height = WIDTH * min(columns, len(charts)), HEIGHT * rows
    parts = [
        f'<g transform="translate({WIDTH * (i % columns)} {HEIGHT * (i // columns)})">{_chart(title, lines, ticks)}</g>'
        for i, (title, lines) in enumerate(charts.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="max-width: 100%" aria-label="{html.escape(", ".join(charts))} over {over}" '
        f'font-family="system-ui, sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="{PAGE}"/>{"".join(parts)}</svg>'
    )


def _chart(title: str, lines: Mapping[str, Points], ticks: Mapping[float, str] | None) -> str:
    points = [point for line in lines.values() for point in line if math.isfinite(point[1])]
    if not points:
        return ""
    last = max(step for step, _ in points) or 1
    low, high = min(value for _, value in points), max(value for _, value in points)
    low, high = (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))
    parts = [f'<text x="{LEFT}" y="16" fill="{INK}" font-size="12">{html.escape(title)}</text>']
    for share in (0, 0.5, 1):
        y = TOP + UP * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + ACROSS}" y1="{y}" y2="{y}" stroke="{LINE}"/>')
        value = f"{low + share * (high - low):.3g}"
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end" fill="{SOFT}">{value}</text>')
    for step, text in ({0: "0", last: f"{last:g}"} if ticks is None else ticks).items():
        x, y = LEFT + ACROSS * step / last, TOP + UP + 16
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="{SOFT}">{html.escape(text)}</text>')
    for i, (name, line) in enumerate(lines.items()):
        style = f'fill="none" stroke="{COLOURS[i % 4]}" stroke-width="1.8" stroke-dasharray="{DASHES[i % 4]}"'
        places = " ".join(
            f"{LEFT + ACROSS * step / last:.1f},{TOP + UP * (high - value) / (high - low):.1f}"
            for step, value in line
            if math.isfinite(value)
        )
        # A line of one point has no length; its round end still shows.
        doubled = f"{places} {places}" if len(line) == 1 else places
        parts.append(f'<polyline points="{doubled}" {style} stroke-linecap="round"/>')
        if len(lines) > 1 and i < 4:
            room = ACROSS / min(len(lines), 4)
            x, most = LEFT + i * room, int((room - 15) / 5.2)
            short = html.escape(name if len(name) <= most else name[: most - 1] + "…")
            parts.append(f'<line x1="{x}" x2="{x + 12}" y1="30" y2="30" {style}/>')
            parts.append(f'<text x="{x + 15}" y="34" fill="{SOFT}">{short}<title>{html.escape(name)}</title></text>')
    return "".join(parts)
