"""The sliders for the numbers of a merge rule besides its weights: only those that the chosen rule reads are shown."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from workbench.merging.recipe import options_of
from workbench.merging.weights import mean_of
from workbench.views.controls import Setting

SETTINGS = {
    "density": ("Density: share of each change that is kept", 1.0, 1.0, 0.05),
    "gamma": ("Gamma: share of the largest changes that is dropped", 0.01, 0.2, 0.01),
    "epsilon": ("Epsilon: how much likelier large changes are kept", 0.15, 0.5, 0.01),
    "lambda_": ("Lambda: factor of the merged change", 1.0, 2.0, 0.05),
    "t": ("t: difference up to which the other's entry is taken", 0.01, 0.1, 0.002),
    "select_topk": ("Top k: share of the entries, those that differ most, that is merged", 1.0, 1.0, 0.05),
}
"""A recipe's field: the label, where the slider starts if the recipe leaves the field open, its right end, a step."""


class MergeSettings(widgets.VBox):
    """One slider for each number of `SETTINGS`.

    Args:
        recipe: Where the sliders start; of curves, and of one number for each parent, at the mean.
    """

    def __init__(self, recipe: Any) -> None:
        self.sliders = {}
        for name, (label, start, most, step) in SETTINGS.items():
            held = getattr(recipe, name)
            self.sliders[name] = Setting(label, start if held is None else mean_of(held), most=most, step=step)
        super().__init__(list(self.sliders.values()))

    def read(self, recipe: Any, method: str, moved: Any = None) -> dict[str, float]:
        """Return the fields of a recipe that the sliders set.

        Args:
            recipe: The recipe so far.
            method: The method that it is to have.
            moved: The slider that was moved; one that nobody moved leaves curves and numbers for single parents be.
        """
        read = options_of(method)
        return {
            name: slider.chosen
            for name, slider in self.sliders.items()
            if name in read and (slider is moved or getattr(recipe, name) is None)
        }

    def show(self, method: str) -> None:
        """Show the sliders that the method reads, and hide the others."""
        for name, slider in self.sliders.items():
            slider.layout.display = "" if name in options_of(method) else "none"
