"""The driver of a table is killed with SIGKILL at random moments, most of them within a row being written."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CELLS, KILLS = 300, 8
DRIVER = """
import json, os, sys, time
from functools import partial
from workbench.fanout import run_cells
from workbench.search.store import RowStore

def compute(cell, traces, mine):
    with open(traces, "a") as file:
        file.write(f"{cell}\\n")
    time.sleep(0.005 if mine else 0)
    return {"cell": cell, "third": cell / 3, "text": "x" * (cell % 7 * 1000)} | ({"by": os.getpid()} if mine else {})

if __name__ == "__main__":
    path, traces, total, mine = sys.argv[1], sys.argv[2], int(sys.argv[3]), bool(sys.argv[4:])
    store = RowStore(path)
    cells = [cell for cell in range(total) if str(cell) not in store]
    if mine:  # two writers meet from both ends
        cells.sort(reverse=os.path.basename(traces) == "back")
        open(traces, "a").close()
        while not all(os.path.exists(os.path.join(os.path.dirname(traces), name)) for name in ("forth", "back")):
            time.sleep(0.01)
    keep = lambda place, row: store.add(str(cells[place]), row, {"cell": cells[place]})
    run_cells(partial(compute, traces=traces, mine=mine), cells, on_result=keep, progress=False)
    print(json.dumps([store[str(cell)] for cell in range(total)]))
"""


def start(*arguments):
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, **pipes)


def finish(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(out)


def computed(traces):
    return [int(line) for line in traces.read_text().splitlines()] if traces.exists() else []


def kill_after(process, traces, count, delay):
    """Wait until so many cells were begun, a moment longer, and kill; False if the process ended before."""
    while process.poll() is None and len(computed(traces)) < count:
        time.sleep(0.001)
    time.sleep(delay)
    running = process.poll() is None
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def table(path):
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return file.execute("SELECT key, row, about FROM rows ORDER BY key").fetchall()


def test_a_killed_driver_goes_on_to_the_undisturbed_table(tmp_path):
    whole = finish(start(tmp_path / "whole.sqlite", tmp_path / "whole", CELLS))
    path, traces, rng = tmp_path / "broken.sqlite", tmp_path / "broken", random.Random(0)
    killed = 0
    for part in range(KILLS):
        target = (part * 2 + 1) * CELLS // (2 * KILLS) + rng.randrange(10)
        killed += kill_after(start(path, traces, CELLS), traces, target, rng.random() * 0.02)
    assert killed >= KILLS - 2, "the driver ended before it could be killed"
    assert finish(start(path, traces, CELLS)) == whole
    assert table(path) == table(tmp_path / "whole.sqlite")
    assert len(table(path)) == CELLS
    again = {cell: count - 1 for cell, count in Counter(computed(traces)).items() if count > 1}
    # At most the cell whose row a kill cut off.
    assert sum(again.values()) <= killed
    assert set(computed(traces)) == set(range(CELLS))


def test_two_writers_one_of_them_killed_and_started_again_read_one_table(tmp_path):
    path, forth, back = tmp_path / "rows.sqlite", tmp_path / "forth", tmp_path / "back"
    first, second = start(path, forth, CELLS, "mine"), start(path, back, CELLS, "mine")
    assert kill_after(first, forth, CELLS // 4, 0.005)
    mine, theirs = finish(start(path, forth, CELLS, "mine")), finish(second)
    assert mine == theirs
    rows = table(path)
    assert len(rows) == CELLS
    assert len({json.loads(row)["by"] for _, row, _ in rows}) >= 2
