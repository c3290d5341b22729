"""The thread behind a view: the newest job wins, a saved file is never dropped, an error ends nothing."""

import threading
from types import SimpleNamespace

from workbench.views.worker import LatestWorker, PromptView

SECONDS = 10


class Bench:
    """A worker whose jobs run until they are stopped or let go."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stopped: list[str] = []
        self.errors: list[Exception] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Event()
        self.worker = LatestWorker(self.work, self.errors.append)

    def work(self, job: str, stop: threading.Event) -> None:
        self.started.release()
        if job == "bad":
            raise ValueError("no such recipe")
        while not self.go.wait(0.002):
            if stop.is_set():
                self.stopped.append(job)
                return
        self.done.append(job)


def test_a_new_job_stops_the_running_one() -> None:
    bench = Bench()
    bench.worker.submit("first")
    assert bench.started.acquire(timeout=SECONDS)
    bench.worker.submit("second")
    assert bench.started.acquire(timeout=SECONDS)
    bench.go.set()
    assert bench.worker.wait(SECONDS)
    assert (bench.stopped, bench.done) == (["first"], ["second"])
    bench.worker.close()


def test_only_the_latest_waiting_job_runs_and_what_must_run_runs() -> None:
    bench = Bench()
    bench.worker.submit("save", must_run=True)
    assert bench.started.acquire(timeout=SECONDS)
    bench.worker.submit("save again", must_run=True)
    for job in "abc":
        bench.worker.submit(job)
    bench.go.set()
    assert bench.worker.wait(SECONDS)
    assert (bench.stopped, bench.done) == ([], ["save", "save again", "c"])
    bench.worker.close()


def test_an_error_is_told_and_the_thread_lives_on() -> None:
    bench = Bench()
    bench.go.set()
    bench.worker.submit("bad")
    assert bench.worker.wait(SECONDS)
    bench.worker.submit("good")
    assert bench.worker.wait(SECONDS)
    assert [str(error) for error in bench.errors] == ["no such recipe"]
    assert bench.done == ["good"]
    bench.worker.close()


def test_close_stops_the_job_and_the_thread_and_may_be_called_twice() -> None:
    bench = Bench()
    bench.worker.submit("long")
    assert bench.started.acquire(timeout=SECONDS)
    bench.worker.close()
    bench.worker.close()
    bench.worker.submit("late")
    assert not bench.worker.alive
    assert bench.stopped == ["long"]
    assert bench.worker.wait(0)


def test_wait_says_when_time_is_up() -> None:
    bench = Bench()
    bench.worker.submit("long")
    assert not bench.worker.wait(0.01)
    bench.worker.close()


def test_a_view_waits_for_its_thread_ends_it_and_then_goes() -> None:
    class Page:
        closed = False

        def close(self) -> None:
            self.closed = True

    class View(PromptView, Page):
        pass

    view, bench = View(), Bench()
    assert view.wait(0)  # before it has a thread
    view._worker, view._prompt = bench.worker, SimpleNamespace(value="Why?")
    view.prompt += " How?"
    assert view.prompt == view._prompt.value == "Why? How?"
    bench.worker.submit("long")
    assert not view.wait(0.01)
    view.close()
    assert view.closed
    assert not bench.worker.alive
