"""The chart inside a view: a sweep's two pictures with a marker that follows a slider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anywidget
import pandas as pd
import traitlets

from workbench.views.controls import STATIC
from workbench.views.drawing import FRAME, pareto_picture, ratio_picture
from workbench.views.front import Curve, curves, ratios_of


class BlendChart(anywidget.AnyWidget):
    """Scores against the ratio and against each other, with a marker at `position`.

    The pictures are drawn once in the kernel; the browser moves only the marker and the sentence below.

    Args:
        front: What `sweep` returned.
        scores: Two to four of its scores, the first two for the second picture; None takes clinical and instructions.
        label: What the ratio is the share of, e.g. `share of clinical`.
    """

    _esm = STATIC / "blend_chart.js"
    _css = STATIC / "workbench.css"
    pictures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    ratios = traitlets.List(traitlets.Float()).tag(sync=True)
    tracks = traitlets.List(traitlets.Dict()).tag(sync=True)
    series = traitlets.List(traitlets.Dict()).tag(sync=True)
    position = traitlets.Float(0.0).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)

    def __init__(self, front: pd.DataFrame, scores: Sequence[str] | None = None, *, label: str, **kwargs: Any) -> None:
        ratios, lines = ratios_of(front), curves(front, scores)
        up, across = lines[0], lines[1]
        tracks = [
            {"xs": [FRAME.x(ratio) for ratio in ratios], "ys": [0.0] * len(ratios)},
            {"xs": [FRAME.x(value) for value in across.values], "ys": [FRAME.y(value) for value in up.values]},
        ]
        super().__init__(
            pictures=[ratio_picture(ratios, lines, x_title=label), pareto_picture(ratios, across, up, label=label)],
            ratios=ratios,
            tracks=tracks,
            series=[_as_dict(line) for line in lines],
            label=label,
            **kwargs,
        )


def nearest_scores(front: pd.DataFrame, ratio: float, *, label: str) -> str:
    """Return the scores at the measured ratio nearest to `ratio`, in one sentence."""
    ratios, lines = ratios_of(front), curves(front)
    i = min(range(len(ratios)), key=lambda k: abs(ratios[k] - ratio))
    parts = [f"{line.name} {line.text(i)}" + ("" if line.n is None else f", n = {line.n:,}") for line in lines]
    return f"Measured at {label} {ratios[i]:g}: {'; '.join(parts)} (value, 95 % interval, examples)."


def _as_dict(line: Curve) -> dict[str, Any]:
    return {"name": line.name, "values": [*line.values], "lows": [*line.lows], "highs": [*line.highs]}
