"""The experiment on the curriculum's effect, at a size where it can show nothing but that it works."""

import sqlite3

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def effect(script):
    return script("curriculum_effect")


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
