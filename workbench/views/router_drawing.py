"""Heat maps and bars as SVG text, and the panel that a picture stands in: how to read it, n, seed and a table."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.views.drawing import INK, LINE, PAGE, SOFT

MORE, LESS = "#2b7bba", "#d1661c"
CELL, ROW = 58, 26


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture with what a reader needs beside it.

    Args:
        title: What is shown.
        picture: SVG that takes the page's colours.
        reading: How to read it, in one or two sentences.
        about: n, documents, seed and what the interval is.
        head: Heads of the table of the same numbers.
        rows: Its rows.
    """

    title: str
    picture: str
    reading: str
    about: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def live(self) -> str:
        """Return the panel as HTML for a page that shows SVG; every text is escaped."""
        return self._html(f'<div class="wb-router-picture">{self.picture}</div>')

    def still(self) -> str:
        """Return the panel as HTML for an untrusted notebook, where a picture is an image."""
        data = base64.b64encode(self.picture.encode()).decode()
        return self._html(f'<img alt="{html.escape(self.title)}" src="data:image/svg+xml;base64,{data}"/>')

    def _html(self, picture: str) -> str:
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in self.head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>" for row in self.rows)
        table = f'<table class="wb-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        return (
            f'<h4>{html.escape(self.title)}</h4>{picture}<p class="wb-note">How to read this: '
            f'{html.escape(self.reading)}</p><p class="wb-note">{html.escape(self.about)}</p>'
            f'<details><summary>The numbers as a table</summary><div class="wb-scroll">{table}</div></details>'
        )


def tint(expert: int) -> str:
    """Return an expert's colour, light enough for text in front of it on a white and on a black page."""
    return f"hsla({expert * 137.5 % 360:.0f}, 70%, 50%, 0.32)"


def heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, marks: np.ndarray | None = None, digits: int = 2
) -> str:
    """Return an SVG of numbers in coloured cells: blue for above 0, orange for below, a star where `marks` is true.

    Args:
        values: Numbers, `(rows, columns)`; NaN leaves a cell empty.
        rows: Names at the left.
        columns: Names above.
        marks: Cells with a star, of the same shape.
        digits: Decimal places; a sign is written where some number is below 0.
    """
    top = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    sign = "+" if np.nanmin(values, initial=0) < 0 else ""
    left = _width(rows)
    parts = [_text(left + CELL * (j + 0.5), 16, name, "middle", SOFT) for j, name in enumerate(columns)]
    for i, name in enumerate(rows):
        y = 26 + ROW * i
        parts.append(_text(left - 8, y + 17, name, "end", INK))
        for j, value in enumerate(values[i]):
            x, filled = left + CELL * j, not np.isnan(value)
            strength = 0.75 * abs(value) / top if filled else 0
            colour = MORE if value >= 0 else LESS
            box = f'x="{x}" y="{y}" width="{CELL - 2}" height="{ROW - 2}"'
            parts.append(f'<rect {box} fill="{colour}" fill-opacity="{strength:.3f}" stroke="{LINE}"/>')
            star = "*" if marks is not None and marks[i, j] else ""
            if filled:
                parts.append(_text(x + CELL / 2 - 1, y + 17, f"{value:{sign}.{digits}f}{star}", "middle", INK))
    return _svg(parts, left + CELL * len(columns) + 8, 30 + ROW * len(rows))


def share_bars(shares: np.ndarray, rows: Sequence[str], notes: Sequence[str]) -> str:
    """Return an SVG with a bar of length 1 for each row, cut into the experts' shares, each with its expert's number.

    Args:
        shares: Shares, `(rows, experts)`, each row with sum 1.
        rows: Names at the left.
        notes: Short texts at the right.
    """
    left, length = _width(rows), 420
    parts = []
    for i, name in enumerate(rows):
        x, y = float(left), 6 + ROW * i
        parts.append(_text(left - 8, y + 17, name, "end", INK))
        for expert, share in enumerate(shares[i]):
            width = length * float(share)
            box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 4}"'
            title = f"<title>expert {expert}: {share:.0%}</title>"
            parts.append(f'<rect {box} fill="{tint(expert)}" stroke="{LINE}">{title}</rect>')
            if width > 16:
                parts.append(_text(x + width / 2, y + 16, str(expert), "middle", INK))
            x += width
        parts.append(_text(left + length + 8, y + 16, notes[i], "start", SOFT))
    return _svg(parts, left + length + 20 + max(7 * len(note) for note in notes), 12 + ROW * len(rows))


def _width(names: Sequence[str]) -> int:
    return 20 + max((7 * min(len(name), 34) for name in names), default=0)


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    short = text if len(text) <= 34 else text[:33] + "…"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(short)}</text>'


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="12" '
        f'aria-hidden="true"><rect width="100%" height="100%" fill="{PAGE}"/>{"".join(parts)}</svg>'
    )
