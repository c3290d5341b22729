"""Two Ray nodes on this machine, one of which is killed in mid-run: the same table as in process, nothing twice."""

import functools
import importlib.util
import os
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from workbench import fanout
from workbench.errors import WorkbenchWarning
from workbench.fanout import CellError, CellsStopped, run_cells

# What a cell imports, every worker must: heavy things are imported where they are needed.
UNIT = Path(__file__).parents[1] / "unit"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]

quiet = functools.partial(run_cells, progress=False, executor="ray")


def where():
    import ray

    return ray.get_runtime_context().get_node_id()


def mark(folder, number):
    """Leave a trace of having begun."""
    Path(folder, f"{number}-{where()}-{time.monotonic_ns()}").touch()


def slow(cell):
    """Compute once both nodes have begun; half of the results are too large for the answer and stay on their node."""
    folder, number = cell
    if folder:
        mark(folder, number)
        patience = time.monotonic() + 240
        while len({path.name.split("-")[1] for path in Path(folder).iterdir()}) < 2 and time.monotonic() < patience:
            time.sleep(0.1)
        time.sleep(0.5)
    return {"number": number, "square": number**2, "text": "x" * (number % 2) * 300_000}


def placed(cell):
    time.sleep(0.3)
    return where(), os.environ.get("CUDA_VISIBLE_DEVICES")


def endless(folder):
    mark(folder, 0)
    time.sleep(600)


def start(cluster, **options):
    """Add a node; on a busy machine its helpers can take longer than the 15 seconds that Ray gives them."""
    for _ in range(3):
        with suppress(Exception):
            return cluster.add_node(node_ip_address="127.0.0.1", **options)
    return cluster.add_node(node_ip_address="127.0.0.1", **options)


@pytest.fixture(scope="module")
def cluster():
    """Start a head with one CPU, on 127.0.0.1 alone; what is asked there goes the way of RAY_ADDRESS."""
    before = dict(os.environ)
    os.environ |= fanout._OWN_RAY | {"RAY_AUTH_MODE": "disabled"}
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    start(cluster, num_cpus=1, include_dashboard=False, include_log_monitor=False)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ |= before


@pytest.fixture
def second(cluster):
    """Add a node with two CPUs and a make-believe GPU, for one test."""
    node = start(cluster, num_cpus=2, num_gpus=1)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


def begun(folder, node):
    """Count the traces that a node has left, by cell."""
    names = [path.name.split("-") for path in Path(folder).iterdir()]
    return [int(number) for number, place, _ in names if place == node.node_id]


def kill(cluster, node):
    cluster.remove_node(node, allow_graceful=False)


def kill_when(cluster, node, ready):
    """Kill a node as soon as something is so, from a thread."""

    def watch():
        while not ready():
            time.sleep(0.05)
        kill(cluster, node)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_killed_node_loses_and_doubles_nothing(cluster, second, tmp_path):
    cells = [(str(tmp_path), number) for number in range(12)]
    watcher, seen, start = kill_when(cluster, second, lambda: begun(tmp_path, second)), [], time.monotonic()
    rows = quiet(slow, cells, on_result=lambda place, _: seen.append(place))
    took = time.monotonic() - start
    watcher.join()
    assert rows == [slow((None, number)) for _, number in cells]
    assert sorted(seen) == list(range(12))
    traces = [int(path.name.split("-")[0]) for path in tmp_path.iterdir()]
    again = {number for number in traces if traces.count(number) > 1}
    assert again, "no cell ran when the node was killed"
    assert again <= set(begun(tmp_path, second))
    print(f"\n{len(again)} cells ran again; {took:.1f} s in all")


def parents(folder):
    """Return a recipe of two pico models that are saved there, and two exams."""
    sys.path.insert(0, str(UNIT))
    from pico_language import byte_tokenizer, pico

    from workbench.evaluation import Task
    from workbench.merging.recipe import MergeRecipe
    from workbench.records import Example

    for seed, name in enumerate(("general", "clinical")):
        pico(seed=seed).save_pretrained(folder / name)
        byte_tokenizer(chat=True).save_pretrained(folder / name)
    recipe = MergeRecipe(parents=[str(folder / "general"), str(folder / "clinical")])

    def exam(name, word):
        # Every letter is right somewhere, so that no model is wrong throughout.
        asked = {"skill": "s", "choices": tuple("abc")}
        rows = [Example(id=f"e{i}", query=f"{word} {i}", answer="abc"[i % 3], **asked) for i in range(12)]
        return Task(name=name, group=f"{name}s", examples=rows)

    return recipe, [exam("exam", "q"), exam("other", "what")]


def test_a_sweep_on_the_cluster_is_the_sweep_in_process(cluster, second, tmp_path):
    import pandas as pd

    from workbench.search.sweep import sweep

    recipe, suite = parents(tmp_path)
    options = {"ratios": 6, "suite": suite, "progress": False}
    store = tmp_path / "rows.sqlite"
    watcher = kill_when(cluster, second, store.exists)
    front = sweep(recipe, **options, store=store, executor="ray")
    watcher.join()
    pd.testing.assert_frame_equal(front, sweep(recipe, **options))
    with sqlite3.connect(store) as file:
        assert file.execute("SELECT count(*) FROM rows").fetchone() == (6,)


def test_a_search_on_the_cluster_is_the_search_in_process(cluster, second, tmp_path):
    import pandas as pd

    from workbench.search.recipes import search_recipe

    recipe, suite = parents(tmp_path)
    options = {"budget": 16, "suite": suite, "axes": ("exam", "other"), "progress": False}
    store = tmp_path / "rows.sqlite"
    watcher = kill_when(cluster, second, store.exists)
    found = search_recipe(recipe, **options, store=store, executor="ray")
    watcher.join()
    pd.testing.assert_frame_equal(found, search_recipe(recipe, **options))
    assert (found["step"] == "search").sum() == 11


def test_cells_run_where_their_gpu_is(cluster, second):
    found = quiet(placed, range(4), resources={"num_gpus": 1})
    assert set(found) == {(second.node_id, "0")}


def test_a_node_that_dies_with_every_attempt_is_a_failed_cell_of_ours(cluster, second, tmp_path, monkeypatch):
    monkeypatch.setattr(fanout, "_RETRIES", 0)
    watcher = kill_when(cluster, second, lambda: begun(tmp_path, second))
    with pytest.raises(CellError, match=r"Cell 0 \(.*\) failed: \w+: .*Mend the function or the cell, and run again"):
        quiet(endless, [str(tmp_path)], resources={"num_gpus": 1})
    watcher.join()


def test_cells_that_no_node_can_hold_any_more_wait_and_say_so(cluster, second, tmp_path, monkeypatch):
    told, stop = fanout._tell_homeless, threading.Event()

    def tell(ray, needs):
        if told(ray, needs):
            stop.set()
        return stop.is_set()

    monkeypatch.setattr(fanout, "_LOOK_S", 1.0)
    monkeypatch.setattr(fanout, "_tell_homeless", tell)
    watcher = kill_when(cluster, second, lambda: begun(tmp_path, second))
    with (
        pytest.warns(WorkbenchWarning, match=r"no node of the Ray cluster has num_gpus=1 .* wait until one joins"),
        pytest.raises(CellsStopped, match="stopped after 0 of 1 cells"),
    ):
        quiet(endless, [str(tmp_path)], resources={"num_gpus": 1}, stop=stop)
    watcher.join()
