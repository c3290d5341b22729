"""Search the blend that keeps most of both classroom parents on validation, then read test once for what was chosen.

    python benchmarks/search.py --store out/search.sqlite     # goes on where it was interrupted
    python benchmarks/search.py --budget 20 --limit 10        # a quick try

With 200 recipes of 40 validation rows a task about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import torch

import workbench as wb
from workbench.evaluation import CLASSROOM
from workbench.search.recipes import RatioSpace, best_recipe, search_recipe

AXES = ("clinical", "instructions")
PARENTS = ("classroom/instruct", "classroom/clinical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=200, help="recipes to score besides the parents")
    parser.add_argument("--limit", type=int, default=40, help="most validation rows of each task")
    parser.add_argument("--points", type=int, default=2, help="points of each curve over depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="SQLite file of finished rows")
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = [name for name, (group, _) in CLASSROOM.items() if group in AXES]
    live = wb.LiveMerge(wb.MergeRecipe(parents=PARENTS))
    found = search_recipe(
        live.recipe,
        budget=options.budget,
        space=RatioSpace(points=options.points),
        tasks=tasks,
        limit=options.limit,
        seed=options.seed,
        live=live,
        store=options.store,
    )
    if options.out:
        found.round(5).to_csv(options.out, index=False)
    print("\n### Validation: best plain ratio, and the front\n")
    plain = found[found["step"] == "uniform"]
    shown = pd.concat([plain.loc[[plain["kept"].idxmax()]], found[found["front"]].sort_values(AXES[0])])
    print(shown[["step", *AXES, "kept", "recipe"]].to_markdown(index=False, floatfmt=".3f"))
    confirm(live, tasks, wb.MergeRecipe.from_json(plain.loc[plain["kept"].idxmax(), "recipe"]), best_recipe(found))


def confirm(live: wb.LiveMerge, tasks: list[str], plain: wb.MergeRecipe, best: wb.MergeRecipe) -> None:
    """Read test for the parents, the best plain ratio and the best recipe, all chosen before."""
    arms = {"instruct": live.recipe.with_ratio(0), "clinical": live.recipe.with_ratio(1), "plain": plain, "best": best}
    rows = {}
    for name, recipe in arms.items():
        live.apply(recipe)
        scores = wb.evaluate(live.model, live.tokenizer, tasks=tasks, split="test", progress=False)
        rows[name] = {axis: scores.mean(axis) for axis in AXES}
    tops = {axis: max(rows[name][axis].value for name in ("instruct", "clinical")) for axis in AXES}
    print("\n### Test, read once\n\n| recipe | clinical | instructions | kept of both |\n|---|---|---|---|")
    for name, row in rows.items():
        cells = " | ".join(f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})" for s in row.values())
        print(f"| {name} | {cells} | {min(row[axis].value / tops[axis] for axis in AXES):.1%} |")
    kept = min(rows["best"][axis].value / tops[axis] for axis in AXES)
    print(
        f"\n- {'holds' if kept >= 0.95 else 'DOES NOT HOLD'}: one recipe keeps 95 % of both parents on test: {kept:.1%}"
    )
    print(f"\nThe recipe: {best.to_json()}")


if __name__ == "__main__":
    main()
