"""Every recipe's dry run on random models of its architecture: the estimate, two steps, the scores, offline."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pico_language import byte_tokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from workbench.errors import WorkbenchError

RECIPES = Path(__file__).parents[2] / "recipes"
WIDE = {
    "vocab_size": 260, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
T5 = {"vocab_size": 260, "d_model": 96, "d_kv": 16, "d_ff": 160, "num_layers": 3, "num_heads": 4, "pad_token_id": 0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**WIDE, head_dim=24)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5, eos_token_id=1, decoder_start_token_id=0)),
}
COMMON = ["--device", "cpu", "--length", "128", "--batch-size", "2", "--flops", "1e12", "--dry-run"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return what runs a recipe and gives back what it printed."""
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(sys.modules)

    def call(name, *arguments):
        importlib.import_module(name).main([*arguments, *COMMON, "--out", str(tmp_path / "never")])
        printed = capsys.readouterr().out
        assert not (tmp_path / "never").exists(), "a dry run writes elsewhere"
        return printed

    yield call
    for name in {path.stem for path in RECIPES.glob("*.py")} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def place(tmp_path):
    """Return what makes a folder as a user has it: configuration, weights, tokenizer."""

    def make(kind, name):
        torch.manual_seed(len(name))
        MODELS[kind]().save_pretrained(tmp_path / name)
        byte_tokenizer(chat=kind != "t5").save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def file(tmp_path):
    """Return what writes examples in the project's format."""

    def write(name, choices=None):
        rows = [
            {
                "id": f"{name}{i}",
                "skill": name,
                "query": f"What {name} is {i}?",
                "answer": "ab"[i % 2],
                "choices": choices,
            }
            for i in range(6)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"{name}={path}"

    return write


def check(printed, model):
    """The estimate says what it takes of the full model, the time with its assumptions, and comes first."""
    assert re.search(rf"^{re.escape(model)}, ", printed, re.MULTILINE)
    assert re.search(r"activations without gradient checkpointing .*, with ", printed)
    assert "assumed: 35% of 1.00 TFLOP/s (given)" in printed
    assert printed.index("assumed: 35%") < printed.index("Dry run: two steps")


@pytest.mark.slow
def test_icft(run, place, file):
    model = place("llama", "model")
    tiers = [part for name in ("general", "medical", "specialist") for part in (f"--{name}", file(name))]
    printed = run("icft", "--model", model, *tiers, "--test", file("probe", ["a", "b"]))
    check(printed, model)
    assert "finished, step 6 of" in printed
    assert re.search(r"\| probe +\| ", printed)


def test_sparse_doctor(run, place, file):
    model = place("qwen3", "model")
    printed = run("sparse_doctor", "--model", model, "--train", file("lesson"), "--test", file("probe", ["a", "b"]))
    check(printed, model)
    assert "finished, step 2 of 2" in printed
    assert re.search(r"\| probe +\| ", printed)


@pytest.mark.slow
@pytest.mark.parametrize("shots", [[], ["--shots", "4"]])
@pytest.mark.filterwarnings("ignore:none of:workbench.errors.WorkbenchWarning")
def test_sa_mdkif(run, place, file, shots):
    model = place("llama", "model")
    skills = ["--skills", f"one={file('first')}", file("second")]  # with a name for its format, and without
    probe = file("probe", ["a", "b"])
    printed = run("sa_mdkif", "--model", model, *skills, "--task", file("new"), "--test", probe, *shots)
    check(printed, model)
    assert ("Composition(" in printed) == bool(shots)
    assert re.search(r"\| probe +\| ", printed)


@pytest.mark.slow
def test_weight_merging(run, place, file):
    parents = {name: place("llama", name) for name in ("instruct", "clinical", "base")}
    given = [part for name, folder in parents.items() for part in (f"--{name}", folder)]
    shots = ["--few-shot", file("task"), "--few-shot-test", file("task"), "--keep", file("kept")]
    printed = run("weight_merging", *given, "--validation", file("probe", ["a", "b"]), "--test", file("end"), *shots)
    check(printed, parents["instruct"])
    assert "  parents " in printed
    assert printed.count("| linear ") == printed.count("| slerp ") == 2
    assert "Beware: 6 of 6 rows to score of 'task' are among those to train on" in printed
    assert "Chosen on validation, and exported" in printed
    for parent in ("merged", *parents):
        assert printed.count(f" {parent} ") >= 2


@pytest.mark.filterwarnings("ignore:none of:workbench.errors.WorkbenchWarning")
@pytest.mark.slow
def test_lorahub(run, place, file):
    model = place("t5", "model")
    modules = ["--train", file("first"), file("second")]
    printed = run("lorahub", "--model", model, *modules, "--task", file("new"), "--test", file("probe"))
    check(printed, model)
    assert "Composition(" in printed
    assert re.search(r"base: probe exact_match .*\n?composed: probe exact_match", printed)


def test_too_little_memory_stops_before_anything_is_loaded(run, place, file, monkeypatch, tmp_path):
    monkeypatch.setattr("workbench.training.estimate.get_max_memory", lambda: {"cpu": 1})
    monkeypatch.syspath_prepend(str(RECIPES))
    module = importlib.import_module("sparse_doctor")
    monkeypatch.setattr(module.common, "load", None)
    arguments = ["--model", place("qwen3", "model"), "--train", file("lesson"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"this needs about .* of memory and cpu has .* or go on with --yes"):
        module.main([*arguments, *COMMON[:-1]])


def test_wrong_files_are_found_before_hours_of_training(run, place, file, capsys):
    model, lesson = place("qwen3", "model"), file("lesson")
    with pytest.raises(WorkbenchError, match=r"gone\.jsonl"):
        run("sparse_doctor", "--model", model, "--train", lesson, "--test", "probe=gone.jsonl")
    with pytest.raises(WorkbenchError, match=r"gone\.jsonl"):
        run("sa_mdkif", "--model", model, "--skills", f"one={lesson}", "--task", "new=gone.jsonl")
    parents = [part for name in ("instruct", "clinical", "base") for part in (f"--{name}", model)]
    with pytest.raises(SystemExit):
        run("weight_merging", *parents, "--validation", file("probe", ["a", "b"]), "--few-shot", lesson)
    assert "--few-shot names ['lesson'] and --few-shot-test []; give both" in capsys.readouterr().err


def test_rows_of_the_split_are_taken_and_those_that_leak_are_told(place, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES))
    common = importlib.import_module("common")
    kinds = ["train"] * 4 + ["test"] * 2
    rows = [{"id": f"{i}", "skill": "s", "query": f"{i % 5}?", "answer": "a", "split": kinds[i]} for i in range(6)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = f"own={tmp_path / 'all.jsonl'}"
    assert [row.id for row in common.task(spec, "train").rows()] == ["0", "1", "2", "3"]
    assert [row.id for row in common.task(spec, "test").rows()] == ["4", "5"]
    common.check(SimpleNamespace(train=[spec], test=[spec]))
    assert "Beware: 1 of 2 rows to score of 'own' are among those to train on" in capsys.readouterr().out
    common.check(SimpleNamespace(train=[spec], test=[]))
    assert capsys.readouterr().out == ""
    meqsum = tmp_path / "meqsum.jsonl"
    meqsum.write_text(json.dumps({"question": "A long question?", "summary": "Short?"}) + "\n")
    assert common.task(f"meqsum={meqsum}").metric == "composite"


def test_a_file_without_a_name_is_refused(run, place, tmp_path):
    with pytest.raises(SystemExit, match=r"'x\.jsonl': write NAME=PATH, where NAME is a benchmark \(medqa, "):
        run("sparse_doctor", "--model", place("qwen3", "model"), "--train", "x.jsonl")
