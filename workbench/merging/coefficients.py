"""From a recipe to what is done at one tensor; every executor of a recipe asks here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from workbench.errors import ConfigError, MergeError
from workbench.merging.recipe import MergeRecipe
from workbench.ops.merging import Mix, linear_mix, slerp_mix
from workbench.ops.rule_settings import RuleSettings, check_rule


def tensor_mix(recipe: MergeRecipe, name: str, position: float, cosine: Callable[[str], float]) -> Mix:
    """Return how one tensor is mixed from the parents'.

    Args:
        recipe: A `linear` or `slerp` recipe.
        name: The tensor's name.
        position: Its place in depth, as `depth_positions` gives it.
        cosine: Called with the name, only where the method needs it, for the cosine between the two parents' tensors.

    Raises:
        MergeError: The weights sum to 0 at this tensor.
    """
    weights = recipe.weights_at(name, position)
    try:
        if recipe.method == "linear":
            return linear_mix(weights, normalise=recipe.normalise is not False)
        return slerp_mix(linear_mix(weights).coefficients[1], cosine(name))
    except ConfigError as error:
        raise MergeError(f"Tensor {name!r}, at depth {position:.2f}: {error}") from error


def tensor_settings(
    recipe: MergeRecipe, name: str, position: float, threshold: Sequence[float] | None = None
) -> RuleSettings:
    """Return what the rule of any method is told at one tensor, checked.

    Args:
        recipe: Any recipe.
        name: The tensor's name.
        position: Its place in depth, as `depth_positions` gives it.
        threshold: As in `MergeRecipe.settings_at`.

    Raises:
        MergeError: The settings break a rule at this tensor.
    """
    try:
        settings = recipe.settings_at(name, position, threshold=threshold)
        check_rule(recipe.method, settings, parents=len(recipe.parents), base=recipe.base is not None)
    except ConfigError as error:
        raise MergeError(f"Tensor {name!r}, at depth {position:.2f}: {error}") from error
    return settings
