"""Recipes under `accelerate launch`: two processes train one adapter, say everything once, and score it.

The file is its own script, which runs a recipe as its file would: `accelerate launch ... test_recipes_launch.py RECIPE
ARGUMENT ...`.
"""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from two_processes import DDP, FSDP, in_shards, launch, shard_on_cpus

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "recipes")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COMMON = ["--device", "cpu", "--length", "128", "--batch-size", "2", "--flops", "1e12", "--dry-run", "--out", "never"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models as users have them, and three files: to train on, to choose from, and to write answers to."""
    from pico_language import byte_tokenizer
    from test_recipes_dry_run import MODELS

    folder = tmp_path_factory.mktemp("recipes")
    for kind in ("llama", "qwen3"):
        torch.manual_seed(0)
        MODELS[kind]().save_pretrained(folder / kind)
        byte_tokenizer(chat=True).save_pretrained(folder / kind)
    for name, choices in (("lesson", None), ("probe", ["a", "b"])):
        rows = [
            {"id": f"{name}{i}", "skill": name, "query": f"What is {i}?", "answer": "ab"[i % 2], "choices": choices}
            for i in range(8)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", [DDP, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize(("recipe", "steps"), [("sparse_doctor", 2), ("icft", 6)])
def test_two_processes_train_say_it_once_and_score(folder, recipe, steps, kind):
    def file(name):
        return f"{name}={folder / name}.jsonl"

    stages = [part for name in ("general", "medical", "specialist") for part in (f"--{name}", file("lesson"))]
    given = ["--model", folder / "qwen3", "--train", file("lesson")]
    given = ["--model", folder / "llama", *stages] if recipe == "icft" else given
    scored = ["--test", file("probe"), file("lesson")]
    done = launch(__file__, [recipe, *given, *scored, *COMMON], kind)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("before anything is loaded") == 1
    assert done.stdout.count(f"finished, step {steps} of") == 1
    assert len(re.findall(r"\| probe +\| own", done.stdout)) == len(re.findall(r"\| lesson +\| own", done.stdout)) == 1


if __name__ == "__main__":
    if in_shards():
        shard_on_cpus()
    sys.argv[:] = [str(ROOT / "recipes" / f"{sys.argv[1]}.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
