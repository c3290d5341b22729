"""What a person asks of a variant, and the answer as it grows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from workbench.errors import ConfigError, WorkbenchError
from workbench.generation.answers import Prompt, written_text
from workbench.merging.recipe import MergeRecipe
from workbench.records import RoutingTrace

State = Literal["waiting", "writing", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Request:
    """One question to one variant, with all that its answer depends on.

    Args:
        variant: Its name.
        messages: What the user says, or a chat.
        max_new_tokens: Most tokens to write, at least 1.
        temperature: 0 takes the likeliest token each time; above 0 samples from softmax(logits / temperature).
        seed: Of this answer's own noise, whoever else is answered at the same time.
        recipe: For merges: the recipe to answer with; None takes the one that the variant was made with.
        ratio: For merges of two parents: the second one's share, 0 to 1, in the variant's recipe.

    Raises:
        ConfigError: A number is out of range, there is no message, or both a recipe and a ratio are given.
    """

    variant: str
    messages: Prompt
    _: KW_ONLY
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    recipe: MergeRecipe | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise ConfigError(f"messages={self.messages!r}: there is nothing to answer; write a prompt")
        if self.max_new_tokens < 1 or not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens}, temperature={self.temperature}: they must be at least 1 and "
                "at least 0; use temperature=0 for the likeliest answer"
            )
        if self.ratio is not None and (self.recipe is not None or not 0 <= self.ratio <= 1):
            raise ConfigError(
                f"ratio={self.ratio}, recipe={self.recipe}: a ratio lies between 0 and 1 and stands for the variant's "
                "own recipe; pass one of the two"
            )


class Answer:
    """An answer under way: read it from any thread, stop it from any thread.

    `state` is `"waiting"`, `"writing"`, and in the end `"done"`, `"stopped"` or `"failed"`; `place` is 1 for the next
    in the queue, and 0 from the moment it is written; `error` says why it failed; `first_token_s` and `seconds` count
    from the request; `routing` has, once it has ended, the decisions of a mixture's routers for this answer alone.
    """

    def __init__(self, request: Request, tokenizer: Any, stop: Callable[[Answer], None]) -> None:
        self.request, self._tokenizer, self._stop = request, tokenizer, stop
        self.state: State = "waiting"
        self.place, self.error = 0, ""
        self.first_token_s: float | None = None
        self.routing: RoutingTrace | None = None
        self.stopping = False
        self._ids: list[int] = []
        self._read: tuple[int, str] = (0, "")
        self._asked, self._took = time.perf_counter(), 0.0
        self._ended = threading.Event()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens so far, without the one that ends an answer; empty for an endpoint."""
        return tuple(self._ids)

    @property
    def text(self) -> str:
        """The text so far; a character whose bytes are not all there yet is held back."""
        count, text = self._read
        if len(self._ids) > count:
            ids = list(self._ids)
            text = written_text(self._tokenizer, ids)
            self._read = len(ids), text
        return text

    @property
    def seconds(self) -> float:
        """Seconds from the request to the end, or to now."""
        return self._took if self._ended.is_set() else time.perf_counter() - self._asked

    def stop(self) -> None:
        """Ask for the end: no further token is begun, and a waiting answer leaves the queue at once."""
        self._stop(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the answer has ended, at most so many seconds; return whether it has."""
        return self._ended.wait(timeout)

    def write(self, tokens: Sequence[int] = (), text: str | None = None) -> int:
        """Take what was written: tokens, or an endpoint's whole text so far; return the number of tokens so far."""
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self._asked
        self._ids.extend(tokens)
        if text is not None:
            self._read = 0, text
        return len(self._ids)

    def end(self, state: State, error: BaseException | None = None) -> None:
        """Take the last state; what comes later changes nothing."""
        if not self._ended.is_set():
            if error is not None:
                self.error = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
            self.state, self.place, self._took = state, 0, time.perf_counter() - self._asked
            self._ended.set()

    def __repr__(self) -> str:
        return f"Answer({self.request.variant!r}, {self.state}, {len(self._ids)} tokens)"
