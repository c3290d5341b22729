"""A curriculum while it trains: loss and stages, the matrix filling in, and what the memories hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from workbench.records import Scores
from workbench.views.controls import StyleSheet
from workbench.views.curriculum_pictures import matrix_panel, memory_tables, ribbon_panel

_PAUSE_S = 0.5
"""A picture that is drawn anew more often than this only costs training time."""


class CurriculumView(widgets.VBox):
    """Three live panels; give `run.watch(view.update)` or `train(..., on_log=view.update)` something to call.

    Args:
        curriculum: The `Curriculum` under training.
        measure: Called with the model by `view.evaluate`, which is meant for `train(..., evaluate=view.evaluate)`;
            returns `Scores`, e.g. `lambda model: wb.evaluate(model, tokenizer, limit=40)`. None leaves the matrix out.
        before: Scores before training, the matrix's first column.
    """

    def __init__(
        self,
        curriculum: Any,
        *,
        measure: Callable[[Any], Scores] | None = None,
        before: Scores | None = None,
    ) -> None:
        self.curriculum, self.measure = curriculum, measure
        self.after: dict[str, Scores] = {} if before is None else {"before": before}
        self._parts = [widgets.HTML(), widgets.HTML(), widgets.HTML()]
        self._drawn = 0.0
        super().__init__(children=[*self._parts, StyleSheet()])
        self.add_class("wb-view")
        self.draw()

    def evaluate(self, model: Any) -> Scores | Mapping[str, float]:
        """Measure the model; what is measured last in a stage stands in the matrix."""
        if self.measure is None:
            return {}
        scores = self.measure(model)
        self.after[self.curriculum.history[-1]["stage"]] = scores
        self.draw()
        return scores

    def update(self, *_: Any) -> None:
        """Draw anew, unless that was done a moment ago; takes and ignores what a callback is given."""
        if time.monotonic() - self._drawn > _PAUSE_S:
            self.draw()

    def draw(self) -> None:
        """Draw everything anew."""
        for part, text in zip(self._parts, self._texts("live"), strict=True):
            part.value = text
        self._drawn = time.monotonic()

    def _texts(self, kind: str) -> list[str]:
        names = [stage.name for stage in self.curriculum.stages]
        ribbon = ribbon_panel(self.curriculum) if self.curriculum.history else None
        matrix = matrix_panel(self.after, [*self.after, *names]) if self.after else None
        texts = ["" if panel is None else getattr(panel, kind)() for panel in (ribbon, matrix)]
        return [texts[0] or "<p>Nothing was trained yet.</p>", texts[1], memory_tables(self.curriculum)]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add still pictures and tables: they are what a saved, untrusted notebook shows."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        bundle["text/html"] = "".join(self._texts("still"))
        return bundle
