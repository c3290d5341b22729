"""Is a merged model tuned on 64 examples as good as its parents tuned on 256? Four parents, five generation tasks.

    python benchmarks/few_shot_effect.py --search               # learning rates, on validation with seed 100
    python benchmarks/few_shot_effect.py --split test --save    # table and chart, read once for the chosen settings
    python benchmarks/few_shot_effect.py --seeds 2 --tasks short_question --ks 0 16 --limit 5    # a quick look

The merge is linear, at the plain ratio that keeps most of both parents on validation (data_samples/results/search.csv).
Every parent gets the same LoRA, shots, steps and trials; instructions are scored in every cell, k = 0 being before.
Finished cells are kept in `--store` at once, so that the same command goes on where it was interrupted. With
`--executor ray` cells run side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lora_moe_effect import made

from workbench.merging.recipe import MergeRecipe
from workbench.models import data_samples_root
from workbench.search.few_shot import GENERATION, METRIC_PARTS, few_shot, shots_difference, shots_table
from workbench.views.few_shot_plot import FewShotPlot

RESULTS = data_samples_root() / "results"
STEPS = {16: 32, 64: 64, 256: 96}
"""Optimiser steps for each k, the same for all parents: with batches of 4 these are 8, 4 and 1.5 passes."""

RATES = (5e-3, 1e-2, 2e-2)
TUNED_ON = ("note_section", "short_question")
SEARCH_SEED = 100
KEPT = ("instruction",)
SCORES = ("composite", *KEPT)
AIM = (("merged", 64), ("instruct", 256))
PAIRS = (AIM, (("merged", 64), ("clinical", 256)), (("merged", 64), ("base", 256)),
         *(((("merged", k), (other, k))) for k in STEPS for other in ("instruct", "clinical", "base")))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true", help="choose learning rates and write --settings")
    parser.add_argument("--save", action="store_true", help="write the rows to --out, and the chart beside --store")
    parser.add_argument("--split", default="validation", help="what is scored; the search always takes validation")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=GENERATION, default=list(GENERATION), metavar="TASK")
    parser.add_argument("--ks", type=int, nargs="+", choices=[0, *STEPS], default=[0, *STEPS], metavar="K")
    parser.add_argument("--limit", type=int, default=30, help="most rows of each task that are scored")
    parser.add_argument("--keep-limit", type=int, default=60, help="most instructions that are scored")
    parser.add_argument("--models", default="classroom", help="folder with base, instruct and clinical")
    parser.add_argument("--settings", type=Path, default=RESULTS / "few_shot_settings.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "few_shot_effect.csv")
    parser.add_argument("--store", type=Path, default=Path("out/few_shot_effect.sqlite"))
    parser.add_argument("--executor", default="local", help="local, or ray: one cell for each --threads cores")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.search:
        search(options)
        return
    chosen = json.loads(options.settings.read_text())["chosen"] if options.settings.is_file() else {}
    rates = {(parent, k): chosen.get(f"{parent}, {k}", RATES[1]) for parent in parents(options) for k in STEPS}
    rows = run(options, options.tasks, rates, options.split, options.seeds)
    print(f"{options.split}, {options.limit} rows a task, {options.keep_limit} instructions, {options.seeds} seeds;")
    print(f"learning rates {'of the search' if chosen else 'not searched'}; points with 95 % t-intervals over seeds.\n")
    for table in (summary(rows), differences(rows), by_task(rows)):
        print(table.to_markdown(index=False, disable_numparse=True), "\n")
    print(verdict(rows))
    chart(rows, options.store.with_suffix(".html"))
    if options.save:
        command = made(sys.argv[1:] if arguments is None else arguments).replace("lora_moe", "few_shot")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows.assign(split=options.split, made=command).round(5).to_csv(options.out, index=False)


def search(options: argparse.Namespace) -> None:
    """Try every rate for each parent and k on validation; keep the best, and all trials, in one file."""
    trials: list[dict[str, Any]] = []
    tasks = [task for task in options.tasks if task in TUNED_ON]
    for lr in RATES:
        rows = run(options, tasks, lr, "validation", [SEARCH_SEED], ks=[k for k in options.ks if k])
        found = rows.groupby(["parent", "k"], sort=False)[list(SCORES)].mean().reset_index()
        trials += found.assign(lr=lr).round(5).to_dict("records")
    best: dict[str, dict[str, Any]] = {}
    for trial in trials:
        place = f"{trial['parent']}, {trial['k']}"
        best[place] = max(best.get(place, trial), trial, key=lambda t: t["composite"])
    kept: dict[str, Any] = {
        "chosen": {place: trial["lr"] for place, trial in best.items()},
        "trials": trials,
        "steps": STEPS,
    }
    kept |= {"seed": SEARCH_SEED, "split": "validation", "tasks": tasks, "limit": options.limit}
    kept |= {"recipe": json.loads(merged(options.models).to_json()), "by": "composite"}
    options.settings.parent.mkdir(parents=True, exist_ok=True)
    options.settings.write_text(json.dumps(kept, indent=1) + "\n")
    print(pd.DataFrame(trials).to_markdown(index=False, floatfmt=".4f"))


def run(options: argparse.Namespace, tasks: Sequence[str], lr: Any, split: str, seeds: Any, ks: Any = None):
    return few_shot(
        parents(options), tasks, ks=ks or options.ks, seeds=seeds, keep=KEPT, split=split, limit=options.limit,
        keep_limit=options.keep_limit, steps=STEPS, lr=lr, batch_size=4, device=options.device, store=options.store,
        executor=options.executor, resources={"num_cpus": options.threads},
    )  # fmt: skip


def parents(options: argparse.Namespace) -> dict[str, str | MergeRecipe]:
    named = {name: f"{options.models}/{name}" for name in ("clinical", "instruct", "base")}
    return {"merged": merged(options.models), **named}


def merged(models: str) -> MergeRecipe:
    """Return the linear merge at the plain ratio that keeps most of both parents on validation."""
    tried = pd.read_csv(RESULTS / "search.csv")
    plain = tried[tried["step"] == "uniform"]
    weights = json.loads(plain.loc[plain["kept"].idxmax(), "recipe"])["weights"]
    return MergeRecipe(parents=[f"{models}/instruct", f"{models}/clinical"], method="linear", weights=weights)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the means of each parent and k, in points, with what a cell read and took."""
    table = shots_table(rows, SCORES)
    found = table[["parent", "k", "n"]].rename(columns={"n": "seeds"})
    for name in SCORES:
        lows, highs = table[f"{name}_low"], table[f"{name}_high"]
        found[f"{name} (95 %)"] = [
            f"{100 * value:.1f}" + ("" if pd.isna(low) else f" ({100 * low:.1f} to {100 * high:.1f})")
            for value, low, high in zip(table[name], lows, highs)
        ]
    means = rows.groupby(["parent", "k"], sort=False).mean(numeric_only=True).reset_index()
    for part in METRIC_PARTS[1:]:
        found[part] = (100 * means[part]).map("{:.1f}".format)
    about = {"lr": "{:g}", "steps": "{:.0f}", "tokens": "{:.0f}"}
    return found.assign(**{name: means[name].map(form.format) for name, form in about.items()})


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the paired differences over seeds that the rows allow, in points."""
    there = {(parent, int(k)) for parent, k in zip(rows["parent"], rows["k"])}
    seeds = rows.loc[rows["k"] > 0, "seed"].nunique()
    table = [
        {"difference": f"{one[0]}@{one[1]} - {two[0]}@{two[1]}"}
        | {f"{name} (95 %)": points(rows, one, two, name) for name in SCORES}
        for one, two in PAIRS
        if {one, two} <= there and seeds > 1
    ]
    return pd.DataFrame(table)


def points(rows: pd.DataFrame, one: tuple[str, int], two: tuple[str, int], name: str) -> str:
    gap = shots_difference(rows, one, two, name)
    return f"{100 * float(gap.value):+.1f} ({100 * float(gap.low):+.1f} to {100 * float(gap.high):+.1f})"


def verdict(rows: pd.DataFrame) -> str:
    """Say whether the aim holds: the whole interval, or only the mean, is at least 0."""
    if not {*AIM} <= {(parent, int(k)) for parent, k in zip(rows["parent"], rows["k"])} or rows["seed"].nunique() < 2:
        return "The aim needs merged@64, instruct@256 and two seeds."
    gap = shots_difference(rows, *AIM)
    said = "holds" if gap.low >= 0 else "holds in the mean alone" if gap.value >= 0 else "does not hold"
    return f"merged@64 at least instruct@256 {said}: {points(rows, *AIM, 'composite')} points of composite."


def by_task(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean composite of each task, in points."""
    table = 100 * rows.pivot_table(index=["parent", "k"], columns="task", values="composite", sort=False)
    return table.map("{:.1f}".format).reset_index()


def chart(rows: pd.DataFrame, path: Path) -> None:
    plot = FewShotPlot(shots_table(rows, SCORES))
    path.parent.mkdir(parents=True, exist_ok=True)
    page = plot.figure.to_html(include_plotlyjs=True, full_html=False) + plot._repr_mimebundle_()["text/html"]
    path.write_text(f"<!doctype html><meta charset='utf-8'><title>Few shots</title>{page}", encoding="utf-8")
    print(f"chart: {path}")


if __name__ == "__main__":
    main()
