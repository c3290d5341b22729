"""Time `export_merge` against `mergekit-yaml`, in time and peak memory, each in a process of its own.

    python benchmarks/export.py --params 1b --threads 2

Two random Llama checkpoints in bfloat16 are written to a temporary folder and merged from there. Both tools start from
nothing, so that their imports count; the row `import` is a process that only imports our half. CPU seconds hardly move
when the machine is busy with something else. Peak memory is the largest resident set, mapped pages of the parents
included, which Linux tells. Every round runs each row once, in turn; the ratios are of the medians.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb

SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500},
    "238m": {"hidden_size": 1024, "intermediate_size": 2144, "num_hidden_layers": 16, "vocab_size": 32000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
}
METHODS = ("linear", "slerp", "ties", "dare_ties")
# Asked for inside, since what the system counts for a child includes its parent's size before the child's own start.
PEAK = """
import atexit, sys
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", line.split()[1], file=sys.stderr)
atexit.register(peak)
"""
OURS = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
import workbench as wb
from workbench.merging.export import export_merge
if len(sys.argv) > 2:
    export_merge(wb.MergeRecipe.from_json(sys.argv[2]), sys.argv[3], device=sys.argv[4], progress=False)
"""
THEIRS = "from mergekit.scripts.run_yaml import main; sys.exit(main())"


def write_model(size: str, folder: Path, seed: int) -> str:
    """Write a random checkpoint, without ever holding it in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False, **SIZES[size])
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for tensor in model.parameters():
        tensor.data.normal_(std=0.02)
    model.save_pretrained(folder, max_shard_size="2GB")
    words = Tokenizer(WordLevel({"<u>": 0}, "<u>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<u>").save_pretrained(folder)
    return str(folder)


def recipe_of(method: str, folders: list[str]) -> wb.MergeRecipe:
    if method in ("linear", "slerp"):
        return wb.MergeRecipe(parents=folders[:2], method=method, weights=[0.4, 0.6])
    return wb.MergeRecipe(parents=folders[:2], method=method, weights=[0.4, 0.6], base=folders[2], density=0.5)


def measured(command: list[str], threads: int) -> tuple[float, float, float]:
    """Run a command; return its seconds, its seconds of computing, and its peak resident set in bytes."""
    limits = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | limits)
    assert process.stderr is not None
    printed = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{printed[-2000:]}")
    peak = int(printed.rsplit("peak ", 1)[1]) * 1024
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, peak


def commands(folders: list[str], work: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    ours = [sys.executable, "-c", PEAK + OURS, str(options.threads)]
    rows = {"import": ours}
    for method in options.methods:
        recipe = recipe_of(method, folders)
        rows[method] = [*ours, recipe.to_json(), str(work / "ours"), options.device]
        config = work / f"{method}.yaml"
        config.write_text(recipe.to_yaml())
        cuda = ["--cuda"] if options.device.startswith("cuda") else []
        theirs = [
            sys.executable,
            "-c",
            PEAK + THEIRS,
            str(config),
            str(work / "theirs"),
            "--quiet",
            "--no-write-model-card",
        ]
        rows[f"mergekit {method}"] = [*theirs, "--num-threads", str(options.threads), *cuda]
    return rows


def report(results: dict[str, list[tuple[float, float, float]]]) -> str:
    middle = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in results.items()}
    lines = ["| row | seconds | CPU seconds | peak MB | mergekit / ours: seconds, CPU, peak |", "|---|---|---|---|---|"]
    for name, (seconds, busy, peak) in middle.items():
        theirs = middle.get(f"mergekit {name}")
        against = ", ".join(f"{x / y:.2f}x" for x, y in zip(theirs, middle[name])) if theirs else "-"
        lines.append(f"| {name} | {seconds:.1f} | {busy:.1f} | {peak / 1e6:.0f} | {against} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--params", choices=SIZES, default="small")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["linear", "slerp"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where the models are written and removed again; default: the system's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        work = Path(name)
        folders = [write_model(options.params, work / f"parent{seed}", seed) for seed in range(3)]
        size = sum(path.stat().st_size for path in Path(folders[0]).glob("*.safetensors"))
        largest = max(SIZES[options.params]["vocab_size"], SIZES[options.params]["intermediate_size"])
        largest *= SIZES[options.params]["hidden_size"] * 4
        rows = commands(folders, work, options)
        results: dict[str, list[tuple[float, float, float]]] = {row: [] for row in rows}
        for _ in range(options.rounds):
            for row, command in rows.items():
                results[row].append(measured(command, options.threads))
                for out in ("ours", "theirs"):
                    shutil.rmtree(work / out, ignore_errors=True)
    where = torch.cuda.get_device_name(options.device) if options.device != "cpu" else f"{options.threads} CPU threads"
    print(f"{size / 2e6:.1f} M weights, bfloat16, {where}, torch {torch.__version__}, {options.rounds} rounds")
    print(f"largest tensor in float32: {largest / 1e6:.0f} MB\n")
    print(report(results))
    print(f"\n`{shlex.join(['python', 'benchmarks/export.py', *sys.argv[1:]])}`, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
