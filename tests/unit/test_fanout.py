"""Cells here and on Ray: the same results in the same order, failures that name their cell, stops, dead workers."""

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench import fanout
from workbench.errors import ConfigError
from workbench.fanout import CellError, CellsStopped, run_cells

quiet = functools.partial(run_cells, progress=False)


def square(cell):
    return {"cell": cell, "square": cell**2}


def picky(cell, forbidden=3):
    if cell == forbidden:
        raise KeyError(f"not {cell}")
    return cell


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def unpicklable(cell):
    raise Unpicklable(cell, lambda: 0)


def dies_once(cell):
    folder, number = cell
    mark = Path(folder, str(number))
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 10


def sleeps(cell):
    time.sleep(cell)
    return cell


def dies(cell):
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_the_order_of_the_cells():
    assert quiet(square, [3, 1, 2]) == [{"cell": 3, "square": 9}, {"cell": 1, "square": 1}, {"cell": 2, "square": 4}]
    assert quiet(square, []) == []


def test_a_failing_cell_is_carried():
    seen = []
    with pytest.raises(CellError, match=r"Cell 2 \(3\) failed: KeyError: 'not 3'.*run again") as caught:
        quiet(picky, [5, 4, 3, 2], on_result=lambda place, result: seen.append((place, result)))
    assert (caught.value.cell, caught.value.place) == (3, 2)
    assert isinstance(caught.value.__cause__, KeyError)
    assert seen == [(0, 5), (1, 4)]


def test_a_large_cell_is_named_in_short():
    with pytest.raises(CellError) as caught:
        quiet(unpicklable, ["x" * 5000])
    assert len(str(caught.value)) < 1000
    assert "xxx...) failed: Unpicklable: xxx" in str(caught.value)


def test_a_stop_keeps_what_is_done():
    stop = threading.Event()
    with pytest.raises(CellsStopped, match="stopped after 2 of 4 cells") as caught:
        quiet(picky, [7, 8, 9, 10], stop=stop, on_result=lambda place, _: stop.set() if place == 1 else None)
    assert caught.value.finished == {0: 7, 1: 8}


def test_a_partial_will_do():
    assert quiet(functools.partial(picky, forbidden=1), [3]) == [3]


def test_functions_that_cannot_travel_are_refused():
    def inner(cell):
        return cell

    for function in (lambda cell: cell, inner, functools.partial(picky, forbidden=threading.Lock())):
        with pytest.raises(ConfigError, match=r"cannot be given to other processes .* top level of a module"):
            quiet(function, [1])


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="executor='dask'; it must be 'local' or 'ray'"):
        quiet(square, [1], executor="dask")
    with pytest.raises(ConfigError, match="resources has 'gpus'; it may have num_cpus, num_gpus"):
        quiet(square, [1], resources={"gpus": 1})


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"not installed. Run `pip install 'workbench\[cluster\]'`"):
        quiet(square, [1], executor="ray")


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        ({}, False),
        ({"num_gpus": 1}, True),  # the node with one is dead
        ({"num_cpus": 4}, False),
        ({"num_cpus": 5}, True),  # no one node has them, though both together do
        ({"resources": {"disk": 1}}, False),
        ({"num_cpus": 4, "resources": {"disk": 1}}, True),
    ],
)
def test_cells_that_no_live_node_can_hold_are_told_of(needs, told, recwarn):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 1.0, "disk": 1.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}},
    ]
    assert fanout._tell_homeless(SimpleNamespace(nodes=lambda: nodes), needs) is told
    messages = [str(warning.message) for warning in recwarn]
    assert [message.startswith("no node of the Ray cluster has ") for message in messages] == [True] * told


def test_the_bar_counts_cells(capsys):
    run_cells(square, [1, 2])
    assert "2/2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ray():
    """Start one Ray for all tests below, as `run_cells` starts its own: that takes seconds."""
    os.environ |= fanout._OWN_RAY | {"RAY_AUTH_MODE": "disabled"}  # a token would be written to the home folder
    pytest.importorskip("ray", reason="ray is not installed: pip install 'workbench[cluster]'")
    with fanout._connected({"num_cpus": 1}) as ray:
        yield ray
    assert not ray.is_initialized()


@pytest.mark.slow
def test_ray_listens_on_this_machine_only(ray):
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_ray_gives_what_the_local_run_gives(ray):
    cells = [4, 1, 3, 2]
    places = []
    results = quiet(square, cells, executor="ray", on_result=lambda place, _: places.append(place))
    assert results == quiet(square, cells)
    assert sorted(places) == [0, 1, 2, 3]
    assert quiet(functools.partial(picky, forbidden=1), [3, 2], executor="ray", resources={"num_cpus": 0.5}) == [3, 2]


@pytest.mark.slow
def test_a_failing_cell_is_carried_from_ray(ray):
    with pytest.raises(CellError, match=r"Cell 1 \(3\) failed: KeyError: 'not 3'") as caught:
        quiet(picky, [5, 3], executor="ray")
    assert (caught.value.cell, caught.value.place) == (3, 1)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(CellError, match=r"Cell 0 \(7\) failed: RuntimeError: Unpicklable: 7 and <function"):
        quiet(unpicklable, [7], executor="ray")


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_runs_again(ray, tmp_path):
    cells = [(str(tmp_path), number) for number in range(3)]
    assert quiet(dies_once, cells, executor="ray") == [0, 10, 20]
    assert [mark.name for mark in tmp_path.iterdir()] == ["1"]


@pytest.mark.slow
def test_a_worker_that_always_dies_is_a_failed_cell(ray):
    with pytest.raises(CellError, match=r"Cell 0 \('x'\) failed: WorkerCrashedError"):
        quiet(dies, ["x"], executor="ray")


@pytest.mark.slow
def test_a_stop_gives_up_what_runs_on_ray(ray):
    stop = threading.Event()
    with pytest.raises(CellsStopped) as caught:
        quiet(sleeps, [0, 600], executor="ray", stop=stop, on_result=lambda *_: stop.set())
    assert caught.value.finished == {0: 0}


@pytest.mark.slow
def test_more_than_the_machine_has_is_refused(ray):
    with pytest.raises(ConfigError, match=r"num_gpus=1000 for one cell; this machine has .*RAY_ADDRESS"):
        fanout._check_own(ray, {"num_gpus": 1000})
