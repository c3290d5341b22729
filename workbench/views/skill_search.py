"""A search for skill weights as it runs: the loss try by try, the best weights so far, and a Stop button."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from workbench.views.controls import StyleSheet
from workbench.views.forms import button, status_line
from workbench.views.router_drawing import Panel
from workbench.views.skill_pictures import path_panels
from workbench.views.worker import LatestWorker, WorkerView

UPDATE_S = 0.5
"""Between two drawings of a search that goes on."""


class SkillSearch(WorkerView, widgets.VBox):
    """Run a search on a thread of its own and draw its path; `wait` for it, then `result` holds what it found.

    Args:
        search: `compose_skills`, or another function that takes `on_step` and `stop`.
        *args: What it is given.
        **settings: What else it is given, such as `budget` or `seed`.
    """

    def __init__(self, search: Callable[..., Any], *args: Any, **settings: Any) -> None:
        self.trace: list[Any] = []
        self.result: Any = None
        self.error: Exception | None = None
        self._stop, self._drawn, self._seed = threading.Event(), 0.0, settings.get("seed", 0)
        self._picture, self._status = widgets.HTML(), widgets.HTML(status_line("Searching …"))
        self._button = button("Stop", "End after the try under way; the best weights so far are kept")
        self._button.on_click(lambda _: self.stop())
        super().__init__(children=[self._picture, self._status, self._button, StyleSheet()])
        self.add_class("wb-view")
        self._worker = LatestWorker(self._work, self._failed)
        self._worker.submit((search, args, settings))

    def stop(self) -> None:
        """Ask the search to end after the try under way; what it found so far is the result."""
        self._stop.set()
        self._button.disabled = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the search is over and raise what it raised; False when `timeout` seconds passed first."""
        over = super().wait(timeout)
        if over and self.error is not None:
            raise self.error
        return over

    def close(self) -> None:
        """Stop the search and remove the widget."""
        self._stop.set()
        super().close()

    def _work(self, job: Any, _: threading.Event) -> None:
        search, args, settings = job
        self.result = search(*args, **settings, on_step=self._step, stop=self._stop)
        self._draw()
        ended = "Stopped" if self._stop.is_set() else "Done"
        found = "" if self.result.found_better else " Nothing was better than no skill, so all weights are 0."
        self._button.disabled = True
        self._status.value = status_line(f"{ended} after {len(self.trace)} tries, {self.result.seconds:.0f} s.{found}")

    def _step(self, row: Any) -> None:
        self.trace.append(row)
        if time.monotonic() - self._drawn >= UPDATE_S:
            self._draw()
            self._status.value = status_line(f"Try {len(self.trace)} …")

    def _failed(self, error: Exception) -> None:
        self.error = error
        self._button.disabled = True
        self._status.value = status_line(f"{type(error).__name__}: {error}", error=True)

    def _panels(self) -> list[Panel]:
        return path_panels(self.trace, self._seed) if self.trace else []

    def _draw(self) -> None:
        self._picture.value = "".join(panel.live() for panel in self._panels())
        self._drawn = time.monotonic()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add still pictures and tables: they are what a saved, untrusted notebook shows."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        bundle["text/html"] = "".join(panel.still() for panel in self._panels()) + self._status.value
        return bundle
