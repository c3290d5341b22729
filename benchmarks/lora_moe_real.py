"""Train a mixture of LoRA experts on real exam questions, and look for what it learned in three real exams.

    python benchmarks/lora_moe_real.py FOLDER [--train 500] [--limit 200] [--steps 60]

FOLDER holds medmcqa, mmlu_medical and cmmlu_medical_zh as their authors publish them. A classroom model knows none of
this English and no Chinese, so that scores near chance (1 in 4) are expected: what is shown is that the whole way
works, from a public file over training to a score by likelihood.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import workbench as wb
from workbench.data import Choice
from workbench.evaluation import Task
from workbench.evaluation.suites import example_of
from workbench.records import Example

FOUR = ["A", "B", "C", "D"]
MAPPINGS: dict[str, dict[str, Any]] = {
    "medmcqa": {"query": "question", "choices": ["opa", "opb", "opc", "opd"], "answer": Choice("cop", first=1)},
    "mmlu_medical": {
        "columns": ["question", *FOUR, "answer"],
        "query": "question",
        "choices": FOUR,
        "answer": Choice("answer", first="A"),
    },
    "cmmlu_medical_zh": {"query": "Question", "choices": FOUR, "answer": Choice("Answer", first="A")},
}
FILES = {"medmcqa": "medmcqa/dev.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="classroom/base")
    parser.add_argument("--train", type=int, default=500, help="MedMCQA questions to train on; they are not scored")
    parser.add_argument("--limit", type=int, default=200, help="most questions of each exam to score")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = wb.load_model(options.model, device=options.device)
    exams = {name: questions(options.folder, name, options.seed) for name in MAPPINGS}
    lessons, exams["medmcqa"] = exams["medmcqa"][: options.train], exams["medmcqa"][options.train :]
    suite = [Task(name=name, examples=rows, metric="likelihood", group="exam") for name, rows in exams.items()]
    ask: dict[str, Any] = {"limit": options.limit, "on_long": "skip", "seed": options.seed, "progress": False}
    before = wb.evaluate(model, tokenizer, suite, **ask)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = wb.train(
            model,
            tokenizer,
            lessons,
            adapter=wb.LoraMoeConfig(r=4, lora_alpha=8, target_modules="all-linear"),
            output_dir=folder,
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            seed=options.seed,
            too_long="drop",
            save_every=options.steps,
            progress=False,
        )
    seconds = time.perf_counter() - start
    after = wb.evaluate(run.model, tokenizer, suite, **ask)
    losses = [row["loss"] for row in run.history]
    print(
        f"{len(lessons) - len(run.dropped)} questions, {len(run.dropped)} too long and left out; {options.steps} steps"
    )
    print(f"in {seconds:.0f} s; loss {losses[0]:.2f} -> {losses[-1]:.2f}; seed {options.seed}. Chance is 0.250.\n")
    skipped: dict[str, int] = after.settings["too_long_skipped"]
    rows = [row(name, before[name], after[name], skipped.get(name, 0)) for name in before]
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f"))


def questions(folder: Path, name: str, seed: int) -> list[Example]:
    """Return a data set's questions in an order of the seed's: exams sort theirs by subject."""
    rows = wb.load_examples(folder / FILES.get(name, name), skill="exam", **MAPPINGS[name])
    return [example_of(row) for row in rows.shuffle(seed=seed).to_list()]


def row(name: str, before: Any, after: Any, skipped: int) -> dict[str, Any]:
    interval = f"{after.low:.3f} to {after.high:.3f}"
    figures = {"before": before.value, "after": after.value, "95 % interval": interval, "n": after.n}
    return {"exam": name} | figures | {"too long, left out": skipped}


if __name__ == "__main__":
    main()
