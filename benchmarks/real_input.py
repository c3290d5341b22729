"""Score the classroom models on real public files: such small models score badly, the pipeline must be right.

    python benchmarks/real_input.py --data PATH     # a folder with mts_dialog, medmcqa and ifeval

About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

import workbench as wb
from workbench.data import Choice
from workbench.evaluation import Task
from workbench.evaluation.ifeval import unchecked
from workbench.evaluation.suites import example_of


def suite(data: Path, limit: int) -> list[Task]:
    dialogues = wb.load_examples(
        data / "mts_dialog" / "MTS-Dialog-TrainingSet.csv",
        skill="summarisation",
        context="dialogue",
        query="Summarise the visit.",
        answer="section_text",
        limit=limit,
    )
    exam = wb.load_examples(
        data / "medmcqa" / "dev.json",
        skill="exam",
        query="question",
        choices=["opa", "opb", "opc", "opd"],
        answer=Choice("cop", first=1),
        limit=limit,
    )
    prompts = wb.load_examples(
        data / "ifeval" / "prompts_100.jsonl",
        skill="instruction",
        query="prompt",
        answer="",
        meta=["instruction_id_list", "kwargs"],
        limit=limit,
    )
    checkable = [example for example in map(example_of, prompts) if not unchecked(example)]
    print(f"IFEval: {len(checkable)} of {len(prompts)} prompts can be checked without a language detector")
    return [
        Task(name="MTS-Dialog", examples=dialogues, metric="rouge_l", max_new_tokens=48),
        Task(name="MedMCQA", examples=exam, metric="likelihood"),
        Task(name="IFEval", examples=checkable, metric="ifeval", max_new_tokens=64),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100, help="rows of each file")
    parser.add_argument("--models", nargs="+", default=["classroom/base", "classroom/instruct", "classroom/clinical"])
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    tasks = suite(options.data, options.limit)
    print("| model | task | value | 95 % interval | n | longer than the context |\n|---|---|---|---|---|---|")
    for name in options.models:
        model, tokenizer = wb.load_model(name, device="cpu")
        scores = wb.evaluate(model, tokenizer, tasks, on_long="skip", progress=False)
        for task, score in scores.items():
            long = scores.settings["too_long_skipped"].get(task, 0)
            print(f"| {name} | {task} | {score.value:.3f} | {score.low:.3f} to {score.high:.3f} | {score.n} | {long} |")


if __name__ == "__main__":
    main()
