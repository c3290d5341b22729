"""The picture of the few-shot protocol: scores against the number of shots, one line a parent."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.errors import ConfigError
from workbench.views.curve_picture import WIDTH, curve_pictures
from workbench.views.drawing import COLOURS
from workbench.views.plots import DASHES, SYMBOLS, SweepPlot, finish


class FewShotPlot(SweepPlot):
    """Scores against the number of shots k, a panel for each score and a line for each parent.

    Shots stand at log2(1 + k), so that 0 has a place; bars are the 95 % t-intervals over seeds.

    Args:
        table: What `shots_table` returned, also after a way through a file.
        scores: One or two of its scores; None takes the first two.

    Raises:
        ConfigError: `table` has not the columns of a few-shot table, or there are more than four parents or two scores.
    """

    def __init__(self, table: pd.DataFrame, scores: Sequence[str] | None = None) -> None:
        known = [name.removesuffix("_low") for name in table.columns if name.endswith("_low")]
        names = list(known[:2] if scores is None else scores)
        if table.empty or not {"parent", "k", "n"} <= {*table.columns} or not names or not {*names} <= {*known}:
            have = f"the table has the columns {list(table.columns)} and scores={names} are asked for"
            raise ConfigError(f"{have}; pass what shots_table returned, and some of its scores")
        parents, rows = list(dict.fromkeys(table["parent"])), table.to_dict("records")
        if len(parents) > len(SYMBOLS) or len(names) > 2:
            have = f"{len(parents)} parents and {len(names)} scores"
            raise ConfigError(f"{have}; a picture holds up to {len(SYMBOLS)} and 2: draw several")
        ordered = sorted(rows, key=lambda row: row["k"])
        by_parent = {parent: [row for row in ordered if row["parent"] == parent] for parent in parents}
        figure = make_subplots(cols=len(names), shared_xaxes=True, horizontal_spacing=0.1)
        for column, name in enumerate(names, start=1):
            for i, (parent, mine) in enumerate(by_parent.items()):
                figure.add_trace(_line(mine, name, parent, i, legend=column == 1), row=1, col=column)
        seeds = sorted({row["n"] for row in rows if row["k"]}) or [1]
        about = f"means over tasks; n = {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds"
        finish(figure, "Scores against the number of shots", about, "shots k", " ")
        ks = sorted({row["k"] for row in rows})
        figure.update_xaxes(tickvals=[math.log2(1 + k) for k in ks], ticktext=[str(k) for k in ks])
        for column, name in enumerate(names, start=1):
            figure.update_yaxes(title=f"{name.replace('_', ' ')} (0 to 1)", col=column)
        reading = (
            "How to read this: from left to right each parent is fine-tuned on more examples of a task; 0 is the "
            "parent as it is, measured once. Bars, or the ranges in the table, are 95 % t-intervals over seeds. A line "
            "that stays above another at fewer shots learns faster; where the line of a kept score falls, fine-tuning "
            "made the parent forget."
        )
        picture = curve_pictures(
            {
                name.replace("_", " "): {
                    parent: [(math.log2(1 + row["k"]), row[name]) for row in mine] for parent, mine in by_parent.items()
                }
                for name in names
            },
            ticks={math.log2(1 + k): str(k) for k in ks},
            over="shots",
        )
        super().__init__(figure, picture=picture, table=_table(rows, names), reading=reading, width=WIDTH * len(names))


def _line(rows: Sequence[dict[str, Any]], name: str, parent: str, i: int, *, legend: bool) -> go.Scatter:
    ends = [(row[f"{name}_low"], row[name], row[f"{name}_high"]) for row in rows]
    bars = {
        "array": [0 if math.isnan(high) else high - value for _, value, high in ends],
        "arrayminus": [0 if math.isnan(low) else value - low for low, value, _ in ends],
    }
    return go.Scatter(
        x=[math.log2(1 + row["k"]) for row in rows], y=[value for _, value, _ in ends], mode="lines+markers",
        # Else a parent's name could be read as markup.
        name=html.escape(parent), legendgroup=parent, showlegend=legend,
        line={"color": COLOURS[i], "dash": DASHES[i], "width": 2.2}, marker={"symbol": SYMBOLS[i], "size": 8},
        error_y={"type": "data", "symmetric": False, "thickness": 1.2, "width": 4, **bars},
        customdata=[_text(row, name) for row in rows], hovertemplate="%{customdata}",
    )  # fmt: skip


def _text(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.3f}" + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})")


def _table(rows: Sequence[Any], names: Sequence[str]) -> str:
    heads = "".join(f"<th>{html.escape(name)} (95 % interval)</th>" for name in names)
    body = "".join(
        f"<tr><th>{html.escape(row['parent'])}</th><td>{row['k']}</td><td>{row['n']}</td>"
        + "".join(f"<td>{_text(row, name)}</td>" for name in names)
        + "</tr>"
        for row in rows
    )
    head = f"<tr><th>parent</th><th>k</th><th>seeds</th>{heads}</tr>"
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
