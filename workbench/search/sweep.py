"""One table of scores over merge ratios, which goes on where it was interrupted."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import ConfigError
from workbench.evaluation.suites import Suite
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.search.scoring import RecipeScores, score_alone


def sweep(
    recipe: MergeRecipe,
    ratios: int | Sequence[float] = 11,
    suite: Suite = "classroom",
    *,
    split: str = "validation",
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    live: LiveMerge | None = None,
    store: str | Path | None = None,
    batch_size: int = 32,
    on_long: str = "error",
    executor: str = "local",
    resources: Mapping[str, Any] | None = None,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> pd.DataFrame:
    """Score the merge of two parents at many ratios.

    Every finished row goes into `store` at once; called again with the same arguments, a sweep computes only the rows
    that are missing. A row counts as the same only if recipe, ratio, parents' weights, examples, metrics and settings
    are the same, so sweeps of different things can share a file.

    Args:
        recipe: A merge of two parents; its own ratio is not used.
        ratios: Shares of the second parent: a count of evenly spaced ones from 0 to 1, at least 2, or the shares.
        suite: As in `evaluate`.
        split: Which rows of the classroom. Choose a ratio on validation, and read test once for the one chosen.
        tasks: Names of the tasks to score; None scores all.
        limit: Most examples of each task, as in `evaluate`.
        seed: Of the limited part and of the bootstrap.
        live: A merge of the same parents to compute with; it gets its recipe back at the end. None makes one.
        store: An SQLite file for finished rows; None keeps them in memory alone.
        batch_size: Most sequences computed together.
        on_long: As in `evaluate`.
        executor: `local` scores one ratio after another here; `ray` side by side, a cell for each ratio, which opens
            the parents by their names; see `workbench.fanout.run_cells`.
        resources: What a cell needs on Ray, e.g. `{"num_gpus": 1}`.
        progress: Show a bar.
        stop: Set it from any thread: the row under way is given up, and the table of the finished rows returned.

    Returns:
        One row for each ratio, in rising order: `ratio`; for each task and each group's macro average `x` the columns
        `x`, `x_low`, `x_high` (95 % interval) and `x_n`. `attrs` holds recipe and settings.

    Raises:
        ConfigError: The recipe has not two parents, a ratio is outside 0..1, or what `evaluate` raises.
        DataError: `store` is a file of something else.
        MergeError: The parents do not fit each other, `live` holds others, or a cell on Ray opens others.
        CellError: A cell on Ray failed; the rows before it are in the store.
    """
    recipes = {share: recipe.with_ratio(share) for share in _shares(ratios)}
    settings: dict[str, Any] = {"split": split, "tasks": tasks, "limit": limit, "seed": seed}
    settings |= {"batch_size": batch_size, "on_long": on_long}
    scored = RecipeScores(live or LiveMerge(recipe), suite, store=store, **settings)
    if executor != "local":
        work = partial(score_alone, suite=suite, settings=settings)
        scored.spread([*recipes.values()], work, executor=executor, resources=resources, progress=progress, stop=stop)
    rows = []
    with scored.work(len(recipes), progress) as bar:
        # What the store has comes first, so that a stop leaves none of it out.
        for share, wanted in sorted(recipes.items(), key=lambda item: item[1] not in scored):
            bar.set_description(f"ratio {share:g}")
            rows.append({"ratio": share, **scored.row(wanted, bar, stop)})
    front = pd.DataFrame(sorted(rows, key=lambda row: row["ratio"]))
    front.attrs = {"recipe": json.loads(recipe.to_json()), **scored.settings}
    return front


def _shares(ratios: int | Sequence[float]) -> list[float]:
    if isinstance(ratios, int):
        if ratios < 2:
            raise ConfigError(f"ratios={ratios}: a sweep needs at least 2 from 0 to 1; give a list for a single one")
        return [i / (ratios - 1) for i in range(ratios)]
    shares = sorted({float(ratio) for ratio in ratios})
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ConfigError(f"ratios={list(ratios)}: they are shares of the second parent, 0 to 1, at least one")
    return shares
