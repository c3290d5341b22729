"""A histogram of difficulty with movable borders between stages, and examples of each stage below."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets

from workbench.curriculum.difficulty import stage_by_difficulty
from workbench.curriculum.stage import Stage, records
from workbench.errors import ConfigError
from workbench.views.controls import STATIC
from workbench.views.curriculum_pictures import LEFT, WIDTH, histogram_picture
from workbench.views.drawing import as_image

_BINS = 30
HOW_TO_READ = (
    "How to read this: a bar is the number of examples of that difficulty; a border parts two stages. Drag it, or "
    "focus it and press the arrow keys; the examples below follow."
)


class BorderHistogram(anywidget.AnyWidget):
    """Bars with draggable borders; `borders` follows the pointer, `chosen` a movement that has come to rest.

    Args:
        counts: Height of each bar.
        low: Left end of the first bar.
        high: Right end of the last.
        borders: Rising values between them.
        label: What is measured.
    """

    _esm = STATIC / "stage_borders.js"
    _css = STATIC / "workbench.css"
    counts = traitlets.List(traitlets.Int()).tag(sync=True)
    low = traitlets.Float().tag(sync=True)
    high = traitlets.Float().tag(sync=True)
    borders = traitlets.List(traitlets.Float()).tag(sync=True)
    chosen = traitlets.List(traitlets.Float()).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)

    def move(self, borders: Sequence[float]) -> None:
        """Set the borders from Python, as if they had been dragged there and released."""
        with self.hold_sync():
            self.borders = self.chosen = [float(border) for border in borders]


class StageBorders(widgets.VBox):
    """Stages cut by hand: move the borders, look at examples, then take `.stages`.

    Args:
        examples: Examples, or rows with their columns.
        values: How hard each is, from `difficulty`; NaN for those to be left out, which are counted in the view.
        num_stages: Number of stages, at least 2; their borders begin at equal numbers of examples.
        names: Names of the stages; None numbers them.
        label: What was measured, e.g. `loss in nats per answer token`.
        previews: Examples shown for each stage.

    Raises:
        ConfigError: There is not one value for each example, they do not vary, or the number of stages or names is off.
    """

    def __init__(
        self, examples: Any, values: Sequence[float], *, num_stages: int = 3, names: Sequence[str] | None = None,
        label: str = "difficulty", previews: int = 3,
    ) -> None:  # fmt: skip
        rows = records(examples)
        if len(rows) != len(values):
            raise ConfigError(f"{len(rows)} examples and {len(values)} values; give one value for each example")
        pairs = [(row, float(value)) for row, value in zip(rows, values, strict=True) if not math.isnan(value)]
        self.examples, self.values = [row for row, _ in pairs], [value for _, value in pairs]
        self.names = [f"stage {k + 1}" for k in range(num_stages)] if names is None else list(names)
        if not (len(set(self.values)) >= num_stages >= 2 and len(self.names) == num_stages):
            raise ConfigError(
                f"num_stages={num_stages}, {len(self.names)} names, {len(set(self.values))} different values; there "
                "must be at least two stages, a name for each, and at least as many different values"
            )
        self._left_out, self._previews = len(rows) - len(pairs), previews
        counts, edges = np.histogram(self.values, _BINS)
        borders = [float(b) for b in np.quantile(self.values, [k / num_stages for k in range(1, num_stages)])]
        self.histogram = BorderHistogram(
            counts=counts.tolist(), low=float(edges[0]), high=float(edges[-1]), borders=borders, chosen=borders,
            label=label,
        )  # fmt: skip
        self._below = widgets.HTML()
        head = widgets.HTML(f'<h4>Stages by {html.escape(label)}</h4><p class="wb-note">{HOW_TO_READ}</p>')
        super().__init__(children=[head, self.histogram, self._below])
        self.add_class("wb-view")
        self.histogram.observe(lambda _: self._show(), "chosen")
        self._show()

    @property
    def stages(self) -> list[Stage]:
        """The stages as the borders now stand.

        Raises:
            ConfigError: A stage is empty: two borders stand on one spot, or one at an end.
        """
        known = {example.id: value for example, value in zip(self.examples, self.values, strict=True)}
        borders = sorted(self.histogram.chosen)
        return stage_by_difficulty(self.examples, lambda e: known[e.id], borders=borders, names=self.names)

    def _show(self) -> None:
        self._below.value = self._previews_html()

    def _previews_html(self) -> str:
        try:
            stages = self.stages
        except ConfigError as error:
            return f'<p class="wb-error">{html.escape(str(error))}</p>'
        left_out = f"; {self._left_out} too long to be measured are left out" if self._left_out else ""
        parts = [f'<p class="wb-note">n = {len(self.values)} examples{left_out}.</p>']
        for stage in stages:
            step = max(1, len(stage.examples) // self._previews)
            lines = "".join(
                f"<tr><td>{_short(e.prompt())}</td><td>{_short(e.answer)}</td></tr>"
                for e in stage.examples[::step][: self._previews]
            )
            head = "<thead><tr><th>asked</th><th>wanted</th></tr></thead>"
            parts.append(f"<h4>{html.escape(stage.name)}: {len(stage.examples)} examples</h4>")
            parts.append(f'<table class="wb-table">{head}<tbody>{lines}</tbody></table>')
        return "".join(parts)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a still histogram, borders and examples as tables: they are what a saved, untrusted notebook shows."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        shown, chosen = self.histogram, sorted(self.histogram.chosen)
        title = f"Stages by {shown.label}; borders at {', '.join(f'{border:.3g}' for border in chosen)}."
        picture = histogram_picture(shown.counts, shown.low, shown.high, chosen, shown.label)
        image = as_image(picture, title, LEFT + WIDTH + 12)
        bundle["text/html"] = f"<p>{html.escape(title)}</p>{image}<p>{HOW_TO_READ}</p>{self._previews_html()}"
        return bundle


def _short(text: str) -> str:
    return html.escape(text if len(text) <= 160 else f"{text[:159]}…")
