"""Pictures of a sweep that stand on their own: scores against the ratio, one score against another, task by task."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.errors import ConfigError
from workbench.evaluation.suites import CLASSROOM
from workbench.views.drawing import COLOURS, as_image, pareto_picture, ratio_picture
from workbench.views.drawing import SIZE as PICTURE_SIZE
from workbench.views.front import Curve, about_line, curves, ratios_of, score_names, second_parent

GREY = "#777777"
"""Readable on white and on near-black: a plotly figure cannot take the colours of the notebook's theme."""

GRID = "rgba(127, 127, 127, 0.25)"
SYMBOLS = ("circle", "square", "triangle-up", "diamond")
DASHES = ("solid", "dash", "dot", "dashdot")


class SweepPlot:
    """A plotly figure with a picture and a table for readers whose page runs no scripts.

    Args:
        figure: What a notebook shows; change it as you like.
        picture: SVG of the same thing, or an empty text.
        table: HTML table of the same numbers.
        reading: How to read the picture, in one or two sentences.
        width: Of the picture, in pixels.
    """

    def __init__(
        self, figure: go.Figure, *, picture: str, table: str, reading: str, width: int = PICTURE_SIZE[0]
    ) -> None:
        self.figure, self.picture, self.table, self.reading, self.width = figure, picture, table, reading, width

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        title = str(self.figure.layout.title.text)  # pyright: ignore[reportAttributeAccessIssue]
        image = as_image(self.picture, title, self.width) if self.picture else ""
        return {
            "application/vnd.plotly.v1+json": json.loads(self.figure.to_json() or "{}"),
            "text/html": f"<div>{image}<p>{html.escape(self.reading)}</p>{self.table}</div>",
            "text/plain": f"{type(self).__name__}: {title}",
        }


class RatioPlot(SweepPlot):
    """Scores against the merge ratio, each with its 95 % interval as a band.

    Args:
        front: What `sweep` returned.
        scores: One to four of its scores; None takes clinical and instructions, or the first two there are.
        label: What the ratio is the share of; None takes the name of the second parent.

    Raises:
        ConfigError: `front` has not the columns of a sweep, or there are more than four scores.
    """

    def __init__(self, front: pd.DataFrame, scores: Sequence[str] | None = None, *, label: str | None = None) -> None:
        ratios, lines = ratios_of(front), _few(curves(front, scores))
        label = label or f"share of {second_parent(front)}"
        figure = go.Figure()
        for i, line in enumerate(lines):
            figure.add_traces(_band(ratios, line, i))
        finish(figure, "Scores against the merge ratio", about_line(front, lines), label, "score (0 to 1)")
        figure.update_layout(hovermode="x unified")
        super().__init__(
            figure,
            picture=ratio_picture(ratios, lines, x_title=label),
            table=_table(ratios, lines, label),
            reading=f"How to read this: from left to right the {label} grows; the band is the 95 % interval.",
        )


class ParetoPlot(SweepPlot):
    """One score against another, a point for each ratio: up and to the right is better.

    Args:
        front: What `sweep` returned.
        scores: Two of its scores, the one upwards first; None takes clinical and instructions, or the first two.
        label: What the ratio is the share of; None takes the name of the second parent.

    Raises:
        ConfigError: `front` has not the columns of a sweep, or there are not two scores.
    """

    def __init__(self, front: pd.DataFrame, scores: Sequence[str] | None = None, *, label: str | None = None) -> None:
        ratios, lines = ratios_of(front), curves(front, scores)
        if len(lines) != 2:
            raise ConfigError(f"scores={list(scores or ())}: the picture shows one score against another; name two")
        up, across = lines
        label = label or f"share of {second_parent(front)}"
        trace = go.Scatter(
            x=across.values,
            y=up.values,
            mode="lines+markers+text",
            text=[f"{ratio:g}" for ratio in ratios],
            textposition="bottom left",
            textfont={"color": GREY},
            error_x=_error(across),
            error_y=_error(up),
            line={"color": COLOURS[0], "width": 1.5, "dash": "dot"},
            marker={"size": 8},
            hovertemplate=f"{label} %{{text}}<br>{across.name} %{{x:.2f}}<br>{up.name} %{{y:.2f}}<extra></extra>",
            showlegend=False,
        )
        figure = go.Figure(trace)
        title = f"{up.name} against {across.name}"
        finish(figure, title, about_line(front, lines), f"{across.name} score", f"{up.name} score")
        figure.update_xaxes(range=[-0.03, 1.03])
        reading = f"How to read this: each point is one blend, its number the {label}; up and to the right is better."
        picture = pareto_picture(ratios, across, up, label=label)
        super().__init__(figure, picture=picture, table=_table(ratios, lines, label), reading=reading)


class TaskPlot(SweepPlot):
    """What a blend kept and what it forgot, task by task: both ends of a sweep and one ratio between them.

    Args:
        front: What `sweep` returned; its first and last ratio stand for the two parents.
        ratio: The blend to show; the nearest measured ratio is taken.
        tasks: Scores to show; None takes every score that is one task of the classroom, or every score there is.
        label: What the ratio is the share of; None takes the name of the second parent.

    Raises:
        ConfigError: `front` has not the columns of a sweep.
    """

    def __init__(
        self,
        front: pd.DataFrame,
        ratio: float = 0.5,
        tasks: Sequence[str] | None = None,
        *,
        label: str | None = None,
    ) -> None:
        ratios = ratios_of(front)
        lines = curves(front, tasks or _tasks(front))
        nearest = min(range(len(ratios)), key=lambda i: abs(ratios[i] - ratio))
        shown = sorted({0, nearest, len(ratios) - 1})
        label = label or f"share of {second_parent(front)}"
        names = [line.name.replace("_", " ") for line in lines]
        figure = go.Figure()
        for place, i in enumerate(shown):
            error = {
                "array": [line.highs[i] - line.values[i] for line in lines],
                "arrayminus": [line.values[i] - line.lows[i] for line in lines],
            }
            figure.add_scatter(
                x=[line.values[i] for line in lines],
                y=names,
                name=f"{label} {ratios[i]:g}",
                mode="markers",
                marker={"size": 10, "symbol": SYMBOLS[place], "color": COLOURS[(1, 3, 0)[place]]},
                error_x={"type": "data", "symmetric": False, "thickness": 1.2, "width": 3, **error},
            )
        finish(figure, "Task by task: kept and forgotten", about_line(front, []), "score (0 to 1)", "")
        figure.update_layout(height=190 + 26 * len(lines))
        figure.update_xaxes(range=[-0.03, 1.03])
        figure.update_yaxes(range=[len(lines) - 0.5, -0.5])
        reading = (
            "How to read this: one row for each task. Where the blend's mark lies near the better of the two outer "
            "ones, the task was kept; where it lies near the worse one, it was forgotten. Bars are 95 % intervals."
        )
        table = _table([ratios[i] for i in shown], [_only(line, shown) for line in lines], label)
        super().__init__(figure, picture="", table=table, reading=reading)


def _few(lines: list[Curve]) -> list[Curve]:
    if not 1 <= len(lines) <= len(SYMBOLS):
        raise ConfigError(f"{len(lines)} scores asked for; one picture holds one to four, so draw several pictures")
    return lines


def _tasks(front: pd.DataFrame) -> list[str]:
    known = score_names(front)
    return [name for name in CLASSROOM if name in known] or known


def _only(line: Curve, shown: Sequence[int]) -> Curve:
    values, lows, highs = ([numbers[i] for i in shown] for numbers in (line.values, line.lows, line.highs))
    return Curve(name=line.name, values=tuple(values), lows=tuple(lows), highs=tuple(highs), n=line.n)


def _band(ratios: Sequence[float], line: Curve, i: int) -> list[go.Scatter]:
    band = go.Scatter(
        x=[*ratios, *ratios[::-1]],
        y=[*line.highs, *line.lows[::-1]],
        fill="toself",
        mode="none",
        fillcolor=_faint(COLOURS[i]),
        hoverinfo="skip",
        showlegend=False,
    )
    mean = go.Scatter(
        x=list(ratios),
        y=line.values,
        name=line.name,
        mode="lines+markers",
        line={"color": COLOURS[i], "dash": DASHES[i], "width": 2.4},
        marker={"symbol": SYMBOLS[i], "size": 8},
        customdata=[line.text(k) for k in range(len(ratios))],
        hovertemplate="%{customdata}",
    )
    return [band, mean]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.18)"


def _error(line: Curve) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for high, value in zip(line.highs, line.values)],
        "arrayminus": [value - low for low, value in zip(line.lows, line.values)],
        "thickness": 1.2,
        "width": 0,
        "color": COLOURS[0],
    }


def finish(figure: go.Figure, title: str, about: str, x_title: str, y_title: str) -> None:
    """Give a figure its title, what stands behind it, its axes, and colours for both themes."""
    clear = "rgba(0, 0, 0, 0)"
    figure.update_layout(
        title={"text": title, "x": 0.01, "subtitle": {"text": about, "font": {"size": 12, "color": GREY}}},
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"color": GREY, "size": 13},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "title": None},
        margin={"l": 60, "r": 20, "t": 110, "b": 55},
        height=430,
    )
    figure.update_xaxes(title=x_title, gridcolor=GRID, zeroline=False)
    figure.update_yaxes(title=y_title, gridcolor=GRID, zeroline=False)
    if y_title:
        figure.update_yaxes(range=[-0.03, 1.03])


def _table(ratios: Sequence[float], lines: Sequence[Curve], label: str) -> str:
    """Return a table with one column for each ratio, so that many tasks stay readable."""
    head = "".join(f"<th>{ratio:g}</th>" for ratio in ratios)
    rows = "".join(
        f"<tr><th>{html.escape(line.name)}</th><td>{'' if line.n is None else line.n}</td>"
        + "".join(f"<td>{line.text(i)}</td>" for i in range(len(ratios)))
        + "</tr>"
        for line in lines
    )
    return (
        f"<table><thead><tr><th>score with 95 % interval at {html.escape(label)}</th><th>n</th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
