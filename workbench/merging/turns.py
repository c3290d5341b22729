"""Taking turns: many readers of the live weights, or one writer, whose arrival asks the readers to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from workbench.errors import MergeError


class Turns:
    """A lock for many readers or one writer, in which waiting writers go first.

    A reader that agreed to be cut short gets an event, which the next writer sets as soon as it arrives.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._readers: dict[int, int] = {}
        self._stops: list[threading.Event] = []
        self._waiting = 0
        self._writer: int | None = None

    @contextmanager
    def reading(self, *, cut_short: bool) -> Iterator[threading.Event]:
        """Hold the weights still; yields an event that a writer sets if `cut_short`, else never."""
        me, stop = threading.get_ident(), threading.Event()
        with self._changed:
            # A thread that already reads must not queue behind a writer, which waits for that very thread.
            self._changed.wait_for(
                lambda: self._writer in (None, me) and (not self._waiting or me in self._readers or self._writer == me)
            )
            self._readers[me] = self._readers.get(me, 0) + 1
            if cut_short:
                self._stops.append(stop)
                if self._waiting:
                    stop.set()
        try:
            yield stop
        finally:
            with self._changed:
                self._readers[me] -= 1
                if not self._readers[me]:
                    del self._readers[me]
                if cut_short:
                    self._stops.remove(stop)
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for the readers, after asking those that can be cut short to stop, and keep everyone else out."""
        me = threading.get_ident()
        with self._changed:
            if me in self._readers:
                raise MergeError(
                    "The weights were to change inside a generation() of the same thread, which would wait for itself "
                    "for ever. Leave the `with live.generation()` block first."
                )
            self._waiting += 1
            for stop in self._stops:
                stop.set()
            try:
                self._changed.wait_for(lambda: not self._readers and self._writer is None)
                self._writer = me
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._writer = None
                self._changed.notify_all()
