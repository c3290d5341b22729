"""Lanes: rows that share one batched decode, because they need the model in one state."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.generation.decoder import Decoder, broken_scores, evaluating, joinable_cache
from workbench.generation.requests import Answer, State
from workbench.generation.routers import capture, has_routers, routing_of, sequence_routes
from workbench.records import RoutingTrace

_WORTH = 4.0
"""A lane keeps the weights at least so many times as long as it took to set them: changes cost a fifth at most."""


@dataclass(kw_only=True, eq=False)
class Row:
    """One answer being written.

    Args:
        answer: Where the tokens go.
        prompt: Token ids.
        room: Most tokens to write.
        ends: The tokens that end it.
        choice: What of the engine's states it needs: adapters, a recipe, or nothing.
        generator: Its own noise, or None for the likeliest token each time.
        passes: What the routers said in each forward pass, and this row's place in its batch.
    """

    answer: Answer
    prompt: list[int]
    room: int
    ends: set[int]
    choice: Any
    generator: torch.Generator | None
    passes: list[tuple[RoutingTrace, int]] = field(default_factory=list)

    def end(self, state: State, error: BaseException | None = None) -> None:
        """End the answer, with its routing."""
        if self.passes:
            self.answer.routing = routing_of(self.passes, len(self.prompt), self.answer.token_ids)
        self.answer.end(state, error)


class Engine:
    """A model on its device, and the lanes that take turns on it.

    Args:
        model: The transformers model that reads token ids.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.joinable = joinable_cache(model) is not None
        self.routers = has_routers(model)
        self.lanes: dict[Hashable, Lane] = {}
        self.entering = self.working = 0.0
        self.steps = 0

    def key(self, row: Row) -> Hashable:
        """Say which rows may share a batch: those of equal keys."""
        return None if self.joinable else row

    @contextmanager
    def entered(self, rows: Sequence[Row]) -> Iterator[None]:
        """Have the model in the state that these rows of one lane need."""
        yield

    def rest(self) -> None:
        """Nothing is left to write."""

    def decoder(self, prompts: Sequence[Sequence[int]]) -> Decoder:
        """Return the decoder of a new batch."""
        routes = sequence_routes(self.model) if self.routers else None
        return Decoder(self.model, prompts, joinable_cache(self.model), routes)

    def add(self, row: Row) -> None:
        """Let a row in; its lane reads it at its next turn."""
        key = self.key(row)
        if key not in self.lanes:
            self.lanes[key] = Lane(self)
        self.lanes[key].fresh.append(row)

    def turn(self) -> None:
        """Take one step of the lane at hand; the next lane is at hand when this one had its share."""
        key, lane = next(iter(self.lanes.items()))
        lane.turn()
        self.steps += 1
        if self.working >= _WORTH * self.entering:
            self.entering = self.working = 0.0
            self.lanes[key] = self.lanes.pop(key)
        self.sweep()

    def fail(self, error: BaseException) -> None:
        """End all answers; what comes next finds the engine empty."""
        for lane in self.lanes.values():
            for row in lane.rows + lane.fresh:
                row.end("failed", error)
        self.lanes.clear()

    def sweep(self) -> None:
        """Free the rows of stopped answers, and lanes that have ended."""
        for key, lane in list(self.lanes.items()):
            lane.drop_stopped()
            if not lane.rows and not lane.fresh:
                del self.lanes[key]
        if not self.lanes:
            self.entering = self.working = 0.0
            self.rest()


class Lane:
    """Rows being written together: `rows` stand in the decoder, `fresh` ones are read at the next turn."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[Row] = []
        self.fresh: list[Row] = []
        self.decoder: Decoder | None = None

    def turn(self) -> None:
        """Read the fresh rows, or write one token for each row; an error ends the answers that it belongs to."""
        self.drop_stopped()
        fresh, self.fresh = self.fresh, []
        if fresh:
            self._read(fresh)
        elif self.decoder is not None:
            try:
                self.rows = self._step(self.decoder, self.rows)
            except Exception as error:
                self._fail(self.rows, error)
        self.decoder = self.decoder if self.rows else None

    def _read(self, fresh: list[Row]) -> None:
        try:
            decoder = self.engine.decoder([row.prompt for row in fresh])
            going = self._step(decoder, fresh)
        except Exception as error:
            if len(fresh) == 1:
                self._fail(fresh, error)
            else:
                for row in fresh:
                    self._read([row])
            return
        self.rows += going  # first, so that they end with the others if the caches cannot be joined
        if going and self.decoder is None:
            self.decoder = decoder
        elif going and self.decoder is not None:
            self.decoder.join(decoder)

    def _fail(self, rows: list[Row], error: BaseException) -> None:
        for row in rows:
            row.end("failed", error)
        self.rows = [row for row in self.rows if row.answer.state == "writing"]

    def drop_stopped(self) -> None:
        """Take out the rows whose answers shall stop."""
        for row in self.rows + self.fresh:
            if row.answer.stopping:
                row.end("stopped")
        self.fresh = [row for row in self.fresh if row.answer.state == "writing"]
        if self.decoder is not None:
            self.rows = self._kept(self.decoder, self.rows)
            self.decoder = self.decoder if self.rows else None

    def _step(self, decoder: Decoder, rows: list[Row]) -> list[Row]:
        """Write a token for each row, and return the rows that go on."""
        began = time.perf_counter()
        with torch.no_grad(), evaluating(self.engine.model), self.engine.entered(rows):
            entered = time.perf_counter()
            if self.engine.routers:
                with capture(self.engine.model) as trace:
                    scores = decoder.scores().float()
                for place, row in enumerate(rows):
                    row.passes.append((trace, place))
            else:
                scores = decoder.scores().float()
            tokens, broken = choose(scores, rows)
            decoder.write(tokens)
            chosen = torch.stack([tokens, broken.to(tokens.dtype)]).tolist()
        self.engine.entering += entered - began
        self.engine.working += time.perf_counter() - entered
        for place, (row, token, bad) in enumerate(zip(rows, *chosen, strict=True)):
            if bad:
                row.end("failed", broken_scores(scores[place]))
            elif token in row.ends or row.answer.write([token]) == row.room:
                row.end("done")
        return self._kept(decoder, rows)

    def _kept(self, decoder: Decoder, rows: list[Row]) -> list[Row]:
        places = [place for place, row in enumerate(rows) if row.answer.state == "writing"]
        if places and len(places) < len(rows):
            decoder.keep(places)
            if self.engine.joinable:
                decoder.trim()
        return [rows[place] for place in places]


def choose(scores: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the next token of each row, `(B,)`, and whether its scores are no numbers, `(B,)`.

    A row that samples takes argmax_v p_v / e_v with its own e ~ Exp(1), so that its noise does not depend on its
    company; it is what `torch.multinomial` does with the row's generator.

    Args:
        scores: `(B, V)`, float32.
        rows: The B rows.
    """
    tokens = scores.argmax(-1)
    warm = [place for place, row in enumerate(rows) if row.generator is not None]
    if warm:
        heat = scores.new_tensor([rows[place].answer.request.temperature for place in warm])
        shares = torch.softmax(scores[warm] / heat[:, None], -1)
        noise = [torch.empty_like(shares[:1]).exponential_(generator=rows[place].generator) for place in warm]
        tokens[warm] = (shares / torch.cat(noise)).argmax(-1)
    return tokens, (torch.isnan(scores) | torch.isposinf(scores)).any(-1)
