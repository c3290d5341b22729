"""The benchmark runs at its small size and prints a ratio for each of our rows."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra `peers`)")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "live_merge.py"


def test_small_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--params", "small", "--rounds", "2", "--threads", "1"])
    threads = torch.get_num_threads()
    runpy.run_path(str(SCRIPT), run_name="__main__")
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "0.1 M weights, bfloat16, 1 CPU threads" in printed
    for row in ("linear", "linear, exact", "slerp, relatives", "slerp, strangers"):
        assert re.search(rf"\| {row} \|.*x / .*x \| .*% / .*% \|", printed), row
