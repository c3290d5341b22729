"""One worker that answers everyone's requests to all variants: batched where rows fit together, else in turns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from torch import Tensor

from workbench.errors import ConfigError
from workbench.generation.endpoint import EndpointEngine
from workbench.generation.lanes import Engine
from workbench.generation.requests import Answer, Request
from workbench.generation.surprise import surprise
from workbench.generation.variants import Variant


class Scheduler:
    """Answer requests from any thread with one worker thread.

    Rows of one model share one batched decode, which rows join and leave between steps; different models take turns,
    step by step. An error ends the answers that it belongs to, and no others.

    Each answer is the one that its request gets when nobody else asks, and in sampling that of `stream` with its seed.
    In floating point a batch of another shape rounds the last bits differently, so two scores that are equal but for
    those may change places: in float32 that was seen in none of 480 answers of the classroom models, 16 at a time; in
    bfloat16 it happens.

    Args:
        variants: As `make_variants` gives them.
        max_rows: Most answers written at the same time, at least 1; further ones wait in the order in which they came.
        max_waiting: Most answers in the queue; a further one fails at once.

    Raises:
        ConfigError: A number is below 1, or there is no variant.
    """

    def __init__(self, variants: Mapping[str, Variant], *, max_rows: int = 32, max_waiting: int = 1024) -> None:
        if max_rows < 1 or max_waiting < 1 or not variants:
            raise ConfigError(
                f"max_rows={max_rows}, max_waiting={max_waiting}, {len(variants)} variants: each must be at least 1"
            )
        self.variants, self.max_rows, self.max_waiting = dict(variants), max_rows, max_waiting
        self._engines = list({id(variant.engine): variant.engine for variant in variants.values()}.values())
        self._waiting: list[Answer] = []
        self._writing: list[Answer] = []
        self._changed = threading.Condition()
        self._closing = self._stops = False
        self._counts: Counter[str] = Counter()
        self._jobs: list[Callable[[], None]] = []
        for engine in self._engines:
            if isinstance(engine, EndpointEngine):
                engine.ended = self._wake
        self._worker = threading.Thread(target=self._work, name="workbench-scheduler", daemon=True)
        self._worker.start()

    def submit(self, request: Request) -> Answer:
        """Queue a request; its answer grows while the caller does something else.

        Raises:
            ConfigError: There is no such variant, or the scheduler was closed.
        """
        answer = Answer(request, self._variant(request).tokenizer, self._stop)
        with self._changed:
            self._check_open()
            if len(self._waiting) >= self.max_waiting:
                answer.end("failed", ConfigError(f"{self.max_waiting} requests are waiting already; ask again later"))
                self._counts["failed"] += 1
                return answer
            self._waiting.append(answer)
            answer.place = len(self._waiting)
            self._changed.notify_all()
        return answer

    def surprise(self, request: Request, answer: str | Sequence[int]) -> Tensor:
        """Return how much an answer surprises the request's variant, with its adapter or recipe; see `surprise`.

        It waits for the worker, which does it between two steps: the model may not be in this state at any other time.

        Raises:
            ConfigError: As `surprise` and `submit` do; or the variant is an endpoint, whose scores are not known.
            ModelError: As `surprise` does.
            MergeError: The recipe does not fit the variant.
        """
        variant = self._variant(request)
        if isinstance(variant.engine, EndpointEngine):
            raise ConfigError(f"variant {request.variant!r} is an endpoint; choose a model that is loaded here")
        engine, found = variant.engine, Future[Tensor]()

        def work() -> None:
            try:
                with engine.entered([variant.row(Answer(request, variant.tokenizer, self._stop))]):
                    found.set_result(surprise(engine.model, variant.tokenizer, request.messages, answer))
            except Exception as error:
                found.set_exception(error)

        with self._changed:
            self._check_open()
            self._jobs.append(work)
            self._changed.notify_all()
        return found.result()

    def stats(self) -> dict[str, int]:
        """Return how many answers are waiting and writing, how many have ended in which way, and tokens and steps."""
        with self._changed:
            self._count()
            steps = sum(engine.steps for engine in self._engines)
            return {
                "waiting": len(self._waiting),
                "writing": len(self._writing),
                **{name: self._counts[name] for name in ("done", "stopped", "failed", "tokens")},
                "steps": steps,
            }

    def close(self) -> None:
        """Stop all answers, end the worker, and free what it held; a second call does nothing."""
        with self._changed:
            self._closing = True
            for answer in self._waiting + self._writing:
                answer.stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _stop(self, answer: Answer) -> None:
        with self._changed:
            answer.stopping = self._stops = True
            if answer in self._waiting:
                self._waiting.remove(answer)
                self._number()
                answer.end("stopped")
                self._counts["stopped"] += 1
            self._changed.notify_all()

    def _variant(self, request: Request) -> Variant:
        if request.variant not in self.variants:
            raise ConfigError(f"no variant {request.variant!r}; there are {', '.join(self.variants)}")
        return self.variants[request.variant]

    def _check_open(self) -> None:
        if self._closing:
            raise ConfigError("this scheduler was closed; make a new Scheduler(variants)")

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._needed)
                closing, stops, self._stops = self._closing, self._stops, False
                admitted = [] if closing else self._admitted()
                jobs, self._jobs = self._jobs, []
            for answer in admitted:
                self._admit(answer)
            for job in jobs:
                job()
            for engine in self._engines if stops or closing or jobs else ():
                _safely(engine, engine.sweep)
            if closing:
                break
            for engine in self._busy():
                _safely(engine, engine.turn)
        with self._changed:
            for answer in self._waiting:
                answer.end("stopped")
            self._counts["stopped"] += len(self._waiting)
            self._waiting = []

    def _needed(self) -> bool:
        self._count()
        return bool(self._closing or self._stops or self._jobs or self._busy() or self._next())

    def _busy(self) -> list[Engine | EndpointEngine]:
        return [engine for engine in self._engines if engine.lanes]

    def _next(self) -> list[Answer]:
        """Return those who may begin now: in their order, but nobody waits for an engine that others wait for."""
        held = Counter(self._limited(answer) for answer in self._writing)
        found = []
        for answer in self._waiting:
            engine = self._limited(answer)
            if held[engine] < (self.max_rows if engine is None else engine.limit):
                held[engine] += 1
                found.append(answer)
        return found

    def _limited(self, answer: Answer) -> Any:
        engine = self.variants[answer.request.variant].engine
        return engine if isinstance(engine, EndpointEngine) else None

    def _admitted(self) -> list[Answer]:
        taken = self._next()
        for answer in taken:
            answer.state, answer.place = "writing", 0
        self._writing += taken
        self._waiting = [answer for answer in self._waiting if answer.state == "waiting"]
        self._number()
        return taken

    def _admit(self, answer: Answer) -> None:
        variant = self._variant(answer.request)
        try:
            variant.engine.add(variant.row(answer))
        except Exception as error:
            answer.end("failed", error)

    def _number(self) -> None:
        for place, answer in enumerate(self._waiting, 1):
            answer.place = place

    def _count(self) -> None:
        """Book the answers that have ended."""
        for answer in self._writing:
            if answer.wait(0):
                self._counts[answer.state] += 1
                self._counts["tokens"] += len(answer.token_ids)
        self._writing = [answer for answer in self._writing if not answer.wait(0)]


def _safely(engine: Engine | EndpointEngine, work: Callable[[], None]) -> None:
    """Keep the worker alive, whatever happens to one engine."""
    try:
        work()
    except Exception as error:
        engine.fail(error)
