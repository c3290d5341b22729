"""Engines of models that have several states: adapters, recipes, a recipe for each row."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from workbench.generation.lanes import Engine, Row
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.merging.spectrum import RatioSpectrum


class AdapterEngine(Engine):
    """A base with adapters: one batch for all where they are low-rank updates, else a lane for each.

    Args:
        model: The transformers model within.
        adapters: A `MixedAdapters` of it.
    """

    def __init__(self, model: Any, adapters: Any) -> None:
        super().__init__(model)
        self.adapters = adapters

    def key(self, row: Row) -> Hashable:
        """Return the adapter where only one can be at work."""
        return super().key(row) if self.adapters.mixing else (super().key(row), row.choice)

    @contextmanager
    def entered(self, rows: Sequence[Row]) -> Iterator[None]:
        """Give each row its adapter."""
        names = [row.choice for row in rows]
        with self.adapters.rows(names) if self.adapters.mixing else self.adapters.only(names[0]):
            yield

    def rest(self) -> None:
        """Free the adapters' common matrices."""
        self.adapters.release()


class LiveEngine(Engine):
    """One live merge, whose weights follow the recipe of the lane at hand.

    The recipe belongs to the request: a lane has the rows of one recipe, and its cache never meets another one. When
    nothing is left to write, the recipe is again the one from before, unless someone else has moved it.
    """

    def __init__(self, live: LiveMerge) -> None:
        super().__init__(live.model)
        self.live = live
        self.before: MergeRecipe | None = None
        self.applied: MergeRecipe | None = None

    def key(self, row: Row) -> Hashable:
        """Return the recipe."""
        return super().key(row), row.choice

    @contextmanager
    def entered(self, rows: Sequence[Row]) -> Iterator[None]:
        """Apply the recipe, and hold the weights still; whoever moves it meanwhile waits for one step."""
        recipe, entered = rows[0].choice, False
        while not entered:
            self._apply(recipe)
            with self.live.generation(preview=False):
                # Between the two, a slider elsewhere may have moved the weights.
                entered = self.live.recipe == recipe
                if entered:
                    yield

    def rest(self) -> None:
        """Give back the recipe from before."""
        if self.before is not None and self.live.recipe == self.applied:
            self.live.apply(self.before)
        self.before = self.applied = None

    def _apply(self, recipe: MergeRecipe) -> None:
        if self.live.recipe != recipe:
            self.before = self.live.recipe if self.live.recipe != self.applied else self.before
            self.live.apply(recipe)
            self.applied = recipe


class SpectrumEngine(Engine):
    """A spectrum in which each row of the batch is a block of its own, with its request's recipe."""

    def __init__(self, spectrum: RatioSpectrum) -> None:
        super().__init__(spectrum.model)
        self.spectrum, self.before = spectrum, spectrum.recipes

    @contextmanager
    def entered(self, rows: Sequence[Row]) -> Iterator[None]:
        """Give each row its recipe."""
        recipes = tuple(row.choice for row in rows)
        if self.spectrum.recipes != recipes:
            self.spectrum.apply(recipes)
        yield

    def rest(self) -> None:
        """Give back the recipes from before."""
        if self.spectrum.recipes != self.before:
            self.spectrum.apply(self.before)
