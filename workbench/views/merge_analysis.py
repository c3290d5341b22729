"""What can be known of a merge beforehand, in pictures: lengths, angles and conflicts by layer, the loss on the way."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from workbench.curriculum.losses import answer_losses
from workbench.merging.analysis import OUTSIDE, LossPath, PartStats, delta_stats, loss_path
from workbench.records import Example
from workbench.training.encode import collate, encode
from workbench.views.answers import short_names
from workbench.views.drawing import COLOURS
from workbench.views.plots import DASHES, GREY, GRID, SYMBOLS, SweepPlot

BATCH = 16


class MergeAnalysis(SweepPlot):
    """By layer, how far the parents have moved, in which directions and with which signs; and the loss between two.

    `parts` and `path` hold the numbers, the second None where no examples were given.

    Args:
        live: A `LiveMerge`; where it holds a base, the parents are compared by what they add to it.
        examples: Examples whose answers' loss is measured along the straight line between two parents, as
            `load_examples` returns them.
        tokenizer: The parents' tokenizer; None takes that of `live`.
        ratios: Points of that line, as in `loss_path`.

    Raises:
        ConfigError: There are examples, and not two parents.
        DataError: An example has no answer, or is too long for the models.
    """

    parts: list[PartStats]
    path: LossPath | None

    def __init__(
        self,
        live: Any,
        examples: Iterable[Example] | Iterable[Mapping[str, Any]] | None = None,
        tokenizer: Any = None,
        *,
        ratios: int | Sequence[float] = 11,
    ) -> None:
        self.parts, names, based = delta_stats(live), short_names(live.recipe.parents), live.base is not None
        self.path = None
        if examples is not None:
            self.path = loss_path(live, example_losses(live.model, tokenizer or live.tokenizer, examples), ratios)
        columns = _columns(self.parts, names, based)
        figure = _figure(self.parts, columns, self.path, names)
        reading = (
            "How to read this: on the left, how far each parent lies from "
            f"{'the base' if based else 'the first'}, relative to its length; in the middle, 1 means that the parents "
            f"{'moved' if based else 'point'} in one direction, 0 that they have nothing in common; the conflict is "
            "the share of weights in which they pull in opposite directions. "
        )
        if self.path is not None:
            reading += (
                "On the right, the loss on the straight line between the parents with its 95 % interval over the "
                f"examples (n = {self.path.n}); the barrier, how far it rises above the dotted line between its ends, "
                f"is {self.path.barrier:.3f} nats a token."
            )
        super().__init__(figure, picture="", table=_table(self.parts, columns, self.path), reading=reading)


def example_losses(model: Any, tokenizer: Any, examples: Any) -> Any:
    """Return a function from a model to each example's mean loss in nats per token of its answer and end.

    Args:
        model: Any of the models, for the length of its context.
        tokenizer: Their tokenizer.
        examples: As for `MergeAnalysis`.

    Raises:
        DataError: There is no example, one has no answer, or is too long.
    """
    rows: list[Any] = list(encode(model, tokenizer, examples).data)
    batches = [collate(rows[start : start + BATCH], pad=0) for start in range(0, len(rows), BATCH)]

    @torch.no_grad()
    def losses(model: Any) -> list[float]:
        found: list[float] = []
        for batch in batches:
            ids, mask, labels = (batch[key].to(model.device) for key in ("input_ids", "attention_mask", "labels"))
            found += answer_losses(model(input_ids=ids, attention_mask=mask).logits, labels).tolist()
        return found

    return losses


def _columns(parts: Sequence[PartStats], names: Sequence[str], based: bool) -> dict[str, dict[str, list[float]]]:
    """Return the numbers of the two left pictures, by the picture's title and the line's name."""
    pairs = list(combinations(range(len(names)), 2))
    distance = {name: [part.norms[i] for part in parts] for i, name in enumerate(names) if based or i}
    along = {f"cosine {names[i]}, {names[j]}": [part.cosines[i][j] for part in parts] for i, j in pairs}
    along["sign conflict"] = [part.conflict for part in parts]
    return {f"distance from {'the base' if based else names[0]}": distance, "direction and conflict": along}


def _figure(parts: Sequence[PartStats], columns: Any, path: LossPath | None, names: Sequence[str]) -> go.Figure:
    titles = [*columns, *(["loss between the parents"] if path else [])]
    figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles)
    shown = [part.part.removeprefix("layer ").replace(OUTSIDE, "outside") for part in parts]
    for place, lines in enumerate(columns.values(), 1):
        for i, (name, values) in enumerate(lines.items()):
            figure.add_scatter(x=shown, y=values, name=name, row=1, col=place, **_look(i))
        figure.update_xaxes(title="layer", type="category", row=1, col=place)
    if path is not None:
        error = {"array": path.errors, "thickness": 1.2, "width": 3}
        figure.add_scatter(x=path.ratios, y=path.losses, error_y=error, name="loss", row=1, col=3, **_look(0))
        ends = {"x": [0, 1], "y": [path.losses[0], path.losses[-1]], "name": "straight between its ends"}
        figure.add_scatter(**ends, mode="lines", line={"dash": "dot", "color": GREY}, row=1, col=3)
        figure.update_xaxes(title=f"share of {names[1]}", row=1, col=3)
    clear = "rgba(0, 0, 0, 0)"
    figure.update_layout(
        title={"text": f"Before merging {' and '.join(names)}", "x": 0.01},
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"color": GREY, "size": 12},
        legend={"orientation": "h", "y": -0.25},
        height=400,
        margin={"l": 50, "r": 20, "t": 80, "b": 60},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return figure


def _look(i: int) -> dict[str, Any]:
    line = {"color": COLOURS[i % 4], "dash": DASHES[i % 4]}
    return {"mode": "lines+markers", "line": line, "marker": {"symbol": SYMBOLS[i % 4], "size": 7}}


def _table(parts: Sequence[PartStats], columns: Any, path: LossPath | None) -> str:
    lines = [(title, name, values) for title, group in columns.items() for name, values in group.items()]
    head = [name if title.startswith("direction") else f"{title}: {name}" for title, name, _ in lines]
    rows = [
        [part.part, f"{part.size:,}", *(_number(values[i]) for *_, values in lines)] for i, part in enumerate(parts)
    ]
    tables = _html_table(["part", "weights", *head], rows)
    if path is not None:
        rows = [
            [f"{t:g}", *map(_number, numbers)]
            for t, *numbers in zip(path.ratios, path.losses, path.errors, path.heights)
        ]
        tables += _html_table(["ratio", "loss", "± (95 %)", "above the line between the ends"], rows)
    return tables


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
