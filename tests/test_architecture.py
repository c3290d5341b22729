"""The shape of the library, held by its syntax trees: layers, outside packages, file length, public names."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import workbench

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "workbench"
LAYERS = {
    "records": 0,
    "errors": 0,
    "paths": 1,
    "ops": 1,
    "models": 2,
    "data": 2,
    "deltas": 2,
    "fanout": 2,
    "merging": 3,
    "adapters": 3,
    "routing": 3,
    "curriculum": 3,
    "generation": 4,
    "evaluation": 5,
    "training": 6,
    "views": 7,
    "search": 7,
    "classroom": 7,
}
EVERYWHERE = {"workbench", "torch", "numpy", "tqdm"}
PACKAGES = {
    0: {"pandas"},
    1: set(),
    2: {"transformers", "datasets", "accelerate", "safetensors", "pandas", "ray", "huggingface_hub"},
    3: {"transformers", "peft", "safetensors", "yaml", "nevergrad", "mergekit"},
    4: {"transformers"},
    5: {"transformers", "lm_eval", "sacrebleu", "rouge_score", "nltk", "langdetect", "datasets", "pandas"},
    6: {"transformers", "trl", "peft", "datasets", "accelerate", "safetensors"},
    7: {"transformers", "tokenizers", "pandas", "nevergrad", "safetensors", "datasets", "peft"},
}
SCREEN = {"plotly", "ipywidgets", "anywidget", "gradio", "traitlets", "IPython"}
SOURCES = sorted(LIBRARY.rglob("*.py"))
OUTSIDE_VIEWS_LINES, ALL_LINES, FILE_LINES = 12_300, 18_700, 400


def room_of(path: Path) -> str:
    """The first part of a module's place below the library, without its ending."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module that a file imports, at its top or inside its functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names.append(node.module or "")
    return names


def modules() -> list[Path]:
    """Library files that belong to a room."""
    return [path for path in SOURCES if path != LIBRARY / "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_go_downward(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        if not name.startswith("workbench."):
            continue
        other = name.split(".")[1]
        assert other == room or LAYERS[other] < LAYERS[room], f"{room} (layer {LAYERS[room]}) imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_outside_packages_by_layer(path: Path) -> None:
    room = room_of(path)
    allowed = EVERYWHERE | PACKAGES[LAYERS[room]] | (SCREEN if room == "views" else set())
    used = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert used <= allowed, f"{room} may not import {sorted(used - allowed)}"


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            told |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if number not in told and line.strip() and not line.strip().startswith("#"))


def test_files_are_short_and_the_library_is_thin() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    scripts = {path: len(path.read_text().splitlines()) for path in LIBRARY.rglob("*.js")}
    assert {p.name: n for p, n in lengths.items() if n > FILE_LINES} == {}
    assert {p.name: n for p, n in scripts.items() if n > 200} == {}
    code = {path: lines_of_code(path) for path in SOURCES}
    outside = sum(n for p, n in code.items() if room_of(p) not in {"views", "classroom"})
    assert outside <= OUTSIDE_VIEWS_LINES
    assert sum(code.values()) <= ALL_LINES


def test_public_functions_and_classes_have_docstrings() -> None:
    missing = []
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
            # An overload only types the function below it, which carries the docstring.
            overload = named and any(ast.unparse(mark) == "overload" for mark in node.decorator_list)
            if named and not overload and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(LIBRARY)}: {node.name}")
    assert missing == []


def test_public_names_resolve_and_are_shown_to_readers() -> None:
    assert len(workbench.__all__) <= 30
    shown = (ROOT / "README.md").read_text() + "".join(p.read_text() for p in (ROOT / "notebooks").glob("*.ipynb"))
    for name in workbench.__all__:
        assert getattr(workbench, name).__doc__, name
        assert re.search(rf"\bwb\.{name}\b", shown), f"wb.{name} stands in no notebook and not in the README"


def test_import_is_light() -> None:
    code = (
        "import sys, workbench; print([m for m in ('torch', 'gradio', 'transformers', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_first_name_that_needs_torch_makes_our_adapters_known_to_peft() -> None:
    code = "import workbench as wb; wb.load_model; import peft; print('LORA_MOE' in peft.PeftType.__members__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'lode_model'; it has .*load_model"):
        _ = workbench.lode_model


def test_nothing_trusts_remote_code() -> None:
    for path in SOURCES:
        assert not re.search(r"trust_remote_code\s*=\s*True", path.read_text()), path
