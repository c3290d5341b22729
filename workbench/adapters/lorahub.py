"""LoraHub: search the weights of skills on a few examples, without gradients."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from workbench.errors import ConfigError, ModelError, WorkbenchWarning
from workbench.paths import read_json_object

OPTIMIZERS = {"ngopt": "Cobyla", "cma": "CMA"}
"""The name of each optimiser in nevergrad; NGOpt by what it chooses, see `search_weights`."""


@dataclass(frozen=True, kw_only=True)
class SearchStep:
    """One candidate of a search.

    Args:
        step: From 0, which is w = 0.
        loss: On the examples; NaN where it was no number.
        penalised: loss + l1 * mean|w|, which is minimised.
        weights: Of each skill.
        best: The lowest `penalised` so far.
    """

    step: int
    loss: float
    penalised: float
    weights: dict[str, float]
    best: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Composition:
    """The weights that a search found for skills.

    `set_skill_weights(model, found.weights)` gives them to a skill router. `list(found.weights.values())` are the
    weights of a `MergeRecipe` by `task_arithmetic` whose parents are the skills' folders in this order.

    Args:
        weights: Skill to its weight, in the order of the skills; all 0 where nothing better was found.
        trace: The candidates in the order tried.
        found_better: Whether these weights have a lower penalised loss than w = 0.
        seconds: Of the search.
        tokens: Read by the model in the whole search, padding left out; 0 where that is not known.
        about: How it was searched: optimiser, bound, l1, budget, seed, stopped, and what the caller adds.
    """

    weights: dict[str, float]
    trace: tuple[SearchStep, ...]
    found_better: bool
    seconds: float
    tokens: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write everything as a JSON file, whole or not at all."""
        path = Path(path)
        writing = path.with_name(f".{path.name}.partial")
        writing.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(writing, path)

    @classmethod
    def load(cls, path: str | Path) -> Composition:
        """Read what `save` wrote.

        Raises:
            ConfigError: The file holds something else.
            ModelError: It is no JSON object.
        """
        value: Any = read_json_object(Path(path))
        try:
            return cls(**value | {"trace": tuple(SearchStep(**row) for row in value["trace"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no composition ({error!r}); pass what Composition.save wrote") from error

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {weight:+.2f}" for name, weight in self.weights.items())
        told = told if self.found_better else "nothing better than w = 0"
        best = f", {self.trace[0].penalised:.3f} -> {self.trace[-1].best:.3f}" if self.trace else ""
        return f"Composition({told}; {len(self.trace)} steps{best})"


def search_weights(
    loss: Callable[[dict[str, float]], float],
    names: Sequence[str],
    *,
    optimizer: str = "ngopt",
    bound: float = 1.5,
    l1: float = 0.05,
    budget: int = 40,
    seed: int = 0,
    on_step: Callable[[SearchStep], Any] | None = None,
    stop: Event | None = None,
) -> Composition:
    """Minimise loss(w) + l1 * mean|w| over -bound <= w <= bound, from w = 0 on, without gradients.

    Both optimisers are nevergrad's: LoraHub's NGOpt is defined by it, its CMA-ES is that of the package `cma`, and both
    ask for a candidate and are told its loss, so that a search can be watched, stopped, and repeated from its seed.

    `ngopt`: NGOpt chooses an optimiser by size, and for 2 to 60 skills and budgets up to 80 that is Cobyla, linear
    models within a trust region and no evolution at all. It is the default since it needs less: with classroom skills,
    40 losses brought it about as far as 100 brought CMA-ES. Cobyla runs in a thread that waits for the next loss, and
    a process with such a thread never exits; here it is ended however the search ends.

    Args:
        loss: Called with the weight of each skill; returns the loss on the examples.
        names: The skills, at least one.
        optimizer: `ngopt` or `cma`.
        bound: Largest |w|, above 0.
        l1: Weight of the mean |w|, at least 0.
        budget: Most calls of `loss`, w = 0 included, at least 2.
        seed: Of the optimiser. Cobyla draws nothing: it tries the same for all seeds.
        on_step: Called with each `SearchStep`, on the thread of the search.
        stop: Set it from any thread: no further candidate is computed, and the best so far is returned.

    Returns:
        The best candidate tried, or w = 0, with a WorkbenchWarning, where none is better. A candidate whose loss is no
        number stands in the trace and counts as bad; one warning tells of them.

    Raises:
        ConfigError: An argument is out of range, or nevergrad is not installed.
        ModelError: The loss of w = 0, the base itself, is no number.

    Source: LoraHub (arXiv 2307.13269), section 3.3: NGOpt, bound 1.5, l1 0.05, budget 40.
    Deviates: the best candidate tried is returned, where the reference takes what the optimiser recommends. `ngopt` is
    Cobyla for all sizes: with 1 to 3 skills and a large budget NGOpt turns to a metamodel, which fails under numpy 2.
    """
    _check(names, optimizer, bound, l1, budget)
    began, search = time.perf_counter(), _Search(loss, tuple(names), l1, on_step)
    stopped = stop.is_set if stop is not None else bool
    with _asking(optimizer, len(names), bound, budget, seed) as chooser:
        base = math.nan if stopped() else search.told([0.0] * len(names))
        while len(search.trace) < budget and not stopped():
            candidate = chooser.ask()
            values = [float(value) for value in candidate.value]
            # The reference's first candidate is w = 0, too; it is known by now.
            known = chooser.num_ask == 1 and not any(values)
            chooser.tell(candidate, base if known else search.told(values))
    about = {"optimizer": optimizer, "bound": bound, "l1": l1, "budget": budget, "seed": seed}
    about["stopped"] = len(search.trace) < budget
    _tell(search.trace, search.best)
    return Composition(
        weights=search.trace[search.best].weights if search.trace else dict.fromkeys(names, 0.0),
        trace=tuple(search.trace),
        found_better=search.best > 0,
        seconds=time.perf_counter() - began,
        about=about,
    )


class _Search:
    """The candidates tried, and the place of the best, which is the earliest where several are equal."""

    def __init__(self, loss: Any, names: tuple[str, ...], l1: float, on_step: Any):
        self._loss, self._names, self._l1, self._on_step = loss, names, l1, on_step
        self._lowest, self._highest, self.best = math.inf, -math.inf, 0
        self.trace: list[SearchStep] = []

    def told(self, values: list[float]) -> float:
        """Try a candidate, and return what the optimiser is told of it."""
        weights, step = dict(zip(self._names, values)), len(self.trace)
        loss = float(self._loss(dict(weights)))
        if step == 0 and not math.isfinite(loss):
            raise ModelError(
                f"the loss of w = 0 is {loss}, so that the base itself is broken on these examples; load it again, in "
                "float32 if it was in float16"
            )
        loss = loss if math.isfinite(loss) else math.nan
        penalised = loss + self._l1 * sum(map(abs, values)) / len(values)
        if penalised < self._lowest:
            self._lowest, self.best = penalised, step
        row = SearchStep(step=step, loss=loss, penalised=penalised, weights=weights, best=self._lowest)
        self.trace.append(row)
        if self._on_step is not None:
            self._on_step(row)
        if math.isnan(penalised):
            # Not far above the others: Cobyla fits linear models to what it is told.
            return self._highest + 1
        self._highest = max(self._highest, penalised)
        return penalised


@contextmanager
def _asking(optimizer: str, size: int, bound: float, budget: int, seed: int) -> Iterator[Any]:
    try:
        import nevergrad
    except ImportError as error:
        raise ConfigError("the search of weights needs nevergrad: pip install 'workbench[search]'") from error
    values = nevergrad.p.Array(init=np.zeros(size), lower=np.full(size, -bound), upper=np.full(size, bound))
    values.random_state.seed(seed)
    # What the two libraries say of nevergrad's arguments and of matplotlib is nothing that a reader could act on.
    warnings.filterwarnings("ignore", message="COBYLA: Invalid|Could not import matplotlib")
    chooser = nevergrad.optimizers.registry[OPTIMIZERS[optimizer]](values, budget=budget)
    try:
        yield chooser
    finally:
        thread = getattr(chooser, "_messaging_thread", None)
        if thread is not None:
            thread.stop()


def _tell(trace: Sequence[SearchStep], best: int) -> None:
    told, broken = [], sum(math.isnan(row.loss) for row in trace)
    if broken:
        told.append(
            f"{broken} of {len(trace)} candidates gave a loss that is no number and were passed over; with a lower "
            "bound the weights stay where the model still computes"
        )
    if len(trace) > 1 and best == 0:
        told.append(
            f"none of {len(trace) - 1} candidates has a lower loss than w = 0 ({trace[0].loss:.4g}), so the weights "
            "stay 0 and the base is as it was; try a larger budget, a smaller l1, or skills nearer to the task"
        )
    for text in told:
        warnings.warn(text, WorkbenchWarning, stacklevel=3)


def _check(names: Sequence[str], optimizer: str, bound: float, l1: float, budget: int) -> None:
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"the skills are {list(names)}; name at least one, and each once")
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer={optimizer!r}; it is one of {', '.join(OPTIMIZERS)}")
    if not 0 < bound < math.inf or not 0 <= l1 < math.inf:
        raise ConfigError(f"bound={bound}, l1={l1}: finite numbers, bound above 0 and l1 at least 0")
    if budget < 2:
        raise ConfigError(f"budget={budget}: w = 0 is tried first, so give at least 2")
