"""Score models over public data: what a small classroom model makes of text that was not made for it.

    python benchmarks/real_data.py FOLDER [--models NAME ...] [--limit 100]

FOLDER holds mts_dialog, medmcqa and ifeval as their authors publish them. Every left-out example is counted.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import workbench as wb
from workbench.data import Choice
from workbench.evaluation import Task

NAMES = ["classroom/base", "classroom/instruct", "classroom/clinical"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=NAMES)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = tasks(options.folder)
    rows = []
    for name in options.models:
        model, tokenizer = wb.load_model(name)
        start = time.perf_counter()
        scores = wb.evaluate(model, tokenizer, found, limit=options.limit, on_long="skip")
        seconds = time.perf_counter() - start
        skipped: dict[str, int] = scores.settings["too_long_skipped"]
        rows += [row(name, task, score, skipped) for task, score in scores.items()]
        print(f"{name}: {sum(score.n for score in scores.values())} examples in {seconds:.0f} s")
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f"))


def row(model: str, task: str, score: Any, skipped: dict[str, int]) -> dict[str, Any]:
    interval = f"{score.low:.3f} to {score.high:.3f}"
    figures = {"metric": score.metric, "value": score.value, "95 % interval": interval, "n": score.n}
    return {"model": model, "task": task, **figures, "too long, left out": skipped.get(task, 0)}


def tasks(folder: Path) -> list[Task]:
    """The three sets as tasks, with the mapping that each needs."""
    visits = wb.load_examples(
        folder / "mts_dialog" / "MTS-Dialog-ValidationSet.csv",
        skill="summarisation",
        context="dialogue",
        query="Summarise the visit.",
        answer="section_text",
    )
    exam = wb.load_examples(
        folder / "medmcqa" / "dev.json",
        skill="exam",
        query="question",
        choices=["opa", "opb", "opc", "opd"],
        answer=Choice("cop", first=1),
    )
    prompts = wb.load_examples(
        folder / "ifeval" / "prompts_100.jsonl",
        skill="instruction",
        query="prompt",
        answer="",
        meta=["instruction_id_list", "kwargs"],
    )
    return [
        Task(name="mts_dialog", metric="rouge_l", group="clinical", examples=visits),
        Task(name="medmcqa", metric="likelihood", group="exam", examples=exam),
        Task(name="ifeval", metric="ifeval", group="instructions", examples=prompts),
    ]


if __name__ == "__main__":
    main()
