"""From a recipe to the plain numbers of one tensor's merge; every executor of a recipe asks here."""

from __future__ import annotations

from collections.abc import Callable

from workbench.errors import ConfigError, MergeError
from workbench.merging.recipe import MergeRecipe
from workbench.ops.merging import Mix, linear_mix, slerp_mix


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
