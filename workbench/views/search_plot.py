"""The picture of a search for a recipe: every blend that was tried, and those that nothing beats."""

from __future__ import annotations

import html
import json
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.errors import ConfigError
from workbench.views.drawing import COLOURS
from workbench.views.front import AXES
from workbench.views.plots import GREY, SweepPlot, finish

_STEPS = {
    "parent": {"symbol": "square", "size": 11, "color": COLOURS[1]},
    "uniform": {"symbol": "diamond", "size": 9, "color": COLOURS[3]},
    "search": {"symbol": "circle", "size": 6, "color": GREY},
}


class SearchPlot(SweepPlot):
    """All recipes of a search on its two axes, with the Pareto front drawn through.

    Args:
        found: What `search_recipe` returned, also after a way through a file.
        axes: The two scores that were searched, the one upwards first; None takes those that the table notes.

    Raises:
        ConfigError: `found` is not such a table, or holds no blend yet.
    """

    def __init__(self, found: pd.DataFrame, axes: tuple[str, str] | None = None) -> None:
        pair: Any = axes or found.attrs.get("axes") or AXES
        up, across = pair
        if not {"kept", "front", "recipe", up, across} <= {*found.columns}:
            raise ConfigError(f"the table has the columns {list(found.columns)}; pass what search_recipe returned")
        figure = go.Figure()
        for step, marker in _STEPS.items():
            rows = found[found["step"] == step]
            figure.add_scatter(
                x=rows[across],
                y=rows[up],
                name=step,
                mode="markers",
                marker=marker,
                customdata=[_ratios(recipe) for recipe in rows["recipe"]],
                hovertemplate=f"%{{customdata}}<br>{across} %{{x:.2f}}<br>{up} %{{y:.2f}}<extra>{step}</extra>",
            )
        front = found.loc[found["front"]].sort_values(by=across)
        figure.add_scatter(
            x=front[across],
            y=front[up],
            name="front",
            mode="lines+markers",
            marker={"symbol": "circle-open", "size": 13, "line": {"width": 2}},
            line={"color": COLOURS[0], "shape": "vh"},
            hoverinfo="skip",
        )
        counts = ", ".join(f"{axis} n = {int(found[f'{axis}_n'].iloc[0]):,}" for axis in (up, across))
        noted = [f"{name} {found.attrs[name]}" for name in ("split", "seed") if found.attrs.get(name) is not None]
        about = "; ".join([f"for each recipe {counts}", *noted])
        finish(figure, f"{len(found)} recipes: {up} against {across}", about, f"{across} score", f"{up} score")
        figure.update_xaxes(range=[-0.03, 1.03])
        reading = (
            "How to read this: each mark is one recipe, up and to the right is better. The stepped line joins the "
            "recipes that no other beats on both scores; plain ratios are diamonds, the parents squares. Neighbours "
            "on the line differ by less than their intervals: the best of many tries on one set of examples is "
            "flattered by chance, so confirm it on others."
        )
        super().__init__(figure, picture="", table=_table(front, (up, across)), reading=reading)


def _ratios(recipe: str) -> str:
    """Return the second parent's weights as short text."""
    weight = json.loads(recipe)["weights"][1]
    parts: dict[str, Any] = weight if isinstance(weight, dict) else {"all": weight}
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def _table(front: pd.DataFrame, axes: tuple[str, str]) -> str:
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{row[axis]:.2f} ({row[f'{axis}_low']:.2f} to {row[f'{axis}_high']:.2f})</td>" for axis in axes)
        + f"<td>{row['kept']:.0%}</td><td>{html.escape(_ratios(str(row['recipe'])))}</td></tr>"
        for _, row in front.iterrows()
    )
    head = "".join(f"<th>{html.escape(axis)} (95 % interval)</th>" for axis in axes)
    return (
        f"<table><thead><tr>{head}<th>kept of both</th><th>share of the second parent</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
