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


@dataclass(frozen=True, kw_only=True)
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
        show: Called as `show(parent, text, done)` while an answer grows; `parent` is None for the blend.
        max_new_tokens: Most tokens for each answer.
    """

    def __init__(self, live: Any, show: Callable[[str | None, str, bool], None], *, max_new_tokens: int) -> None:
        self.live, self.show, self.max_new_tokens = live, show, max_new_tokens
        self.kept: dict[tuple[str, str], str] = {}
        self.first_token_ms: float | None = None

    def run(self, request: Request, stop: threading.Event) -> None:
        """Answer a request, and return early when `stop` is set; errors of the recipe or the model pass through."""
        self.first_token_ms, live, prompt = None, self.live, request.prompt
        live.apply(request.recipe)
        with live.generation() as moved:
            if self._write(None, live.model, request, (stop, moved)) is None:
                return
        for parent in request.recipe.parents:
            answer = self.kept.get((parent, prompt))
            if answer is None:
                answer = self._write(parent, live.parent(parent), request, (stop,))
            else:
                self.show(parent, answer, True)
            if answer is None:
                return
            self.kept[parent, prompt] = answer

    def _write(
        self, parent: str | None, model: Any, request: Request, stops: tuple[threading.Event, ...]
    ) -> str | None:
        """Stream one answer to the screen and return it, or None when one of the events stopped it."""
        text, shown = "", 0.0
        for text in stream(model, self.live.tokenizer, request.prompt, max_new_tokens=self.max_new_tokens):
            now = time.perf_counter()
            if parent is None and self.first_token_ms is None:
                self.first_token_ms = 1000 * (now - request.asked_at)
            if any(stop.is_set() for stop in stops):
                return None
            if now - shown >= UPDATE_S:
                self.show(parent, text, False)
                shown = now
        if any(stop.is_set() for stop in stops):
            return None
        self.show(parent, text, True)
        return text
