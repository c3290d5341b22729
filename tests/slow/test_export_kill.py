"""`export_merge` under kill -9, and how much memory it takes: each in a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb
from workbench.errors import ModelError

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
import torch
import workbench as wb
from workbench.merging import shards
torch.set_num_threads(1)
recipe, out, moment, count = wb.MergeRecipe.from_json(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
real, calls = getattr(os, moment), []
def last(*values, **named):
    calls.append(values)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*values, **named)
setattr(os, moment, last)
wb.export_merge(recipe, out, max_shard_bytes=400_000, progress=False)
"""
MEASURED = """
import sys
import torch
import workbench as wb
from workbench.merging import export
torch.set_num_threads(1)
recipe = wb.MergeRecipe.from_json(sys.argv[1])
def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
plan = export._plan
def planned(*values):
    job = plan(*values)
    open("/proc/self/clear_refs", "w").write("5")
    print(memory("VmRSS"))
    return job
export._plan = planned
wb.export_merge(recipe, sys.argv[2], progress=False)
print(memory("VmHWM"))
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


# A shard is fsynced before it gets its name; the last replace is that of config.json; then the folder is renamed.
@pytest.mark.parametrize(("moment", "count", "kept"), [("fsync", 3, 2), ("replace", 17, 9), ("rename", 1, 9)])
def test_after_kill_9_the_same_call_goes_on_to_the_same_bytes(moment, count, kept, tmp_path):
    recipe = wb.MergeRecipe(parents=["classroom/instruct", "classroom/clinical"], method="slerp", weights=[0.4, 0.6])
    whole = wb.export_merge(recipe, tmp_path / "whole", max_shard_bytes=400_000, progress=False)
    killed = run(KILLED, recipe.to_json(), tmp_path / "out", moment, count)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = tmp_path / ".out.partial"
    assert not (tmp_path / "out").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert len(finished) == kept
    if moment != "rename":
        with pytest.raises(ModelError):
            wb.load_model(partial)
    out = wb.export_merge(recipe, tmp_path / "out", max_shard_bytes=400_000, progress=False)
    assert contents(out) == contents(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert not partial.exists()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Parents with one large tensor, 205 MB in float32, among small ones."""
    folders = []
    for seed in range(3):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("wide")
        sizes = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=400_000, tie_word_embeddings=True)).save_pretrained(folder)
        words = Tokenizer(WordLevel({"<u>": 0}, "<u>"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<u>").save_pretrained(folder)
        folders.append(str(folder))
    return folders


# In float32 copies of the largest tensor; the interpreter's own growth is allowed for with 60 MB.
@pytest.mark.parametrize(
    ("method", "copies"), [("linear", 1), ("slerp", 3), ("task_arithmetic", 6), ("ties", 6), ("dare_ties", 6)]
)
def test_peak_memory(method, copies, wide, tmp_path):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from Linux' /proc")
    sparse = {"base": wide[2], "density": 0.5} if method in ("ties", "dare_ties") else {}
    based = {"base": wide[2]} if method == "task_arithmetic" else sparse
    recipe = wb.MergeRecipe(parents=wide[:2], method=method, **based)
    done = run(MEASURED, recipe.to_json(), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    print(f"{method}: {(peak - before) / (400_000 * 128 * 4):.2f} copies")
    assert peak - before <= copies * 400_000 * 128 * 4 + 60e6
