"""One thread that runs the newest job: a view's callbacks hand work over and return at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast


class LatestWorker:
    """Run jobs one at a time on a thread of its own; a new job stops the running one and replaces a waiting one.

    Widget events reach the kernel between cells, on whatever thread delivers them, so `submit` only stores the job,
    sets the running job's stop event and returns.

    Args:
        work: Called as `work(job, stop)` on the thread; it looks at `stop` often and returns soon after it is set.
        failed: Called on the thread with the exception that `work` raised; the thread lives on.
    """

    def __init__(self, work: Callable[[Any, threading.Event], None], failed: Callable[[Exception], None]) -> None:
        self._work, self._failed = work, failed
        self._turn = threading.Condition()
        self._waiting: list[tuple[Any, bool]] = []
        self._running: tuple[threading.Event, bool] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="workbench-view", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, job: Any, *, must_run: bool = False) -> None:
        """Queue `job`; after `close` nothing happens.

        Args:
            job: What `work` gets.
            must_run: A later job waits for this one; without it, a later job stops this one or takes its place.
        """
        with self._turn:
            if self._closed:
                return
            if not must_run:
                self._waiting = [entry for entry in self._waiting if entry[1]]
                self._interrupt()
            self._waiting.append((job, must_run))
            self._turn.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs and nothing waits; False when `timeout` seconds passed first."""
        with self._turn:
            return self._turn.wait_for(lambda: not self._waiting and self._running is None, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Stop the running job, drop the waiting ones and end the thread; may be called twice."""
        with self._turn:
            self._closed, self._waiting = True, []
            self._interrupt()
            self._turn.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _interrupt(self) -> None:
        if self._running is not None and not self._running[1]:
            self._running[0].set()

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job, must_run = self._waiting.pop(0)
                stop = threading.Event()
                self._running = (stop, must_run)
            try:
                self._work(job, stop)
            except Exception as error:
                self._failed(error)
            finally:
                with self._turn:
                    self._running = None
                    self._turn.notify_all()


class WorkerView:
    """What views with a thread have in common: listed before the widget class, with a `LatestWorker` at `_worker`."""

    _worker: LatestWorker | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until what was asked for is done; False when `timeout` seconds passed first."""
        return self._worker is None or self._worker.wait(timeout)

    def _submit(self, job: Any, *, must_run: bool = False) -> None:
        """Give the thread its next job."""
        assert self._worker is not None, "the view has no thread yet"
        self._worker.submit(job, must_run=must_run)

    def close(self) -> None:
        """Stop the thread and remove the widget; what the last movement set stays."""
        if self._worker is not None:
            self._worker.close()
        cast(Any, super()).close()


class PromptView(WorkerView):
    """A view that asks models what stands in its text field at `_prompt`."""

    _prompt: Any

    @property
    def prompt(self) -> str:
        """What the models are asked; set it to ask something else."""
        return self._prompt.value

    @prompt.setter
    def prompt(self, text: str) -> None:
        self._prompt.value = text
