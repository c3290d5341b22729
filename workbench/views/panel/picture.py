"""The Pareto picture beside the answers: the ratio's curve, whose points are buttons, and every variant a point."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ModelError
from workbench.models import model_folder
from workbench.views.drawing import COLOURS, FRAME, INK, pareto_picture
from workbench.views.front import Curve, about_line, curves, ratios_of, second_parent

CHOOSE = """
const points = () => [...element.querySelectorAll('[data-ratio]')];
const choose = (point) => trigger('click', {ratio: Number(point.dataset.ratio)});
const away = (point, event) => {
  const box = point.getBoundingClientRect();
  return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
};
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-ratio]')) choose(points().sort((a, b) => away(a, event) - away(b, event))[0]);
});
element.addEventListener('keydown', (event) => {
  const point = event.target.closest('[data-ratio]');
  if (!point || (event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  choose(point);
});
"""
"""A click takes the nearest point, since they overlap; Enter or space takes the one in focus."""


class Picture:
    """Draw the picture for any share of the second parent.

    Args:
        front: What `sweep` returned.
        points: Name to the horizontal and the vertical score of variants that are no point of the curve.

    Raises:
        ConfigError: `front` has not the columns of a sweep.
    """

    def __init__(self, front: pd.DataFrame, points: Mapping[str, tuple[float, float]]) -> None:
        self.ratios, lines = ratios_of(front), curves(front)
        self.up, self.across = lines
        self.points, self.label = dict(points), f"share of {second_parent(front)}"
        self.about = about_line(front, lines)

    def html(self, share: float) -> str:
        """Return the picture with its ring where the blend with this share of the second parent stands."""
        svg = pareto_picture(self.ratios, self.across, self.up, label=self.label)
        x, y = FRAME.x(self._at(self.across, share)), FRAME.y(self._at(self.up, share))
        svg = re.sub(r'(class="wb-marker" transform=)"[^"]*"', rf'\1"translate({x} {y})"', svg)
        parts = [self._named(*item) for item in self.points.items()]
        parts += [self._button(i) for i in range(len(self.ratios))]
        svg = svg.replace('role="img"', 'role="group"').replace("</svg>", f"{''.join(parts)}</svg>")
        return (
            f"<div class='wb-picture'>{svg}<p class='wb-note'>Up and to the right is better. Click a point to load its "
            f"blend; the ring is the blend you have. {html.escape(self.about[:1].upper() + self.about[1:])}.</p></div>"
        )

    def _at(self, curve: Curve, share: float) -> float:
        return float(np.interp(share, self.ratios, curve.values))

    def _button(self, i: int) -> str:
        ratio, x, y = self.ratios[i], self.across.values[i], self.up.values[i]
        says = html.escape(f"{self.label} {ratio:g}: {self.across.name} {x:.2f}, {self.up.name} {y:.2f}")
        return (
            f'<circle class="wb-point" cx="{FRAME.x(x)}" cy="{FRAME.y(y)}" r="10" fill="transparent" tabindex="0" '
            f'role="button" data-ratio="{ratio}" aria-label="{says}"><title>{says}</title></circle>'
        )

    def _named(self, name: str, place: tuple[float, float]) -> str:
        x, y, colour = FRAME.x(place[0]), FRAME.y(place[1]), COLOURS[1]
        end = x > FRAME.x(0.75)
        return (
            f'<path d="M{x},{y - 6} l6,6 l-6,6 l-6,-6 z" fill="{colour}"/>'
            f'<text x="{x - 10 if end else x + 10}" y="{y - 7}" text-anchor="{"end" if end else "start"}" '
            f'font-weight="600" fill="{INK}">{html.escape(name)}</text>'
        )


def variant_points(front: pd.DataFrame, variants: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return where the variants that are a parent of the sweep stand, which is at an end of its curve.

    Args:
        front: What `sweep` returned.
        variants: Name to a model, or to the name of one.
    """
    up, across = curves(front)
    noted = str(front["parents"].iloc[0]).split(" + ") if "parents" in front else []
    parents = front.attrs.get("recipe", {}).get("parents", noted)
    ends = {_place(parent): end for parent, end in zip(parents, (0, -1))}
    places = {name: ends.get(_place(getattr(given, "name_or_path", given))) for name, given in variants.items()}
    return {name: (across.values[end], up.values[end]) for name, end in places.items() if end is not None}


def _place(name: object) -> str:
    """Return what a classroom name and its folder have in common; any other name as it is."""
    try:
        return str(model_folder(name)) if isinstance(name, str | Path) else ""
    except ModelError:
        return ""
