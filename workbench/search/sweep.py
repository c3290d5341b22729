"""One table of scores over merge ratios, which goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from workbench.errors import ConfigError
from workbench.evaluation import METRICS, EvaluationStopped, Task, evaluate
from workbench.evaluation.suites import Suite, resolve
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.records import Scores
from workbench.search.store import RowStore


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
        store: A file of JSON lines for finished rows; None keeps them in memory alone.
        batch_size: Most sequences computed together.
        on_long: As in `evaluate`.
        progress: Show a bar.
        stop: Set it from any thread: the row under way is given up, and the table of the finished rows returned.

    Returns:
        One row for each ratio, in rising order: `ratio`; for each task and each group's macro average `x` the columns
        `x`, `x_low`, `x_high` (95 % interval) and `x_n`. `attrs` holds recipe and settings.

    Raises:
        ConfigError: The recipe has not two parents, a ratio is outside 0..1, or what `evaluate` raises.
        DataError: `store` is a file of something else.
        MergeError: The parents do not fit each other, or `live` holds others.
    """
    shares = _shares(ratios)
    recipes = {share: recipe.with_ratio(share) for share in shares}
    chosen = resolve(suite, split=split, tasks=tasks, limit=limit, seed=seed)
    _check_names(chosen)
    mine = live or LiveMerge(recipe)
    named = isinstance(suite, str)
    settings = {"suite": suite if named else "own", "split": split if named else None, "limit": limit, "seed": seed}
    common = [settings, on_long, str(mine.model.dtype), _fingerprint(mine), [_description(task) for task in chosen]]
    keys = {share: _digest([common, wanted.to_json()]) for share, wanted in recipes.items()}
    rows, total, before = RowStore(store), sum(len(task.rows()) for task in chosen), mine.recipe
    with tqdm(total=total * len(shares), unit="ex", disable=not progress) as bar:
        measure = partial(
            evaluate, suite=chosen, seed=seed, batch_size=batch_size, on_long=on_long, progress=bar.update, stop=stop
        )
        try:
            for share, wanted in recipes.items():
                bar.set_description(f"ratio {share:g}")
                if keys[share] in rows:
                    bar.update(total)
                    continue
                scores = _hold(mine, wanted, measure)
                about = {**scores.settings, **settings, "recipe": json.loads(wanted.to_json())}
                rows.add(keys[share], _row(share, scores), about)
        except EvaluationStopped:
            bar.set_description("stopped")
        finally:
            mine.apply(before)
    front = pd.DataFrame([rows[keys[share]] for share in shares if keys[share] in rows])
    front.attrs = {"recipe": json.loads(recipe.to_json()), **settings}
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


def _check_names(tasks: Sequence[Task]) -> None:
    """A task and a group may share a name, and so a column, only where they are the same thing."""
    for task in tasks:
        if any(other.group == task.name and other.name != task.name for other in tasks):
            raise ConfigError(f"task {task.name!r} has the name of a group of other tasks; rename one of them")


def _hold(live: LiveMerge, wanted: MergeRecipe, measure: Callable[[Any, Any], Scores]) -> Scores:
    """Measure a recipe with the weights held still; someone may move them between the two steps, so look again."""
    while True:
        live.apply(wanted)
        with live.generation(preview=False):
            if live.recipe == wanted:
                return measure(live.model, live.tokenizer)


def _row(share: float, scores: Scores) -> dict[str, float]:
    row = {"ratio": share}
    for name, score in [*scores.items(), *((group, scores.mean(group)) for group in scores.groups())]:
        row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high, f"{name}_n": score.n}
    return row


def _description(task: Task) -> list[Any]:
    metric = [task.metric, METRICS[task.metric].version]
    return [task.name, task.group, metric, task.max_new_tokens, [example.to_dict() for example in task.rows()]]


def _fingerprint(live: LiveMerge) -> str:
    """Digest the parents' weights, since a rebuilt model keeps its name, and what they read and write with."""
    digest = hashlib.blake2b(str(getattr(live.tokenizer, "chat_template", None)).encode())
    for parent in range(len(live.recipe.parents)):
        for name, tensor in live.parent(parent).state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
