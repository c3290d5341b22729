"""Search a merge's ratios, group by group and over depth, for the blend that keeps most of both parents."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import ConfigError
from workbench.evaluation.suites import Suite
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.search.scoring import RecipeScores, score_alone

UNIFORM = (0.3, 0.4, 0.5, 0.6, 0.7)
"""The plain ratios that every search measures first: what it must beat, and where it starts."""

_STEP = 0.15  # the optimiser's first step, as a share


@dataclass(frozen=True, kw_only=True)
class RatioSpace:
    """Which shares of the second parent a search may set: one curve over depth for each group of tensors.

    Args:
        groups: Parts of tensor names, first match first; all other tensors are one more group.
        points: Points of each group's curve over depth, evenly spaced, 1 for a plain number.

    Raises:
        ConfigError: A group is empty or named twice, or `points` is below 1.
    """

    groups: tuple[str, ...] = ("attn", "mlp", "norm")
    points: int = 2

    def __post_init__(self):
        if len(set(self.groups)) < len(self.groups) or not all(self.groups) or "*" in self.groups:
            raise ConfigError(f"groups={self.groups}: parts of tensor names, each once; '*' is added for the rest")
        if self.points < 1:
            raise ConfigError(f"points={self.points}: a curve over depth has at least 1 point")

    @property
    def size(self) -> int:
        """How many numbers a search sets; the rest has one, since it lies outside of the layers."""
        return len(self.groups) * self.points + 1

    def share(self, values: Sequence[float]) -> dict[str, list[float]]:
        """Return `size` numbers as the filters that `MergeRecipe.with_ratio` takes, each within 0 to 1."""
        rounded = [round(min(max(float(value), 0.0), 1.0), 3) for value in values]
        curves = [rounded[i : i + self.points] for i in range(0, self.size - 1, self.points)]
        return {**dict(zip(self.groups, curves)), "*": rounded[-1:]}


def search_recipe(
    recipe: MergeRecipe,
    *,
    budget: int = 80,
    space: RatioSpace | None = None,
    axes: tuple[str, str] = ("clinical", "instructions"),
    suite: Suite = "classroom",
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
    """Search the ratios of two parents for recipes that keep most of what each of them does best.

    What a recipe keeps of an axis is its score over the better parent's. CMA-ES (nevergrad's, which LoraHub needs as
    well, and which asks and tells, so that a search can be stopped and replayed) maximises the smaller of the two
    shares plus a tenth of their mean, from the best plain ratio on. Every row goes into `store` at once; called again
    with the same arguments, the search repeats its steps from there and goes on.

    Args:
        recipe: A merge of two parents; its own ratio is not used.
        budget: Recipes to score besides the two parents, the plain ratios `UNIFORM` included.
        space: Which ratios may differ; None is `RatioSpace()`.
        axes: Two scores, groups or tasks of the suite.
        suite: As in `evaluate`.
        split: Which rows of the classroom. Search on validation, and read test once for the recipe chosen.
        tasks: Names of the tasks to score; None scores all. Fewer tasks make a quicker search.
        limit: Most examples of each task.
        seed: Of the optimiser, the limited part and the bootstrap.
        live: A merge of the same parents to compute with; it gets its recipe back at the end. None makes one.
        store: An SQLite file for finished rows; None keeps them in memory alone.
        batch_size: Most sequences computed together.
        on_long: As in `evaluate`.
        executor: `local`, or `ray` for one generation of recipes after another side by side; the table is the same. See
            `sweep`.
        resources: What a cell needs on Ray, e.g. `{"num_gpus": 1}`.
        progress: Show a bar.
        stop: Set it from any thread: the row under way is given up, and the table of the finished ones returned.

    Returns:
        One row for each recipe in the order tried, the parents first: `step` (`parent`, `uniform` or `search`), the
        scores with their intervals as `sweep` has them, `kept_<axis>` for both axes, `kept` (the smaller of the two),
        `front` (no other row is better on one axis and as good on the other), and `recipe` as JSON.

    Raises:
        ConfigError: `budget` is too small, an axis is not scored, both parents score 0 on one, or what `evaluate`
            raises.
        DataError: `store` is a file of something else.
        MergeError: The parents do not fit each other, or a cell on Ray opens others.
        CellError: A cell on Ray failed; the rows before it are in the store.

    Source: Akiba et al. 2025 (arXiv 2403.13187) search merges by evolution, layer by layer. Deviates: one number for
    each group and place in depth, and one objective.
    """
    if budget < len(UNIFORM) + 1:
        raise ConfigError(f"budget={budget}: the {len(UNIFORM)} plain ratios are tried first; give at least one more")
    settings: dict[str, Any] = {"split": split, "tasks": tasks, "limit": limit, "seed": seed}
    settings |= {"batch_size": batch_size, "on_long": on_long}
    scored = RecipeScores(live or LiveMerge(recipe), suite, store=store, **settings)
    work = partial(score_alone, suite=suite, settings=settings)
    rows, steps = [], _Steps(recipe, space or RatioSpace(), axes, budget, seed)
    with scored.work(budget + 2, progress) as bar:
        for generation in steps:
            if executor != "local":
                recipes = [wanted for _, wanted in generation]
                scored.spread(recipes, work, executor=executor, resources=resources, progress=False, stop=stop)
            for step, wanted in generation:
                row = scored.row(wanted, bar, stop)
                steps.tell(row)
                rows.append({"step": step, **row, "recipe": wanted.to_json()})
                bar.set_description(f"keeps {steps.best:.0%} of both" if steps.best else "parents")
    return _table(rows, axes, {"recipe": json.loads(recipe.to_json()), "axes": axes, **scored.settings})


def best_recipe(found: pd.DataFrame) -> MergeRecipe:
    """Return the recipe that keeps most of both axes.

    Args:
        found: What `search_recipe` returned.

    Raises:
        ConfigError: The table holds nothing but the parents.
    """
    tried = found.loc[found["step"] != "parent"]
    if tried.empty:
        raise ConfigError("the search was stopped before it scored a blend; run it again, it goes on from its store")
    return MergeRecipe.from_json(tried.loc[tried["kept"].idxmax(), "recipe"])


class _Steps:
    """Which recipes come next, from what was told of those before."""

    def __init__(self, recipe: MergeRecipe, space: RatioSpace, axes: tuple[str, str], budget: int, seed: int):
        self._recipe, self._space, self._axes, self._budget, self._seed = recipe, space, axes, budget, seed
        self._scores: list[tuple[float, float]] = []
        self.best = 0.0

    def __iter__(self) -> Iterator[list[tuple[str, MergeRecipe]]]:
        """Yield generations: recipes that do not need each other's scores, all of which are told before the next."""
        first = {0.0: "parent", 1.0: "parent"} | dict.fromkeys(UNIFORM, "uniform")
        yield [(step, self._recipe.with_ratio(share)) for share, step in first.items()]
        plain, left = [self._gain(scores) for scores in self._scores[2:]], self._budget - len(UNIFORM)
        optimizer = self._optimizer(UNIFORM[plain.index(max(plain))], left)
        population = 4 + int(3 * math.log(self._space.size))  # CMA-ES's own, which nevergrad takes, too
        while left:
            asked = [optimizer.ask() for _ in range(min(population, left))]
            yield [("search", self._recipe.with_ratio(self._space.share(each.value))) for each in asked]
            for candidate, scores in zip(asked, self._scores[-len(asked) :], strict=True):
                optimizer.tell(candidate, -self._gain(scores))
            left -= len(asked)

    def tell(self, row: dict[str, float]) -> None:
        """Take the scores of the recipe that came last."""
        missing = [axis for axis in self._axes if axis not in row]
        if missing:
            raise ConfigError(f"axes={self._axes}: {missing[0]!r} was not scored; score its tasks, or name others")
        self._scores.append((row[self._axes[0]], row[self._axes[1]]))
        if len(self._scores) > 2:
            self.best = max(self.best, min(self._kept(self._scores[-1])))

    def _kept(self, scores: tuple[float, float]) -> tuple[float, float]:
        tops = [max(parent[i] for parent in self._scores[:2]) for i in (0, 1)]
        if not all(tops):
            raise ConfigError(f"both parents score 0 on {self._axes[tops.index(0)]!r}: there is nothing to keep of it")
        return scores[0] / tops[0], scores[1] / tops[1]

    def _gain(self, scores: tuple[float, float]) -> float:
        kept = self._kept(scores)
        return min(kept) + 0.05 * sum(kept)

    def _optimizer(self, start: float, budget: int) -> Any:
        import nevergrad

        values = nevergrad.p.Array(init=[start] * self._space.size).set_mutation(sigma=_STEP)
        values.random_state.seed(self._seed)
        return nevergrad.optimizers.registry["CMA"](values, budget=budget)


def _table(rows: list[dict[str, Any]], axes: tuple[str, str], about: dict[Any, Any]) -> pd.DataFrame:
    found = pd.DataFrame(rows)
    if len(found) > 1:
        for axis in axes:
            found[f"kept_{axis}"] = found[axis] / found[axis][:2].max()
        found["kept"] = found[[f"kept_{axis}" for axis in axes]].min(axis=1)
        points = list(zip(found[axes[0]], found[axes[1]]))
        found["front"] = [not any(_better(other, point) for other in points) for point in points]
    found.attrs = about
    return found


def _better(other: tuple[float, float], point: tuple[float, float]) -> bool:
    return other[0] >= point[0] and other[1] >= point[1] and other != point
