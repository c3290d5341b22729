"""Every notebook runs from top to bottom, keeps the house rules, and is committed with its results."""

import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS_A_CELL = 600
"""Generous: a busy machine is slow, and a notebook that hangs is what this is for."""

pytestmark = pytest.mark.notebook
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
TRAINS = ("03_lora_moe", "04_router_inspection")
"""These train for a minute or more."""
HIDE = """
import sys
from importlib.machinery import PathFinder

class Rest(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Rest
"""


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


@pytest.fixture
def as_make_lab_has_it(tmp_path, monkeypatch):
    """Hide from new Python processes what `make lab` does not install; a notebook must do without."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = re.search(r"-e '\.\[(.+)\]'", (ROOT / "Makefile").read_text())
    assert installed is not None
    names, hidden = set(installed[1].split(",")), {"eval": "lm_eval sacrebleu", "train": "trl", "cluster": "ray"}
    hidden |= {"search": "nevergrad cma", "peers": "mergekit", "compare": "gradio"}
    assert {*hidden, "lab", "dev", "all"} == {*extras}, "say here which modules a new extra brings"
    for wanted in [part for name in names for part in extras[name] if part.startswith("workbench[")]:
        names |= set(wanted.removeprefix("workbench[").rstrip("]").split(","))
    absent = {module for extra, modules in hidden.items() if extra not in names for module in modules.split()}
    assert "ray" in absent
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(absent=absent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize(
    "path", [pytest.param(one, id=one.stem, marks=[pytest.mark.slow] * (one.stem in TRAINS)) for one in NOTEBOOKS]
)
@pytest.mark.timeout(1800)
def test_runs_without_an_error(path: Path, monkeypatch: pytest.MonkeyPatch, as_make_lab_has_it: None) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS_A_CELL, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert all(output.output_type != "error" for output in outputs(notebook))
    bundles = [output.data for output in outputs(notebook) if "data" in output]
    widgets = [data for data in bundles if "application/vnd.jupyter.widget-view+json" in data]
    assert widgets, "no widget was shown"
    for data in widgets:
        assert "<table" in data["text/html"], f"{data['text/plain'][:40]} has no table for pages without scripts"
        assert "(not written yet)" not in data["text/html"]


@each
def test_is_saved_with_its_results(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run the notebook from top to bottom and save it"
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert sum(bool(cell.outputs) for cell in code_cells(notebook)) >= len(counts) // 2


@each
def test_keeps_the_house_rules(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert re.search(r"^\*\*Goal: .+\*\*$", notebook.cells[0].source, re.MULTILINE), "the goal stands in the first cell"
    assert "medical advice" in notebook.cells[0].source
    assert max(len(cell.source.splitlines()) for cell in code_cells(notebook)) <= 8
    assert max(len(line) for cell in code_cells(notebook) for line in cell.source.splitlines()) <= 110
    assert text.count("# change me") == 2, "two exercises"
    assert "Not yet" in text
    assert "transformers.__version__" in notebook.cells[-1].source
    assert ".close()" not in text, "whoever runs all cells would see no view"
    assert not re.search(r"https?://(?!arxiv\.org/)", text), "a link that leads elsewhere than to a paper"


@each
def test_every_picture_is_followed_by_how_to_read_it(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    for cell, following in pairwise(cells):
        if cell.cell_type == "code" and re.search(r"^(wb\.\w+Plot\(.*\)|sliders)$", cell.source, re.MULTILINE):
            assert following.source.startswith("**How to read this.**"), cell.source
