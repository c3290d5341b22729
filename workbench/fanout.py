"""Run many independent cells of work, one after another here or side by side on Ray: one function."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm.auto import tqdm

from workbench.errors import ConfigError, WorkbenchError, WorkbenchWarning

Cell = TypeVar("Cell")
Result = TypeVar("Result")
_RESOURCES = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type")
_RETRIES = 3
_STARTS = 3
_GLANCE_S = 0.2  # how soon a stop is seen while cells run elsewhere
_LOOK_S = 30.0  # how soon it is seen that a cluster has no node for a cell, or no longer
_OWN_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name it counts on Linux too: with it Ray listens on 127.0.0.1 only, without it on every interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # On a busy machine a start can fail; this is how long that takes to be seen.
    "RAY_raylet_start_wait_time_s": "30",
}


class CellError(WorkbenchError):
    """A cell failed; `cell` is its input, `place` its place among the cells, `__cause__` what was raised."""

    def __init__(self, cell: Any, place: int, cause: BaseException):
        super().__init__(
            f"Cell {place} ({_short(repr(cell))}) failed: {type(cause).__name__}: {_short(str(cause))}. Mend the "
            "function or the cell, and run again; results that `on_result` was given need not be computed anew."
        )
        self.cell, self.place = cell, place


class CellsStopped(WorkbenchError):
    """The stop event was set before all cells were done; `finished` maps the place of a cell to its result."""

    def __init__(self, finished: dict[int, Any], total: int):
        super().__init__(
            f"stopped after {len(finished)} of {total} cells, as was asked; their results are in .finished"
        )
        self.finished = finished


def run_cells(
    function: Callable[[Cell], Result],
    cells: Sequence[Cell],
    *,
    executor: str = "local",
    resources: Mapping[str, Any] | None = None,
    on_result: Callable[[int, Result], Any] | None = None,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> list[Result]:
    """Return `[function(cell) for cell in cells]`, whichever executor computes it.

    A cell should carry its own seed and name large things (a model, a dataset) instead of holding them, so that it
    gives the same result anywhere and again.

    Args:
        function: At the top level of a module or notebook (or a `functools.partial` of such a one), so that other
            processes can be given it.
        cells: The inputs, one call each.
        executor: `local` runs them here, in order; `ray` on the Ray cluster that this process is connected to or that
            the environment names (RAY_ADDRESS), otherwise on a Ray of its own on this machine, which listens on
            127.0.0.1 (where Ray was not imported before) and ends with the call. A cell whose worker or node dies is
            run again, up to 3 times, and so is one whose result was lost with its node. Where no node of a cluster can
            hold a cell, a warning says so, and the cells wait.
        resources: What one cell needs on Ray, e.g. `{"num_gpus": 1}`; not looked at by `local`.
        on_result: Called here with the place and the result of each cell as soon as it is done, to keep it.
        progress: Show a bar.
        stop: Set it from any thread: no further cell starts, cells under way on Ray are given up.

    Returns:
        One result per cell, in the order of the cells.

    Raises:
        CellError: A cell raised, or its worker died too often; no further cell starts.
        CellsStopped: `stop` was set.
        ConfigError: An argument is not usable, the function cannot be pickled, or Ray is not installed or does not
            start.
    """
    _check(function, executor, resources)
    run = _here if executor == "local" else _on_ray
    finished: dict[int, Result] = {}
    results = run(function, cells, resources or {}, stop)
    with tqdm(total=len(cells), unit="cell", disable=not progress) as bar:
        try:
            for place, result in results:
                finished[place] = result
                if on_result is not None:
                    on_result(place, result)
                bar.update()
        finally:
            results.close()
    if len(finished) < len(cells):
        raise CellsStopped(finished, len(cells))
    return [finished[place] for place in range(len(cells))]


def _here(function: Callable[[Any], Any], cells: Sequence[Any], _: Any, stop: threading.Event | None):
    for place, cell in enumerate(cells):
        if stop is not None and stop.is_set():
            return
        try:
            result = function(cell)
        except Exception as error:
            raise CellError(cell, place, error) from error
        yield place, result


def _on_ray(function: Callable[[Any], Any], cells: Sequence[Any], needs: Mapping[str, Any], stop: Any):
    with _connected(needs) as ray:
        remote = ray.remote(_outcome).options(**{"num_cpus": 1, "max_retries": _RETRIES, **needs})
        pack = ray.cloudpickle.dumps  # unlike pickle it takes along what a notebook has defined
        shared = ray.put((sys.path, pack(function)))
        pending: dict[Any, int] = {}
        for place, cell in enumerate(cells):
            try:
                pending[remote.remote(shared, pack(cell))] = place
            except Exception as error:  # a cell that cannot travel
                raise CellError(cell, place, error) from error
        look, told = time.monotonic() + _LOOK_S, False
        try:
            while pending and not (stop is not None and stop.is_set()):
                if not told and time.monotonic() > look:
                    look, told = time.monotonic() + _LOOK_S, _tell_homeless(ray, needs)
                for reference in ray.wait(list(pending), timeout=_GLANCE_S)[0]:
                    place = pending.pop(reference)
                    result, error = _fetch(ray, reference)
                    if error is not None:
                        raise CellError(cells[place], place, error) from error
                    yield place, result
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _outcome(shared: tuple[list[str], bytes], cell: bytes) -> tuple[Any, Exception | None]:
    """Call the function in a worker, where an exception is a result: Ray would wrap it into one of its own."""
    paths, function = shared
    sys.path.extend(path for path in paths if path not in sys.path)
    try:
        return pickle.loads(function)(pickle.loads(cell)), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _fetch(ray: Any, reference: Any) -> tuple[Any, Exception | None]:
    try:
        return ray.get(reference)
    except Exception as error:  # a worker that died too often, or a result that cannot be read here
        return None, error


@contextmanager
def _connected(needs: Mapping[str, Any]) -> Iterator[Any]:
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        for name, value in _OWN_RAY.items():
            os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "executor='ray' needs the package ray, which is not installed. Run `pip install 'workbench[cluster]'`, or "
            "use executor='local'."
        ) from error
    if ray.is_initialized():
        yield ray
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        _start_own(ray)
    try:
        if not os.environ.get("RAY_ADDRESS"):
            _check_own(ray, needs)
        yield ray
    finally:
        ray.shutdown()


def _tell_homeless(ray: Any, needs: Mapping[str, Any]) -> bool:
    """Say so where no live node could hold a cell, as Ray itself waits for one without a word."""
    asked = {"CPU": needs.get("num_cpus", 1), "GPU": needs.get("num_gpus", 0), "memory": needs.get("memory", 0)}
    asked |= needs.get("resources", {})
    homes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(home.get(name, 0) >= amount for name, amount in asked.items()) for home in homes):
        return False
    warnings.warn(
        f"no node of the Ray cluster has {', '.join(f'{name}={value}' for name, value in needs.items())} for one cell "
        "(any more); the cells left wait until one joins. Set the stop event to give them up: what is done is kept.",
        WorkbenchWarning,
        stacklevel=2,
    )
    return True


def _start_own(ray: Any) -> None:
    for attempt in range(_STARTS):
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
            return
        except Exception as error:  # Ray raises bare Exception when one of its helpers is not up within 15 s
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise ConfigError(
                    f"Ray did not start on this machine in {_STARTS} tries ({_short(str(error))}). It needs free CPU "
                    "time for that: stop other work, connect to a running cluster with RAY_ADDRESS, or use "
                    "executor='local'."
                ) from error


def _check_own(ray: Any, needs: Mapping[str, Any]) -> None:
    address = ray.nodes()[0]["NodeManagerAddress"]
    if address != "127.0.0.1":
        warnings.warn(
            f"Ray was imported before run_cells could confine it to this machine: it listens on {address}. Call "
            "run_cells before anything else imports ray, or set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0.",
            WorkbenchWarning,
            stacklevel=2,
        )
    there = ray.cluster_resources()
    for key, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        if needs.get(key, 0) > there.get(resource, 0):
            raise ConfigError(
                f"resources ask for {key}={needs[key]} for one cell; this machine has {there.get(resource, 0):g}. Ask "
                "for less, or connect to a larger cluster with RAY_ADDRESS."
            )


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _check(function: Any, executor: str, resources: Mapping[str, Any] | None) -> None:
    if executor not in ("local", "ray"):
        raise ConfigError(f"executor={executor!r}; it must be 'local' or 'ray'.")
    for key in resources or {}:
        if key not in _RESOURCES:
            raise ConfigError(f"resources has {key!r}; it may have {', '.join(_RESOURCES)}.")
    try:
        pickle.dumps(function)
    except Exception as error:
        raise ConfigError(
            f"The function {getattr(function, '__qualname__', function)!r} cannot be given to other processes "
            f"({_short(str(error))}). Define it at the top level of a module or notebook; bind arguments with "
            "functools.partial instead of a lambda or an inner function."
        ) from error
