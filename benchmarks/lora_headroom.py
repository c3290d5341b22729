"""How far a plain LoRA gets from the base model on what no classroom model was taught: the room for better methods.

    python benchmarks/lora_headroom.py                 # about six minutes on two cores

One LoRA (PEFT, r 8, alpha 16, all linear layers) for each group of tasks, trained on its training rows, scored on
validation. The aim that the classroom was made for: 0.5 to 0.85 on the generation tasks and on the mixed ones.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model

import workbench as wb
from workbench.classroom.build import read_examples
from workbench.classroom.train import Phase, encode, fit
from workbench.evaluation import CLASSROOM
from workbench.models import data_samples_root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with base (default: the shipped one)")
    parser.add_argument("--groups", nargs="+", default=["generation", "both", "clinical"])
    parser.add_argument("--tokens", type=int, default=600_000, help="tokens that each LoRA reads")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--limit", type=int, default=60, help="most validation rows of each task")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    root = data_samples_root()
    folder = (options.models or root / "models") / "base"
    print("| task | base | LoRA |\n|---|---|---|")
    for group in options.groups:
        tasks = [task for task, (name, _) in CLASSROOM.items() if name == group]
        before, after = headroom(folder, root, tasks, options)
        for task in tasks:
            print(f"| {task} | {before[task].value:.3f} | {after[task].value:.3f} |")
        print(f"| **mean of {group}** | {before.mean(group).value:.3f} | {after.mean(group).value:.3f} |", flush=True)


def headroom(folder: Path, root: Path, tasks: list[str], options: argparse.Namespace) -> tuple:
    model, tokenizer = wb.load_model(folder, device="cpu")
    common = {"tasks": tasks, "split": "validation", "limit": options.limit, "progress": False}
    before = wb.evaluate(model, tokenizer, "classroom", **common)
    torch.manual_seed(0)
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), model)
    rows = read_examples(root, tasks)
    items = [encode(r, tokenizer, answers_only=True) for t in tasks for r in rows[t] if r.split == "train"]
    phase = Phase(shares={"all": 1.0}, tokens=options.tokens, lr=options.lr, answers_only=True, weight_decay=0.0)
    fit(model, {"all": items}, phase, seed=0, report=lambda line: None)
    return before, wb.evaluate(model, tokenizer, "classroom", **common)


if __name__ == "__main__":
    main()
