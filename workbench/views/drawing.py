"""Draw the two pictures of a sweep as SVG text: scores against the ratio, and one score against another.

They are drawn once; a view moves the group of class `wb-marker` to the current ratio. Text takes the theme's colours
where the picture stands in a page, and dark grey on white where it stands alone.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.views.front import Curve

# Legible on white and on near-black; shape and dash tell the curves apart without colour.
COLOURS = ("#2b7bba", "#d1661c", "#3f8f5f", "#9061b8")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
INK = "var(--jp-ui-font-color1, #222)"
SOFT = "var(--jp-ui-font-color2, #555)"
LINE = "var(--jp-border-color2, #ccc)"
PAGE = "var(--jp-layout-color1, #fff)"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The box that the data fill, in pixels of the picture."""

    left: float = 58
    top: float = 34
    width: float = 340
    height: float = 196

    def x(self, value: float) -> float:
        """Return where a value from 0 to 1 lies from left to right."""
        return round(self.left + self.width * value, 2)

    def y(self, value: float) -> float:
        """Return where a value from 0 to 1 lies from top to bottom."""
        return round(self.top + self.height * (1 - value), 2)


FRAME = Frame()
SIZE = (412, 284)


def ratio_picture(ratios: Sequence[float], curves: Sequence[Curve], *, x_title: str) -> str:
    """Return the SVG of scores from 0 to 1 against the ratio, each with its interval as a band.

    Args:
        ratios: Measured ratios, 0 to 1, rising.
        curves: One to four curves over them.
        x_title: What the ratio is the share of.
    """
    parts = [_axes(x_title, "score (0 to 1)")]
    for i, line in enumerate(curves):
        colour, dash = COLOURS[i % 4], DASHES[i % 4]
        upper = [f"{FRAME.x(r)},{FRAME.y(v)}" for r, v in zip(ratios, line.highs)]
        lower = [f"{FRAME.x(r)},{FRAME.y(v)}" for r, v in zip(ratios, line.lows)]
        path = " ".join(f"{FRAME.x(r)},{FRAME.y(v)}" for r, v in zip(ratios, line.values))
        parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.18"/>')
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2" stroke-dasharray="{dash}"/>'
        )
        for k, (r, value) in enumerate(zip(ratios, line.values)):
            parts.append(_dot(i, FRAME.x(r), FRAME.y(value), f"{line.name} at {r:g}: {line.text(k)}"))
        before = sum(48 + 7 * len(other.name) for other in curves[:i])
        parts.append(_legend(i, line.name, FRAME.left + before))
    marker = (
        f'<line x1="0" x2="0" y1="{FRAME.top - 6}" y2="{FRAME.top + FRAME.height}" stroke="{INK}" stroke-width="1.6"/>'
    )
    head = f'<path d="M-6,{FRAME.top - 12} h12 l-6,8 z" fill="{INK}"/>'
    parts.append(f'<g class="wb-marker" transform="translate({FRAME.x(ratios[0])} 0)">{marker}{head}</g>')
    return _svg(parts, f"Scores against {x_title}")


def pareto_picture(ratios: Sequence[float], across: Curve, up: Curve, *, label: str) -> str:
    """Return the SVG of one score against another, a point for each ratio, joined in the order of the ratios.

    Args:
        ratios: Measured ratios, rising.
        across: Score on the horizontal axis.
        up: Score on the vertical axis.
        label: What the numbers beside the points are the share of.
    """
    places = [(FRAME.x(a), FRAME.y(u)) for a, u in zip(across.values, up.values)]
    parts = [_axes(f"{across.name} score", f"{up.name} score")]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{SOFT}" stroke-width="1.4" stroke-dasharray="4 3"/>')
    for i, (ratio, (x, y)) in enumerate(zip(ratios, places)):
        parts.append(_bar(FRAME.x(across.lows[i]), y, FRAME.x(across.highs[i]), y))
        parts.append(_bar(x, FRAME.y(up.lows[i]), x, FRAME.y(up.highs[i])))
        title = f"{label} {ratio:.2f}: {across.name} {across.values[i]:.2f}, {up.name} {up.values[i]:.2f}"
        parts.append(_dot(0, x, y, title))
    parts += [_beside(*places[i], f"{ratios[i]:g}") for i in _apart(places)]
    parts.append(f'<text x="{FRAME.left}" y="16" fill="{INK}">number = {html.escape(label)}</text>')
    ring = f'<circle r="9" fill="none" stroke="{INK}" stroke-width="2.2"/>'
    parts.append(f'<g class="wb-marker" transform="translate({places[0][0]} {places[0][1]})">{ring}</g>')
    return _svg(parts, f"{up.name} against {across.name}")


def as_image(svg: str, alternative: str, width: int = SIZE[0]) -> str:
    """Return an `img` tag that holds the picture, which also shows in an untrusted notebook."""
    plain = svg.replace('class="wb-marker"', 'visibility="hidden"')
    data = base64.b64encode(plain.encode()).decode()
    return f'<img alt="{html.escape(alternative)}" width="{width}" src="data:image/svg+xml;base64,{data}"/>'


def _svg(parts: list[str], title: str) -> str:
    width, height = SIZE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(title)}" font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="{PAGE}"/>{"".join(parts)}</svg>'
    )


def _axes(x_title: str, y_title: str) -> str:
    parts = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        x, y = FRAME.x(value), FRAME.y(value)
        right, bottom = FRAME.x(1), FRAME.y(0)
        parts.append(f'<line x1="{FRAME.left}" x2="{right}" y1="{y}" y2="{y}" stroke="{LINE}"/>')
        parts.append(f'<text x="{FRAME.left - 8}" y="{y + 4}" text-anchor="end" fill="{SOFT}">{value:g}</text>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle" fill="{SOFT}">{value:g}</text>')
    middle, below = FRAME.y(0.5), f'x="{FRAME.x(0.5)}" y="{FRAME.y(0) + 40}"'
    parts.append(f'<text {below} text-anchor="middle" fill="{INK}">{html.escape(x_title)}</text>')
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" fill="{INK}" transform="rotate(-90 14 {middle})">'
        f"{html.escape(y_title)}</text>"
    )
    return "".join(parts)


def _dot(i: int, x: float, y: float, title: str) -> str:
    colour = COLOURS[i % 4]
    shapes = (
        f'<circle cx="{x}" cy="{y}" r="3.6"',
        f'<rect x="{x - 3.3}" y="{y - 3.3}" width="6.6" height="6.6"',
        f'<path d="M{x},{y - 4.4} l4.2,7.4 h-8.4 z"',
        f'<path d="M{x},{y - 4.6} l4.6,4.6 l-4.6,4.6 l-4.6,-4.6 z"',
    )
    return f'{shapes[i % 4]} fill="{colour}"><title>{html.escape(title)}</title></{shapes[i % 4][1:].split()[0]}>'


def _bar(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{COLOURS[0]}" stroke-width="1.2" opacity="0.55"/>'


def _legend(i: int, name: str, x: float) -> str:
    style = f'stroke="{COLOURS[i % 4]}" stroke-width="2.2" stroke-dasharray="{DASHES[i % 4]}"'
    text = f'<text x="{x + 32}" y="16" fill="{INK}">{html.escape(name)}</text>'
    return f'<line x1="{x}" x2="{x + 26}" y1="12" y2="12" {style}/>{_dot(i, x + 13, 12, name)}{text}'


def _beside(x: float, y: float, text: str) -> str:
    anchor, shift = ("end", -9) if x > FRAME.x(0.2) else ("start", 9)
    return f'<text x="{x + shift}" y="{y + 15}" text-anchor="{anchor}" fill="{SOFT}">{text}</text>'


def _apart(places: list[tuple[float, float]], distance: float = 24) -> list[int]:
    """Choose the points to number: both ends, and between them those far enough from the last one numbered."""
    chosen = [0]
    for i, place in enumerate(places[1:-1], start=1):
        if min(math.dist(place, places[chosen[-1]]), math.dist(place, places[-1])) >= distance:
            chosen.append(i)
    return [*chosen, len(places) - 1]
