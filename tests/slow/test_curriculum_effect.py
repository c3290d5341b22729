"""The experiment on the curriculum's effect, at a size where it can show nothing but that it works."""

import importlib.util
import sqlite3
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "curriculum_effect.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def effect():
    spec = importlib.util.spec_from_file_location("curriculum_effect", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["curriculum_effect"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["curriculum_effect"]


def test_every_arm_is_searched_paired_and_goes_on_from_its_store(effect, tmp_path, capsys, monkeypatch):
    small = {"out": tmp_path / "out", "trials": 1, "seeds": 2, "steps": 6, "limit": 2, "batch-size": 4, "threads": 1}
    command = [part for name, value in small.items() for part in (f"--{name}", str(value))]
    command += ["--arms", "icft", "shuffled"]
    effect.main(command)
    with sqlite3.connect(tmp_path / "out" / "cells.sqlite") as file:
        assert file.execute("SELECT count(*) FROM rows").fetchone() == (2 * (1 + 2),)
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == list(effect.MEASURES)
    general = next(line for line in table if line.startswith("| general"))
    assert general.count("[") == 1, "the other arm has its paired interval"
    printed = capsys.readouterr().out
    assert "chosen of 1 trials each on validation" in printed
    monkeypatch.setattr(effect, "run_cell", None)
    effect.main(command)
    assert capsys.readouterr().out == printed
