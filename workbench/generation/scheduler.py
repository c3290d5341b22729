"""One worker that answers everyone's requests to all variants: batched where rows fit together, else in turns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from workbench.errors import ConfigError
from workbench.generation.lanes import Engine
from workbench.generation.requests import Answer, Request
from workbench.generation.variants import Variant


class Scheduler:
    """Answer requests from any thread with one worker thread.

    Rows of one model share one batched decode, which rows join and leave between steps; different models take turns,
    step by step. Each answer is the one that its request gets when nobody else asks, up to ties that rounding in
    another batch shape may break differently. An error ends the answers that it belongs to, and no others.

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
        self._engines: list[Engine] = list({id(v.engine): v.engine for v in variants.values()}.values())
        self._waiting: list[Answer] = []
        self._writing: list[Answer] = []
        self._changed = threading.Condition()
        self._closing = self._stops = False
        self._counts: Counter[str] = Counter()
        self._worker = threading.Thread(target=self._work, name="workbench-scheduler", daemon=True)
        self._worker.start()

    def submit(self, request: Request) -> Answer:
        """Queue a request; its answer grows while the caller does something else.

        Raises:
            ConfigError: There is no such variant, or the scheduler was closed.
        """
        if request.variant not in self.variants:
            raise ConfigError(f"no variant {request.variant!r}; there are {', '.join(self.variants)}")
        answer = Answer(request, self.variants[request.variant].tokenizer, self._stop)
        with self._changed:
            if self._closing:
                raise ConfigError("this scheduler was closed; make a new Scheduler(variants)")
            if len(self._waiting) >= self.max_waiting:
                answer.end("failed", ConfigError(f"{self.max_waiting} requests are waiting already; ask again later"))
                self._counts["failed"] += 1
                return answer
            self._waiting.append(answer)
            answer.place = len(self._waiting)
            self._changed.notify_all()
        return answer

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

    def _work(self) -> None:
        while True:
            with self._changed:
                self._count()
                self._changed.wait_for(lambda: self._closing or self._stops or self._room() or self._busy())
                closing, self._stops = self._closing, False
                admitted = self._admitted()
            for answer in admitted:
                self._admit(answer)
            for engine in self._busy():
                engine.sweep()
            if closing:
                break
            for engine in self._busy():
                engine.turn()
        for answer in self._waiting:
            answer.end("stopped")
        self._waiting.clear()

    def _busy(self) -> list[Engine]:
        return [engine for engine in self._engines if engine.lanes]

    def _room(self) -> bool:
        return bool(self._waiting) and len(self._writing) < self.max_rows

    def _admitted(self) -> list[Answer]:
        count = max(self.max_rows - len(self._writing), 0)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        for answer in taken:
            answer.state, answer.place = "writing", 0
        self._writing += taken
        self._number()
        return taken

    def _admit(self, answer: Answer) -> None:
        variant = self.variants[answer.request.variant]
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
        self._writing: list[Any] = [answer for answer in self._writing if not answer.wait(0)]
