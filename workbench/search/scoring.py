"""Scores of recipes, each computed once: what a sweep and a search have in common."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from workbench.errors import ConfigError, MergeError
from workbench.evaluation import METRICS, EvaluationStopped, Task, evaluate
from workbench.evaluation.suites import Suite, resolve
from workbench.fanout import CellsStopped, run_cells
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.ops.digest import add_weights
from workbench.records import Scores
from workbench.search.store import RowStore


class RecipeScores:
    """Score recipes of the same parents, one after another, and keep every finished row.

    A row counts as the same only if recipe, parents' weights, examples, metrics and settings are the same, so that
    different work can share a file.

    Args:
        live: Computes with the recipes.
        suite: As in `evaluate`.
        split: Which rows of the classroom.
        tasks: Names of the tasks to score; None scores all.
        limit: Most examples of each task, as in `evaluate`.
        seed: Of the limited part and of the bootstrap.
        store: An SQLite file for finished rows; None keeps them in memory alone.
        batch_size: Most sequences computed together.
        on_long: As in `evaluate`.

    Raises:
        ConfigError: What `evaluate` raises, or a task has the name of a group of other tasks.
        DataError: `store` is a file of something else.
    """

    def __init__(
        self,
        live: LiveMerge,
        suite: Suite,
        *,
        split: str,
        tasks: Sequence[str] | None,
        limit: int | None,
        seed: int,
        store: str | Path | None,
        batch_size: int,
        on_long: str,
    ):
        self._live, self._seed, self._batch_size, self._on_long = live, seed, batch_size, on_long
        self._tasks = resolve(suite, split=split, tasks=tasks, limit=limit, seed=seed)
        _check_names(self._tasks)
        named = isinstance(suite, str)
        self.settings = {
            "suite": suite if named else "own",
            "split": split if named else None,
            "limit": limit,
            "seed": seed,
        }
        described = [_description(task) for task in self._tasks]
        self._common = [self.settings, on_long, str(live.model.dtype), _fingerprint(live), described]
        self._rows = RowStore(store)
        self.examples = sum(len(task.rows()) for task in self._tasks)

    def __contains__(self, recipe: MergeRecipe) -> bool:
        return self.key(recipe) in self._rows

    @contextmanager
    def work(self, count: int, progress: bool) -> Iterator[tqdm[Any]]:
        """Hold a bar over `count` recipes; a stop ends what runs inside, and at the end the merge has its recipe back.

        Args:
            count: How many rows there will be.
            progress: Show the bar.
        """
        before = self._live.recipe
        with tqdm(total=self.examples * count, unit="ex", disable=not progress) as bar:
            try:
                yield bar
            except EvaluationStopped:
                bar.set_description("stopped")
            finally:
                self._live.apply(before)

    def row(self, recipe: MergeRecipe, bar: tqdm[Any], stop: threading.Event | None) -> dict[str, float]:
        """Return a recipe's scores, from the store where they are there.

        Args:
            recipe: A recipe of the same parents.
            bar: Moves by one for each example.
            stop: As in `evaluate`.

        Returns:
            For each task and each group's macro average `x`: `x`, `x_low`, `x_high` (95 % interval) and `x_n`.

        Raises:
            EvaluationStopped: `stop` was set.
            MergeError: The recipe does not fit the parents.
        """
        key = self.key(recipe)
        if key in self._rows:
            bar.update(self.examples)
            return self._rows[key]
        self._rows.add(key, *self.score(recipe, bar, stop))
        return self._rows[key]

    def score(self, recipe: MergeRecipe, bar: tqdm[Any], stop: threading.Event | None) -> tuple[Any, Any]:
        """Compute a recipe's row, and what a reader of the store may want to know of it."""
        scores = _hold(self._live, recipe, lambda model, tokenizer: self._measure(model, tokenizer, bar, stop))
        return _row(scores), {**scores.settings, **self.settings, "recipe": json.loads(recipe.to_json())}

    def spread(self, recipes: Sequence[MergeRecipe], work: Callable[[MergeRecipe], Any], **cells: Any) -> None:
        """Let other processes score the recipes that are missing, and keep each row as soon as it is there.

        Args:
            recipes: Recipes whose parents any process can open by their names.
            work: A `functools.partial` of `score_alone`, with what this was made with.
            **cells: As in `run_cells`; after a stop what is done is kept.

        Raises:
            MergeError: What a process opened by the parents' names is not what is here.
            CellError: A cell failed; the rows before it are kept.
        """
        missing = [*{self.key(recipe): recipe for recipe in recipes if recipe not in self}.values()]

        def keep(place: int, scored: tuple[str, Any, Any]) -> None:
            if scored[0] != self.key(missing[place]):
                raise MergeError(
                    f"a process that opened {' and '.join(missing[place].parents)} by name found other weights or rows "
                    "than are here; use executor='local' for parents that are in memory only"
                )
            self._rows.add(*scored)

        with suppress(CellsStopped):
            run_cells(work, missing, on_result=keep, **cells)

    def _measure(self, model: Any, tokenizer: Any, bar: tqdm[Any], stop: threading.Event | None) -> Scores:
        return evaluate(
            model,
            tokenizer,
            suite=self._tasks,
            seed=self._seed,
            batch_size=self._batch_size,
            on_long=self._on_long,
            progress=bar.update,
            stop=stop,
        )

    def key(self, recipe: MergeRecipe) -> str:
        """Return what a recipe's row is found by, which depends on all that the row depends on."""
        text = json.dumps([self._common, recipe.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def score_alone(recipe: MergeRecipe, *, suite: Suite, settings: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """Open a recipe's parents by their names and return its key, its row and what there is to know of it."""
    scored = RecipeScores(LiveMerge(recipe), suite, store=None, **settings)
    return scored.key(recipe), *scored.score(recipe, tqdm(disable=True), None)


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


def _row(scores: Scores) -> dict[str, float]:
    row = {}
    for name, score in [*scores.items(), *((group, scores.mean(group)) for group in scores.groups())]:
        row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high, f"{name}_n": score.n}
    return row


def _description(task: Task) -> list[Any]:
    metric = [task.metric, METRICS[task.metric].version]
    return [task.name, task.group, metric, task.max_new_tokens, [example.to_dict() for example in task.rows()]]


def _fingerprint(live: LiveMerge) -> str:
    """Digest the parents' weights, since a rebuilt model keeps its name, and what they read and write with."""
    digest = hashlib.blake2b(str(getattr(live.tokenizer, "chat_template", None)).encode())
    for parent in range(len(live.parents)):
        add_weights(digest, live.parent(parent))
    return digest.hexdigest()
