"""What the sliders ask of a LiveMerge: the blend's answer first, then each parent's, on one thread, stoppable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.generation import stream

UPDATE_S = 0.07
"""Between two updates of a text on the screen; the first token is shown at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What to show.

    Args:
        recipe: The blend.
        prompt: What every model is asked.
        asked_at: `time.perf_counter()` when it was asked, for the time to the first token.
    """

    recipe: Any
    prompt: str
    asked_at: float


class Preview:
    """Write the blend's and the parents' answers to one prompt; a parent's answer is written once and kept.

    Args:
        live: A `LiveMerge`; its weights are left at the request's recipe.
        show: Called as `show(request, parent, text, done)` while an answer grows; `parent` is None for the blend.
        max_new_tokens: Most tokens for each answer.
    """

    def __init__(
        self, live: Any, show: Callable[[Request, str | None, str, bool], None], *, max_new_tokens: int
    ) -> None:
        self.live, self.show, self.max_new_tokens = live, show, max_new_tokens
        self.first_token_ms: float | None = None
        self._kept: dict[tuple[str, str], str] = {}

    def run(self, request: Request, stop: threading.Event) -> bool:
        """Answer a request; errors of the recipe or the model pass through.

        Args:
            request: What to show.
            stop: Set from any thread, it ends the work after the token under way.

        Returns:
            Whether all answers were finished: False after `stop`, or when other code moved the weights meanwhile.
        """
        self.first_token_ms = None
        self.live.apply(request.recipe)
        with self.live.generation() as moved:
            if self.live.recipe != request.recipe or not self._write(None, self.live.model, request, (stop, moved)):
                return False
        return all(self._answer(parent, request, stop) for parent in self.live.parents)

    def _answer(self, parent: str, request: Request, stop: threading.Event) -> bool:
        kept = self._kept.get((parent, request.prompt))
        if kept is None:
            return self._write(parent, self.live.parent(parent), request, (stop,))
        self.show(request, parent, kept, True)
        return True

    def _write(self, parent: str | None, model: Any, request: Request, stops: tuple[threading.Event, ...]) -> bool:
        """Stream one answer to the screen; False when one of the events stopped it."""
        text, shown = "", 0.0
        for text in stream(model, self.live.tokenizer, request.prompt, max_new_tokens=self.max_new_tokens):
            now = time.perf_counter()
            if any(stop.is_set() for stop in stops):
                return False
            if now - shown >= UPDATE_S:
                self.show(request, parent, text, False)
                shown = now
            if parent is None and self.first_token_ms is None:
                self.first_token_ms = 1000 * (time.perf_counter() - request.asked_at)
        if any(stop.is_set() for stop in stops):
            return False
        if parent is not None:
            self._kept[parent, request.prompt] = text
        self.show(request, parent, text, True)
        return True
