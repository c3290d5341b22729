"""The answers side by side: one pane for each parent, one for the blend, updated while they grow."""

from __future__ import annotations

import string
import threading
from collections.abc import Sequence

import ipywidgets as widgets

from workbench.views.answers import LEGEND, blend_pane, parent_pane


class AnswerPanes(widgets.VBox):
    """Panes whose texts may be set from any thread.

    Args:
        parents: The parents' full names, which `show` is called with.
        names: What to call them, in the same order.
    """

    def __init__(self, parents: Sequence[str], names: Sequence[str]) -> None:
        self.parents, self.names = list(parents), list(names)
        self.answers: dict[str | None, str] = {}
        self._guard = threading.RLock()
        self._writing = True
        self._blend = widgets.HTML()
        self._panes = {parent: widgets.HTML() for parent in self.parents}
        panes: list[widgets.Widget] = [self._blend, *self._panes.values()]
        if len(panes) == 3:
            panes = [panes[1], panes[0], panes[2]]
        grid = widgets.VBox(panes)
        grid.add_class("wb-panes")
        super().__init__(children=[grid, widgets.HTML(LEGEND)])
        self.add_class("wb-answers")
        self.clear()

    def show(self, parent: str | None, text: str, done: bool) -> None:
        """Show an answer as far as it is written; `parent` None is the blend."""
        with self._guard:
            self.answers[parent] = text
            if parent is None:
                self._writing = not done
                self._draw(self.parents if done else [])
            else:
                self._draw([parent])

    def clear(self) -> None:
        """Forget all answers, as for a new prompt."""
        with self._guard:
            self.answers.clear()
            self._writing = True
            self._draw(self.parents)

    def _draw(self, parents: Sequence[str]) -> None:
        """Draw the blend's pane and some parents'; a growing blend is compared with nothing yet."""
        blend = self.answers.get(None, "")
        known = {parent: self.answers[parent] for parent in self.parents if parent in self.answers}
        complete = len(known) == len(self.parents)
        self._blend.value = blend_pane("Blend", blend, known if complete else {}, writing=self._writing)
        for letter, name, parent in zip(string.ascii_uppercase, self.names, self.parents):
            if parent in parents:
                compared = "" if self._writing else blend
                self._panes[parent].value = parent_pane(letter, name, self.answers.get(parent), compared)
