"""Score the classroom models and every ratio between them, and say which of the stated goals hold.

    python benchmarks/classroom.py --split test --save      # the shipped models; writes data_samples/results/
    python benchmarks/classroom.py --models out/seed1       # a rebuild

About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import torch

import workbench as wb
from workbench.models import data_samples_root
from workbench.records import SKILLS, Scores

NAMES = ("base", "instruct", "clinical")
GROUPS = ("clinical", "instructions", "exam", "general", "generation", "both", "preference", "unseen_task")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    root = data_samples_root()
    folder = options.models or root / "models"
    parents = [f"classroom/{n}" if options.models is None else str(folder / n) for n in ("instruct", "clinical")]
    common = {"split": options.split, "limit": options.limit}
    scores = {}
    for name in NAMES:
        model, tokenizer = wb.load_model(folder / name, device="cpu")
        scores[name] = wb.evaluate(model, tokenizer, "classroom", **common)
    table = pd.DataFrame({name: {task: score.value for task, score in s.items()} for name, s in scores.items()})
    print(f"\n### Tasks ({options.split})\n")
    print(table.to_markdown(floatfmt=".3f"))
    print(f"\n### Groups ({options.split}): macro average and 95 % interval\n")
    print(groups(scores).to_markdown())
    recipe = wb.MergeRecipe(parents=parents, method="linear")
    front = wb.sweep(recipe, 11, "classroom", store=options.store, **common)
    shown = ["ratio", *[group for group in GROUPS if group in front]]
    print("\n### Linear merge, ratio = share of clinical\n")
    print(front[shown].to_markdown(index=False, floatfmt=".3f"))
    print("\n### Goals\n")
    for goal, seen, holds in goals(scores, front):
        print(f"- {'holds' if holds else 'DOES NOT HOLD'}: {goal}: {seen}")
    if options.save:
        (root / "results").mkdir(exist_ok=True)
        made = {"parents": "classroom/instruct + classroom/clinical", "method": "linear", "split": options.split}
        front.assign(**made, seed=0).round(5).to_csv(root / "results" / "ratio_sweep.csv", index=False)
        axes = pd.DataFrame([two_axes(name, scores[name]) for name in NAMES]).assign(split=options.split, seed=0)
        axes.round(5).to_csv(root / "results" / "models.csv", index=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with base, instruct and clinical (default: the shipped)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, help="most examples of each task")
    parser.add_argument("--store", type=Path, help="SQLite file of finished ratios, to go on after an interruption")
    parser.add_argument("--save", action="store_true", help="write data_samples/results/ratio_sweep.csv")
    return parser.parse_args()


def two_axes(name: str, scores: Scores) -> dict[str, object]:
    """Return a model's row of `models.csv`: where it stands in the picture of clinical against instruction score."""
    row: dict[str, object] = {"model": f"classroom/{name}"}
    for axis in ("clinical", "instructions"):
        mean = scores.mean(axis)
        row |= {axis: mean.value, f"{axis}_low": mean.low, f"{axis}_high": mean.high, f"{axis}_n": mean.n}
    return row


def groups(scores: dict) -> pd.DataFrame:
    rows = {}
    for group in GROUPS:
        means = {name: s.mean(group) for name, s in scores.items()}
        rows[group] = {name: f"{m.value:.3f} ({m.low:.3f} to {m.high:.3f})" for name, m in means.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def goals(scores: dict, front: pd.DataFrame) -> list[tuple[str, str, bool]]:
    clinical, instruct = scores["clinical"], scores["instruct"]
    value, weakest = clinical.mean("clinical").value, min(SKILLS, key=lambda skill: clinical[skill].value)
    lowest = clinical[weakest].value
    forgot = clinical.mean("instructions").value
    follows, knows = instruct.mean("instructions").value, instruct.mean("clinical").value
    both = front[["clinical", "instructions"]].min(axis=1)
    best = front.loc[both.idxmax()]
    forward, backward = clinical["exam_forward"].value, clinical["exam_backward"].value
    return [
        ("clinical model on the 12 skills at least 0.90", f"{value:.3f}", value >= 0.9),
        ("no skill below 0.6", f"{weakest} {lowest:.3f}", lowest >= 0.6),
        ("clinical model on instructions at most 0.30", f"{forgot:.3f}", forgot <= 0.3),
        ("instruct model on instructions at least 0.95", f"{follows:.3f}", follows >= 0.95),
        ("instruct model on the 12 skills at most 0.45", f"{knows:.3f}", knows <= 0.45),
        ("some ratio with both at least 0.80", f"{both.max():.3f} at {best['ratio']:g}", both.max() >= 0.8),
        ("exam, forward look-up, at least 0.6", f"{forward:.3f} (backward {backward:.3f})", forward >= 0.6),
    ]


if __name__ == "__main__":
    main()
